"""Train a Faster R-CNN with an SE-ResNet-18 backbone on scenes of real handwritten digits, and draw what it finds.

One folder gets the scenes with COCO annotations, the checkpoints, and a picture with the detected boxes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import mmcv
import numpy as np

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.digit_scenes import write_digit_scenes
from timm_se_plugin.detection.drawing import draw, write_picture
from timm_se_plugin.detection.inference import detect
from timm_se_plugin.detection.running import train_detector

CONFIG = 'faster-rcnn_se-r18_fpn_digits'


def enlarged(result: dict[str, Any], factor: int = 3) -> np.ndarray:
    """The picture of a result, enlarged, with its boxes and readable labels."""
    picture = np.asarray(mmcv.imread(result['file'])).repeat(factor, 0).repeat(factor, 1)
    found = result['detections']
    return draw(picture, [[factor * v for v in d['bbox']] for d in found], [d['label'] for d in found],
                [d['score'] for d in found], classes=[str(i) for i in range(10)])


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('work_dirs/demo'), help='folder to write into')
    parser.add_argument('--scenes', type=int, default=400, help='number of scenes to train on')
    parser.add_argument('--epochs', type=int, default=5, help='number of epochs')
    parser.add_argument('--seed', type=int, default=0, help='seed of the scenes and of the training')
    args = parser.parse_args()

    scenes, work = args.output / 'scenes', args.output / 'detector'
    write_digit_scenes(scenes, args.scenes, seed=args.seed)
    annotations = str(scenes / 'instances_val.json')
    options = {f'{split}_dataloader.dataset.data_root': str(scenes) for split in ('train', 'val', 'test')}
    options |= {f'{split}_evaluator.ann_file': annotations for split in ('val', 'test')}
    config = read_config(CONFIG, {
        **options, 'train_cfg.max_epochs': args.epochs, 'train_cfg.val_interval': args.epochs,
        'param_scheduler.1.T_max': args.epochs, 'param_scheduler.1.end': args.epochs, 'randomness.seed': args.seed,
        'custom_hooks': [{'type': 'ProgressHook'}], 'log_level': 'WARNING'}, str(work))
    print(f'Training Faster R-CNN with SE-ResNet-18 on {args.scenes} scenes of digits', flush=True)
    runner = train_detector(config)
    found = {name: runner.message_hub.get_scalar(f'val/coco/bbox_{name}').current() for name in ('mAP', 'mAP_50')}

    data = json.loads(Path(annotations).read_text(encoding='utf-8'))
    pictures = [scenes / 'images' / image['file_name'] for image in data['images']]
    results = detect(config, str(work / f'epoch_{args.epochs}.pth'), pictures[:12], args.output / 'boxes', score=0.5)
    shown = [enlarged(result) for result in results]
    write_picture(args.output / 'detections.png', np.vstack([np.hstack(shown[i:i + 4]) for i in (0, 4, 8)]))
    print(f'\nOn scenes of digits that were not trained on: mAP {found["mAP"]:.3f}, mAP50 {found["mAP_50"]:.3f}')
    print(f'Pictures with the boxes of score 0.5 and more: {args.output / "detections.png"}')


if __name__ == '__main__':
    main()
