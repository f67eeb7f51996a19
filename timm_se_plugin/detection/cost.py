"""The cost of attention in a detector, measured beside the same detector without attention."""

import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..measuring.complexity import CONVENTION, complexity, saved_bytes
from ..measuring.device import check_device
from ..measuring.provenance import provenance
from ..measuring.turns import time_in_turns
from ..models._registry import architectures
from ..placement.record import OPEN_NAMES
from ..weights.mm_config import registered_backbone, type_name

__all__ = ['CONVENTION', 'TrainingLoss', 'detector_cost', 'plain_twin', 'sample_batch']


def plain_twin(config: Config) -> Config:
    """The configuration of the same detector without this package's attention.

    Raises:
        ValueError: the backbone has no attention of this package.
    """
    twin = copy.deepcopy(config)
    backbone = twin.model.backbone
    plugins = backbone.get('plugins') or []
    kept = [plugin for plugin in plugins if type_name(plugin['cfg']) not in ('SEPlugin', 'SKPlugin')]
    name, _ = registered_backbone(str(backbone.get('model_name')))
    arch = architectures.get(name)
    attn = backbone.get('attn') or (arch and arch.attn and arch.attn.attn) or 'none'
    if attn == 'none' and len(kept) == len(plugins):
        raise ValueError(f'the backbone {backbone.get("model_name", backbone.type)} has no attention, so there is '
                         'nothing to compare')
    for option in [key for key in backbone if key == 'plugins' or key.startswith('attn')]:
        del backbone[option]
    if kept:
        backbone.plugins = kept
    if arch and arch.attn:  # the name brings attention, whose weights do not fit the plain network
        backbone.update(model_name=OPEN_NAMES[name], attn='none', pretrained=False)
    return twin


def sample_batch(batch: int, height: int, width: int, classes: int = 1) -> tuple[Tensor, list[DetDataSample]]:
    """Random pictures and their annotations: eight boxes with classes and masks for each picture.

    Shape: -> (batch, 3, height, width), and a list of ``batch`` samples.
    """
    from mmdet.structures.mask import BitmapMasks

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        corner = torch.rand(8, 2, generator=generator) * 0.6
        size = 0.1 + torch.rand(8, 2, generator=generator) * 0.3
        boxes = torch.cat((corner, corner + size), 1) * torch.tensor([width, height, width, height])
        masks = torch.zeros(8, height, width, dtype=torch.uint8)
        for mask, box in zip(masks, boxes.long().tolist(), strict=True):
            mask[box[1]:box[3], box[0]:box[2]] = 1
        shape = (height, width)
        sample = DetDataSample(metainfo={
            'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape, 'batch_input_shape': shape,
            'scale_factor': (1., 1.)})
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.randint(classes, (8,), generator=generator),
            masks=BitmapMasks(masks.numpy(), height, width))
        samples.append(sample)
    return torch.randn(batch, 3, height, width, generator=generator), samples


class TrainingLoss(nn.Module):
    """Total loss of a detector as a function of the pictures; each call samples the same RoIs."""

    def __init__(self, detector: Any, samples: list[DetDataSample]) -> None:
        super().__init__()
        self.detector, self.samples = detector, samples

    def forward(self, x: Tensor) -> Tensor:
        """Compute the loss. Shape: (N, 3, H, W) -> ()."""
        torch.manual_seed(0)
        # The copy protects the samples from heads that write into them.
        return self.detector.parse_losses(self.detector(x, copy.deepcopy(self.samples), mode='loss'))[0]


def _row(name: str, loss: TrainingLoss, x: Tensor) -> dict[str, Any]:
    backbone = loss.detector.backbone
    backbone.eval()
    cost = complexity(backbone, (int(x.shape[1]), int(x.shape[2]), int(x.shape[3])))
    loss.train()
    return {
        'model': name, 'params': sum(p.numel() for p in loss.detector.parameters()), 'backbone_params': cost.params,
        'backbone_macs': cost.macs, 'attention_params': cost.attention_params, 'attention_macs': cost.attention_macs,
        'backbone_saved_bytes': saved_bytes(backbone, x), 'saved_bytes': saved_bytes(loss, x)}


def detector_cost(
        config: Config, batch: int = 2, height: int = 480, width: int = 640, rounds: int = 7, device: str = 'cpu',
        report: Callable[[str], object] = lambda text: None,
) -> list[dict[str, Any]]:
    """Compare the training step of a detector with that of the same detector without attention.

    The two detectors take turns, so that a slow moment of the machine affects both.

    Args:
        config: a detector whose backbone has attention.
        batch: number of pictures.
        height: height of a picture in pixels.
        width: width of a picture in pixels.
        rounds: number of measured turns, which follow two turns to warm up.
        device: where to compute.
        report: called with a line of text after each turn.

    Returns:
        A row for the plain detector and a row for the one with attention: parameters, multiply-accumulates of the
        backbone for one picture, bytes kept for the backward pass, median seconds of a training step, and the ratios
        of bytes and seconds to the plain detector's (of seconds, the median over turns), and the provenance.

    Raises:
        ValueError: the backbone has no attention, there is no such device, or a number is less than 1.
    """
    numbers = {'batch': batch, 'height': height, 'width': width, 'rounds': rounds}
    wrong = ', '.join(f'{name}={number}' for name, number in numbers.items() if number < 1)
    if wrong:
        raise ValueError(f'{wrong} is not possible; give numbers from 1 on')
    check_device(device)
    init_default_scope(config.get('default_scope', 'mmdet'))
    x, samples = sample_batch(batch, height, width)
    x, samples = x.to(device), [sample.to(device) for sample in samples]
    losses, rows = {}, {}
    for name, variant in (('plain', plain_twin(config)), ('attention', config)):
        torch.manual_seed(0)
        losses[name] = TrainingLoss(MODELS.build(copy.deepcopy(variant.model)).to(device), samples)
        rows[name] = _row(name, losses[name], x)

    def step(loss: TrainingLoss) -> None:
        loss.zero_grad()
        loss(x).backward()

    seconds = time_in_turns(
        {name: partial(step, loss) for name, loss in losses.items()}, rounds, warmup=2, device=x.device,
        report=lambda turn: report(f'step {turn} of {rounds}' if turn > 0 else f'warm-up {turn + 2} of 2'))
    for name, row in rows.items():
        row['step_seconds'] = round(statistics.median(seconds[name]), 4)
        pairs = zip(seconds[name], seconds['plain'], strict=True)
        row['step_ratio'] = round(statistics.median(own / plain for own, plain in pairs), 4)
        row['saved_bytes_ratio'] = round(row['saved_bytes'] / rows['plain']['saved_bytes'], 4)
        row['backbone_saved_bytes_ratio'] = round(
            row['backbone_saved_bytes'] / rows['plain']['backbone_saved_bytes'], 4)
        row |= provenance(x.device)
    return list(rows.values())
