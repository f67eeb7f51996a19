"""What an exported detector computes: the network of MMDetection, and its selection of boxes in plain operators."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import (
    BBoxHead,
    ConvFCBBoxHead,
    FCNMaskHead,
    RetinaHead,
    RPNHead,
    SingleRoIExtractor,
    StandardRoIHead,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

__all__ = ['ExportedDetector']

_NOTHING = -1e4  # the logit of what is no box


class ExportedDetector(nn.Module):
    """A Faster R-CNN, Mask R-CNN or RetinaNet of MMDetection without Python's lists of results, for any picture size.

    MMDetection keeps as many boxes of a picture as there are. A graph with a batch needs equally many for each picture:
    here every picture has the same number, the best first, and what is no detection has the score 0, the label -1, and
    a box of zeros. Beyond that, the boxes are those of MMDetection's ``predict`` in the pixels of the input.

    Shape: images (N, 3, H, W) -> boxes (N, K, 4), corners x1, y1, x2, y2; scores (N, K); labels (N, K); and for a Mask
    R-CNN masks (N, K, h, w), probabilities on a grid over each box. K is the configuration's ``max_per_img``.

    Args:
        detector: the detector; it is not changed.

    Raises:
        ValueError: a part of the detector is of another kind than those that are computed here.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        _check(detector)
        self.detector = detector
        self.divisor, self.padding = (getattr(detector.data_preprocessor, f'pad_{key}') for key in (
            'size_divisor', 'value'))
        self.outputs = ['boxes', 'scores', 'labels'] + ['masks'] * getattr(detector, 'with_mask', False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect in images of one size, normalised and not padded."""
        height, width = images.shape[2:]
        limits = torch.stack([torch.as_tensor(side) for side in (width, height, width, height)])
        beside = 0, -width % self.divisor, 0, -height % self.divisor
        x = F.pad(images, beside, value=self.padding) if self.divisor > 1 else images
        feats = self.detector.extract_feat(x)
        if hasattr(self.detector, 'roi_head'):
            found = self._second_stage(feats, limits)
        else:
            head = self.detector.bbox_head
            found = _best(*_candidates(head, feats, limits), head.test_cfg, head.test_cfg.score_thr)
        boxes, scores, labels, *masks = found
        return boxes * (scores > 0)[..., None], scores, torch.where(scores > 0, labels, -1), *masks

    def _second_stage(self, feats: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, ...]:
        rpn, head = self.detector.rpn_head, self.detector.roi_head
        boxes, scores, levels = _candidates(rpn, feats, limits)
        proposals, scores, _ = _best(boxes, scores, levels, rpn.test_cfg, 0.)

        index, rois = _regions(proposals, scores)
        logits, deltas = head.bbox_head(_pooled(head.bbox_roi_extractor, feats, rois))
        classes = head.bbox_head.num_classes
        if head.bbox_head.reg_class_agnostic:
            boxes = _decoded(head.bbox_head, rois[:, 1:], deltas, limits)[:, None].expand(-1, classes, -1)
        else:
            boxes = _decoded(head.bbox_head, rois[:, None, 1:].expand(-1, classes, -1).reshape(-1, 4),
                             deltas.reshape(-1, 4), limits).reshape(-1, classes, 4)
        boxes = _spread(boxes, index, proposals).flatten(1, 2)
        scores = _spread(logits.softmax(-1)[:, :-1], index, proposals)
        labels = torch.arange(classes, device=scores.device) + (scores * 0).long()
        found = _best(boxes, scores.flatten(1), labels.flatten(1), head.test_cfg, head.test_cfg.score_thr)
        return (*found, self._masks(feats, *found)) if 'masks' in self.outputs else found

    def _masks(self, feats: Sequence[Tensor], boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        head = self.detector.roi_head
        index, rois = _regions(boxes, scores)
        masks = head.mask_head(_pooled(head.mask_roi_extractor, feats, rois)).sigmoid()
        if not head.mask_head.class_agnostic:
            chosen = labels.flatten()[index][:, None, None, None].expand(-1, 1, *masks.shape[2:])
            masks = masks.gather(1, chosen)
        return _spread(masks[:, 0], index, boxes)


def _check(detector: Any) -> None:
    """Raise ValueError unless every part is one whose results are computed here."""
    is_two_stage = hasattr(detector, 'roi_head')
    first = getattr(detector, 'rpn_head' if is_two_stage else 'bbox_head', None)
    if first is None:  # SOLO, which finds masks alone, for example
        raise ValueError(f'a {type(detector).__name__} cannot be exported; a Faster R-CNN, Mask R-CNN or RetinaNet can')
    parts: list[tuple[Any, tuple[type, ...]]] = [(first, (RPNHead, RetinaHead))]
    if is_two_stage:
        head = detector.roi_head
        parts += [(head, (StandardRoIHead,)), (head.bbox_roi_extractor, (SingleRoIExtractor,))]
        if head.with_mask:
            parts += [(head.mask_head, (FCNMaskHead,)), (head.mask_roi_extractor, (SingleRoIExtractor,))]
    for part, kinds in parts:
        if type(part) not in kinds:
            raise ValueError(f'a {type(detector).__name__} with a {type(part).__name__} cannot be exported; detectors '
                             f'with a {" or ".join(kind.__name__ for kind in kinds)} in its place can')
    if is_two_stage:
        boxes = head.bbox_head
        if not (isinstance(boxes, ConvFCBBoxHead) or type(boxes) is BBoxHead):
            raise ValueError(f'a {type(detector).__name__} with a {type(boxes).__name__} cannot be exported; one with '
                             'a ConvFCBBoxHead or a kind of it in its place can')
        if boxes.custom_activation:
            raise ValueError(f'a {type(boxes).__name__} whose scores are computed by {type(boxes.loss_cls).__name__} '
                             'cannot be exported; one with CrossEntropyLoss can')
    if isinstance(first, RetinaHead) and not first.use_sigmoid_cls:
        raise ValueError('a RetinaNet with a softmax over its classes cannot be exported; one with sigmoids can')
    for part in [first] + ([head] if is_two_stage else []):
        if part.test_cfg.nms.get('type', 'nms') != 'nms':
            raise ValueError(f'the detector uses {part.test_cfg.nms.type}, which cannot be exported; nms can')
        if part.test_cfg.max_per_img <= 0:
            usual = 1000 if isinstance(part, RPNHead) else 100
            raise ValueError(
                f'the {type(part).__name__} keeps any number of boxes (max_per_img={part.test_cfg.max_per_img}); set '
                f'max_per_img in its test_cfg, such as {usual}')
    if first.test_cfg.get('nms_pre', -1) <= 0:
        raise ValueError('the detector takes all anchors into its NMS; set nms_pre in its test_cfg, such as 1000')


def _candidates(head: Any, feats: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``nms_pre`` boxes of each level with their scores, and their classes, of an RPN their levels.

    Where a level has fewer boxes, the rest have the score 0, since a graph has to know how many there are. Scores of an
    RPN, which only rank its boxes, are odds: low probabilities are exactly 0 in ONNX Runtime.

    Shape: L maps -> (N, L * nms_pre, 4), (N, L * nms_pre), (N, L * nms_pre).
    """
    scores, deltas = head(feats)
    priors = head.prior_generator.grid_priors([score.shape[2:] for score in scores], device=limits.device)
    most, classes, is_rpn = head.test_cfg.nms_pre, head.num_classes, isinstance(head, RPNHead)
    found = []
    for level, (score, delta, prior) in enumerate(zip(scores, deltas, priors, strict=True)):
        score = score.permute(0, 2, 3, 1)
        if not head.use_sigmoid_cls:  # of two classes, object and background
            score = score.unflatten(-1, (-1, 2))
            score = score[..., 0] - score[..., 1]
        best, index = F.pad(score.flatten(1), (0, most), value=_NOTHING).topk(most)
        place = index // classes
        delta = F.pad(delta.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)), (0, 0, 0, most))
        delta = delta.gather(1, place[..., None].expand(-1, -1, 4))
        prior = F.pad(prior, (0, 0, 0, most))[place]
        box = _decoded(head, prior.reshape(-1, 4), delta.reshape(-1, 4), limits).unflatten(0, (-1, most))
        found.append((box, best.clamp(max=80).exp() if is_rpn else best.sigmoid(),
                      index * 0 + level if is_rpn else index % classes))
    boxes, best, groups = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    smallest = head.test_cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        best = best * ((boxes[..., 2:] - boxes[..., :2]).amin(-1) > smallest)
    return boxes, best, groups


def _decoded(head: Any, boxes: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
    boxes = head.bbox_coder.decode(boxes, deltas)
    return boxes.clamp(min=0).minimum(limits.to(boxes)) if head.bbox_coder.clip_border else boxes


def _best(boxes: Tensor, scores: Tensor, groups: Tensor, config: Any, threshold: float,
          ) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``max_per_img`` boxes of each picture that NMS leaves of those of more than a score.

    Shape: (N, M, 4), (N, M), (N, M) -> (N, K, 4), (N, K), (N, K); what NMS has removed has the score 0. A box removes
    no box of another group or picture, since each group is moved aside along x, and each picture along y.
    """
    candidate = (scores > threshold).flatten().nonzero()[:, 0]
    picture = _pictures(scores)
    beside = groups * 0 if config.nms.get('class_agnostic', False) else groups
    aside = torch.stack((beside, picture, beside, picture), -1) * (boxes.max() - boxes.min() + 1)
    kept = candidate[nms((boxes + aside).reshape(-1, 4)[candidate], scores.flatten()[candidate],
                         config.nms.iou_threshold)]
    count = int(scores.shape[1])
    left = (scores * 0).flatten().index_put((kept,), scores.flatten()[kept]).unflatten(0, (-1, count))
    best, index = left.topk(min(config.max_per_img, count))
    return boxes.gather(1, index[..., None].expand(-1, -1, 4)), best, groups.gather(1, index)


def _regions(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the boxes that have a score, and these as regions. Shape: (N, P, 4), (N, P) -> (R,), (R, 5)."""
    index = (scores > 0).flatten().nonzero()[:, 0]
    return index, torch.cat((_pictures(scores)[..., None], boxes), -1).reshape(-1, 5)[index]


def _pictures(scores: Tensor) -> Tensor:
    """The number of the picture that each score is of. Shape: (N, M) -> (N, M)."""
    return (scores * 0 + 1).cumsum(0) - 1


def _spread(values: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
    """The values of regions at the places of their boxes. Shape: (R, ...), (R,), (N, P, 4) -> (N, P, ...)."""
    sizes = [int(size) for size in values.shape[1:]]
    empty = (boxes[..., 0] * 0).flatten().reshape(-1, *(1 for _ in sizes)).expand(-1, *sizes)
    return empty.index_put((index,), values).unflatten(0, (-1, int(boxes.shape[1])))


def _pooled(extractor: Any, feats: Sequence[Tensor], rois: Tensor) -> Tensor:
    """RoIAlign of each region on the map that fits its size. Shape: maps, (R, 5) -> (R, C, height, width)."""
    maps = feats[:extractor.num_inputs]
    level = extractor.map_roi_levels(rois, len(maps))
    index, parts = [], []
    for i, (x, layer) in enumerate(zip(maps, extractor.roi_layers, strict=True)):
        index.append((level == i).nonzero()[:, 0])
        parts.append(roi_align(x, rois[index[-1]], layer.output_size, layer.spatial_scale, layer.sampling_ratio,
                               layer.aligned))
    return torch.cat(parts)[torch.cat(index).argsort()]
