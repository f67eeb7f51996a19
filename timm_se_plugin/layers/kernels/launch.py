"""Each kernel as a function of tensors, which allocates the results, chooses the tiles and launches the kernel."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import passes

__all__ = [
    'Tiles', 'apply', 'apply_backward', 'batch_statistics', 'is_channels_last', 'moments', 'parameter_sums',
    'pooled_statistics', 'reduce', 'sample_sums',
]

_TILE = 2048  # values: 16 for each of 128 threads, so that three maps and three sums fit into registers
_ROW = 128  # contiguous bytes of a tile
_PROGRAMS = 1024  # about 8 per multiprocessor of a large GPU; constant, so that sums do not depend on the GPU
_MOST_TILES = 64  # per program, which bounds the rounding error of its sums


def run(kernel: Any, programs: int, device: torch.device, *args: Any, **constants: Any) -> None:
    """Run a kernel on the tensors' device and its current stream."""
    if device.type == 'cuda' and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **constants)
    else:
        kernel[(programs,)](*args, **constants)


def is_channels_last(y: Tensor) -> bool:
    """Whether a dense map is in channels_last and not contiguous as well."""
    return not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)


class Tiles(NamedTuple):
    """How a map is cut: ``args`` and ``constants`` of the kernels that touch maps."""

    samples: int
    channels: int
    positions: int
    tiles: int  # of a chunk, at most
    chunks: int
    programs: int
    constants: dict[str, Any]

    @property
    def args(self) -> tuple[int, int, int]:
        """C, P and T of the kernels."""
        return self.channels, self.positions, self.tiles

    @property
    def size(self) -> int:
        """Positions of a chunk, at most."""
        return self.tiles * self.constants['BLOCK_P']


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@functools.lru_cache(maxsize=4096)
def _tiles(N: int, C: int, P: int, last: bool, itemsize: int) -> Tiles:
    if last:
        block_c = min(_power_of_two(C), _ROW // itemsize)
        block_p = _TILE // block_c
    else:
        block_p = min(_power_of_two(P), _TILE // 2)
        block_c = min(_power_of_two(C), _TILE // block_p)
    blocks, tiles = -(-C // block_c), -(-P // block_p)
    most = max(1, min(_MOST_TILES, N * blocks * tiles // _PROGRAMS))
    chunks = -(-tiles // most)
    constants = {'LAST': last, 'BLOCK_P': block_p, 'BLOCK_C': block_c}
    return Tiles(N, C, P, -(-tiles // chunks), chunks, N * blocks * chunks, constants)


def tiles(y: Tensor) -> Tiles:
    """How a dense map is cut: by its shape, layout and type alone."""
    N, C, H, W = y.shape
    return _tiles(N, C, H * W, is_channels_last(y), y.element_size())


def _rows(C: int) -> tuple[int, dict[str, int]]:
    """Programs and tile of the kernels that sum an array (rows, C) over its rows."""
    return -(-C // 16), {'BLOCK_N': 128, 'BLOCK_C': 16}


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and centred sum of squares of each chunk and channel. Shape: (N, C, H, W) -> (N, chunks, C) twice."""
    cut = tiles(y)
    means, squares = y.new_empty(2, cut.samples, cut.chunks, cut.channels, dtype=torch.float32).unbind()
    run(passes.moments, cut.programs, y.device, y, means, squares, *cut.args, **cut.constants)
    return means, squares


def batch_statistics(
        y: Tensor, means: Tensor, squares: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: bool,
        running_mean: Tensor | None, running_var: Tensor | None, batches: Tensor | None, momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Mean and 1 / deviation of the batch, (C,), and if ``pooled`` the means of x and u, (N, C).

    The running statistics move by ``momentum``, or by 1 / ``batches`` if ``momentum`` is None.
    """
    cut = tiles(y)
    count = cut.samples * cut.positions
    mean, invstd = y.new_empty(2, cut.channels, dtype=torch.float32).unbind()
    x_mean, u_mean = _pooled_like(y) if pooled else (None, None)
    programs, constants = _rows(cut.channels)
    run(
        passes.statistics, programs, y.device, means, squares, weight, bias, mean, invstd, running_mean, running_var,
        batches if momentum is None else None, x_mean, u_mean, *_shape(cut), eps, momentum or 0.0,
        count / max(1, count - 1), BATCH=True, **constants)
    return mean, invstd, x_mean, u_mean


def pooled_statistics(
        y: Tensor, means: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor,
) -> tuple[Tensor, Tensor]:
    """Means of x and u over positions, (N, C), by given statistics."""
    cut = tiles(y)
    x_mean, u_mean = _pooled_like(y)
    programs, constants = _rows(cut.channels)
    run(
        passes.statistics, programs, y.device, means, None, weight, bias, mean, invstd, None, None, None,
        x_mean, u_mean, *_shape(cut), 0.0, 0.0, 0.0, BATCH=False, **constants)
    return x_mean, u_mean


def _shape(cut: Tiles) -> tuple[int, int, int, int, int]:
    return cut.samples, cut.channels, cut.positions, cut.chunks, cut.size


def _pooled_like(y: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape[:2], dtype=torch.float32), y.new_empty(y.shape[:2])


def apply(
        y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, factor: Tensor | None,
        shortcut: Tensor | None, gate: Tensor | None, relu: int, out: Tensor,
) -> None:
    """Write BatchNorm, recalibration, addition and ReLU into ``out``, which may be y or the shortcut."""
    cut = tiles(y)
    run(
        passes.apply, cut.programs, y.device, y, out, shortcut, weight, bias, mean, invstd, factor, gate, *cut.args,
        RELU=relu, **cut.constants)


def reduce(
        grad: Tensor | None, y: Tensor, out: Tensor | None, shortcut: Tensor | None, weight: Tensor, bias: Tensor,
        mean: Tensor, invstd: Tensor, factor: Tensor | None, relu: int,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """The gradient with the ReLU's mask applied, if ``out`` is given, and the sums of each chunk, (N, chunks, C)."""
    cut = tiles(y)
    g = None if out is None else torch.empty_like(y)
    shape = (cut.samples, cut.chunks, cut.channels)
    sums, x_sums = y.new_empty(2, *shape, dtype=torch.float32).unbind()
    shortcut_sums = None if shortcut is None else y.new_empty(shape, dtype=torch.float32)
    run(
        passes.reduce, cut.programs, y.device, grad, y, out, g, shortcut, weight, bias, mean, invstd, factor,
        sums, x_sums, shortcut_sums, *cut.args, RELU=relu, **cut.constants)
    return g, sums, x_sums, shortcut_sums


def sample_sums(
        sums: Tensor, x_sums: Tensor, shortcut_sums: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype,
        shortcut_dtype: torch.dtype = torch.float32, scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of each sample, (N, C): both sums, their combination in ``dtype``, and the shortcut's in ``shortcut_dtype``."""
    N, chunks, C = sums.shape
    sum_, x_sum = sums.new_empty(2, N, C).unbind()
    combined = sums.new_empty(N, C, dtype=dtype)
    shortcut_sum = None if shortcut_sums is None else sums.new_empty(N, C, dtype=shortcut_dtype)
    run(
        passes.sample_sums, -(-N * C // 256), sums.device, sums, x_sums, shortcut_sums, weight, bias,
        sum_, x_sum, combined, shortcut_sum, N, C, chunks, scale, BLOCK=256)
    return sum_, x_sum, combined, shortcut_sum


def parameter_sums(
        sums: Tensor | None, x_sums: Tensor | None, factor: Tensor | None, pooled_grad: Tensor | None,
        pooled_sums: Tensor | None, pooled_x_sums: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of BatchNorm's weight and bias, (C,), from arrays (..., C)."""
    given = sums if sums is not None else pooled_grad
    assert given is not None  # at least one of the two outputs has a gradient
    C = given.shape[-1]
    weight_grad, bias_grad = given.new_empty(2, C, dtype=torch.float32).unbind()
    programs, constants = _rows(C)
    run(
        passes.parameter_sums, programs, given.device, sums, x_sums, factor, pooled_grad, pooled_sums, pooled_x_sums,
        weight_grad, bias_grad, given.numel() // C, C, **constants)
    return weight_grad, bias_grad


def apply_backward(
        g: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, factor: Tensor | None,
        pooled_grad: Tensor | None, weight_grad: Tensor | None, bias_grad: Tensor | None, inv_count: float, relu: int,
        pooled_relu: bool,
) -> Tensor:
    """The gradient of y. Shape: (N, C, H, W)."""
    cut = tiles(y)
    dy = torch.empty_like(y)
    run(
        passes.apply_backward, cut.programs, y.device, g, y, dy, weight, bias, mean, invstd, factor, pooled_grad,
        weight_grad, bias_grad, *cut.args, inv_count, RELU=relu, POOLED_RELU=pooled_relu, **cut.constants)
    return dy
