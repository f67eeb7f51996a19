"""The count of bytes against figures worked out by hand and against the operators that autograd runs."""

import pytest
import timm
import torch
from timm.layers import SEModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_se_plugin.commands import main
from timm_se_plugin.layers.norm_act import norm_act
from timm_se_plugin.layers.residual_tail import residual_tail
from timm_se_plugin.layers.squeeze_excite import SqueezeExcite
from timm_se_plugin.measuring.traffic import LAUNCHES, PATHS, _maps, _moved, block_units, count, middle, tail
from timm_se_plugin.placement import residual, stem


@pytest.mark.parametrize(('path', 'layout', 'forward', 'backward'), [
    ('plain', 'channels_last', 8, 8), ('timm', 'channels_last', 11, 18), ('operators', 'channels_last', 9, 17),
    ('operators', 'nchw', 9, 12), ('kernels', 'channels_last', 4, 7), ('plain by kernels', 'nchw', 4, 7)])
def test_a_tail_moves_what_its_operators_read_and_write(path, layout, forward, backward):
    assert tail(path, layout).totals == (forward, backward)


def test_the_middle_of_a_block_takes_13_units_and_8_by_kernels():
    assert middle('plain').totals == middle('timm').totals == (5, 8)
    assert middle('kernels').totals == (3, 5)
    assert middle('plain', relu=False).totals == (3, 5)


@pytest.mark.parametrize(('path', 'units'), [
    ('plain', 34.5), ('timm', 47.5), ('operators', 44.5), ('tail by kernels', 29.5), ('kernels', 27)])
def test_a_whole_bottleneck(path, units):
    assert block_units(path) == units


def test_a_network_is_its_blocks_and_what_surrounds_them():
    rows = {(row['layout'], row['dtype'], row['path']): row for row in count('resnet50', batch=32)}
    assert len(rows) == 6 * len(PATHS)
    of = {path: rows['channels_last', 'float32', path] for path in PATHS}
    assert of['plain']['ratio'] == 1
    # The stem, the downsamples and the strides move the ratios of a bottleneck by a few per cent.
    for path in PATHS:
        assert of[path]['ratio'] == pytest.approx(block_units(path) / block_units('plain'), abs=0.08), path
    half = rows['channels_last', 'float16', 'timm']
    assert half['forward_gb'] == pytest.approx(of['timm']['forward_gb'] / 2, abs=1e-3)
    # The last norms of the 16 blocks: 3 maps of 256 channels, 4 of 512, 6 of 1024, 3 of 2048, from 56 to 7 pixels.
    values = 32 * (3 * 256 * 56**2 + 4 * 512 * 28**2 + 6 * 1024 * 14**2 + 3 * 2048 * 7**2)
    total = of['plain']['forward_gb'] + of['plain']['backward_gb']
    assert of['plain']['tail_share'] == pytest.approx(16 * 4 * values / 1e9 / total, abs=1e-3)


@pytest.mark.parametrize('base', ['resnet18', 'resnet50d'])
def test_the_kernels_save_what_the_network_gives_to_them(base, monkeypatch):
    """Five units of each BatchNorm with ReLU, those of the stem included."""
    sizes = []

    def recorded(function, is_saved):
        def run(x, *args, **kwargs):
            sizes.append(x.numel() if is_saved(args) else 0)
            return function(x, *args, **kwargs)
        return run

    for module in (residual, stem):
        monkeypatch.setattr(module, 'norm_act', recorded(norm_act, lambda args: args[1] is not None))
    monkeypatch.setattr(residual, 'residual_tail', recorded(residual.residual_tail, lambda args: True))
    timm.create_model(f'{base}_plugin', attn='se').train()(torch.randn(2, 3, 32, 32))
    moved = {row['path']: row['forward_gb'] + row['backward_gb'] for row in count(base, batch=8192, size=32)
             if (row['layout'], row['dtype']) == ('nchw', 'float32')}    # as many images as the three digits need
    assert moved['plain'] - moved['plain by kernels'] == pytest.approx(8192 / 2 * 4 * 5 * sum(sizes) / 1e9, abs=3e-3)


def test_the_first_convolution_computes_no_gradient_of_the_images():
    """Against numbers of values worked out by hand."""
    model = timm.create_model('resnet18', device='meta').train()
    conv, *_ = _maps(model, torch.empty(2, 3, 64, 64, device='meta'))
    images, weights, out = 2 * 3 * 64 * 64, 64 * 3 * 7 * 7, 2 * 64 * 32 * 32
    assert _moved([conv], 'plain', 'nchw')['backward'] == out + images + weights


def test_a_network_of_other_blocks_is_refused():
    with pytest.raises(ValueError, match='mobilenetv3_small_100 has none of'):
        count('mobilenetv3_small_100')


def test_a_count_without_images_is_refused(tmp_path):
    with pytest.raises(SystemExit, match='batch=0 is not 1 or more'):
        main(['bench', '--count', 'resnet18', '--batch', '0', '--output', str(tmp_path / 'traffic.csv')])


class Passes(TorchDispatchMode):
    """Name, maps read and maps written of each operator that computes."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        # A broadcast tensor has a map's shape and not its memory. The leaf that stands for the shortcut is copied.
        reads, writes = (sum(isinstance(x, Tensor) and x.numel() == self.size
                             and x.untyped_storage().nbytes() >= 4 * self.size for x in tree_leaves(tree))
                         for tree in ((args, kwargs), out))
        if (reads or writes) and not func.is_view and name not in ('new_empty_strided', 'copy_', 'detach'):
            self.seen.append((name, reads, writes))
        return out


@pytest.mark.parametrize(('path', 'layout'), [
    ('timm', 'channels_last'), ('operators', 'channels_last'), ('operators', 'nchw')])
def test_the_operators_of_a_backward_pass_are_those_that_autograd_runs(path, layout):
    memory = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
    y, shortcut = (torch.randn(4, 8, 14, 14).contiguous(memory_format=memory).requires_grad_() for _ in range(2))
    bn, act = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    if path == 'timm':
        out = SEModule(8)(bn(y))
        out += shortcut
        out = act(out)
    else:
        out = residual_tail(y, shortcut, bn, SqueezeExcite(8), None, act)
    grad = torch.randn_like(out)
    with Passes(y.numel()) as passes:
        out.backward(grad)
    units = tail(path, layout)

    def elementwise(steps):  # BatchNorm reads its input more often than once
        return sorted(step for step in steps if 'batch_norm' not in step[0])

    assert elementwise(passes.seen) == elementwise((s.name, s.reads, s.writes) for s in units.backward)


class _Operators(TorchDispatchMode):
    """Names of the operators that run, without views and allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(('new_empty', 'empty', 'detach', '_reshape_alias')):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(('autocast', 'forward', 'backward'), [(False, 4, 8), (True, 8, 12)])
def test_the_excitation_takes_as_many_operators_as_the_count_says(autocast, forward, backward):
    """An activation in place would work on a view of the matrix product, for which autograd copies five times."""
    se = SqueezeExcite(64)
    z = torch.randn(4, 64, 1, 1, dtype=torch.bfloat16 if autocast else None, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast), _Operators() as there:
        gate = se.excite(z)
    grad = torch.ones_like(gate)
    with _Operators() as back:
        gate.backward(grad)
    assert (len(there.names), len(back.names)) == (forward, backward), (there.names, back.names)
    told = next(line.split() for line in LAUNCHES.splitlines()
                if line.startswith(f'    excitation {"under autocast" if autocast else "in float32"} '))
    assert told[3:5] == [str(forward), str(backward)]
