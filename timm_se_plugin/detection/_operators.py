"""The operators of MMCV's compiled extension ``mmcv._ext`` that MMDetection needs, computed by torchvision's operators.

``mmcv/ops/*.py`` fix the names and the order of the arguments, and pass the tensors that results are written into. The
signatures are those of MMCV 2.1 and onedl-mmcv 2.3. torchvision's kernels compute them on the CPU and
on CUDA; float16 and bfloat16 are computed in float32 and rounded once, at the end.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision  # registers torch.ops.torchvision
from torch import Tensor
from torch.nn import functional as F

_tv = torch.ops.torchvision
_MAX = 0  # mmcv's pool_mode; 1 is 'avg'


def _float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes to keep, best first. Shape: (N, 4), (N,) -> (K,).

    A box suppresses every box of lower score whose IoU with it is greater than ``iou_threshold``. mmcv defines the
    width of a box as x2 - x1 + ``offset``, torchvision as x2 - x1: with x2 and y2 moved by the offset, widths, heights
    and intersections are mmcv's.
    """
    boxes = _float(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return _tv.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
            method: int, offset: int) -> Tensor:
    """Soft-NMS (Bodla et al., arXiv 1704.04503). Shape: (N, 4), (N,) -> (K,), and rows of ``dets`` (N, 5) are filled.

    The best remaining box is taken until none is left, each time weighting the scores of the others by their IoU with
    that box: ``method`` 0 sets scores to zero where the IoU is at least ``iou_threshold``, 1 multiplies them there by
    1 - IoU, and 2 multiplies every score by exp(-IoU^2 / sigma). A box whose score falls below ``min_score`` is
    dropped. Of boxes with equal scores, the first one in the input is taken first.
    """
    left = torch.arange(len(boxes), device=boxes.device)
    x, score = _float(boxes), _float(scores).clone()
    taken: list[Tensor] = []
    end = x[:, 2:] + offset
    area = (end - x[:, :2]).prod(1)
    while len(left):
        at = score[left].argmax()
        best = left[at]
        dets[len(taken)] = torch.cat((x[best], score[best, None]))
        taken.append(best)
        left = torch.cat((left[:at], left[at + 1:]))
        overlap = (torch.minimum(end[best], end[left]) - torch.maximum(x[best, :2], x[left, :2])).clamp(min=0).prod(1)
        iou = overlap / (area[best] + area[left] - overlap)
        if method == 2:
            weight = torch.exp(-iou ** 2 / sigma)
        else:
            weight = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else 0., 1.)
        score[left] *= weight
        left = left[score[left] >= min_score]
    return torch.stack(taken) if taken else left


def _sample_grids(rois: Tensor, scale: float, height: int, width: int, ratio: int) -> Iterator[tuple[Tensor, int, int]]:
    """Groups of RoIs that have the same sampling grid in each bin: the RoIs' indices, the grid's rows and columns."""
    if ratio > 0:
        yield torch.arange(len(rois), device=rois.device), ratio, ratio
        return
    size = (rois[:, 3:] - rois[:, 1:3]) * scale
    # The minimum of 1 samples an empty RoI at its centre, where mmcv returns the lowest float. Without aligned=True,
    # RoIAlign makes a RoI at least one cell wide, which needs one point too.
    grid = (size / size.new_tensor([width, height])).ceil().long().clamp(min=1)
    for columns, rows in grid.unique(dim=0).tolist():
        yield (grid == grid.new_tensor([columns, rows])).all(1).nonzero()[:, 0], rows, columns


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                      aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                      pool_mode: int, aligned: bool) -> None:
    """RoIAlign (He et al., arXiv 1703.06870). Shape: (N, C, H, W), (R, 5) -> ``output`` (R, C, height, width).

    torchvision's RoIAlign averages. For the maximum of a bin (``pool_mode`` 0) it is called with a bin for each
    sampling point, and ``argmax_y`` and ``argmax_x`` get the row and the column of the greatest point.
    """
    x = _float(input)
    rois = rois.to(x.dtype)
    if pool_mode != _MAX:
        output.copy_(_tv.roi_align(x, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned))
        return
    for index, rows, columns in _sample_grids(rois, spatial_scale, aligned_height, aligned_width, sampling_ratio):
        points = _tv.roi_align(
            x, rois[index], spatial_scale, aligned_height * rows, aligned_width * columns, 1, aligned)
        points = points.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).transpose(3, 4).flatten(4)
        value, at = points.max(-1)
        output[index] = value.to(output.dtype)
        argmax_y[index] = (at // columns).to(argmax_y.dtype)
        argmax_x[index] = (at % columns).to(argmax_x.dtype)


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Gradient of :func:`roi_align_forward`, added to ``grad_input`` (N, C, H, W)."""
    grad = _float(grad_output)
    rois = rois.to(grad.dtype)
    shape = grad_input.shape
    if pool_mode != _MAX:
        grad_input += _tv._roi_align_backward(
            grad, rois, spatial_scale, aligned_height, aligned_width, *shape, sampling_ratio, aligned)
        return
    for index, rows, columns in _sample_grids(rois, spatial_scale, aligned_height, aligned_width, sampling_ratio):
        at = (argmax_y[index].long() * columns + argmax_x[index].long())[..., None]
        points = grad.new_zeros(*at.shape[:4], rows * columns).scatter_(4, at, grad[index][..., None])
        points = points.unflatten(4, (rows, columns)).transpose(3, 4).flatten(4).flatten(2, 3)
        grad_input += _tv._roi_align_backward(
            points, rois[index], spatial_scale, aligned_height * rows, aligned_width * columns, *shape, 1, aligned)


def _pool_bins(rois: Tensor, scale: float, height: int, width: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Bins of mmcv's RoIPool as RoIs of whole cells, and whether each is empty.

    mmcv's RoI ends at (x2 + 1) * scale, and each bin is rounded outwards. torchvision's RoIPool rounds the RoI's
    corners first, with another result; for RoIs of one bin and whole cells, the two rules agree.

    Shape: (R, 5) -> (R * height * width, 5), (R, height, width).
    """
    start, end = rois[:, 1:3] * scale, (rois[:, 3:] + 1) * scale
    edges = []
    for axis, (count, cells) in enumerate(((width, shape[3]), (height, shape[2]))):
        size = (end[:, axis] - start[:, axis])[:, None] / count
        step = torch.arange(count, device=rois.device, dtype=rois.dtype)
        first = (step * size + start[:, axis, None]).floor().clamp(0, cells)
        last = ((step + 1) * size + start[:, axis, None]).ceil().clamp(0, cells) - 1
        edges += [first, torch.where(size > 0, last, first - 1)]
    x1, x2, y1, y2 = edges
    full = (len(rois), height, width)
    bins = torch.stack([
        rois[:, 0, None, None].expand(full), x1[:, None].expand(full), y1[:, :, None].expand(full),
        x2[:, None].expand(full), y2[:, :, None].expand(full)], -1)
    return bins.flatten(0, 2), (x2 < x1)[:, None] | (y2 < y1)[:, :, None]


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int,
                     pooled_width: int, spatial_scale: float) -> None:
    """RoIPool (Girshick, arXiv 1504.08083). Shape: (N, C, H, W), (R, 5) -> ``output`` (R, C, height, width).

    ``argmax`` gets the index of each maximum in its flattened map. A bin without cells has the value 0 and the index
    -1.
    """
    x = _float(input)
    bins, empty = _pool_bins(rois.to(x.dtype), spatial_scale, pooled_height, pooled_width, x.shape)
    value, at = _tv.roi_pool(x, bins, 1., 1, 1)
    output.copy_(value.view(*empty.shape, -1).masked_fill(empty[..., None], 0).permute(0, 3, 1, 2))
    argmax.copy_(at.view(*empty.shape, -1).masked_fill(empty[..., None], -1).permute(0, 3, 1, 2))


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    """Gradient of :func:`roi_pool_forward`, added to ``grad_input`` (N, C, H, W)."""
    grad = _float(grad_output)
    bins, _ = _pool_bins(rois.to(grad.dtype), spatial_scale, pooled_height, pooled_width, grad_input.shape)
    grad, argmax = (t.permute(0, 2, 3, 1).reshape(len(bins), -1, 1, 1) for t in (grad, argmax))
    grad_input += _tv._roi_pool_backward(grad, bins, argmax, 1., 1, 1, *grad_input.shape)


def _deform_conv(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None,
                 conv: tuple[int, ...], grad_output: Tensor | None = None) -> Any:
    """Deformable convolution; with ``grad_output``, its gradients: of input, weight, offset, mask and bias."""
    x = _float(input)
    tensors = [weight, offset, x.new_zeros(len(x), 1) if mask is None else mask,
               x.new_zeros(len(weight)) if bias is None else bias]
    args = (x, *(t.to(x.dtype) for t in tensors), *conv, mask is not None)
    if grad_output is None:
        return _tv.deform_conv2d(*args)
    return _tv._deform_conv2d_backward(grad_output.to(x.dtype), *args)


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
                        kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,  # noqa: N803 (mmcv's names)
                        dilationW: int, dilationH: int, group: int, deformable_group: int,  # noqa: N803
                        im2col_step: int) -> None:
    """Deformable convolution (Dai et al., arXiv 1703.06211). Shape: (N, C, H, W) -> ``output`` (N, O, H', W').

    ``columns``, ``ones`` and ``im2col_step`` are mmcv's workspace, which is not used.
    """
    conv = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_deform_conv(input, weight, offset, None, None, conv))


def deform_conv_backward_input(input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor,
                               grad_offset: Tensor, weight: Tensor, columns: Tensor,
                               kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,  # noqa: N803
                               dilationW: int, dilationH: int, group: int, deformable_group: int,  # noqa: N803
                               im2col_step: int) -> None:
    """Gradients of :func:`deform_conv_forward`, added to ``grad_input`` and ``grad_offset``."""
    conv = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _deform_conv(input, weight, offset, None, None, conv, grad_output)
    grad_input += grads[0]
    grad_offset += grads[2]


def deform_conv_backward_parameters(input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor,
                                    columns: Tensor, ones: Tensor,
                                    kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,  # noqa: N803
                                    dilationW: int, dilationH: int, group: int, deformable_group: int,  # noqa: N803
                                    scale: float, im2col_step: int) -> None:
    """Gradient of :func:`deform_conv_forward` with respect to weight, times ``scale``, added to ``grad_weight``."""
    conv = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # mmcv does not pass the weight, on whose values the gradient does not depend: any tensor of its shape serves.
    grads = _deform_conv(input, grad_weight, offset, None, None, conv, grad_output)
    grad_weight.add_(grads[1], alpha=scale)


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                  mask: Tensor, output: Tensor, columns: Tensor, kernel_h: int, kernel_w: int,
                                  stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
                                  dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    """Deformable convolution v2 (Zhu et al., arXiv 1811.11168), in which ``mask`` weights every sample."""
    conv = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_deform_conv(input, weight, offset, mask, bias if with_bias else None, conv))


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                   mask: Tensor, columns: Tensor, grad_input: Tensor, grad_weight: Tensor,
                                   grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor,
                                   kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
                                   dilation_h: int, dilation_w: int, group: int, deformable_group: int,
                                   with_bias: bool) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`, added to the tensors ``grad_…``."""
    conv = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    grads = _deform_conv(input, weight, offset, mask, bias if with_bias else None, conv, grad_output)
    for total, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads, strict=False):
        total += grad
    if with_bias:
        grad_bias += grads[4]


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., arXiv 2010.04159), which mmcv computes by itself on the CPU alone.

    ``value_level_start_index`` follows from the shapes, and ``im2col_step`` is mmcv's workspace; neither is used.

    Shape: (N, keys, heads, C), (levels, 2), (levels,), (N, queries, heads, levels, points, 2),
    (N, queries, heads, levels, points) -> (N, queries, heads * C).
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # imports this module

    x, locations, weights = (_float(t) for t in (value, sampling_locations, attention_weights))
    return multi_scale_deformable_attn_pytorch(x, value_spatial_shapes, locations, weights).to(value.dtype)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Gradients of :func:`ms_deform_attn_forward`, added to the tensors ``grad_…``."""
    x, locations, weights = inputs = [
        _float(t.detach()).requires_grad_() for t in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        out = ms_deform_attn_forward(
            x, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step)
    grads = torch.autograd.grad(out, inputs, _float(grad_output))
    for total, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        total += grad


def _focal(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits times the sign of their class (1 if positive, else -1); the sign; and alpha_t times the class's weight."""
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    sign = torch.where(positive, 1., -1.).to(_float(input))
    factor = torch.where(positive, alpha, 1 - alpha).to(sign)
    if weight.numel():
        if not ((target >= 0) & (target < len(weight))).all():
            raise ValueError(f'sigmoid_focal_loss got a target outside [0, {len(weight)}), which means background, and '
                             'a weight, which has no entry for background; leave out weight to train with background')
        factor = factor * weight[target, None]
    return _float(input) * sign, sign, factor


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Focal loss (Lin et al., arXiv 1708.02002), equation 5. Shape: (N, C), (N,), (C,) or (0,) -> ``output`` (N, C).

    ``target`` holds a class for each row; a number outside [0, C) is background.
    """
    x, _, factor = _focal(input, target, weight, alpha)
    output.copy_(-factor * x.neg().sigmoid() ** gamma * F.logsigmoid(x))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Gradient of :func:`sigmoid_focal_loss_forward` (the paper's appendix B), written to ``grad_input``."""
    x, sign, factor = _focal(input, target, weight, alpha)
    p, q = x.sigmoid(), x.neg().sigmoid()
    grad_input.copy_(factor * sign * q ** gamma * (gamma * p * F.logsigmoid(x) - q))


def get_compiler_version() -> str:
    """The compiler of the operators, for MMCV's report about the environment."""
    return f'none: operators of torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    """The version of CUDA that the operators were compiled with, for MMCV's report about the environment."""
    return str(torch.version.cuda or 'not available')


def __getattr__(name: str) -> Callable[..., None]:
    """A stand-in for any other operator, which ``mmcv.ops`` can import; a call raises NotImplementedError."""
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"the mmcv operator {name!r} has no equivalent in torchvision; install an MMCV with compiled operators "
            "(for example `mim install 'mmcv==2.1.0'`, on a PyTorch for which OpenMMLab has such a build)")
    return missing
