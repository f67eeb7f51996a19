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


_BACKBONE = dict(_delete_=True, type='TimmAttentionBackbone', model_name='resnet18', attn='se',
                 model_args=dict(layers=(1, 1, 1, 1)))
_NECK = {'model.backbone': _BACKBONE, 'model.neck.in_channels': [64, 128, 256, 512], 'model.neck.out_channels': 16}
# The families that are exported, and what makes a detector of each small.
FAMILIES = {
    'faster-rcnn_se-r50_fpn_1x_coco': SMALL_COCO,
    'mask-rcnn_se-r50_fpn_1x_coco': {
        **_NECK, 'model.rpn_head.in_channels': 16, 'model.rpn_head.feat_channels': 16,
        'model.roi_head.bbox_roi_extractor.out_channels': 16, 'model.roi_head.bbox_head.in_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 16, 'model.roi_head.bbox_head.num_classes': 2,
        'model.roi_head.mask_roi_extractor.out_channels': 16, 'model.roi_head.mask_head.in_channels': 16,
        'model.roi_head.mask_head.conv_out_channels': 16, 'model.roi_head.mask_head.num_convs': 1,
        'model.roi_head.mask_head.num_classes': 2, 'model.test_cfg.rpn.max_per_img': 50},
    'retinanet_se-r50_fpn_1x_coco': {
        **_NECK, 'model.neck.num_outs': 5, 'model.bbox_head.in_channels': 16, 'model.bbox_head.feat_channels': 16,
        'model.bbox_head.stacked_convs': 1, 'model.bbox_head.num_classes': 2},
}


def detector_with_scores(name, folder):
    """An untrained detector whose scores and boxes differ from place to place, as those of a trained one do."""
    import torch
    from mmdet.registry import MODELS

    from timm_se_plugin.detection.inference import load_detector

    config = on_folder(folder, name, small=False, **FAMILIES[name])
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    for path, module in detector.named_modules():
        part = path.rpartition('.')[2]
        if part in ('rpn_cls', 'fc_cls', 'retina_cls', 'conv_logits'):
            torch.nn.init.normal_(module.weight, std={'fc_cls': 2., 'retina_cls': 0.2}.get(part, 0.1))
            # The probabilities of proposals round to 0 in ONNX Runtime, as most do in a trained detector.
            torch.nn.init.constant_(module.bias, {'retina_cls': -1., 'rpn_cls': -25.}.get(part, 0.))
        elif part in ('rpn_reg', 'fc_reg', 'retina_reg'):
            torch.nn.init.normal_(module.weight, std=0.02)
    torch.save({'state_dict': detector.state_dict(), 'meta': {'dataset_meta': {'classes': ('blau', 'größer')}}},
               folder / 'a.pth')
    return load_detector(config, str(folder / 'a.pth'))


def write_pictures(folder):
    """Write four colourful pictures of different sizes."""
    import cv2
    import numpy as np

    folder.mkdir()
    generator = np.random.default_rng(0)
    for i, size in enumerate([(80, 96), (50, 120), (131, 47), (96, 96)]):
        picture = cv2.resize(generator.integers(0, 255, (7, 8, 3), dtype=np.uint8), size[::-1])
        assert cv2.imwrite(str(folder / f'{i}.png'), picture)
    return folder


def losses_of(runner) -> list[float]:
    """The loss of each step of a training."""
    return runner.message_hub.get_scalar('train/loss').data[0].tolist()
