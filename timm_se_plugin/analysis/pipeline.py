"""The whole analysis of a network on a data set, written into one folder."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.packages import require
from ..files.tables import check_table, replace_rows, write_table
from ..files.writing import check_folder
from ..weights.reading import read_weights
from .figures import draw_activations, draw_depth, draw_deviations, draw_gate_maps, draw_scale
from .gates import find_gates
from .pictures import gate_maps, unusual_images
from .report import write_report
from .scale import ScaleStatistics, scale_statistics
from .statistics import GateStatistics, check_ending, gate_statistics

__all__ = ['analyze', 'parse_analysis']

_logger = logging.getLogger(__name__)


def parse_analysis(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the options of an analysis: those of an evaluation, and those of the table, the figures and the report."""
    from ..training import parse_evaluation
    from .options import analysis_parser
    return parse_evaluation(argv, analysis_parser())


def analyze(options: Namespace) -> GateStatistics:
    """Write ``gates.csv``, the papers' figures and ``report.html`` into ``options.output``.

    Under torchrun each process reads its own images, and the first process writes.

    Args:
        options: result of :func:`parse_analysis`.

    Returns:
        The statistics of all images.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no output folder, ``--record`` without a checkpoint of ``timm-se train``, an
            unknown class, a table that cannot be written, or as
            :func:`~timm_se_plugin.training.evaluation.network_and_data` and
            :func:`~timm_se_plugin.analysis.gate_statistics`.
    """
    from ..training.evaluation import network_and_data
    from ..training.process import init_process
    from ..training.splits import class_names

    if not options.output:
        raise ValueError('--output is missing; give the folder for the table, the figures and the report')
    if options.task == 'multilabel':
        raise ValueError('the analysis compares classes, and a picture of --task multilabel has any number of labels')
    require('analysis', 'matplotlib')  # so that its absence does not end a long analysis
    run = _name_of_run(options.checkpoint) if options.record else {}
    folder = Path(options.output)
    check_ending(folder / f'gates.{options.table}')
    check_folder(folder)
    if options.record:
        check_table(options.record)
    with init_process(options) as process:
        model, dataset, loader = network_and_data(options, process)
        selects = any(gate.selects for gate in find_gates(model))  # refuses a network without attention
        scale_table = Path(f'{Path(options.record).with_suffix("")}-scale.csv') if options.record else None
        if selects and scale_table:
            check_table(scale_table)
        config = loader.config
        classes = class_names(dataset) or [str(i) for i in range(model.num_classes)]
        unknown = sorted(set(options.classes or ()) - set(classes))
        if unknown:
            raise ValueError(f'no class is called {", ".join(map(repr, unknown))}; the data has {", ".join(classes)}')

        with process.autocast(options):
            statistics = gate_statistics(model, loader(), classes)
            if process.primary:  # at once, since what follows may fail or be interrupted
                statistics.save(folder / f'gates.{options.table}')
            drawn = options.classes or statistics.seen_classes[:4]
            for name in drawn:
                statistics.class_index(name)
            scale = scale_statistics(model, loader, classes) if selects else None
        if process.primary:
            shown = f'{options.model}, {statistics.images:,} images'
            if options.record:
                rows = [{**run, **row} for row in statistics.layer_rows()]
                replace_rows(Path(options.record), rows, (*run, 'layer', 'branch'))
            if scale and scale_table:
                rows = [{**run, **row} for row in scale.rows()]
                replace_rows(scale_table, rows, (*run, 'unit', 'scale', 'branch'))
            _draw(folder, statistics, scale, drawn, shown)
            with process.autocast(options):
                x = next(loader())[0][:8]
                maps = gate_maps(model, x)
                pictures = unusual_images(model, loader(), statistics, options.pictures)
            _draw_maps(folder, x, maps, config, shown)
            write_report(
                folder / 'report.html', model, statistics, title=f'Gates of {options.model}',
                note=_note(options, statistics, process.world_size), classes=drawn if options.classes else None,
                pictures=pictures, mean=config['mean'], std=config['std'], scale=scale,
                input_size=tuple(config['input_size']))
            _logger.info('written: %s', folder / 'report.html')
        return statistics


def _name_of_run(checkpoint: str) -> dict[str, Any]:
    """The columns that name a run of ``timm-se train`` in tables of results."""
    from ..training.config import run_columns

    saved = read_weights(checkpoint)[1] if checkpoint else {}
    if 'label_names' not in saved:
        raise ValueError('--record names rows by the run that trained the network; give --checkpoint a checkpoint of '
                         f'timm-se train, not {checkpoint or "a network without one"}')
    return run_columns({**saved, 'args': Namespace(**saved['args'])})


def _note(options: Namespace, statistics: GateStatistics, processes: int) -> str:
    weights = f'weights of {Path(options.checkpoint).name}' if options.checkpoint else \
        'published weights' if options.pretrained else 'random weights, not trained'
    share = f'; the images below are of the first of {processes} processes' if processes > 1 else ''
    return f'{weights}; split {options.val_split}, {statistics.images:,} images{share}'


def _draw(
        folder: Path, statistics: GateStatistics, scale: ScaleStatistics | None, classes: Sequence[str], shown: str,
) -> None:
    draw_activations(statistics, classes, folder / 'activations.png', f'Mean gate by class: {shown}')
    draw_deviations(statistics, classes[:2], folder / 'deviations.png', f'Mean gate ± standard deviation: {shown}')
    draw_depth(statistics, folder / 'depth.png', f'Gates by depth: {shown}')
    if scale:
        draw_scale(scale, folder / 'scale.png', f'Attention and the size of the object: {shown}')
        write_table(folder / 'scale.csv', scale.rows())


def _draw_maps(folder: Path, x: Tensor, maps: dict[str, Tensor], config: dict[str, Any], shown: str) -> None:
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    pictures = (x.float().cpu() * std + mean)[:, :3].expand(-1, 3, -1, -1)  # without the alpha channel, if any
    for name, gates in maps.items():
        draw_gate_maps(pictures, gates, folder / f'map-{name}.png', f'Gate of {name} over the image: {shown}')
