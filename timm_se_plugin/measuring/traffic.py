"""The bytes that a training step of a network moves on a GPU, counted from the reads and writes of each operator."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

__all__ = ['CONVENTION', 'LAUNCHES', 'PATHS', 'Step', 'Units', 'block_units', 'count', 'middle', 'tail']

CONVENTION = (
    'A model, not a measurement: reads and writes of feature maps and convolution weights in eager mode, none of '
    'which a cache serves; one unit is one read or write of one map; (N, C) tensors, the partial sums of the kernels, '
    'the indices of the pooling, the classifier and the optimiser count zero'
)
PATHS = ('plain', 'timm', 'operators', 'tail by kernels', 'kernels', 'plain by kernels')


@dataclass(frozen=True)
class Step:
    """One operator or kernel: maps read and maps written."""

    name: str
    reads: float
    writes: float

    @property
    def units(self) -> float:
        """Reads and writes together."""
        return self.reads + self.writes


@dataclass(frozen=True)
class Units:
    """The operators of a part of a block, forward and backward.

    Args:
        forward: operators of the forward pass.
        backward: operators of the backward pass, as autograd runs them.
    """

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]

    @property
    def totals(self) -> tuple[float, float]:
        """Units forward and backward."""
        return sum(step.units for step in self.forward), sum(step.units for step in self.backward)

    @property
    def total(self) -> float:
        """Units forward and backward together."""
        return sum(self.totals)


_BATCH_NORM = Step('batch_norm', 2, 1)
_BATCH_NORM_BACKWARD = Step('batch_norm backward', 4, 1)
_RELU, _RELU_BACKWARD = Step('relu_', 1, 1), Step('threshold_backward', 2, 1)
_MOMENTS = Step('kernel moments', 1, 0)
_KERNEL_BACKWARD = Step('kernel apply_backward', 2, 1)

_PLAIN_TAIL = Units((_BATCH_NORM, Step('add_', 2, 1), _RELU), (_RELU_BACKWARD, _BATCH_NORM_BACKWARD))
_TAIL_BY_KERNELS = Units(
    (_MOMENTS, Step('kernel apply', 2, 1)), (Step('kernel reduce', 3, 1), _KERNEL_BACKWARD))
_OPERATORS_FORWARD = (
    Step('mean', 1, 0), Step('batch_norm_update_stats', 1, 0), Step('addcmul', 1, 1), Step('add_', 2, 1), _RELU)
_TAILS = {
    'plain': _PLAIN_TAIL,
    'plain by kernels': _TAIL_BY_KERNELS,
    'timm': Units(
        (_BATCH_NORM, Step('mean', 1, 0), Step('mul', 1, 1), Step('add_', 2, 1), _RELU),
        (_RELU_BACKWARD, Step('mul', 2, 1), Step('mul', 1, 1), Step('sum', 1, 0), Step('div', 0, 1), Step('add', 2, 1),
         _BATCH_NORM_BACKWARD)),
    'operators': Units(_OPERATORS_FORWARD, (
        _RELU_BACKWARD, Step('sum', 1, 0), Step('sub', 1, 1), Step('mul_', 2, 1), Step('sum', 1, 0), Step('mul', 1, 1),
        Step('addcmul_', 2, 1), Step('add_', 1, 1))),
    'operators nchw': Units(_OPERATORS_FORWARD, (
        # BatchNorm's kernels on (1, N * C, H, W) give both sums and the product.
        _RELU_BACKWARD, Step('batch_norm backward by running statistics', 3, 1), Step('addcmul_', 2, 1),
        Step('add_', 1, 1))),
    'kernels': _TAIL_BY_KERNELS,
    'tail by kernels': _TAIL_BY_KERNELS,
}
_MIDDLE = Units((_BATCH_NORM, _RELU), (_RELU_BACKWARD, _BATCH_NORM_BACKWARD))
_MIDDLE_BY_KERNELS = Units(
    (_MOMENTS, Step('kernel apply', 1, 1)), (Step('kernel reduce, mask computed again', 2, 0), _KERNEL_BACKWARD))
_NORM = Units((_BATCH_NORM,), (_BATCH_NORM_BACKWARD,))
LAUNCHES = """Launches of a block's end, forward and backward, without num_batches_tracked.add_; those of the excitation
as traced on a CPU, without allocations and views:

    kernels of the tail                 3    4    moments, statistics, apply; reduce, sample_sums, parameter_sums,
                                                  apply_backward
    excitation in float32               4    8    addmm, relu, addmm, sigmoid; sigmoid_backward, threshold_backward,
                                                  two products and a sum for each layer
    excitation under autocast           8   12    and a conversion of two weights and two biases each way

One kernel for the excitation's forward pass would save 3 of the 12 launches of the excitation in float32 and 7 of
the 20 under autocast, but would need a second set of formulas for each gate and activation, and read its
weights once for each sample. A CUDA graph of the training step saves all of them, and those of the convolutions and the
optimiser. The excitation therefore stays five modules, and small batches are to be run as a graph (a recipe that has
not been run on a GPU yet):

    step = torch.cuda.CUDAGraph()       # after a few warm-up steps on a side stream, with static inputs x and y
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(step):
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
    step.replay()                       # after x.copy_(...), y.copy_(...)
"""


def tail(path: str, layout: str = 'channels_last') -> Units:
    """The end of a block (BatchNorm, attention, addition, ReLU), in units of its own map, by one of ``PATHS``."""
    return _TAILS['operators nchw' if path == 'operators' and layout == 'nchw' else path]


def middle(path: str, relu: bool = True) -> Units:
    """BatchNorm and, if ``relu``, ReLU in the middle of a block, in units of its own map."""
    if path in ('kernels', 'plain by kernels'):
        return _MIDDLE_BY_KERNELS
    return _MIDDLE if relu else _NORM


def block_units(path: str) -> float:
    """Units of a whole bottleneck in channels_last, forward and backward; one unit is the size of its output.

    The two middle parts have a quarter of the channels. The convolutions read and write 3 units forward and 6 backward
    (each reads its gradient twice, its input once, and writes its input's gradient), and the sum of the two gradients
    at the block's input takes 3.
    """
    return tail(path).total + 2 * middle(path).total / 4 + 9 + 3


@dataclass
class _Map:
    """Number of values that a module reads and writes."""

    kind: str  # 'conv', 'tail', 'middle', 'norm', 'pool', 'sum'
    read: int
    written: int
    weights: int = 0
    is_first: bool = False  # its input are the images, which need no gradient


def _maps(model: nn.Module, x: Tensor) -> list[_Map]:
    """The maps of a plain residual network, which keeps the hooks, in the order in which they are computed."""
    kinds: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kinds[module] = 'conv'
        elif isinstance(module, nn.BatchNorm2d):
            kinds.setdefault(module, 'middle')
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            kinds[module] = 'pool'
        elif isinstance(module, BasicBlock | Bottleneck):
            kinds[module] = 'sum'
            kinds[module.bn3 if isinstance(module, Bottleneck) else module.bn2] = 'tail'
            if module.downsample is not None:
                kinds.update({norm: 'norm' for norm in module.downsample.modules() if isinstance(norm, nn.BatchNorm2d)})
    maps: list[_Map] = []

    def record(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        weights = module.weight.numel() if kinds[module] == 'conv' else 0
        maps.append(_Map(kinds[module], args[0].numel(), out.numel(), weights, not args[0].requires_grad))

    for module in kinds:
        module.register_forward_hook(record)
    model(x)
    return maps


def _moved(maps: Iterable[_Map], path: str, layout: str) -> dict[str, float]:
    """Numbers of values moved: forward, backward, and by the tails."""
    moved = {'forward': 0.0, 'backward': 0.0, 'tail': 0.0}

    def add(size: int, units: Units) -> None:
        forward, backward = units.totals
        moved['forward'] += size * forward
        moved['backward'] += size * backward

    for each in maps:
        if each.kind == 'conv':
            moved['forward'] += each.read + each.written + each.weights
            moved['backward'] += (1 if each.is_first else 2) * (each.read + each.written + each.weights)
        elif each.kind == 'tail':
            units = tail(path, layout)
            add(each.written, units)
            moved['tail'] += each.written * units.total
        elif each.kind == 'pool':
            moved['forward'] += each.read + each.written
            moved['backward'] += each.read + each.written
        elif each.kind == 'sum':
            moved['backward'] += 3 * each.read
        else:
            add(each.written, middle(path, each.kind == 'middle'))
    return moved


def count(base: str, batch: int = 32, size: int = 224) -> list[dict[str, Any]]:
    """Bytes that a training step of a timm residual network moves.

    Args:
        base: timm's name of the plain network, made of BasicBlock or Bottleneck.
        batch: number of images.
        size: height and width of an image in pixels.

    Returns:
        A row for each layout, type and path.

    Raises:
        ValueError: a network without timm's residual blocks, or no image.
    """
    if batch < 1:
        raise ValueError(f'batch={batch} is not 1 or more')
    with torch.device('meta'):
        model: Any = timm.create_model(base).train()
        maps = _maps(model, torch.empty(batch, 3, size, size))
    if not any(each.kind == 'tail' for each in maps):
        raise ValueError(f"{base} has none of timm's BasicBlock and Bottleneck, whose passes are known here")
    rows = []
    for layout in ('nchw', 'channels_last'):
        plain = _moved(maps, 'plain', layout)
        for dtype, itemsize in (('float32', 4), ('float16', 2), ('bfloat16', 2)):
            for path in PATHS:
                moved = _moved(maps, path, layout)
                total = moved['forward'] + moved['backward']
                rows.append({
                    'base': base, 'batch': batch, 'size': size, 'layout': layout, 'dtype': dtype, 'path': path,
                    'forward_gb': round(moved['forward'] * itemsize / 1e9, 3),
                    'backward_gb': round(moved['backward'] * itemsize / 1e9, 3),
                    'ratio': round(total / (plain['forward'] + plain['backward']), 3),
                    'tail_share': round(moved['tail'] / total, 3)})
    return rows
