import gc
import os
import signal

import pytest


@pytest.fixture(scope='session', autouse=True)
def _frozen_modules():
    """Spare MMEngine's gc.collect(), once for each data set, the objects of all imported modules."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def toy_runner(tmp_path):
    """A function that builds an MMEngine Runner over eight samples and a linear layer: two samples a step."""
    import torch
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    import timm_se_plugin.detection  # noqa: F401

    class Toy(BaseModel):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 1)

        def forward(self, x, y, mode='tensor'):
            return dict(loss=(self.linear(x) - y).square().mean())

    class Killed(list):
        """Data whose n-th reading kills the process, as `kill -9` does."""

        def __init__(self, samples, kill_at):
            super().__init__(samples)
            self.reads, self.kill_at = 0, kill_at

        def __getitem__(self, index):
            self.reads += 1
            if self.reads == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    def build(epochs, resume=False, hook='WholeCheckpointHook', kill_at=None, work_dir=tmp_path, **options):
        generator = torch.Generator().manual_seed(0)
        samples = [(torch.randn(2, generator=generator), torch.randn(1, generator=generator)) for _ in range(8)]
        torch.manual_seed(0)  # the model is made before Runner seeds
        return Runner(
            Toy(), str(work_dir), resume=resume, default_scope='mmdet', log_level='ERROR',
            experiment_name=f'{work_dir}{len(list(work_dir.iterdir()))}{epochs}',
            train_dataloader=dict(
                batch_size=2, dataset=Killed(samples, kill_at), collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=True)),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
            param_scheduler=dict(type='MultiStepLR', milestones=[1]), randomness=dict(seed=0),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            default_hooks=dict(checkpoint=dict(type=hook, **options)))

    return build


@pytest.fixture
def coco_folder(tmp_path):
    """Four 96x80 pictures with a red or a blue rectangle each, in COCO's format: annotations.json and images/."""
    import json

    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    images, annotations = [], []
    for i in range(4):
        picture = generator.integers(0, 60, (80, 96, 3), dtype=np.uint8)
        x, y, width, height = (int(v) for v in (*generator.integers(4, 30, 2), *generator.integers(24, 44, 2)))
        picture[y:y + height, x:x + width, (0, 2)[i % 2]] = 250
        cv2.imwrite(str(tmp_path / 'images' / f'{i}.png'), picture)
        images.append(dict(id=i, file_name=f'{i}.png', width=96, height=80))
        annotations.append(dict(
            id=i + 1, image_id=i, category_id=i % 2 + 1, bbox=[x, y, width, height], area=width * height, iscrowd=0,
            segmentation=[[x, y, x + width, y, x + width, y + height, x, y + height]]))
    categories = [dict(id=1, name='blue'), dict(id=2, name='red')]
    (tmp_path / 'annotations.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return tmp_path
