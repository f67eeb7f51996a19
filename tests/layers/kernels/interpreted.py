"""The kernels' values and derivatives against the modules.

test_kernels.py runs this file in a process with TRITON_INTERPRET=1, tools/run_on_gpu.py on a GPU.
"""

import copy
import functools
import os
import weakref

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from parity import set_mode
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.layers.kernels import available, functions, launch
from timm_se_plugin.layers.norm_act import norm_act
from timm_se_plugin.layers.residual_tail import can_fuse, residual_tail
from timm_se_plugin.layers.selective_kernel import SelectiveKernel
from timm_se_plugin.layers.squeeze_excite import SqueezeExcite

LAYOUTS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


DEVICE = 'cpu' if os.environ.get('TRITON_INTERPRET') == '1' else 'cuda'
pytestmark = [pytest.mark.gpu] if DEVICE == 'cuda' else []


@pytest.fixture(autouse=True)
def _device(monkeypatch):
    if DEVICE == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no GPU, and TRITON_INTERPRET is not 1')
    monkeypatch.setattr(available, 'DEVICES', {DEVICE})
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with torch.device(DEVICE):
        yield
    torch.backends.cudnn.allow_tf32 = allowed
    launch._tiles.cache_clear()


@pytest.fixture(params=['one tile', 'many tiles', 'many chunks'])
def cut(request, monkeypatch):
    """Small tiles: a program that loops over them, or several programs for a sample and channel."""
    cut_into(request.param, monkeypatch)


def cut_into(how, monkeypatch):
    launch._tiles.cache_clear()
    if how != 'one tile':
        monkeypatch.setattr(launch, '_TILE', 128)
        monkeypatch.setattr(launch, '_ROW', 16)
        monkeypatch.setattr(launch, '_PROGRAMS', 6 if how == 'many chunks' else 1)


def values(shape, layout='nchw', dtype=torch.float32, mean=0.0, scale=1.0):
    return (torch.randn(shape) * scale + mean).to(dtype).contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('shape', 'mean', 'dtype'), [
    ((2, 5, 7, 9), 0.0, torch.float16), ((2, 17, 3, 11), 1000.0, torch.float32), ((1, 1, 17, 23), 30.0, torch.bfloat16),
    ((131, 3, 1, 2), -1000.0, torch.float32)])
def test_moments_are_those_of_float64(shape, mean, dtype, layout, cut):
    y = values(shape, layout, dtype, mean)
    bn = nn.BatchNorm2d(shape[1], momentum=None)
    normalized = functions.normalize(y, bn, 'linear')
    exact = y.double()
    deviation = (exact.var((0, 2, 3), correction=0) + bn.eps).sqrt()
    rounding = 2**-22 * (1 + abs(mean))  # of the mean, in units of the deviation
    assert ((normalized.mean - exact.mean((0, 2, 3))).abs() / deviation).max() < rounding
    assert (normalized.invstd * deviation - 1).abs().max() < 1e-5
    pooled = (exact.mean((2, 3)) - exact.mean((0, 2, 3))) / deviation
    tolerance = 2 * torch.finfo(dtype).eps * pooled.abs().max() + 2 * rounding
    assert (normalized.pooled - pooled).abs().max() < tolerance
    count = y.numel() // shape[1]
    torch.testing.assert_close(bn.running_mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=rounding)
    torch.testing.assert_close(
        bn.running_var.double(), exact.var((0, 2, 3), correction=0) * count / (count - 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('momentum', [0.1, 0.7, None])
def test_running_statistics_move_as_in_batch_norm(momentum):
    ours = nn.BatchNorm2d(6, momentum=momentum)
    theirs = copy.deepcopy(ours)
    for i in range(3):
        x = values((2, 6, 5, 4), mean=i)
        with torch.set_grad_enabled(i != 1):
            norm_act(x, ours, nn.ReLU())
        theirs(x)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def generator():
    return torch.Generator(DEVICE).manual_seed(5)


class Tail(nn.Module):
    """The end of a block, with as much of it as is asked for."""

    def __init__(self, channels, se, shortcut, gate, drop, relu):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels, rd_channels=3, gate='tanh') if se else None
        self.gate = SqueezeExcite(channels, rd_channels=2) if gate else None
        self.drop = Drop(drop) if drop else None
        self.act = nn.ReLU() if relu else None
        self.shortcut = shortcut
        for p in self.parameters():
            nn.init.normal_(p)
        nn.init.normal_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def forward(self, x, r, fused):
        with torch.autocast(DEVICE, x.dtype, enabled=x.dtype in DTYPES[1:]):
            return self.compute(x, r if self.shortcut else None, fused)

    def compute(self, x, r, fused):
        if fused:
            assert can_fuse(x, self.bn, self.se, self.drop)
            gate = None if self.gate is None else self.gate.excite(self.gate.squeeze(r))
            return residual_tail(x, r, self.bn, self.se, self.drop, self.act, gate)
        x = self.bn(x)
        x = x if self.se is None else self.se(x)
        x = x if self.drop is None else self.drop(x)
        if r is not None:
            x = x + (r if self.gate is None else self.gate(r))
        return x if self.act is None else self.act(x)


class Drop(nn.Module):
    """Stochastic depth with timm's attributes."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, True

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.empty((x.shape[0], 1), device=x.device)  # a GPU draws other numbers for float64
        return x * keep.bernoulli_(1 - self.drop_prob).div_(1 - self.drop_prob).to(x.dtype)[..., None, None]


def step(net, tensors, *args, seed=3):
    """Output, gradients of the inputs and parameters, and buffers, of a copy of the network."""
    net = copy.deepcopy(net)
    tensors = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in tensors]
    torch.manual_seed(seed)
    out = net(*tensors, *args)
    torch.manual_seed(seed)
    wanted = {f'input {i}': x for i, x in enumerate(tensors)} | dict(net.named_parameters())
    grads = torch.autograd.grad(out, list(wanted.values()), torch.randn(out.shape).to(out), allow_unused=True)
    return {'out': out.detach(), **dict(zip(wanted, grads, strict=True)), **dict(net.named_buffers())}


def errors(results, reference):
    return {name: ((results[name].double() - value).norm() / value.norm().clamp(min=1e-12)).item()
            for name, value in reference.items() if value is not None and value.is_floating_point()}


def both(net, tensors, *args):
    """Errors of kernels and modules against the modules in float64."""
    exact = step(copy.deepcopy(net).double(), [x.double() for x in tensors], *args, False)
    return [errors(step(net, tensors, *args, fused), exact) for fused in (True, False)]


def assert_no_worse(compared, dtype):
    """Errors of kernels and modules, each by itself, in half precision their sum: there a rounded gate is luck."""
    ours, modules = ({name: sum(results[i][name] for results in compared) / len(compared) for name in compared[0][i]}
                     for i in range(2))
    if dtype == torch.float32:
        for name, error in modules.items():
            assert ours[name] <= 1.5 * error + 3e-6, name
    else:
        assert sum(ours.values()) <= 1.5 * sum(modules.values()) + torch.finfo(dtype).eps, (ours, modules)


TAILS = [  # se, shortcut, gate, drop, relu
    (True, True, False, 0.0, True), (True, True, False, 0.5, True), (True, False, False, 0.0, True),
    (False, True, False, 0.0, True), (False, True, True, 0.0, True), (True, True, False, 0.0, False),
    (False, False, False, 0.0, True), (False, False, False, 0.0, False), (False, True, False, 0.5, True)]


@pytest.mark.parametrize(('mode', 'how'), [('train', 'many chunks'), ('frozen', 'many tiles'), ('eval', 'one tile')])
@pytest.mark.parametrize('parts', TAILS, ids=str)
def test_a_tail_errs_no_more_than_its_modules(parts, mode, how, monkeypatch):
    cut_into(how, monkeypatch)
    for dtype in DTYPES:
        compared = []
        for seed, layout in enumerate(LAYOUTS):
            torch.manual_seed(seed)
            net = set_mode(Tail(5, *parts), mode)
            compared.append(both(net, [values((2, 5, 6, 7), layout, dtype, mean=2.0) for _ in range(2)]))
        assert_no_worse(compared, dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('mean', 'how'), [(30.0, 'many tiles'), (1000.0, 'many chunks')])
def test_a_mean_far_from_zero_costs_no_more_digits_than_in_the_modules(mean, how, dtype, monkeypatch):
    cut_into(how, monkeypatch)
    for parts in (TAILS[0], TAILS[6]):
        torch.manual_seed(0)
        net = Tail(4, *parts)
        assert_no_worse([both(net, [values((4, 4, 9, 8), 'channels_last', dtype, m) for m in (mean, 0.0)])], dtype)


@pytest.mark.parametrize('how', ['sliced', 'transposed', 'unaligned', 'mixed', 'expanded gradient'])
def test_any_view_is_read_and_any_gradient_taken(how):
    net = Tail(6, *TAILS[0])
    y, r = values((3, 6, 5, 4)), values((3, 6, 5, 4), 'channels_last' if how == 'mixed' else 'nchw')
    views = {
        'sliced': lambda x: torch.cat([x, x], 3)[..., ::2], 'transposed': lambda x: x.transpose(2, 3),
        'unaligned': lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)}
    view, results = views.get(how, lambda x: x), []
    for fused in (True, False):
        inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in (y, r)]
        out = net(*map(view, inputs), fused)
        out = out.sum((2, 3)).square().sum() if how == 'expanded gradient' else out.square().sum()
        results.append([out, *torch.autograd.grad(out, [*inputs, *net.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('mode', ['train', 'frozen'])
def test_one_sample_keeps_its_layout_for_the_operators_behind(mode, layout):
    net = set_mode(Tail(6, *TAILS[0]), mode)
    y, r = (values((1, 6, 5, 4), layout).requires_grad_() for _ in range(2))
    assert net(y, r, True).stride() == net(y, r, False).stride() == y.stride()


@pytest.mark.parametrize('parts', [TAILS[0], TAILS[4], TAILS[6], TAILS[2]], ids=str)
@pytest.mark.parametrize('mode', ['train', 'frozen'])
def test_second_derivatives_are_those_of_the_modules(parts, mode):
    torch.manual_seed(0)
    net = set_mode(Tail(3, *parts), mode)
    y, r = values((2, 3, 3, 4)), values((2, 3, 3, 4))
    results = []
    for fused in (True, False):
        module = net if fused else copy.deepcopy(net).double()
        inputs = [x.clone().to(next(module.parameters()).dtype).requires_grad_() for x in (y, r)]
        wanted = [*inputs, *module.parameters()]
        out = module(*inputs, fused)
        grads = torch.autograd.grad(out.pow(3).sum(), wanted, create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in grads if g is not None)
        again = torch.autograd.grad(penalty, wanted, allow_unused=True)
        product = torch.autograd.functional.hvp(
            lambda x: module(x, inputs[1].detach(), fused).pow(3).sum(), inputs[0].detach(),  # noqa: B023
            torch.ones_like(inputs[0]))[1]
        results.append([g for g in (*grads, *again, product) if g is not None])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm() + 1e-4


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_squeeze_in_front_of_the_convolution_copies_no_map_in_the_backward_pass(dtype):
    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].numel() >= maps[0].numel():
                copied.append(kwargs['dtype'])
            return func(*args, **kwargs or {})

    conv, net = nn.Conv2d(2, 8, 1), set_mode(Tail(8, *TAILS[0]), 'frozen')
    narrow, r = values((2, 2, 5, 6)), values((2, 8, 5, 6))
    results = []
    for fused in (True, False):
        leaf = narrow.clone().to(dtype).requires_grad_()
        wanted = [leaf, *conv.parameters(), *net.parameters()]
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            maps = [conv(leaf), r.to(dtype)]
            if fused:
                out = residual_tail(*maps, net.bn, net.se, None, net.act, conv=conv, conv_input=leaf)
            else:
                out = net.compute(*maps, False)
        with Copies():
            grads = torch.autograd.grad(out, wanted, maps[1] + 1)
        assert not copied or not fused
        results.append([out, *grads])
    for a, b in zip(*results, strict=True):
        assert (a - b).float().norm() < (1e-4 if dtype == torch.float32 else 0.1) * b.float().norm() + 1e-4


@pytest.mark.parametrize('layout', LAYOUTS)
def test_many_gradients_are_computed_at_once(layout):
    for net in (Tail(3, *TAILS[0]), Wrapped(SelectiveKernel(3, 3))):
        x = values((2, 3, 3, 4), layout).requires_grad_()
        out = net(x, values((2, 3, 3, 4)), True) if isinstance(net, Tail) else net(x, torch.float32, 'auto')
        rows = torch.randn(2, *out.shape)
        expected = torch.stack([torch.autograd.grad(out, x, row, retain_graph=True)[0] for row in rows])
        batched = torch.autograd.grad(out, x, rows, is_grads_batched=True)[0]
        torch.testing.assert_close(batched, expected, rtol=1e-4, atol=1e-5)


def test_equal_calls_give_equal_bits_and_a_retained_graph_gives_its_gradients_again():
    net = Tail(6, *TAILS[0])
    y, r = values((3, 6, 9, 8)).requires_grad_(), values((3, 6, 9, 8))
    first, second = net(y, r, True), net(y, r, True)
    assert torch.equal(first, second)
    grads = [torch.autograd.grad(out.square().sum(), [y, *net.parameters()], retain_graph=True)
             for out in (first, first, second)]
    for again in grads[1:]:
        assert all(map(torch.equal, grads[0], again))


def test_a_loss_on_the_gate_alone_and_one_on_both_reach_the_block():
    results = []
    for fused in (True, False):
        torch.manual_seed(1)
        net, gates = Tail(6, *TAILS[0]), []
        net.se.gate.register_forward_hook(lambda module, args, out: gates.append(out))  # noqa: B023
        torch.manual_seed(2)
        y, r = values((3, 6, 5, 4)).requires_grad_(), values((3, 6, 5, 4))
        out = net(y, r, fused)
        wanted = [y, net.bn.weight, net.bn.bias]
        alone = torch.autograd.grad(gates[0].square().sum(), wanted, retain_graph=True)
        results.append([*alone, *torch.autograd.grad(gates[0].square().sum() + out.square().sum(), wanted)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('use_reentrant', [True, False])
@pytest.mark.parametrize('mode', ['train', 'frozen'])
def test_checkpointing_changes_no_gradient(mode, use_reentrant):
    results = []
    for run in (functools.partial(checkpoint, use_reentrant=use_reentrant), lambda function, *args: function(*args)):
        torch.manual_seed(0)
        nets = set_mode(Tail(6, *TAILS[1]), mode), Wrapped(SelectiveKernel(6, 4))
        y, r = (values((3, 6, 5, 4)).requires_grad_() for _ in range(2))
        out = run(nets[1], run(nets[0], y, r, True), torch.float32, 'auto')
        out.square().sum().backward()
        results.append([out, y.grad, r.grad, *(p.grad for net in nets for p in net.parameters() if p.requires_grad)])
    torch.testing.assert_close(*results)


@pytest.fixture
def mesh(tmp_path):
    torch.empty(1, device=DEVICE)  # a mesh made before the process uses the GPU gives a warning, an error here
    backend = 'gloo' if DEVICE == 'cpu' else 'nccl'
    dist.init_process_group(backend, init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        yield init_device_mesh(DEVICE, (1,))
    finally:  # a group that is left would end every later test that makes one
        dist.destroy_process_group()


def test_wrappers_for_several_processes_change_no_gradient(mesh):
    results = []
    for wrap in (lambda net: net, DistributedDataParallel, functools.partial(fully_shard, mesh=mesh)):
        torch.manual_seed(0)
        nets = wrap(Tail(6, *TAILS[1])), wrap(Wrapped(SelectiveKernel(6, 4)))
        y, r = (values((3, 6, 5, 4)).requires_grad_() for _ in range(2))
        out = nets[1](nets[0](y, r, True), torch.float32, 'auto')
        out.square().sum().backward()
        grads = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                 for net in nets for p in net.parameters()]
        results.append([out, y.grad, r.grad, *grads])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_a_backward_pass_to_the_shortcut_alone_leaves_nothing_behind():
    net = Tail(6, *TAILS[0])
    y, r = (values((3, 6, 5, 4)).requires_grad_() for _ in range(2))
    torch.autograd.grad(net(y, r, True).sum(), r)
    kept = weakref.ref(y)
    del y
    assert kept() is None


def kept_maps(compute, size):
    """The memory of each map of at least this size in bytes that autograd keeps for the backward pass."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        out = compute()
    assert out.requires_grad
    return {pointer for pointer, storage in storages.items() if storage.nbytes() >= size}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_norm_act_keeps_its_input_alone(layout):
    conv, bn, act = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    x = conv(values((4, 8, 16, 16), layout))
    kept = kept_maps(lambda: norm_act(x, bn, act, conv), x.nbytes)
    assert kept == {x.untyped_storage().data_ptr()}


@pytest.mark.parametrize('mode', ['train', 'frozen'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_tail_with_attention_keeps_as_many_maps_as_the_modules_of_one_without(layout, mode):
    x, r = (nn.Conv2d(8, 8, 1)(values((4, 8, 16, 16), layout)) for _ in range(2))
    plain, with_se = (set_mode(Tail(8, se, True, False, 0.0, True), mode) for se in (False, True))
    plain.act.inplace = True
    expected = kept_maps(lambda: plain(x, r, False), x.nbytes)  # BatchNorm's input and the output of ReLU
    assert len(kept_maps(lambda: with_se(x, r, True), x.nbytes)) == len(expected) == 2


@pytest.mark.parametrize('act', [nn.ReLU, nn.SiLU, None])
def test_norm_act_is_the_modules(act):
    conv, bn = nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5)
    act = act and act()
    for training in (True, False):
        bn.train(training)
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                x = conv(values((2, 5, 4, 3)))
                expected = copy.deepcopy(bn)(x) if act is None else act(copy.deepcopy(bn)(x))
                torch.testing.assert_close(norm_act(x, bn, act, conv), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('stem_type', 'norms'), [('', 1), ('deep', 3)])
def test_the_stem_of_a_network_is_its_modules(stem_type, norms, monkeypatch):
    calls, original = [], functions.scale_shift_add
    monkeypatch.setattr(functions, 'scale_shift_add', lambda *args, **kw: (calls.append(1), original(*args, **kw))[1])
    model = timm.create_model('se_test_resnet_plugin', stem_type=stem_type, stem_width=4)
    x, results = values((2, 3, 16, 16)), []
    for stem in (model._stem, lambda x: model.act1(model.bn1(model.conv1(x)))):
        out = stem(x)
        results.append([out, *torch.autograd.grad(
            out.square().sum(), [*model.conv1.parameters(), *model.bn1.parameters()])])
    assert len(calls) == norms
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('act', [nn.ReLU(), None])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_frozen_norm_that_is_not_trained_takes_no_sums_in_the_backward_pass(act, layout, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('nobody needs these sums')

    monkeypatch.setattr(launch, 'reduce', refuse)
    monkeypatch.setattr(launch, 'parameter_sums', refuse)
    bn = Tail(6, *TAILS[7]).bn.eval().requires_grad_(False)
    x = values((3, 6, 5, 4), layout, mean=1.0).requires_grad_()
    results = []
    for out in (norm_act(x, bn, act), bn(x) if act is None else act(bn(x))):
        results.append(torch.autograd.grad(out, x, torch.randn(out.shape, generator=generator()))[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_norm_act_calls_a_norm_that_is_hooked_or_another():
    seen = []
    bn = nn.BatchNorm2d(5)
    bn.register_forward_hook(lambda module, args, out: seen.append(out))
    x = values((2, 5, 4, 3))
    norm_act(x, bn, nn.ReLU())
    assert len(seen) == 1
    norm = nn.GroupNorm(1, 5)
    assert torch.equal(norm_act(x, norm, nn.ReLU()), norm(x).relu())


def test_not_a_number_and_infinity_are_not_lost():
    net = Tail(3, *TAILS[3])
    y, r = values((2, 3, 4, 4)), values((2, 3, 4, 4))
    r[0, 0, 0, 0], r[1, 1, 0, 0] = float('nan'), float('inf')
    ours, modules = (net(y, r, fused) for fused in (True, False))
    torch.testing.assert_close(ours, modules, equal_nan=True, rtol=1e-4, atol=1e-5)
    y[0, 0, 0, 0] = float('nan')
    bns = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    torch.testing.assert_close(norm_act(y, bns[0]), bns[1](y), equal_nan=True, rtol=1e-4, atol=1e-5)
    for a, b in zip(*(bn.buffers() for bn in bns), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize(('kernels', 'mode', 'layout'), [
    ((3, 5), 'train', 'nchw'), ((3, 5), 'train', 'channels_last'), ((3, 5, 7), 'train', 'nchw'),
    ((3, 5), 'frozen', 'channels_last'), ((3, 5), 'eval', 'nchw')])
def test_selective_kernels_branches_and_select_err_no_more_than_the_modules(kernels, mode, layout):
    for dtype in DTYPES:
        torch.manual_seed(0)
        layer = SelectiveKernel(4, 6, kernels)
        for p in layer.parameters():
            nn.init.normal_(p, std=0.5)
        net = set_mode(Wrapped(layer), mode)
        layer.attn.eval()  # its norm over three samples would turn one rounded ReLU into luck
        assert_no_worse([both(net, [values((3, 4, 7, 6), layout)], dtype)], dtype)


class Wrapped(nn.Module):
    """A layer under autocast, fused or not."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, dtype, fused):
        self.layer.fused = fused
        with torch.autocast(DEVICE, dtype, enabled=x.dtype == torch.float32 and dtype != torch.float32):
            return self.layer(x)


def test_a_hook_that_changes_selective_kernels_weights_is_obeyed():
    layer = SelectiveKernel(4, 6).eval()
    layer.attn.register_forward_hook(lambda module, args, out: out * torch.tensor([-1.0, 3.0]).view(1, 2, 1, 1, 1))
    x = values((2, 4, 5, 5))
    ours = layer(x)
    layer.fused = False
    torch.testing.assert_close(ours, layer(x), rtol=1e-4, atol=1e-5)


def _synchronised(rank, world, folder, results):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
    available.DEVICES.clear()
    available.DEVICES.add('cpu')
    net, batch = _synchronised_case()
    net.bn = nn.SyncBatchNorm.convert_sync_batchnorm(net.bn)
    share = slice(0, 1) if rank == 0 else slice(1, None)  # counts differ
    y, r = (x[share].clone().requires_grad_() for x in batch)
    out = net(y, r, True)
    grads = torch.autograd.grad(out.square().sum(), [y, r, *net.parameters()])
    torch.save([out.detach(), *grads, *net.buffers()], f'{results}/{rank}.pt')
    torch.distributed.destroy_process_group()


def _synchronised_case():
    torch.manual_seed(0)
    return Tail(4, *TAILS[0]), [values((3, 4, 5, 6), mean=3.0), values((3, 4, 5, 6))]


@pytest.mark.skipif(DEVICE == 'cuda', reason='two processes need two GPUs')
def test_synchronised_statistics_are_those_of_the_whole_batch(tmp_path):
    mp.start_processes(_synchronised, (2, tmp_path, tmp_path), nprocs=2, start_method='fork')
    net, (y, r) = _synchronised_case()
    y.requires_grad_()
    r.requires_grad_()
    out = net(y, r, False)
    grads = torch.autograd.grad(out.square().sum(), [y, r, *net.parameters()])
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    expected = [out.detach(), *grads, *net.buffers()]
    parameters = len(list(net.parameters()))
    for i, (a, b, value) in enumerate(zip(first, second, expected, strict=True)):
        ours = torch.cat([a, b]) if i < 3 else a + b if i < 3 + parameters else a
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('training', [True, False])
def test_one_value_per_channel_and_an_empty_batch_are_what_they_are_in_the_modules(training):
    net = Tail(3, *TAILS[6]).train(training)
    if training:
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            norm_act(values((1, 3, 1, 1)), net.bn)
    else:
        assert norm_act(values((0, 3, 2, 2)), net.bn, nn.ReLU()).shape == (0, 3, 2, 2)
        assert not can_fuse(values((0, 3, 2, 2)), net.bn)


def test_another_number_of_channels_and_another_device_are_refused():
    with pytest.raises(RuntimeError, match='of 3 channels got 5'):
        norm_act(values((2, 5, 4, 4)), nn.BatchNorm2d(3))
    with pytest.raises(RuntimeError, match='and on meta'):
        norm_act(values((2, 3, 4, 4)), nn.BatchNorm2d(3, device='meta'))
    bn = nn.BatchNorm2d(3)
    for name, buffer, message in (
            ('running_mean', torch.zeros(2), 'of 2 channels got 3'),
            ('running_var', torch.ones(4), 'of 4 channels got 3'),
            ('running_var', torch.ones(3, device='meta'), 'and on meta')):
        broken = copy.deepcopy(bn)
        setattr(broken, name, buffer)
        for training in (True, False):
            with pytest.raises(RuntimeError, match=message):
                norm_act(values((2, 3, 4, 4)), broken.train(training))


def test_running_statistics_with_gaps_between_their_values_are_moved():
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    table = torch.ones(3, 4)
    ours.running_mean, ours.running_var = table[:, 0].zero_(), table[:, 2]
    x = values((2, 3, 4, 4), mean=2.0)
    norm_act(x, ours)
    theirs(x)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert (table[:, 1::2] == 1).all()
    with torch.no_grad():
        torch.testing.assert_close(norm_act(x, ours.eval()), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_the_statistics_of_a_later_batch_are_not_mistaken_for_the_saved_ones():
    bn = nn.BatchNorm2d(3).eval()
    x = values((2, 3, 4, 4), mean=2.0)

    def weight_grad(trains_between):
        net = copy.deepcopy(bn)
        out = norm_act(x, net, nn.ReLU())
        if trains_between:
            norm_act(x, net.train(), nn.ReLU())
        out.sum().backward()
        return net.weight.grad

    assert torch.equal(weight_grad(True), weight_grad(False))


@pytest.mark.parametrize('parts', [TAILS[0], TAILS[4]], ids=str)
def test_parameters_and_statistics_in_half_precision_keep_their_type(parts):
    net = Tail(4, *parts).bfloat16()
    inputs = [values((3, 4, 5, 6), dtype=torch.bfloat16) for _ in range(2)]
    ours, modules = (step(net, inputs, fused) for fused in (True, False))
    for name, value in modules.items():
        assert ours[name].dtype == value.dtype, name
        if value.is_floating_point():
            assert (ours[name] - value).float().norm() < 0.1 * value.float().norm() + 0.05, name
