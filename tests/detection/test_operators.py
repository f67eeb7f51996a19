"""mmcv.ops on torchvision's operators, through mmcv's own functions, against literal references."""

import importlib.util
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import timm_se_plugin.detection  # noqa: F401, I001 (before mmcv.ops, which it provides with operators)
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

pytestmark = pytest.mark.mmdet


def random_boxes(n, seed=0, size=60., dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n, 2, generator=generator, dtype=dtype) * size
    end = start + torch.rand(n, 2, generator=generator, dtype=dtype) * size / 2
    scores = torch.rand(n, generator=generator, dtype=dtype)
    return torch.cat((start, end), 1), scores


def iou_of(a, b, offset):
    width = max(0., min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0., min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def nms_reference(boxes, scores, threshold, offset):
    keep = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou_of(boxes[i], boxes[j], offset) <= threshold for j in keep):
            keep.append(i)
    return keep


def soft_nms_reference(boxes, scores, threshold, sigma, min_score, method, offset):
    left, scores, kept = list(range(len(boxes))), list(scores), []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        kept.append((best, scores[best]))
        for i in left:
            iou = iou_of(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                scores[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                scores[i] *= 1 - iou if method == 'linear' else 0
        left = [i for i in left if scores[i] >= min_score]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.9])
def test_nms_keeps_what_the_reference_loop_keeps(threshold, offset):
    boxes, scores = random_boxes(80)
    dets, keep = ops.nms(boxes, scores, threshold, offset=offset)
    assert keep.tolist() == nms_reference(boxes.tolist(), scores.tolist(), threshold, offset)
    torch.testing.assert_close(dets, torch.cat((boxes, scores[:, None]), 1)[keep])


def test_nms_offset_decides_a_case_worked_by_hand():
    # 2x2 boxes one apart: IoU 2 / 6 in continuous coordinates, 6 / 12 when a box covers 3x3 pixels.
    boxes, scores = torch.tensor([[0., 0, 2, 2], [1, 0, 3, 2]]), torch.tensor([.9, .8])
    assert ops.nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]


def test_nms_takes_score_threshold_max_num_numpy_and_nothing():
    boxes, scores = random_boxes(40, dtype=torch.float32)
    expected = [i for i in nms_reference(boxes.tolist(), scores.tolist(), 0.5, 0) if scores[i] > 0.3][:5]
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=5)[1].tolist() == expected
    assert ops.nms(boxes.numpy(), scores.numpy(), 0.5, score_threshold=0.3, max_num=5)[1].tolist() == expected
    assert ops.nms(boxes[:0], scores[:0], 0.5)[0].shape == (0, 5)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_gives_the_reference_loop_s_scores(method, offset):
    boxes, scores = random_boxes(60)
    expected = soft_nms_reference(boxes.tolist(), scores.tolist(), 0.3, 0.4, 0.05, method, offset)
    dets, keep = ops.soft_nms(boxes, scores, 0.3, 0.4, 0.05, method, offset)
    assert keep.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected], dtype=dets.dtype))
    torch.testing.assert_close(dets[:, :4], boxes[keep])


def test_soft_nms_of_mmcv_s_docstring_keeps_five():
    boxes = torch.tensor([[4., 3, 5, 3], [4, 3, 5, 4], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1]])
    dets, keep = ops.soft_nms(boxes, torch.tensor([.9, .9, .5, .5, .4, 0.]), 0.6, sigma=0.5)
    assert len(dets) == len(keep) == 5
    assert ops.soft_nms(boxes[:0], torch.zeros(0), 0.6)[0].shape == (0, 5)


@pytest.mark.parametrize('config', [
    dict(type='nms', iou_threshold=0.4),
    dict(type='nms', iou_threshold=0.4, split_thr=10),
    dict(type='soft_nms', iou_threshold=0.4, min_score=0.05),
])
def test_batched_nms_treats_every_class_by_itself(config):
    boxes, scores = random_boxes(60, size=20.)
    classes = torch.arange(60) % 3
    dets, keep = ops.batched_nms(boxes, scores, classes, config)
    expected = {}
    for c in range(3):
        own = (classes == c).nonzero()[:, 0]
        if config['type'] == 'nms':
            kept = [(i, scores[own[i]].item()) for i in nms_reference(boxes[own].tolist(), scores[own].tolist(), .4, 0)]
        else:
            kept = soft_nms_reference(boxes[own].tolist(), scores[own].tolist(), 0.4, 0.5, 0.05, 'linear', 0)
        expected |= {own[i].item(): score for i, score in kept}
    assert dict(zip(keep.tolist(), dets[:, 4].tolist(), strict=True)) == pytest.approx(expected, abs=1e-9)
    assert dets[:, 4].tolist() == sorted(dets[:, 4].tolist(), reverse=True)
    if 'split_thr' not in config:  # mmcv splits by class whatever class_agnostic says
        assert ops.batched_nms(boxes, scores, classes, config, class_agnostic=True)[1].numel() < len(keep)


def bilinear(plane, y, x):
    """Value at (y, x) of an (H, W) map whose samples lie at whole coordinates; 0 from one cell outside on."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.sum() * 0
    y, x = min(max(y, 0.), height - 1.), min(max(x, 0.), width - 1.)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return ((1 - dy) * ((1 - dx) * plane[top, left] + dx * plane[top, right])
            + dy * ((1 - dx) * plane[bottom, left] + dx * plane[bottom, right]))


def roi_align_reference(x, rois, size, scale, ratio, mode, aligned):
    out = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.) for c in corners)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.), max(y2 - y1, 1.))
        rows, columns = ratio or math.ceil(height / size[0]), ratio or math.ceil(width / size[1])
        if mode == 'max':
            rows, columns = max(rows, 1), max(columns, 1)
        for plane, by, bx in itertools.product(x[int(index)], range(size[0]), range(size[1])):
            points = torch.stack([
                bilinear(plane, y1 + (by + (i + .5) / rows) * height / size[0],
                         x1 + (bx + (j + .5) / columns) * width / size[1])
                for i in range(rows) for j in range(columns)] or [plane.sum() * 0])  # an empty RoI has no points
            out.append(points.max() if mode == 'max' else points.mean())
    return torch.stack(out).view(len(rois), x.shape[1], *size)


ROIS = torch.tensor([
    [0, 1.3, 2.1, 14.2, 17.9], [1, 0, 0, 3.3, 2.2], [1, -6, -4, 30, 9], [0, 11, 12, 11, 12.5], [0, 19, 19, 45, 40],
], dtype=torch.float64)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('ratio', [0, 1, 2, 3])
def test_roi_align_and_its_gradient_match_the_literal_definition(ratio, mode, aligned):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 10, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(ROIS), 2, 3, 2, dtype=torch.float64)
    results = []
    for roi_align in (ops.roi_align, roi_align_reference):
        out = roi_align(x, ROIS, (3, 2), 0.5, ratio, mode, aligned)
        results.append((out.detach(), torch.autograd.grad((out * weight).sum(), x)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_roi_align_s_layer_hands_on_every_option():
    x = torch.randn(2, 2, 10, 12, dtype=torch.float64)
    for kwargs in (dict(sampling_ratio=2), dict(aligned=False), dict(pool_mode='max'), dict(spatial_scale=0.25)):
        full = dict(spatial_scale=0.5, sampling_ratio=0, pool_mode='avg', aligned=True) | kwargs
        expected = roi_align_reference(
            x, ROIS, (2, 2), full['spatial_scale'], full['sampling_ratio'], full['pool_mode'], full['aligned'])
        torch.testing.assert_close(ops.RoIAlign((2, 2), **full)(x, ROIS), expected)


def roi_pool_reference(x, rois, size, scale):
    """mmcv's rule: the RoI ends at (x2 + 1) * scale, every bin is rounded outwards, an empty bin is 0."""
    out = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale for c in (corners[0], corners[1], corners[2] + 1, corners[3] + 1))
        bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
        for plane, by, bx in itertools.product(x[int(index)], range(size[0]), range(size[1])):
            rows = slice(max(math.floor(y1 + by * bin_h), 0), max(math.ceil(y1 + (by + 1) * bin_h), 0))
            columns = slice(max(math.floor(x1 + bx * bin_w), 0), max(math.ceil(x1 + (bx + 1) * bin_w), 0))
            cells = plane[rows, columns]
            empty = bin_h <= 0 or bin_w <= 0 or not cells.numel()
            out.append(plane.sum() * 0 if empty else cells.max())
    return torch.stack(out).view(len(rois), x.shape[1], *size)


@pytest.mark.parametrize('scale', [0.5, 0.3])
def test_roi_pool_and_its_gradient_match_the_literal_definition(scale):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 10, 12, dtype=torch.float64, requires_grad=True)
    rois = torch.cat((ROIS, torch.tensor([[0, 9., 9, 4, 5], [1, 60, 60, 70, 70]], dtype=torch.float64)))
    weight = torch.randn(len(rois), 2, 3, 4, dtype=torch.float64)
    results = []
    for roi_pool in (ops.roi_pool, roi_pool_reference):
        out = roi_pool(x, rois, (3, 4), scale)
        results.append((out.detach(), torch.autograd.grad((out * weight).sum(), x)[0]))
    torch.testing.assert_close(results[0], results[1])


CONVS = [dict(), dict(stride=2, padding=1), dict(padding=2, dilation=2), dict(padding=1, groups=2),
         dict(stride=(1, 2), padding=(0, 1))]


def conv_inputs(conv, deform_groups, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 7, dtype=dtype)
    weight = torch.randn(6, 4 // conv.get('groups', 1), 3, 2, dtype=dtype)
    height, width = F.conv2d(x, weight, **conv).shape[2:]
    # Away from whole coordinates, where bilinear interpolation has no derivative.
    offset = 0.25 + 0.2 * torch.rand(2, 2 * 6 * deform_groups, height, width, dtype=dtype)
    mask = torch.rand(2, 6 * deform_groups, height, width, dtype=dtype)
    return x, weight, offset, mask


def positional(conv):
    return conv.get('stride', 1), conv.get('padding', 0), conv.get('dilation', 1), conv.get('groups', 1)


@pytest.mark.parametrize('conv', CONVS)
def test_deformable_convolutions_without_offset_are_convolutions(conv):
    x, weight, offset, mask = conv_inputs(conv, 1)
    bias = torch.randn(6, dtype=torch.float64)
    expected = F.conv2d(x, weight, **conv)
    torch.testing.assert_close(ops.deform_conv2d(x, offset * 0, weight, *positional(conv), 1), expected)
    out = ops.modulated_deform_conv2d(x, offset * 0, mask * 0 + .5, weight, bias, *positional(conv), 1)
    torch.testing.assert_close(out, expected / 2 + bias[:, None, None])
    out = ops.modulated_deform_conv2d(x, offset * 0, mask * 0 + .5, weight, None, *positional(conv), 1)
    torch.testing.assert_close(out, expected / 2)


def test_deformable_convolution_reads_offsets_as_y_then_x_for_each_group():
    x, weight, offset, _ = conv_inputs({}, 2)
    moved = torch.zeros_like(offset)
    moved[:, :12:2] = 1  # first group of input channels: one row down
    moved[:, 13::2] = -2  # second group: two columns to the left
    shifted = torch.cat((F.pad(x[:, :2], (0, 0, 0, 1))[:, :, 1:], F.pad(x[:, 2:], (2, 0))[..., :-2]), 1)
    torch.testing.assert_close(ops.deform_conv2d(x, moved, weight, 1, 0, 1, 1, 2), F.conv2d(shifted, weight))


@pytest.mark.parametrize('conv', CONVS)
@pytest.mark.parametrize('deform_groups', [1, 2])
def test_deformable_convolutions_pass_gradcheck(conv, deform_groups):
    x, weight, offset, mask = (t.requires_grad_() for t in conv_inputs(conv, deform_groups))
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda *t: ops.deform_conv2d(*t, *positional(conv), deform_groups), (x, offset, weight), fast_mode=True)
    torch.autograd.gradcheck(
        lambda *t: ops.modulated_deform_conv2d(*t, *positional(conv), deform_groups),
        (x, offset, mask, weight, bias), fast_mode=True)
    torch.autograd.gradcheck(
        lambda *t: ops.modulated_deform_conv2d(*t, None, *positional(conv), deform_groups),
        (x, offset, mask, weight), fast_mode=True)


def attention_inputs(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(2, 26, 2, 3, dtype=dtype)
    locations = torch.rand(2, 3, 2, 2, 4, 2, dtype=dtype)  # 2 images, 3 queries, 2 heads, 2 levels, 4 points
    weights = torch.rand(2, 3, 2, 2, 4, dtype=dtype)
    return value, shapes, torch.tensor([0, 20]), locations, weights


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_deformable_attention_on_a_gpu_computes_what_mmcv_computes_on_the_cpu(dtype):
    value, shapes, starts, locations, weights = attention_inputs()
    value, locations, weights = (t.to(dtype).requires_grad_() for t in (value, locations, weights))
    out = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    exact = [t.detach().double().requires_grad_() for t in (value, locations, weights)]
    expected = multi_scale_deformable_attn_pytorch(exact[0], shapes, *exact[1:])
    assert out.dtype == dtype
    grad = torch.randn(out.shape).to(dtype)
    found = torch.autograd.grad(out, (value, locations, weights), grad)
    tolerance = 1e-12 if dtype == torch.float64 else 5e-3
    reference = torch.autograd.grad(expected, exact, grad.double())
    for ours, theirs in zip((out, *found), (expected, *reference), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_deformable_attention_reads_points_between_cells_as_x_then_y():
    """A map of one row, 0 to 3: x = 0.5 lies between the cells 1 and 2, and (1, y) half outside the last cell."""
    value, shapes = torch.arange(4.)[None, :, None, None], torch.tensor([[1, 4]])
    points = torch.tensor([[.5, .5], [.125, .5], [1., .5]])[None, None, None, None]
    out = MultiScaleDeformableAttnFunction.apply(
        value, shapes, torch.tensor([0]), points, torch.tensor([1., 10., 100.])[None, None, None, None], 64)
    assert out.tolist() == [[[1 * 1.5 + 10 * 0. + 100 * 1.5]]]


def test_deformable_layers_of_mmcv_start_as_convolutions():
    x = torch.randn(1, 4, 8, 8)
    first, second = ops.DeformConv2dPack(4, 6, 3, padding=1), ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    torch.testing.assert_close(first(x), F.conv2d(x, first.weight, padding=1))
    torch.testing.assert_close(second(x), F.conv2d(x, second.weight / 2, second.bias, padding=1))


def focal_reference(x, target, gamma, alpha, weight=None):
    positive = F.one_hot(target, x.shape[1] + 1)[:, :-1].bool()
    p = x.sigmoid()
    p_t, alpha_t = torch.where(positive, p, 1 - p), torch.where(positive, alpha, 1 - alpha)
    loss = -alpha_t * (1 - p_t) ** gamma * p_t.log()
    return loss if weight is None else loss * weight[target][:, None]


@pytest.mark.parametrize(('gamma', 'alpha'), [(2., 0.25), (0., 0.5), (1.5, 0.9)])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_sigmoid_focal_loss_and_its_gradient_match_the_formula(gamma, alpha, reduction):
    torch.manual_seed(0)
    x = (3 * torch.randn(7, 4, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([0, 3, 4, 1, 4, 2, 0])  # 4: background
    reference = focal_reference(x, target, gamma, alpha)
    reference = {'none': reference, 'mean': reference.sum() / 7, 'sum': reference.sum()}[reduction]
    loss = ops.sigmoid_focal_loss(x, target, gamma, alpha, None, reduction)
    torch.testing.assert_close(loss, reference)
    scale = torch.rand_like(reference)
    torch.testing.assert_close(
        torch.autograd.grad((loss * scale).sum(), x), torch.autograd.grad((reference * scale).sum(), x))


def test_sigmoid_focal_loss_weights_classes_and_refuses_to_weight_background():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target, weight = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([.5, 2, 3], dtype=torch.float64)
    loss = ops.sigmoid_focal_loss(x, target, 2., .25, weight, 'sum')
    reference = focal_reference(x, target, 2, .25, weight)
    torch.testing.assert_close(loss, reference.sum())
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(reference.sum(), x))
    with pytest.raises(ValueError, match='background'):
        ops.sigmoid_focal_loss(x, target + 1, 2., .25, weight, 'sum')


def test_sigmoid_focal_loss_stays_finite_for_large_logits():
    x = torch.tensor([[200., -200.], [-200., 200.]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(x, torch.tensor([0, 0]), 2., 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[0., 0.], [50., 150.]]))
    loss.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_rounded_once(dtype):
    torch.manual_seed(0)
    x, rois = torch.randn(2, 2, 10, 12).to(dtype), ROIS.to(dtype)
    for mode in ('avg', 'max'):
        expected = ops.roi_align(x.float(), rois.float(), (3, 2), 0.5, 2, mode, True)
        out = ops.roi_align(x.clone().requires_grad_(), rois, (3, 2), 0.5, 2, mode, True)
        torch.testing.assert_close(out.detach(), expected.to(dtype), rtol=0, atol=0)
        out.sum().backward()
    torch.testing.assert_close(ops.roi_pool(x, rois, 3, 0.5), ops.roi_pool(x.float(), rois.float(), 3, 0.5).to(dtype))
    boxes, scores = random_boxes(40, dtype=torch.float32)
    assert ops.nms(boxes.to(dtype), scores.to(dtype), 0.5)[1].tolist() == \
        ops.nms(boxes.to(dtype).float(), scores.to(dtype).float(), 0.5)[1].tolist()
    x, weight, offset, mask = (t.to(dtype).requires_grad_() for t in conv_inputs({}, 1, torch.float32))
    out = ops.modulated_deform_conv2d(x, offset, mask, weight)
    assert out.dtype == dtype
    out.sum().backward()
    assert weight.grad.dtype == dtype
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize('name', ['nms_rotated', 'bbox_overlaps', 'box_iou_rotated', 'nms_match'])
def test_an_operator_without_equal_is_refused_by_name_when_called(name):
    operator = getattr(importlib.import_module('mmcv._ext'), name)
    with pytest.raises(NotImplementedError, match=f"mmcv operator '{name}'.*mim install"):
        operator(1, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_operators_on_cuda_agree_with_the_cpu():
    torch.manual_seed(0)
    boxes, scores = random_boxes(200, dtype=torch.float32)
    assert ops.nms(boxes.cuda(), scores.cuda(), 0.5, offset=1)[1].tolist() == \
        ops.nms(boxes, scores, 0.5, offset=1)[1].tolist()
    x, rois = torch.randn(2, 3, 10, 12), ROIS.float()
    logits, target = torch.randn(7, 4), torch.tensor([0, 3, 4, 1, 4, 2, 0])
    _, weight, offset, mask = conv_inputs({}, 1, torch.float32)
    cases = [
        (lambda x, r: ops.roi_align(x, r, (3, 2), .5, 0, 'avg', True), x, rois),
        (lambda x, r: ops.roi_align(x, r, (3, 2), .5, 0, 'max', True), x, rois),
        (lambda x, r: ops.roi_pool(x, r, (3, 2), .5), x, rois),
        (lambda x, t: ops.sigmoid_focal_loss(x, t, 2., .25, None, 'sum'), logits, target),
        (lambda x, o, m, w: ops.modulated_deform_conv2d(x, o, m, w), torch.randn(2, 4, 6, 7), offset, mask, weight),
        (lambda *t: MultiScaleDeformableAttnFunction.apply(*t, 64), *attention_inputs(torch.float32)),
    ]
    for function, first, *rest in cases:
        results = []
        for device in ('cpu', 'cuda'):
            moved = first.to(device).requires_grad_()
            out = function(moved, *(t.to(device) for t in rest))
            out.sum().backward()
            results.append((out.detach().cpu(), moved.grad.cpu()))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
