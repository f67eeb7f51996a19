"""A training run as a row of a CSV table, and its curve as rows of another."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmdet
import mmengine
import numpy as np
import torch
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..files.tables import replace_rows
from ..measuring.provenance import provenance

__all__ = ['record_run']


def record_run(
        runner: Runner, path: str | Path, options: str = '', commit: str | None = None,
) -> dict[str, Any]:
    """Add a finished run to a table, and its curve to the table ``<name>-curves.csv`` beside it.

    Rows of the same model, options and seed are replaced. All values come from the Runner's history, which checkpoints
    keep, and from the logs in the Runner's work folder: the curve of a resumed run therefore has every epoch. The curve
    of a training by iterations has one row, and its epochs are a fraction.

    Args:
        runner: a Runner whose training has ended.
        path: the CSV file, which is created if it does not exist.
        options: what differs from the configuration, such as ``'model.backbone.attn=sk'``.
        commit: that of the package when the training began; by default that of now.

    Returns:
        The row: model (the configuration's name), options, seed, epochs, the metrics of the last epoch under COCO's
        names (``map`` and ``map_50`` are fractions from 0 to 1; ``segm_map`` is that of masks), the median seconds of a
        training step and of the waiting for its data, the peak memory in MiB (allocated on CUDA, else resident in the
        process; None on Windows), and device, threads, versions and commit.
    """
    path = Path(path)
    history = {key: np.asarray(buffer.data[0]) for key, buffer in runner.message_hub.log_scalars.items()}
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        epochs: Sequence[float] = range(1, runner.epoch + 1)
        validations = _validations(Path(runner.work_dir)) if runner.val_loop is not None else {}
    else:  # MMEngine's logs do not say the step of a validation
        epochs = [round(runner.iter / len(runner.train_dataloader), 2)]
        validations = {epochs[0]: _metrics({key.removeprefix('val/'): values[-1] for key, values in history.items()
                                            if key.startswith('val/') and len(values)})}
    steps = runner.iter // max(len(epochs), 1)
    identity = {
        'model': Path(runner.cfg.filename or runner.experiment_name).stem, 'options': options, 'seed': runner.seed}
    row = {
        **identity, 'epochs': epochs[-1] if epochs else 0,
        **(validations.get(epochs[-1], {}) if epochs else {}),
        'seconds_per_step': round(float(np.median(history['train/time'])), 4),
        'seconds_waiting_for_data': round(float(np.median(history['train/data_time'])), 4),
        'peak_memory_mib': _peak_memory(Path(runner.work_dir, runner.timestamp)),
        'mmdet': mmdet.__version__, 'mmengine': mmengine.__version__,
        **provenance(next(runner.model.parameters()).device),
    }
    if commit is not None:
        row['commit'] = commit
    losses = {key.removeprefix('train/'): values for key, values in history.items()
              if key.startswith('train/') and 'loss' in key}
    curve = [
        {**identity, 'epoch': epoch,
         **{key: round(float(values[i * steps:(i + 1) * steps].mean()), 5) for key, values in losses.items()},
         **validations.get(epoch, {})}
        for i, epoch in enumerate(epochs)]
    replace_rows(path, [row], list(identity))
    replace_rows(path.with_name(f'{path.stem}-curves.csv'), curve, list(identity))
    return row


def _metrics(values: Mapping[str, float]) -> dict[str, float]:
    """COCO's metrics among logged values: of boxes without a prefix, of masks with ``segm_``."""
    return {key.removeprefix('coco/').removeprefix('bbox_').replace('mAP', 'map'): float(value)
            for key, value in values.items() if key.startswith(('coco/bbox_', 'coco/segm_'))}


def _validations(work_dir: Path) -> dict[float, dict[str, float]]:
    """COCO's metrics by epoch, from the logs of every run with this work folder.

    The Runner's history lacks the last validation before a resume: a checkpoint is written before its epoch's
    validation.
    """
    found = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for values in _logged(log):
            metrics = _metrics(values)
            if metrics:
                found[values['step']] = metrics
    return found


def _logged(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log of MMEngine."""
    for line in log.read_text(encoding='utf-8').splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # a run was killed while it wrote the line
            continue


def _peak_memory(log_dir: Path) -> int | None:
    """Peak memory in MiB: CUDA's allocations, or the resident memory of the process; None on Windows.

    MMEngine sets CUDA's peak back whenever it logs it: the peak of the training is the largest one in the run's log.
    """
    if torch.cuda.is_available():
        log = log_dir / 'vis_data' / 'scalars.json'
        logged = [values['memory'] for values in _logged(log) if 'memory' in values] if log.is_file() else []
        return max([*logged, torch.cuda.max_memory_allocated() // 2**20])
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == 'darwin' else 2**10)  # in bytes there, in KiB elsewhere

