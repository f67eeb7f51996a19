"""Saves a detector as a folder for the Hub, and loads such folders without running their configuration."""

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmcv.ops
from mmdet.registry import MODELS, TASK_UTILS, TRANSFORMS
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch import nn

from ..files.hub_files import CONFIG, FOLDER, LAST, SAVED_AT, WEIGHTS, read_config_json, saved_file, tensor_shapes
from ..weights.folders import plugin_config
from ..weights.mm_config import parse_config, type_name
from .backbone import TimmAttentionBackbone
from .configs import last_checkpoint, read_config
from .inference import load_detector
from .running import check_fit

__all__ = [
    'fetch_detector', 'given_detector', 'open_detector', 'pull_detector', 'trained_detector', 'write_detector']

_logger = logging.getLogger(__name__)
DETECTOR = 'detector.py'


def write_detector(model: nn.Module, folder: str | Path) -> None:
    """Write a detector: ``model.safetensors``, ``detector.py`` and ``config.json``.

    ``detector.py`` is an MMDetection configuration with everything that inference needs. The sources of the weights
    before training (``pretrained``, ``init_cfg``) are left out, and all options of the attention are written out.

    Args:
        model: a detector with ``cfg`` and ``dataset_meta``, as :func:`~.inference.load_detector` returns.
        folder: the folder to write into.

    Raises:
        ValueError: the detector lacks ``cfg`` or ``dataset_meta``, or the written configuration builds another
            detector.
    """
    lacking = [name for name in ('cfg', 'dataset_meta') if not hasattr(model, name)]
    if lacking:
        raise ValueError(f'{type(model).__name__} has no {" and no ".join(lacking)}; a detector is shared with its '
                         'configuration in cfg and its classes in dataset_meta, as init_detector sets them')
    detector: Any = copy.deepcopy(model).cpu()
    backbone = detector.backbone
    network = _without_sources(detector.cfg.model.to_dict())
    attn = getattr(backbone, 'attn', None)
    if isinstance(backbone, TimmAttentionBackbone) and attn:
        network['backbone'].update(attn.to_kwargs())
    config = Config(dict(
        custom_imports=dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False),
        default_scope=detector.cfg.get('default_scope', 'mmdet'), model=network,
        test_dataloader=dict(dataset=dict(pipeline=_pipeline(detector.cfg))),
        dataset_meta={key: value for key, value in detector.dataset_meta.items() if key in ('classes', 'palette')}))
    Path(folder, DETECTOR).write_text(config.pretty_text, encoding='utf-8')
    state = {key: value.detach().contiguous().clone() for key, value in detector.state_dict().items()}
    save_file(state, Path(folder, WEIGHTS), metadata={'format': 'pt'})
    classes = list(detector.dataset_meta.get('classes', []))
    described = {'task': 'object-detection', 'library': 'mmdet', 'detector': network['type'], 'classes': classes,
                 'timm_se_plugin': plugin_config(attn)}
    Path(folder, CONFIG).write_text(json.dumps(described, indent=2), encoding='utf-8')
    loaded: Any = pull_detector(f'{FOLDER}{folder}')
    check_fit(loaded, state, f'what was written to {folder}')
    if getattr(loaded.backbone, 'attn', None) != attn:
        raise ValueError(f'the configuration builds {loaded.backbone.attn}, and the detector has {attn}')


def _pipeline(config: Config) -> list[dict[str, Any]]:
    steps = [step.to_dict() for step in get_test_pipeline_cfg(config)]
    for step in steps:
        if type_name(step) == 'LoadImageFromNDArray':  # as inference_detector leaves it after an array
            step['type'] = 'LoadImageFromFile'
    return steps


def _without_sources(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {key: _without_sources(value) for key, value in config.items() if key not in ('init_cfg', 'pretrained')}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_sources(item) for item in config)
    return config


def fetch_detector(place: str) -> tuple[Config, str]:
    """Configuration of a shared detector and path of its weights, which :func:`~.inference.load_detector` takes.

    Since a stranger may have written the configuration, it is parsed and never run, and may build only classes that
    MMDetection registers.

    Args:
        place: ``'hf-hub:user/repo'``, ``'hf-hub:user/repo@revision'`` or ``'local-dir:folder'``.

    Raises:
        ValueError: the configuration or the weights are refused; the message says why.
        FileNotFoundError: a file does not exist.
        ConnectionError: the Hub cannot be reached, and the files are not in the cache.
    """
    described = read_config_json(place)
    if described.get('task') != 'object-detection':
        raise ValueError(f'{place} holds no detector of timm_se_plugin; its {CONFIG} says '
                         f'{described.get("architecture") or described.get("task")!r}')
    weights = saved_file(place, WEIGHTS)
    tensor_shapes(weights)
    parsed = parse_config(saved_file(place, DETECTOR).read_text(encoding='utf-8'))
    names = ('default_scope', 'model', 'test_dataloader', 'dataset_meta')
    config = {name: parsed[name] for name in names if name in parsed}
    if not {'model', 'test_dataloader'} <= config.keys():
        raise ValueError(f'{place}: {DETECTOR} has no model and test_dataloader')
    register_all_modules()  # the default scope becomes mmdet
    unknown = sorted({repr(name) for name in _types(config) if not _is_allowed(name)})
    if unknown:
        raise ValueError(f'{place}: {DETECTOR} asks for {", ".join(unknown)}, which MMDetection does not register')
    return Config(_without_sources(config)), str(weights)


def _types(config: Any) -> Iterator[Any]:
    if isinstance(config, Mapping):
        if 'type' in config:
            yield config['type']
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for item in config:
            yield from _types(item)


def _is_allowed(name: Any) -> bool:
    """Whether a ``type`` names a registered class or an operator; MMEngine would import, mmcv evaluate other names."""
    if name in mmcv.ops.__all__:
        return True
    if isinstance(name, str):
        name = name.removeprefix('mmdet.')  # the scope may precede the name
    for registry in (MODELS, TASK_UTILS, TRANSFORMS):
        level = registry
        while level is not None and isinstance(name, str):
            if name in level.module_dict:
                # mmdet's tracking modules evaluate options as Python code.
                return '.tracking.' not in level.module_dict[name].__module__
            level = level.parent
    return False


def pull_detector(place: str, device: str = 'cpu') -> nn.Module:
    """Load a shared detector, ready to infer.

    Args:
        place: as for :func:`fetch_detector`.
        device: where to compute.

    Raises:
        ValueError: as :func:`fetch_detector` and :func:`~.inference.load_detector`.
    """
    return load_detector(*fetch_detector(place), device)


def open_detector(
        place: str, checkpoint: str | None = None, options: Mapping[str, Any] | None = None, device: str = 'cpu',
) -> nn.Module:
    """Load a detector from wherever it lies, ready to infer.

    Args:
        place: a shared detector as for :func:`fetch_detector`; a folder of one, or of a training; or, with
            `checkpoint`, a configuration's file or name.
        checkpoint: the weights of a configuration.
        options: changes to the configuration.
        device: where to compute.

    Raises:
        FileNotFoundError: as :func:`fetch_detector` and :func:`trained_detector`.
        ValueError: a checkpoint is given with a place that has its own, or `place` is no detector.
    """
    is_folder, is_shared = Path(place).is_dir(), place.startswith(SAVED_AT)
    if checkpoint and (is_folder or is_shared):
        raise ValueError(f'{place} has weights of its own, and {checkpoint} is given too; leave one of them out')
    if checkpoint:
        return load_detector(read_config(place, options), checkpoint, device)
    if is_folder and not Path(place, CONFIG).is_file():
        config, weights = trained_detector(place)
    elif is_folder or is_shared:
        config, weights = fetch_detector(place if is_shared else f'{FOLDER}{place}')
    else:
        raise ValueError(f'{place} is no folder, hf-hub:user/repo or local-dir:folder; a configuration needs the '
                         'weights of a training too')
    config.merge_from_dict(copy.deepcopy(dict(options or {})))
    return load_detector(config, weights, device)


def trained_detector(work_dir: str | Path) -> tuple[Config, str]:
    """MMEngine's copy of the configuration of a training, and its best checkpoint, or the last one.

    A training has a best checkpoint where its configuration has ``save_best``. If there are several best checkpoints,
    as there are where this names several metrics, the last checkpoint of the training is taken. Of several
    configurations in the folder, the one whose detector and test data are those that the checkpoint was trained with is
    taken.

    Raises:
        FileNotFoundError: the folder lacks a configuration, or the checkpoint that ``last_checkpoint`` names.
        ValueError: the folder has several configurations, and the checkpoint has none of them in its metadata.
    """
    folder = Path(work_dir)
    if not (folder / 'last_checkpoint').is_file():
        if (folder / LAST).is_file():
            raise FileNotFoundError(f'{folder} is the folder of a classifier, which timm-se predict takes')
        raise FileNotFoundError(f'{folder} has no {CONFIG}, as a shared detector has, and no last_checkpoint, as a '
                                'training leaves')
    configs, last = sorted(folder.glob('*.py')), last_checkpoint(folder)
    best = sorted(last.parent.glob('best_*.pth'))  # beside the last one, also where out_dir puts them elsewhere
    checkpoint = best[0] if len(best) == 1 else last
    if not configs or not checkpoint.is_file():
        raise FileNotFoundError(f'{folder} has no {"configuration (*.py)" if not configs else checkpoint.name}')
    if len(configs) > 1:
        text = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu').get('meta', {}).get('cfg') or ''
        used = _used(text)
        own = [path for path in configs if used and _used(path.read_text(encoding='utf-8', errors='replace')) == used]
        if not own:
            raise ValueError(f'{folder} has {len(configs)} configurations, '
                             f'{" and ".join(path.name for path in configs)}, and {checkpoint.name} says of none of '
                             'them that it was trained with it; move those away that are not to be used')
        configs = own
    _logger.info('%s: %s with %s%s', folder, configs[0].name, checkpoint.name, (
        f', the last checkpoint, since there are several best ones, {" and ".join(path.name for path in best)}'
        if len(best) > 1 else ''))
    return Config.fromfile(configs[0]), str(checkpoint)


def given_detector(
        place: str, checkpoint: str | None = None, options: Mapping[str, Any] | None = None,
        work_dir: str | None = None,
) -> tuple[Config, str]:
    """Configuration and weights of a detector, for a test on the test set of its configuration.

    Args:
        place: a configuration's file or name, with `checkpoint`; or the folder of a training.
        checkpoint: the weights of a configuration.
        options: changes to the configuration.
        work_dir: as for :func:`~.configs.read_config`; if None, the folder of the training if there is one.

    Raises:
        FileNotFoundError: as :func:`~.configs.read_config` and :func:`trained_detector`.
        ValueError: as :func:`trained_detector`; or without `checkpoint`, `place` is not the folder of a training.
    """
    if checkpoint:
        return read_config(place, options, work_dir), checkpoint
    if not Path(place).is_dir():
        raise ValueError(f'{place} is not the folder of a training; the weights of a configuration are needed too, '
                         'such as work_dirs/RUN/epoch_12.pth')
    if Path(place, CONFIG).is_file():
        raise ValueError(f'{place} holds a shared detector, which has no test set; give a configuration with the test '
                         f'set, and {Path(place, WEIGHTS)}')
    config, weights = trained_detector(place)
    return read_config(config.filename, options, work_dir or place), weights


def _used(text: str) -> list[Any] | None:
    """What a detector is used with. Continuing a training, or testing, changes other values of MMEngine's copy."""
    try:
        values = parse_config(text)
    except ValueError:
        return None
    return [values['model'], values.get('test_dataloader')] if 'model' in values else None
