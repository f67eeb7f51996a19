"""A study of pruning: accuracy against MACs of networks that are pruned by gates and fine-tuned."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from ..files.packages import require
from ..files.tables import check_table, replace_rows
from ..files.writing import check_folder
from ..measuring.complexity import complexity
from ..measuring.provenance import provenance
from ..weights.folders import write_model
from ..weights.runs import build_model, data_config, described_run
from .pruning import check_cut, prune_by_gates
from .statistics import gate_statistics

if TYPE_CHECKING:
    from ..training.process import Process

__all__ = ['pruning_study']

_logger = logging.getLogger(__name__)


def pruning_study(
        checkpoint: str | Path, shares: Sequence[float], criteria: Sequence[str], epochs: int, lr: float,
        table: str | Path, output: str | Path, **changes: Any,
) -> list[dict[str, Any]]:
    """Prune a trained network by each criterion and share, fine-tune the results, and tabulate accuracy against MACs.

    The gates are those of the training images without augmentation; the accuracy is that of the validation images.

    Args:
        checkpoint: checkpoint of :func:`~timm_se_plugin.training.train_classifier`, whose options of data and model
            are used.
        shares: shares of the gated channels to remove.
        criteria: criteria of :func:`~timm_se_plugin.analysis.pruning.prune_by_gates`.
        epochs: number of epochs of fine-tuning, with Nesterov momentum and a cosine schedule to 0.
        lr: learning rate at the start of the fine-tuning.
        table: CSV file that gets a row for the whole network and for each criterion and share, as soon as the row is
            measured.
        output: folder that gets a folder in timm's format for each fine-tuned network, named after criterion and share.
        **changes: options of the training to change, such as ``data_dir`` and ``device``.

    Returns:
        The rows of the table.

    Raises:
        ModuleNotFoundError: Torch-Pruning is not installed.
        ValueError: as :func:`~timm_se_plugin.analysis.pruning.prune_by_gates`, epochs or a learning rate below 0, or an
            unknown option.
    """
    require('analysis', 'torch_pruning')  # so that its absence does not end the study after the statistics

    from ..training import evaluate
    from ..training.checkpoint import read_checkpoint
    from ..training.config import options_of, run_columns
    from ..training.loaders import eval_loader, train_loader
    from ..training.network import moved
    from ..training.process import init_process
    from ..training.splits import class_names, label_by_name, open_split

    for share, criterion in product(shares, criteria):
        check_cut(share, criterion)
    for name, number in (('epochs', epochs), ('lr', lr)):
        if number < 0:
            raise ValueError(f'{name}={number} is below 0')
    check_folder(output)
    check_table(table)
    state = read_checkpoint(checkpoint)
    trained_by = run_columns(state)
    run = {'model': trained_by.pop('model'), **{f'checkpoint_{key}': value for key, value in trained_by.items()}}
    trained = {**options_of(state), 'device': None, 'dist_backend': None}  # this machine may be another one
    options = Namespace(**{**trained, **changes})
    unknown = set(changes) - set(trained)
    if unknown:
        raise ValueError(f'the training has no option called {", ".join(sorted(unknown))}')
    if options.task == 'multilabel':
        raise ValueError('the study compares accuracies, and a picture of this training has any number of labels')
    with init_process(options) as process:
        train_data, val_data = (open_split(options, split, training=False) for split in (
            options.train_split, options.val_split))
        for data, split in ((train_data, options.train_split), (val_data, options.val_split)):
            label_by_name(data, state.get('label_names'), split)
        model: Any = build_model(vars(options), state.get('model_config'))
        model.load_state_dict(state.get('state_dict_ema', state['state_dict']))
        model = moved(model, options, process)
        config = data_config(vars(options), model)
        size = tuple(config['input_size'])
        described = described_run(vars(options), class_names(train_data) or [], model)
        classes = described.get('label_names', [])
        with process.autocast(options):
            statistics = gate_statistics(model, eval_loader(options, train_data, config, process)(), classes)
        validation = eval_loader(options, val_data, config, process)
        training = train_loader(options, train_data, config, process)

        def top1(network: nn.Module) -> float:
            return evaluate(network, validation, model.num_classes).metrics['top1']

        def row(network: nn.Module, criterion: str, share: float, before: float, after: float) -> dict[str, Any]:
            cost = complexity(network, size)
            line = {
                **run, 'criterion': criterion, 'share': share, 'epochs': epochs if share else 0,
                'lr': lr if share else 0, 'parameters': cost.params, 'macs': cost.macs, 'top1_pruned': before,
                'top1': after, **provenance(process.device)}
            _logger.info('%s %g: %s MACs, top-1 %.4f, fine-tuned %.4f', criterion, share, cost.macs, before, after)
            return line

        # Before the long evaluations, so that a network that cannot be pruned or saved is refused at once.
        networks = [(criterion, share, prune_by_gates(model, statistics, share, size, criterion))
                    for criterion in criteria for share in shares]
        if networks:
            with TemporaryDirectory() as folder:
                write_model(networks[0][2], folder)
        whole = top1(model)
        rows: list[dict[str, Any]] = []

        def keep(line: dict[str, Any]) -> None:
            rows.append(line)
            replace_rows(table, [line], (*run, 'criterion', 'share', 'epochs', 'lr'))

        keep(row(model, 'whole', 0, whole, whole))
        for criterion, share, pruned in networks:
            before = top1(pruned)
            _fine_tune(pruned, training, epochs, lr, options, process)
            keep(row(pruned, criterion, share, before, top1(pruned)))
            write_model(pruned, Path(output) / f'{criterion}-{share:g}', described, config)
        return rows


def _fine_tune(
        model: nn.Module, loader: Any, epochs: int, lr: float, options: Namespace, process: 'Process',
) -> None:
    torch.manual_seed(options.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=options.momentum, nesterov=options.momentum > 0,
        weight_decay=options.weight_decay)
    scaler = torch.amp.GradScaler(process.device.type, enabled=process.amp_dtype(options) == 'float16')
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * len(loader)))
    model.train()
    for epoch in range(epochs):
        for x, y in loader(epoch):
            with process.autocast(options):
                loss = F.cross_entropy(model(x), y, label_smoothing=options.smoothing)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
