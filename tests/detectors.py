"""Detectors for tests: options that make one small, and configurations that are parsed once."""

import functools
import itertools
from pathlib import Path
from typing import Any

# For a Faster R-CNN with a ResNet backbone, whose structure stays that of the configuration.
SMALL = {
    'model.neck.out_channels': 16, 'model.rpn_head.in_channels': 16, 'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16, 'model.roi_head.bbox_head.in_channels': 16,
    'model.roi_head.bbox_head.fc_out_channels': 16, 'model.backbone.model_args': dict(layers=(1, 1, 1, 1)),
}


@functools.cache
def _parsed(path: Path) -> Any:
    from mmengine.config import Config
    return Config.fromfile(path)  # which reads all of MMDetection's index for each base


def configuration(path: str | Path) -> Any:
    """A copy of a configuration, which MMEngine does not format when it writes it: that takes seconds."""
    from mmengine.config import Config
    parsed = _parsed(Path(path))
    return Config(parsed.to_dict(), filename=parsed.filename, format_python_code=False)


# What makes the COCO configuration of Faster R-CNN quick on 96x80 pictures.
SMALL_COCO = {
    'model.backbone': dict(_delete_=True, type='TimmAttentionBackbone', model_name='resnet18', attn='se'),
    'model.neck.in_channels': [64, 128, 256, 512], 'model.roi_head.bbox_head.num_classes': 2,
    'model.train_cfg.rpn_proposal.max_per_img': 50, 'model.test_cfg.rpn.max_per_img': 50,
    'model.train_cfg.rcnn.sampler.num': 32, **SMALL,
}


_RUNS = itertools.count()  # MMEngine refuses two runs of one name in a process


def on_folder(folder, name='faster-rcnn_se-r50_fpn_1x_coco', small=True, **options):
    """A configuration that trains for an epoch on the `coco_folder` of tests/detection."""
    from timm_se_plugin.detection.configs import config_path
    config = configuration(config_path(name))
    config.merge_from_dict({**(SMALL_COCO if small else {}), **options})
    config.work_dir = str(folder / 'work')
    data = dict(data_root=str(folder), ann_file='annotations.json', data_prefix=dict(img='images/'),
                metainfo=dict(classes=('blue', 'red')))
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data)
        for step in loader.dataset.pipeline:
            if step['type'] == 'Resize':
                step['scale'] = (96, 80)
        if split != 'train':
            config[f'{split}_evaluator'].ann_file = str(folder / 'annotations.json')
    config.train_cfg.max_epochs = 1
    config.log_level = 'ERROR'
    config.experiment_name = config.visualizer.name = f'{folder.name}-{next(_RUNS)}'
    return config
