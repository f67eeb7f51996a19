"""The training loop: epochs of training and evaluation, and what a finished run leaves."""

import logging
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from timm.utils import distribute_bn

from ..files.packages import require
from ..files.tables import check_table, write_table
from ..files.writing import write_atomically
from ..measuring.complexity import complexity
from ..measuring.provenance import provenance
from .config import data_name, own_options
from .evaluation import evaluate
from .freezing import moving_statistics
from .process import init_process
from .records import Progress, draw_curves, record_result
from .run import Run
from .termination import TerminatedError, Termination
from .timing import step_time_ratio

__all__ = ['train_classifier']

_logger = logging.getLogger(__name__)


def train_classifier(options: Namespace) -> dict[str, Any] | None:
    """Train a classifier, and evaluate it after each epoch.

    Args:
        options: result of :func:`~timm_se_plugin.training.config.parse_options`.

    Returns:
        The run's row of results; None if SIGTERM ended the run before its last epoch.

    Raises:
        ValueError: options that do not fit each other, the data or the checkpoint, or another training that writes into
            the run's folder.
        NonFiniteLossError: a loss or a weight is NaN or infinite.
        UnreadableImageError: an image is corrupt.
        CheckpointError: a checkpoint cannot be read.
        ModuleNotFoundError: a package that the end of the training needs is not installed.
        UnwritableFileError: a checkpoint or a table cannot be written; earlier files are unchanged.
    """
    require('train', 'matplotlib', *(['sklearn'] if options.task == 'multilabel' else []))
    with init_process(options) as process, Termination() as termination:
        # Read before the training, during which the recipe and the package's files may change.
        changed, made = own_options(options), provenance(process.device)
        run = Run(options, process)
        with _locked(run):
            _write_options(run, made)
            try:
                while run.epoch < run.epochs:
                    train_epoch(run, termination)
                    finish_epoch(run, termination)
            except TerminatedError:
                _logger.info('stopped by SIGTERM in epoch %d, after batch %d; --resume auto continues the run',
                             run.epoch + 1, run.batch)
                return None
            except KeyboardInterrupt:
                _logger.info('interrupted in epoch %d; --resume auto continues the run from its last checkpoint',
                             run.epoch + 1)
                raise
            return _finish(run, changed, made)


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    """Keep other trainings out of the run's folder.

    Raises:
        ValueError: another training writes into the folder.
    """
    lock = FileLock(run.folder / '.lock')
    try:
        if run.process.primary:
            run.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f'another training writes into {run.folder}; wait until it has ended, or give this one a '
                         'folder of its own by --experiment') from None
    try:
        yield
    finally:
        lock.release()


def train_epoch(run: Run, termination: Termination) -> None:
    """Train the rest of the current epoch, and save a checkpoint.

    Raises:
        TerminatedError: SIGTERM came; the checkpoint is saved.
    """
    options, process, steps, count = run.options, run.process, run.options.grad_accum_steps, len(run.train_loader)
    # Reading the losses makes a process wait for its GPU and for the other processes.
    interval = options.log_interval if process.device.type == 'cuda' or process.distributed else 1
    progress = Progress(
        f'epoch {run.epoch + 1}/{run.epochs}', count, run.batch, options.batch_size * process.world_size,
        options.log_interval, process.primary)
    run.train()
    start = time.perf_counter()
    for x, y in run.train_loader(run.epoch, run.batch) if run.batch < count else ():
        update = (run.batch + 1) % steps == 0
        x = run.augment.erased(x, run.seeds_of_images(run.batch))
        run.seed_step(run.batch)
        inputs, targets = run.augment(x, y, run.epoch)
        with nullcontext() if update else run.task.no_sync():
            with run.autocast():
                result = run.task(inputs, targets)
            run.learn(result['loss'] / steps, update)
        run.count(result, y)
        run.batch += 1
        if update:
            run.updated()
        if run.batch % interval == 0:
            run.check()
            loss, right, images = run.sums.tolist()
            progress.update(
                run.batch - 1, loss=loss / images, **({} if run.is_multilabel else {'top1': right / images}))
        if update and run.batch < count:
            stop = (run.batch % interval < steps or not process.distributed) and process.any(termination.received)
            if stop or (options.recovery_interval and run.batch % options.recovery_interval < steps):
                run.seconds += time.perf_counter() - start
                run.save()
                start = time.perf_counter()
            if stop:
                process.any(False)  # a process that ends makes torchrun end the one that still writes
                raise TerminatedError
    progress.close()
    run.seconds += time.perf_counter() - start
    if process.distributed:  # before the save, since a resumed run evaluates what the checkpoint holds
        distribute_bn(moving_statistics(run.model), process.world_size, reduce=True)
        if run.evaluated is not run.model:  # after a checkpoint inside an epoch, all have this process's averages
            distribute_bn(moving_statistics(run.evaluated), process.world_size, reduce=False)
    run.save()


def finish_epoch(run: Run, termination: Termination) -> None:
    """Evaluate, add the epoch to the run's history, and save a checkpoint.

    Raises:
        TerminatedError: SIGTERM came during the evaluation; the checkpoint was saved before.
    """
    options, process = run.options, run.process
    lr = run.lr
    termination.at_once = True
    if process.any(termination.received):
        raise TerminatedError
    evaluation = evaluate(run.evaluated, run.eval_loader, run.classes)
    termination.at_once = False
    run.check_validation(evaluation.loss)
    loss, right, images = process.total(run.sums).tolist()
    row = {
        'epoch': run.epoch, 'train_loss': loss / images,
        **({} if run.is_multilabel else {'train_top1': right / images}), 'val_loss': evaluation.loss,
        **{f'val_{name}': value for name, value in evaluation.metrics.items()}, 'lr': lr,
        'seconds': round(run.seconds, 2)}
    main = next(iter(evaluation.metrics.values()))
    run.history.append(row)
    run.epoch, run.batch = run.epoch + 1, 0
    run.sums.zero_()
    if run.scheduler:
        run.scheduler.step(run.epoch, evaluation.loss if options.eval_metric == 'loss' else main)
    score = -evaluation.loss if options.eval_metric == 'loss' else main
    best, run.best = score > run.best, max(run.best, score)
    run.save(best)
    if process.primary:
        write_table(run.folder / 'summary.csv', run.history)
        if run.writer is not None:
            for name, number in row.items():
                run.writer.add_scalar(name, number, row['epoch'])
            run.writer.flush()
        train, val = (_as_text({key.removeprefix(split): value for key, value in row.items() if key.startswith(split)})
                      for split in ('train_', 'val_'))
        _logger.info('epoch %d/%d  train %s  val %s  lr %.3g', run.epoch, run.epochs, train, val, lr)


def _as_text(metrics: dict[str, float]) -> str:
    names = {'top1': 'top-1', 'top5': 'top-5', 'map': 'mAP', 'f1': 'mean F1'}
    return '  '.join(f'{names.get(name, name)} {value:.4f}' for name, value in metrics.items())


def _write_options(run: Run, made: dict[str, Any]) -> None:
    """Write ``args.yaml`` beside the checkpoints, and open what else records the run."""
    if not run.process.primary:
        return
    if run.options.results:
        check_table(run.options.results)
    if run.options.tensorboard:
        from torch.utils.tensorboard import SummaryWriter
        run.writer = SummaryWriter(str(run.folder / 'tensorboard'), purge_step=run.epoch)
    values = {**vars(run.options), **made, 'device': run.options.device, 'machine': made['device'],
              'processes': run.process.world_size, 'global_batch': run.global_batch, 'learning_rate': run.learning_rate}
    write_atomically(run.folder / 'args.yaml', yaml.safe_dump(values, sort_keys=True).encode())


def _finish(run: Run, changed: str, made: dict[str, Any]) -> dict[str, Any]:
    """Write the tables and the curves of a finished run, and return its row of results."""
    options, last = run.options, run.history[-1]
    cost = complexity(run.model, run.input_size)
    ratio = None
    if options.results and run.process.primary and not options.freeze:
        try:
            ratio = step_time_ratio(run)
        except torch.OutOfMemoryError as error:  # the two new networks need memory beside the trained one
            _logger.warning('the time of a step is not compared with that of the plain network: %s', error)
    metrics = {name.removeprefix('val_'): value for name, value in last.items()
               if name.startswith('val_') and name != 'val_loss'}
    row = {
        'model': options.model, 'options': changed, 'seed': options.seed, 'epochs': run.epochs, **metrics,
        'parameters': cost.params, 'macs': cost.macs,
        'time_ratio': round(ratio, 3) if ratio else '', 'seconds': round(run.seconds),
        'recipe': Path(options.config).stem if options.config else '',
        'data': data_name(options), 'global_batch': run.global_batch,
        'amp': run.process.amp_dtype(options), 'torchcompile': options.torchcompile or '', **made}
    if run.process.primary:
        write_table(run.folder / 'summary.csv', run.history)  # missing if the run was killed after its last checkpoint
        draw_curves(run.history, f'{options.model}, seed {options.seed}', run.folder / 'curves.png')
        if options.results:
            record_result(Path(options.results), row, run.history)
        _logger.info('finished: %s; %s', _as_text(metrics), run.folder)
    return row
