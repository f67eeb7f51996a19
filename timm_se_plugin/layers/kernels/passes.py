"""The kernels. One unit of the counts below is one read or write of a feature map of N * C * P values.

A map is a dense (N, C, P) or, in channels_last, (N, P, C) block of memory, P = H * W. A program of the four kernels
that touch maps owns one sample, BLOCK_C channels and a chunk of at most ``T`` tiles of BLOCK_P positions; it writes one
partial result per channel into an array of shape (N, chunks, C). The other three reduce such arrays. Nothing is added
atomically, and the chunks depend on the shape alone, so equal calls give equal bits. Values are computed in float32.

Triton compiles a kernel again for an integer that is 1 or a multiple of 16. That helps where the integer is a stride, C
or P; for the others it is switched off, so that images of many sizes do not compile anew.

``x = (y - mean) * invstd`` is BatchNorm's normalised input, ``u = weight * x + bias`` its output; ``factor`` is the
gate times stochastic depth, one value per sample and channel.
"""

import triton
import triton.language as tl

__all__ = ['apply', 'apply_backward', 'moments', 'parameter_sums', 'reduce', 'sample_sums', 'statistics']

# RELU: no ReLU, a ReLU at the end, or a ReLU before ``factor`` is applied.
NO_RELU = tl.constexpr(0)
RELU_LAST = tl.constexpr(1)
RELU_FIRST = tl.constexpr(2)


@triton.jit
def _chunk(C, P, T, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sample, first channel, first and last tile of this program, and where its partial results go."""
    blocks = tl.cdiv(C, BLOCK_C)
    tiles = tl.cdiv(P, BLOCK_P)
    chunks = tl.cdiv(tiles, T)
    program = tl.program_id(0)
    c0 = program % blocks * BLOCK_C
    k = program // blocks % chunks
    n = (program // (blocks * chunks)).to(tl.int64)
    return n, c0, k * T, min(k * T + T, tiles), (n * chunks + k) * C


@triton.jit
def _tile(n, c0, t, C, P, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offset of a tile's first value (64 bits, as n), offsets in the tile and mask, both (BLOCK_P, BLOCK_C)."""
    p0 = t * BLOCK_P
    p, c = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK_C)[None, :]
    mask = (p < P - p0) & (c < C - c0)
    if LAST:  # channels_last
        return (n * P + p0) * C + c0, p * C + c, mask
    return (n * C + c0) * P + p0, c * P + p, mask


@triton.jit
def _vector(pointer, offset, channels, mask):
    """Values of the tile's channels, (1, BLOCK_C)."""
    return tl.load(pointer + offset + channels, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=['T'])
def moments(y, means, squares, C, P, T, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """``means = mean(y)``, ``squares = sum((y - means)**2)`` of each chunk and channel.

    Reads y: 1 unit.

    Error: sums are taken about the mean of the chunk's first tile. Its distance to the chunk's mean is part of
    the data's variance, and costs at most a factor T of float32's rounding, whatever the ratio of mean to deviation.
    """
    n, c0, first, last, out = _chunk(C, P, T, BLOCK_P, BLOCK_C)
    start, inside, mask = _tile(n, c0, first, C, P, LAST, BLOCK_P, BLOCK_C)
    values = tl.load(y + start + inside, mask=mask, other=0.0).to(tl.float32)
    pivot = tl.sum(values, 0)[None, :] / min(BLOCK_P, P - first * BLOCK_P)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for t in range(first, last):
        start, inside, mask = _tile(n, c0, t, C, P, LAST, BLOCK_P, BLOCK_C)
        values = tl.load(y + start + inside, mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, values - pivot, 0.0)
        total += distance
        square += distance * distance
    count = min(last * BLOCK_P, P) - first * BLOCK_P
    shift = tl.sum(total, 0) / count
    channels = tl.arange(0, BLOCK_C)
    inside = channels < C - c0
    tl.store(means + out + c0 + channels, tl.sum(pivot, 0) + shift, mask=inside)
    centred = tl.sum(square, 0) - shift * shift * count
    tl.store(squares + out + c0 + channels, tl.where(centred < 0, 0.0, centred), mask=inside)  # NaN stays NaN


@triton.jit(do_not_specialize=['N', 'P', 'chunks', 'size'])
def statistics(
        means, squares, weight, bias, mean, invstd, running_mean, running_var, batches, x_mean, u_mean,
        N, C, P, chunks, size, eps, momentum, unbiased,
        BATCH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """Statistics of the batch, running statistics, and the means over positions of x and u, (N, C).

    ``mean`` and ``var = (sum(squares) + sum(count * (means - mean)**2)) / (N * P)`` are Chan's combination of the
    chunks (``size`` positions each, the last one less). Without BATCH mean and invstd are given. The running statistics
    move by ``momentum``, or by 1 / ``batches`` if that is not None. ``u_mean`` is what attention squeezes.

    Reads the partial results of :func:`moments`: 1 / size of a unit in float32, twice.

    Error: as in :func:`moments`, about the mean of the first BLOCK_N chunks.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    rows = tl.arange(0, BLOCK_N)
    if BATCH:
        R = N * chunks
        pivot = tl.zeros((BLOCK_C,), tl.float32)
        total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        square = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for first in range(0, R, BLOCK_N):
            r = first + rows
            mask = (r < R)[:, None] & inside[None, :]
            at = r[:, None].to(tl.int64) * C + c[None, :]
            chunk = tl.load(means + at, mask=mask, other=0.0)
            if first == 0:
                pivot = tl.sum(chunk, 0) / min(R, BLOCK_N)
            count = tl.where(r % chunks == chunks - 1, P - (chunks - 1) * size, size)[:, None].to(tl.float32)
            distance = tl.where(mask, chunk - pivot[None, :], 0.0)
            total += count * distance
            square += count * distance * distance + tl.load(squares + at, mask=mask, other=0.0)
        shift = tl.sum(total, 0) / P / N
        mu = pivot + shift
        var = tl.sum(square, 0) / P / N - shift * shift
        var = tl.where(var < 0, 0.0, var)
        rstd = 1.0 / tl.sqrt_rn(var + eps)
        tl.store(mean + c, mu, mask=inside)
        tl.store(invstd + c, rstd, mask=inside)
        if running_mean is not None:
            share = momentum
            if batches is not None:
                share = 1.0 / tl.load(batches).to(tl.float32)
            old = tl.load(running_mean + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(running_mean + c, old + share * (mu - old), mask=inside)
            old = tl.load(running_var + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(running_var + c, old + share * (var * unbiased - old), mask=inside)
    else:
        mu = tl.load(mean + c, mask=inside, other=0.0)
        rstd = tl.load(invstd + c, mask=inside, other=0.0)
    if u_mean is not None:
        scale = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)[None, :]
        offset = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
        for first in range(0, N, BLOCK_N):
            n = first + rows
            mask = (n < N)[:, None] & inside[None, :]
            total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
            for k in range(0, chunks):
                at = (n[:, None].to(tl.int64) * chunks + k) * C + c[None, :]
                count = min(size, P - k * size)
                total += count * (tl.load(means + at, mask=mask, other=0.0) - mu[None, :])
            x = total / P * rstd[None, :]
            at = n[:, None].to(tl.int64) * C + c[None, :]
            tl.store(x_mean + at, x, mask=mask)
            tl.store(u_mean + at, (scale * x + offset).to(u_mean.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['T'])
def apply(
        y, out, shortcut, weight, bias, mean, invstd, factor, gate, C, P, T,
        RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """``out = relu(factor * u + gate * shortcut)``, or ``factor * relu(u) + gate * shortcut``.

    An argument that is None is left out. Reads y and the shortcut, writes out: 2 units, or 3.

    Error: one rounding to the type of out.
    """
    n, c0, first, last, _ = _chunk(C, P, T, BLOCK_P, BLOCK_C)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < C - c0
    mu, rstd = _vector(mean, c0, channels, inside), _vector(invstd, c0, channels, inside)
    scale, offset = _vector(weight, c0, channels, inside), _vector(bias, c0, channels, inside)
    if factor is not None:
        multiplier = _vector(factor, n * C + c0, channels, inside)
    if gate is not None:
        multiplier_of_shortcut = _vector(gate, n * C + c0, channels, inside)
    for t in range(first, last):
        start, at, mask = _tile(n, c0, t, C, P, LAST, BLOCK_P, BLOCK_C)
        u = scale * ((tl.load(y + start + at, mask=mask, other=0.0).to(tl.float32) - mu) * rstd) + offset
        if RELU == RELU_FIRST:
            u = tl.where(u < 0, 0.0, u)  # NaN stays NaN, as in torch's ReLU
        if factor is not None:
            u *= multiplier
        if shortcut is not None:
            r = tl.load(shortcut + start + at, mask=mask, other=0.0).to(tl.float32)
            if gate is not None:
                r *= multiplier_of_shortcut
            u += r
        if RELU == RELU_LAST:
            u = tl.where(u < 0, 0.0, u)
        tl.store(out + start + at, u.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _masked(g, u, factor, RELU: tl.constexpr):
    """The gradient with the ReLU's mask applied; u is the ReLU's input before ``factor``, or its output."""
    if RELU == RELU_LAST:
        if factor is not None:
            u *= factor
    if RELU != NO_RELU:
        g = tl.where(u <= 0, 0.0, g)
    return g


@triton.jit(do_not_specialize=['T'])
def reduce(
        grad, y, out, g, shortcut, weight, bias, mean, invstd, factor, sums, x_sums, shortcut_sums, C, P, T,
        RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """``g``, the gradient with the ReLU's mask applied, and per chunk and channel the sums of g, g * x, g * shortcut.

    The ReLU's mask is ``out > 0``; where out is None, it is computed again from y. A gradient that is None is 1
    everywhere, which gives the mean of ``relu(u)``. Reads grad, out, y and, for the gradient of its gate, the
    shortcut, and writes g, as far as they are given: with out 3 reads and 1 write, without 2 reads.

    Error: float32 sums of the products that the ReLU lets through.
    """
    n, c0, first, last, partial = _chunk(C, P, T, BLOCK_P, BLOCK_C)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < C - c0
    mu, rstd = _vector(mean, c0, channels, inside), _vector(invstd, c0, channels, inside)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    x_total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    shortcut_total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    multiplier = None
    if out is None:
        scale, offset = _vector(weight, c0, channels, inside), _vector(bias, c0, channels, inside)
        if factor is not None:
            multiplier = _vector(factor, n * C + c0, channels, inside)
    for t in range(first, last):
        start, at, mask = _tile(n, c0, t, C, P, LAST, BLOCK_P, BLOCK_C)
        x = (tl.load(y + start + at, mask=mask, other=0.0).to(tl.float32) - mu) * rstd
        if grad is None:
            gradient = tl.where(mask, 1.0, 0.0)
        else:
            gradient = tl.load(grad + start + at, mask=mask, other=0.0).to(tl.float32)
        if out is None:
            gradient = _masked(gradient, scale * x + offset, multiplier, RELU)
        else:
            gradient = _masked(gradient, tl.load(out + start + at, mask=mask, other=0.0).to(tl.float32), None, RELU)
        if g is not None:
            tl.store(g + start + at, gradient.to(g.dtype.element_ty), mask=mask)
        total += gradient
        x_total += gradient * tl.where(mask, x, 0.0)
        if shortcut is not None:
            shortcut_total += gradient * tl.load(shortcut + start + at, mask=mask, other=0.0).to(tl.float32)
    at = partial + c0 + channels
    tl.store(sums + at, tl.sum(total, 0), mask=inside)
    tl.store(x_sums + at, tl.sum(x_total, 0), mask=inside)
    if shortcut is not None:
        tl.store(shortcut_sums + at, tl.sum(shortcut_total, 0), mask=inside)


@triton.jit(do_not_specialize=['N', 'chunks'])
def sample_sums(
        sums, x_sums, shortcut_sums, weight, bias, sum_, x_sum, combined, shortcut_sum, N, C, chunks, scale,
        BLOCK: tl.constexpr):
    """The sums of :func:`reduce` over the chunks, times ``scale``, and ``combined = weight * x_sum + bias * sum_``.

    Since u is affine in x, the combination is the sum of g * u: the gradient of factor or, for a gradient of 1, the
    mean of ``relu(u)``. Reads and writes only arrays of size (N, chunks, C) and (N, C).
    """
    program = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = program.to(tl.int64)
    inside = at < N * C
    n, c = at // C, at % C
    total = tl.zeros((BLOCK,), tl.float32)
    x_total = tl.zeros((BLOCK,), tl.float32)
    shortcut_total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, chunks):
        partial = (n * chunks + k) * C + c
        total += tl.load(sums + partial, mask=inside, other=0.0)
        x_total += tl.load(x_sums + partial, mask=inside, other=0.0)
        if shortcut_sum is not None:
            shortcut_total += tl.load(shortcut_sums + partial, mask=inside, other=0.0)
    total, x_total = total * scale, x_total * scale
    tl.store(sum_ + at, total, mask=inside)
    tl.store(x_sum + at, x_total, mask=inside)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(combined + at, (w * x_total + b * total).to(combined.dtype.element_ty), mask=inside)
    if shortcut_sum is not None:
        tl.store(shortcut_sum + at, shortcut_total.to(shortcut_sum.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=['rows'])
def parameter_sums(
        sums, x_sums, factor, pooled_grad, pooled_sums, pooled_x_sums, weight_grad, bias_grad, rows, C,
        BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """Gradients of weight and bias: the sums over samples of ``factor * x_sums`` and ``factor * sums``.

    The gradient of the pooled output adds its own share: ``pooled_grad`` times ``pooled_x_sums`` and ``pooled_sums``,
    the means over positions of x and of 1, only of those that a ReLU before the pooling lets through. Without that ReLU
    pooled_sums is 1 and given as None. Reads only arrays of size (rows, C).
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    x_total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for first in range(0, rows, BLOCK_N):
        r = first + tl.arange(0, BLOCK_N)
        mask = (r < rows)[:, None] & inside[None, :]
        at = r[:, None].to(tl.int64) * C + c[None, :]
        if sums is not None:
            s = tl.load(sums + at, mask=mask, other=0.0)
            xs = tl.load(x_sums + at, mask=mask, other=0.0)
            if factor is not None:
                f = tl.load(factor + at, mask=mask, other=0.0).to(tl.float32)
                s, xs = s * f, xs * f
            total += s
            x_total += xs
        if pooled_grad is not None:
            p = tl.load(pooled_grad + at, mask=mask, other=0.0).to(tl.float32)
            if pooled_sums is not None:
                total += p * tl.load(pooled_sums + at, mask=mask, other=0.0)
            else:
                total += p
            x_total += p * tl.load(pooled_x_sums + at, mask=mask, other=0.0)
    tl.store(bias_grad + c, tl.sum(total, 0), mask=inside)
    tl.store(weight_grad + c, tl.sum(x_total, 0), mask=inside)


@triton.jit(do_not_specialize=['T'])
def apply_backward(
        g, y, dy, weight, bias, mean, invstd, factor, pooled_grad, weight_grad, bias_grad, C, P, T, inv_count,
        RELU: tl.constexpr, POOLED_RELU: tl.constexpr, LAST: tl.constexpr,
        BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """``dy = weight * invstd * (du - (bias_grad + x * weight_grad) / count)``, BatchNorm's derivative.

    ``du = factor * g + pooled_grad / P`` is the gradient of u. The mask of a ReLU whose input is computed again is
    applied to g (RELU), and to the pooled gradient if a ReLU comes before the pooling (POOLED_RELU). Without batch
    statistics weight_grad is None and dy ends with du. Reads g and y, writes dy: 2 reads and 1 write, or 1 and 1 where
    y is not needed.

    Error: one rounding to the type of dy.
    """
    n, c0, first, last, _ = _chunk(C, P, T, BLOCK_P, BLOCK_C)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < C - c0
    rstd, scale = _vector(invstd, c0, channels, inside), _vector(weight, c0, channels, inside)
    multiplier = None
    if factor is not None:
        multiplier = _vector(factor, n * C + c0, channels, inside)
    if pooled_grad is not None:
        pooled = _vector(pooled_grad, n * C + c0, channels, inside) / P
    if (RELU != NO_RELU or POOLED_RELU) or weight_grad is not None:  # Triton 3.2 rejects `a or b or c`
        mu = _vector(mean, c0, channels, inside)
    if RELU != NO_RELU or POOLED_RELU:
        offset = _vector(bias, c0, channels, inside)
    if weight_grad is not None:
        slope = _vector(weight_grad, c0, channels, inside) * inv_count
        shift = _vector(bias_grad, c0, channels, inside) * inv_count
    for t in range(first, last):
        start, at, mask = _tile(n, c0, t, C, P, LAST, BLOCK_P, BLOCK_C)
        du = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        if (RELU != NO_RELU or POOLED_RELU) or weight_grad is not None:
            x = (tl.load(y + start + at, mask=mask, other=0.0).to(tl.float32) - mu) * rstd
        if g is not None:
            du = tl.load(g + start + at, mask=mask, other=0.0).to(tl.float32)
            if RELU != NO_RELU:
                du = _masked(du, scale * x + offset, multiplier, RELU)
            if factor is not None:
                du *= multiplier
        if pooled_grad is not None:
            if POOLED_RELU:
                du += tl.where(scale * x + offset <= 0, 0.0, pooled)
            else:
                du += pooled
        if weight_grad is not None:
            du -= shift + x * slope
        tl.store(dy + start + at, (scale * rstd * du).to(dy.dtype.element_ty), mask=mask)
