"""Training and testing of detectors with MMEngine's Runner, after checks of the data and the checkpoint."""

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mmdet.models import FPN
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from timm.models import clean_state_dict
from timm.utils import unwrap_model
from torch import nn

from ..models.state_dicts import Misfit
from ..weights.mm_config import type_name
from ._compat import check_checkpoint
from .backbone import TimmAttentionBackbone
from .checkpoint_hook import has_begun
from .configs import innermost
from .data_check import check_data
from .picture_check import is_local

__all__ = ['CheckInputHook', 'ProgressHook', 'check_fit', 'saved_meta', 'test_detector', 'train_detector']


def check_fit(model: nn.Module, state_dict: dict[str, Any], what: str = 'the checkpoint') -> None:
    """Raise ValueError unless `state_dict` has the keys and shapes of `model`."""
    misfit = Misfit.of(clean_state_dict(state_dict), model.state_dict())
    if misfit:
        raise ValueError(f'{what} is not of this detector: {misfit}')


class CheckInputHook(Hook):
    """Refuses data and checkpoints that do not belong together, before the first step.

    Args:
        strict: whether a checkpoint must have every key and shape of the detector, and the data's classes, as in a test
            or a resumed run. Otherwise MMEngine loads the keys that fit and logs the others.
        pictures: whether to check the picture files of the data sets.
    """

    priority = 'VERY_HIGH'

    def __init__(self, strict: bool, pictures: bool = True) -> None:
        self.strict, self.pictures = strict, pictures
        self.classes: Sequence[str] | None = None
        self.passed = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model, and keep its names of classes for the comparison with the data."""
        if runner.cfg.get('resume') and 'epoch' not in checkpoint.get('meta', {}):
            raise ValueError('the checkpoint has weights alone, from which no training can be resumed; --cfg-options '
                             'load_from=FILE in the place of --resume FILE begins a training with these weights')
        if self.strict:
            check_fit(unwrap_model(runner.model), checkpoint.get('state_dict', checkpoint))
            self.classes = saved_meta(checkpoint).get('classes')

    def before_train(self, runner: Runner) -> None:
        """Compare the data sets with one another, the model, the checkpoint and the picture files."""
        loops = {'train': runner.train_loop, 'val': runner.val_loop}
        self._check(runner, {split: loop.dataloader.dataset for split, loop in loops.items() if loop is not None},
                    {'val': runner.val_evaluator} if runner.val_loop is not None else {})

    def before_test(self, runner: Runner) -> None:
        """Compare the test set with its evaluator, the model, the checkpoint and the picture files."""
        self._check(runner, {'test': runner.test_dataloader.dataset}, {'test': runner.test_evaluator})

    @master_only
    def _check(self, runner: Runner, datasets: dict[str, Any], evaluators: dict[str, Any]) -> None:
        if 'train' in datasets:
            datasets |= _test_set(runner.cfg)
        _check_neck(unwrap_model(runner.model))
        _check_normalisation(unwrap_model(runner.model))
        check_data(datasets, evaluators, unwrap_model(runner.model), self.classes, self.pictures)
        self.passed = True


def _check_neck(model: nn.Module) -> None:
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    if not (isinstance(backbone, TimmAttentionBackbone) and isinstance(neck, FPN)):
        return
    given, taken = list(backbone.out_channels), list(neck.in_channels)
    if given != taken:
        raise ValueError(f'model.neck.in_channels={taken} do not fit {backbone.model_name}, whose features have '
                         f'{given} channels; set model.neck.in_channels={given}')


def _check_normalisation(model: nn.Module) -> None:
    """Warn where pictures are normalised otherwise than for the weights that the backbone began with."""
    cfg = getattr(getattr(model, 'backbone', None), 'pretrained_cfg', None)
    given: Any = getattr(model, 'data_preprocessor', None)
    if not cfg or not hasattr(given, 'mean'):
        return
    for name in ('mean', 'std'):
        used, own = getattr(given, name).flatten().tolist(), [255 * value for value in cfg[name]]
        if len(used) == len(own) and any(abs(a - b) > 1 for a, b in zip(used, own, strict=True)):
            used, own = ([round(value, 2) for value in values] for values in (used, own))
            print_log(f'model.data_preprocessor.{name}={used} is not what the weights of the backbone were trained '
                      f'with; set {name}={own}, for pictures in the order RGB', 'current', logging.WARNING)


def _test_set(config: Config) -> dict[str, Any]:
    """The test set by the name of its split, if it exists and is not the validation set."""
    test, val = ((config.get(f'{split}_dataloader') or {}).get('dataset') for split in ('test', 'val'))
    if test is None or test == val:
        return {}
    try:
        return {'test': DATASETS.build(copy.deepcopy(test))}
    except FileNotFoundError as error:
        print_log(f'the test set is not checked, since it does not exist: {error}', logger='current')
        return {}


def saved_meta(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """``classes`` and ``palette`` of a checkpoint of MMDetection 3 or 2, as far as the checkpoint has them."""
    meta = checkpoint.get('meta', {})
    found = meta.get('dataset_meta', {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta})
    if isinstance(found, list):  # one for each part of a concatenation; all have the same classes
        found = found[0]
    return {key.lower(): value for key, value in found.items()}


@HOOKS.register_module()
class ProgressHook(Hook):
    """A progress bar with the loss for each epoch; for runs that log little (``log_level='WARNING'``)."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the bar."""
        from tqdm import tqdm
        self.bar = tqdm(total=len(runner.train_dataloader), unit='batch', mininterval=2,
                        desc=f'epoch {runner.epoch + 1}/{runner.max_epochs}')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance the bar, and show the loss."""
        self.bar.set_postfix(loss=f'{float(outputs["loss"].detach()):.3f}', refresh=False)
        self.bar.update()

    def after_train_epoch(self, runner: Runner) -> None:
        """Close the bar, which stays on the screen."""
        self.bar.close()


# Warnings of MMEngine about classes that its own hooks use.
_CHATTER = (
    '"FileClient" will be deprecated in future. Please use io functions in '
    'https://mmengine.readthedocs.io/en/latest/api/fileio.html#file-io',
    '"HardDiskBackend" is the alias of "LocalBackend" and the former will be deprecated in future.')


def _tells_the_user(record: logging.LogRecord) -> bool:
    return record.getMessage() not in _CHATTER


def _runner(config: Config, splits: tuple[str, ...], strict: bool, check_pictures: bool) -> Runner:
    if config.launcher != 'none' and get_device() in ('cpu', 'mps'):  # where MMEngine calls torch.cuda.set_device
        raise ValueError(f'launcher={config.launcher!r} starts several processes, which MMEngine runs on GPUs alone, '
                         f'and this machine offers {get_device()}; start one process, without torchrun and --launcher')
    setup_cache_size_limit_of_dynamo()
    for split in splits:
        data = innermost((config.get(f'{split}_dataloader') or {}).get('dataset') or {})
        path = Path(data.get('data_root') or '', data.get('ann_file') or '')
        if data.get('ann_file') and '://' not in str(data.get('data_root')) and (
                is_local(str(path), data.get('backend_args')) and not path.is_file()):
            read = '' if split == 'train' else f' {split}_evaluator.ann_file=…, which the evaluation reads'
            raise FileNotFoundError(f'the annotations {path} of {split}_dataloader do not exist; give their place by '
                                    f'--cfg-options {split}_dataloader.dataset.data_root=…{read}')
    start = str(config.get('load_from') or '')
    if start and not (config.get('strategy') and Path(start).is_dir()):  # DeepSpeed's checkpoints are folders
        check_checkpoint(start)  # MMEngine would look at it after its environment, configuration and hooks
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    runner.logger.addFilter(_tells_the_user)
    # An entry in custom_hooks would be saved with the configuration, and MMDetection's own tools could not build it.
    runner.register_hook(CheckInputHook(strict, check_pictures))
    return runner


def _configurations(work_dir: str) -> dict[Path, tuple[bytes, int]]:
    """The configurations in a folder, with their times, by which that of the last training is found."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(work_dir).glob('*.py')}


@master_only
def _restore(configurations: dict[Path, tuple[bytes, int]]) -> None:
    """Write configurations again that a Runner has overwritten, though it does not train."""
    for path, (content, time) in configurations.items():
        path.write_bytes(content)
        os.utime(path, ns=(time, time))


@contextmanager
def _empty_data_explained(config: Config) -> Iterator[None]:
    """Replace NumPy's error about data without boxes, 'need at least one array to concatenate', by an explanation."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array' not in str(error):
            raise
        data = config.train_dataloader.dataset
        raise ValueError(f'{data.get("ann_file")} has no picture with a box of the classes '
                         f'{(data.get("metainfo") or {}).get("classes", "of its dataset")}; give annotations that '
                         'have some') from error


def _check_start(config: Config) -> None:
    """Refuse to freeze random weights: a backbone that no weights are loaded into learns in all of its stages."""
    model = config.get('model') or {}
    backbone = model.get('backbone') or {}
    starts = [part.get('init_cfg') or () for part in (model, backbone)]
    kinds = {type_name(start) for given in starts for start in ([given] if isinstance(given, dict) else given)}
    known = kinds & {'Pretrained', 'PretrainedInit'}
    if config.get('load_from') or config.get('resume') or backbone.get('pretrained') or known:
        return
    kind: Any = backbone.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if not str(getattr(kind, '__module__', '')).startswith(('mmdet.', 'timm_se_plugin.')):
        return  # backbones of others may have their weights otherwise
    without = f'the backbone {backbone.get("model_name") or kind.__name__} begins without trained weights, and '
    if isinstance(backbone.get('frozen_stages'), int) and backbone['frozen_stages'] >= 0:
        raise ValueError(
            f'{without}frozen_stages={backbone["frozen_stages"]} would keep random ones; give --cfg-options '
            'model.backbone.frozen_stages=-1 model.backbone.norm_eval=False, or weights by '
            'model.backbone.pretrained=True, model.backbone.init_cfg or load_from')
    if backbone.get('norm_eval'):
        print_log(f'{without}norm_eval=True keeps the statistics of its BatchNorm layers at 0 and 1, so that they '
                  'normalise nothing; --cfg-options model.backbone.norm_eval=False lets them learn', 'current',
                  logging.WARNING)


def train_detector(
        config: Config, resume: bool | str = False, amp: bool = False, auto_scale_lr: bool = False,
        launcher: str = 'none', check_pictures: bool = True,
) -> Runner:
    """Train, as MMDetection's ``tools/train.py`` does.

    Args:
        config: the configuration of detector, data and schedule, which is not changed.
        resume: True or 'auto' resumes from the last complete checkpoint in the work folder, and begins as the
            configuration says if there is none; a path resumes from that checkpoint.
        amp: whether to train in mixed precision.
        auto_scale_lr: whether to scale the learning rate with the batch size.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        check_pictures: whether to compare the picture files with the annotations before the first step. That takes
            seconds, or minutes where files are slow to open.

    Returns:
        The Runner after training.

    Raises:
        FileNotFoundError: the annotations or some pictures do not exist.
        ValueError: the data sets, the detector and the checkpoint do not belong together (:mod:`~.data_check`); no
            picture has a box of the classes; the learning rate is to be scaled, and the configuration has no base batch
            size; stages of a backbone without trained weights are frozen; mixed precision or a launcher is asked for
            without a GPU.
        ConnectionError: the weights that the training starts from cannot be fetched.
    """
    config = copy.deepcopy(config)
    config.launcher = launcher
    is_mixed = amp or type_name(config.get('optim_wrapper')) == 'AmpOptimWrapper'
    if is_mixed and get_device() in ('cpu', 'mps'):  # MMEngine's wrapper would end in an AssertionError
        raise ValueError(f'mixed precision needs a GPU, and this training would run on {get_device()}; ' + (
            'leave out --amp' if amp else "in the configuration, set type='OptimWrapper' in optim_wrapper in the place "
            'of AmpOptimWrapper, and take out loss_scale and dtype'))
    if amp:
        config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
            raise ValueError('the learning rate cannot be scaled: the configuration has no '
                             'auto_scale_lr.base_batch_size, the batch size that its learning rate is for')
        config.auto_scale_lr.enable = True
    resume = resume or bool(config.get('resume') and not config.get('load_from'))
    if resume and (resume not in (True, 'auto') or has_begun(config)):
        config.resume = True
        config.load_from = None if resume in (True, 'auto') else resume
    elif resume:  # MMEngine would neither resume nor load the weights of load_from
        begin = f', with the weights of {config.load_from}' if config.get('load_from') else ''
        print_log(f'{config.work_dir} has no checkpoint to resume from; the training begins{begin}', 'current')
        config.resume = False
    _check_start(config)
    kept = _configurations(config.work_dir)
    runner = _runner(config, ('train', 'val'), bool(config.get('resume')), check_pictures)
    try:
        with _empty_data_explained(config):
            runner.train()
    except Exception as error:
        if not any(isinstance(hook, CheckInputHook) and hook.passed for hook in runner.hooks):
            _restore(kept)
        if isinstance(error, URLError):
            raise ConnectionError(
                f'the weights that the configuration starts from cannot be fetched: {error.reason}; --cfg-options '
                'model.backbone.init_cfg=None model.backbone.frozen_stages=-1 model.backbone.norm_eval=False starts '
                'without them') from error
        raise
    return runner


def test_detector(
        config: Config, checkpoint: str, out: str | None = None, launcher: str = 'none', check_pictures: bool = True,
) -> dict[str, float]:
    """Test, as MMDetection's ``tools/test.py`` does, but leave the configuration of a training in the work folder.

    Args:
        config: the configuration of the detector and its test set, which is not changed.
        checkpoint: the detector's weights.
        out: pickle file to write all predictions into; None to write none.
        launcher: as for :func:`train_detector`.
        check_pictures: as for :func:`train_detector`.

    Returns:
        The metrics by name.

    Raises:
        FileNotFoundError: the annotations, some pictures or the checkpoint do not exist.
        ValueError: the test set, the detector and the checkpoint do not belong together (:mod:`~.data_check`); a
            launcher is asked for without a GPU.
    """
    from mmdet.evaluation import DumpDetResults

    config = copy.deepcopy(config)
    config.launcher, config.load_from, config.resume = launcher, checkpoint, False
    kept = _configurations(config.work_dir)
    runner = _runner(config, ('test',), True, check_pictures)
    _restore(kept)
    if out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    metrics = runner.test()
    logging.getLogger('mmengine').info('%s', metrics)
    return metrics


test_detector.__test__ = False  # type: ignore[attr-defined]  # pytest collects names like this
