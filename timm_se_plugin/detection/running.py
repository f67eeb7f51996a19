"""Training and testing detectors with MMEngine's Runner, after a look at what it is given."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from timm.models import clean_state_dict
from timm.utils import unwrap_model
from torch import nn

from ..models.state_dicts import Misfit

__all__ = ['CheckInputHook', 'ProgressHook', 'check_fit', 'test_detector', 'train_detector']


def check_fit(model: nn.Module, state_dict: dict[str, Any], what: str = 'the checkpoint') -> None:
    """Raise ValueError unless `state_dict` has the keys and shapes of `model`."""
    misfit = Misfit.of(clean_state_dict(state_dict), model.state_dict())
    if misfit:
        raise ValueError(f'{what} is not of this detector: {misfit}')


class CheckInputHook(Hook):
    """Refuses data and checkpoints that would fail later, or silently be something else.

    Args:
        strict: the checkpoint must be of this very detector (a test, a resumed run). MMEngine loads what fits.
    """

    priority = 'VERY_HIGH'

    def __init__(self, strict: bool) -> None:
        self.strict = strict

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model."""
        if self.strict:
            check_fit(unwrap_model(runner.model), checkpoint.get('state_dict', checkpoint))

    def before_train(self, runner: Runner) -> None:
        """Look for the pictures of both sets."""
        _check_pictures(runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            _check_pictures(runner.val_loop.dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Look for the pictures."""
        _check_pictures(runner.test_loop.dataloader.dataset)


@HOOKS.register_module()
class ProgressHook(Hook):
    """A progress bar for each epoch, with the loss, for runs whose log is silent (``log_level='WARNING'``)."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the bar."""
        from tqdm import tqdm
        self.bar = tqdm(total=len(runner.train_dataloader), unit='batch', mininterval=2,
                        desc=f'epoch {runner.epoch + 1}/{runner.max_epochs}')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Move it."""
        self.bar.set_postfix(loss=f'{float(outputs["loss"].detach()):.3f}', refresh=False)
        self.bar.update()

    def after_train_epoch(self, runner: Runner) -> None:
        """Leave it."""
        self.bar.close()


@master_only
def _check_pictures(dataset: Any) -> None:
    while not hasattr(dataset, 'get_data_info') or hasattr(dataset, 'dataset'):  # wrappers, such as RepeatDataset
        if not hasattr(dataset, 'dataset'):
            return
        dataset = dataset.dataset
    name = getattr(dataset, 'ann_file', 'the data')
    paths = [str(dataset.get_data_info(i).get('img_path')) for i in range(len(dataset))]
    missing = [path for path in paths if '://' not in path and not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f'{len(missing)} of the {len(paths)} pictures of {name} are not there; '
                                f'the first is {missing[0]}')


def _runner(config: Config, splits: tuple[str, ...], strict: bool) -> Runner:
    setup_cache_size_limit_of_dynamo()
    for split in splits:
        data = (config.get(f'{split}_dataloader') or {}).get('dataset') or {}
        while 'dataset' in data:
            data = data['dataset']
        path = Path(data.get('data_root') or '', data.get('ann_file') or '')
        if data.get('ann_file') and '://' not in str(data.get('data_root')) and not path.is_file():
            raise FileNotFoundError(f'the annotations {path} of {split}_dataloader are not there; '
                                    f'--cfg-options {split}_dataloader.dataset.data_root=… says where they are')
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    runner.register_hook(CheckInputHook(strict))  # not in the configuration that MMEngine leaves in the work folder
    return runner


@contextmanager
def _empty_data_explained(config: Config) -> Iterator[None]:
    """Say what is wrong with data of which MMEngine only says 'need at least one array to concatenate'."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array' not in str(error):
            raise
        data = config.train_dataloader.dataset
        raise ValueError(f'{data.get("ann_file")} has no picture with a box of the classes '
                         f'{(data.get("metainfo") or {}).get("classes", "of its dataset")}') from error


def train_detector(
        config: Config, resume: bool | str = False, amp: bool = False, auto_scale_lr: bool = False,
        launcher: str = 'none',
) -> Runner:
    """Train, as MMDetection's ``tools/train.py`` does.

    Args:
        config: what to train, on what and how.
        resume: True or 'auto' to go on from the last whole checkpoint in the work folder, if there is one; or a
            checkpoint.
        amp: mixed precision.
        auto_scale_lr: scale the learning rate with the batch.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Returns:
        The Runner, at its end.

    Raises:
        FileNotFoundError: annotations or pictures that are not there.
        ValueError: no picture has a box of the classes; the checkpoint is of another detector; a configuration
            without base batch size whose learning rate is to be scaled.
    """
    config.launcher = launcher
    if amp:
        config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise ValueError('the configuration has no auto_scale_lr.base_batch_size')
        config.auto_scale_lr.enable = True
    if resume:
        config.resume = True
        config.load_from = None if resume in (True, 'auto') else resume
    runner = _runner(config, ('train', 'val'), strict=bool(config.get('resume')))
    with _empty_data_explained(config):
        runner.train()
    return runner


def test_detector(config: Config, checkpoint: str, out: str | None = None, launcher: str = 'none') -> dict[str, float]:
    """Test, as MMDetection's ``tools/test.py`` does; returns the metrics.

    Args:
        config: what to test and on what.
        checkpoint: its weights; they have to be of this very detector.
        out: file for all predictions (pickle), if any.
        launcher: as for :func:`train_detector`.

    Raises:
        FileNotFoundError: annotations, pictures or a checkpoint that are not there.
        ValueError: a checkpoint of another detector.
    """
    from mmdet.evaluation import DumpDetResults

    config.launcher, config.load_from, config.resume = launcher, checkpoint, False
    runner = _runner(config, ('test',), strict=True)
    if out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    metrics = runner.test()
    logging.getLogger('mmengine').info('%s', metrics)
    return metrics


test_detector.__test__ = False  # type: ignore[attr-defined]  # pytest collects names like this
