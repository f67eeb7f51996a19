"""Train a Faster R-CNN with an SE-ResNet-18 backbone on scenes of real handwritten digits, and draw what it finds.

One folder gets the scenes with COCO annotations, the checkpoints, and a picture with the detected boxes.
"""

import json
from pathlib import Path
from typing import Any

import mmcv
import numpy as np

from ..boxes.drawing import draw, write_picture
from .configs import read_config
from .digit_scenes import write_digit_scenes
from .inference import detect
from .running import train_detector

__all__ = ['demo']

CONFIG = 'faster-rcnn_se-r18_fpn_digits'


def enlarged(result: dict[str, Any], factor: int = 3) -> np.ndarray:
    """The picture of a result, enlarged, with its boxes and readable labels."""
    picture = np.asarray(mmcv.imread(result['file'])).repeat(factor, 0).repeat(factor, 1)
    found = result['detections']
    return draw(picture, [[factor * v for v in d['bbox']] for d in found], [d['label'] for d in found],
                [d['score'] for d in found], classes=[str(i) for i in range(10)])


def demo(output: Path, scenes: int = 400, epochs: int = 5, seed: int = 0) -> None:
    """Run the demo, and print the metrics of the detector.

    Args:
        output: folder to write into.
        scenes: number of scenes to train on; as many, at most 60, are for validation.
        epochs: number of epochs.
        seed: seed of the scenes and of the training.

    Raises:
        ValueError: fewer than 12 scenes, which the picture shows, or no epoch.
    """
    for name, value, least in (('scenes', scenes, 12), ('epochs', epochs, 1)):
        if value < least:
            raise ValueError(f'{name}={value} is too few for the demo; give {least} or more')
    folder, work = output / 'scenes', output / 'detector'
    write_digit_scenes(folder, scenes, val=min(60, scenes), seed=seed)
    annotations = str(folder / 'instances_val.json')
    options = {f'{split}_dataloader.dataset.data_root': str(folder) for split in ('train', 'val', 'test')}
    options |= {f'{split}_evaluator.ann_file': annotations for split in ('val', 'test')}
    config = read_config(CONFIG, {
        **options, 'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': epochs,
        'param_scheduler.1.T_max': epochs, 'param_scheduler.1.end': epochs, 'randomness.seed': seed,
        'custom_hooks': [{'type': 'ProgressHook'}], 'log_level': 'WARNING'}, str(work))
    print(f'Training Faster R-CNN with SE-ResNet-18 on {scenes} scenes of digits', flush=True)
    runner = train_detector(config)
    found = {name: runner.message_hub.get_scalar(f'val/coco/bbox_{name}').current() for name in ('mAP', 'mAP_50')}

    data = json.loads(Path(annotations).read_text(encoding='utf-8'))
    pictures = [folder / 'images' / image['file_name'] for image in data['images']]
    results = detect(config, str(work / f'epoch_{epochs}.pth'), pictures[:12], output / 'boxes', score=0.5)
    shown = [enlarged(result) for result in results]
    write_picture(output / 'detections.png', np.vstack([np.hstack(shown[i:i + 4]) for i in (0, 4, 8)]))
    print(f'\nOn scenes of digits that were not trained on: mAP {found["mAP"]:.3f}, mAP50 {found["mAP_50"]:.3f}')
    print(f'Pictures with the boxes of score 0.5 and more: {output / "detections.png"}')
