"""The fused tail against the modules one by one, on timm's blocks."""

import copy
import itertools
import math
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import set_mode
from timm.layers import DropPath
from timm.models._features_fx import create_feature_extractor
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from timm_se_plugin.files.tables import read_table
from timm_se_plugin.layers import _tail_functions
from timm_se_plugin.layers import residual_tail as residual_tail_module
from timm_se_plugin.layers.residual_tail import (
    add_shortcut,
    can_fuse,
    can_gate_weights,
    gated_conv,
    is_worthwhile,
    recalibrate,
    residual_tail,
)
from timm_se_plugin.layers.squeeze_excite import SqueezeExcite
from timm_se_plugin.measuring.benchmark import LAYOUTS
from timm_se_plugin.placement.residual import attend

INTEGRATIONS = ('standard', 'pre', 'post', 'identity', '3x3')
pytestmark = pytest.mark.filterwarnings('ignore:`torch.jit.*is deprecated:FutureWarning')  # by torch, by timm's fx
MODES = ('train', 'frozen', 'eval')


def tail(x, shortcut, bn, se, drop_path, act, fused, gate=None, conv=None, conv_input=None):
    if can_fuse(x, bn, se, drop_path, fused):
        return residual_tail(x, shortcut, bn, se, drop_path, act, gate, conv, conv_input)
    x = bn(x)
    if se is not None:
        x = se(x)
    if drop_path is not None:
        x = drop_path(x)
    if shortcut is not None:
        x += shortcut if gate is None else shortcut * gate
    return act(x)


class Block(nn.Module):
    """A timm block with SE in one of the paper's five places."""

    def __init__(self, block=Bottleneck, integration='standard', fused=True, act=nn.ReLU, drop=0.0, downsample=False):
        super().__init__()
        self.body = block(16, 8, downsample=nn.Sequential(
            nn.Conv2d(16, 8 * block.expansion, 1, bias=False), nn.BatchNorm2d(8 * block.expansion),
        ), act_layer=act, drop_path=DropPath(drop) if drop else None) if downsample else block(
            16, 16 // block.expansion, act_layer=act, drop_path=DropPath(drop) if drop else None)
        self.integration, self.fused = integration, fused
        last = self.last = 3 if block is Bottleneck else 2
        where = {'pre': self.body.conv1.in_channels, 'identity': 8 * block.expansion if downsample else 16,
                 '3x3': self.get('conv', last - 1).out_channels}
        self.se = SqueezeExcite(where.get(integration, self.get('conv', last).out_channels), rd_channels=3)
        for p in self.parameters():
            nn.init.normal_(p, std=0.5)
        for b in self.modules():
            if isinstance(b, nn.BatchNorm2d):
                nn.init.normal_(b.running_mean)
                nn.init.uniform_(b.running_var, 0.5, 2)

    def get(self, name, i):
        return getattr(self.body, f'{name}{i}')

    def forward(self, x):
        shortcut, where, fused = x, self.integration, self.fused
        if self.body.downsample is not None:
            shortcut = self.body.downsample(x)
        if where == 'pre':
            x = self.se(x)
        for i in range(1, self.last):
            se = self.se if where == '3x3' and i == self.last - 1 else None
            x = tail(self.get('conv', i)(x), None, self.get('bn', i), se, None, self.get('act', i), fused)
        gate = self.se.excite(self.se.squeeze(shortcut)) if where == 'identity' else None
        se = self.se if where == 'standard' else None
        i = self.last
        conv, bn, act = (self.get(name, i) for name in ('conv', 'bn', 'act'))
        x = tail(conv(x), shortcut, bn, se, self.body.drop_path, act, fused, gate, conv, x)
        return self.se(x) if where == 'post' else x


def run(net, x, fused, seed=0):
    """Everything that a step leaves behind, by name."""
    net = copy.deepcopy(net)
    for m in net.modules():
        if hasattr(m, 'fused'):
            m.fused = fused
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(seed)
    out = net(x)
    torch.manual_seed(1)
    (out * torch.randn(out.shape, dtype=out.dtype)).sum().backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return {'out': out.detach(), 'input': x.grad, **grads, **{n: b.clone() for n, b in net.named_buffers()}}


def assert_equal(ours, reference, tolerance=1e-10):
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        error = (ours[name].double() - value.double()).abs().max()
        assert error <= tolerance * value.double().abs().max(), (name, error)


def layout(x, channels_last):
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('integration', INTEGRATIONS)
@pytest.mark.parametrize('block', [BasicBlock, Bottleneck])
def test_equals_the_modules_one_by_one_in_float64(block, integration, mode, monkeypatch):
    for seed, (kernels, drop, downsample) in enumerate(itertools.product(
            ('nchw', 'whole batch', 'by sample'), (0.0, 0.5), (False, True))):
        act = (nn.ReLU, nn.SiLU)[seed.bit_count() % 2]
        monkeypatch.setattr(_tail_functions, '_CALL_COST', 1 if kernels == 'by sample' else 2**14)
        channels_last = kernels != 'nchw'
        torch.manual_seed(seed)
        net = set_mode(Block(block, integration, True, act, drop, downsample).double(), mode)
        x = layout(torch.randn(4, 16, 6, 5, dtype=torch.float64), channels_last)
        assert_equal(run(net, x, True), run(net, x, False))
        with torch.no_grad():
            expected = [copy.deepcopy(net) for _ in range(2)]
            expected[1].fused = False
            torch.manual_seed(0)
            ours = expected[0](x)
            torch.manual_seed(0)
            assert_equal({'out': ours}, {'out': expected[1](x)})


@pytest.mark.parametrize(('mode', 'size', 'kernel', 'bias', 'reads_the_output'), [
    ('eval', 6, 1, False, False), ('frozen', 6, 1, True, False),
    ('eval', 1, 1, False, True),  # the weights are more than the map
    ('eval', 6, 3, False, True), ('train', 6, 1, False, True)])
def test_squeezes_in_front_of_a_pointwise_convolution_where_that_is_cheaper(
        mode, size, kernel, bias, reads_the_output, monkeypatch):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 16, kernel, padding=kernel // 2, bias=bias).double()
    bn, se = nn.BatchNorm2d(16).double().train(mode == 'train'), SqueezeExcite(16, rd_channels=3).double()
    nn.init.normal_(bn.running_mean)
    h = torch.randn(2, 4, size, size + 1, dtype=torch.float64)
    expected = tail(conv(h), None, copy.deepcopy(bn), se, None, nn.ReLU(), False)
    reads = []
    theirs = residual_tail_module.moments
    monkeypatch.setattr(residual_tail_module, 'moments', lambda y, batch: reads.append(y) or theirs(y, batch))
    ours = tail(conv(h), None, bn, se, None, nn.ReLU(), True, None, conv, h)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert bool(reads) == reads_the_output


class Tail(nn.Module):
    """BatchNorm, SE, shortcut, ReLU."""

    def __init__(self, channels=6, fused=True, gate='sigmoid', **bn):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, **bn)
        self.se = SqueezeExcite(channels, rd_channels=2, gate=gate)
        self.fused, self.act = fused, nn.ReLU(inplace=True)
        for p in self.parameters():
            nn.init.normal_(p)

    def forward(self, x, shortcut=None):
        return tail(x, x.flip(0) if shortcut is None else shortcut, self.bn, self.se, None, self.act, self.fused)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5),
    st.sampled_from(('nchw', 'channels_last', 'transposed', 'sliced')),
    st.sampled_from(MODES), st.sampled_from((0.1, 0.7, None)), st.sampled_from((0.0, 100.0)), st.booleans(),
    st.sampled_from(('sigmoid', 'tanh', 'relu', 'hard_sigmoid', 'double_sigmoid')), st.integers(0, 99))
def test_equals_the_modules_for_any_shape_and_layout(n, c, h, w, order, mode, momentum, mean, trained, gate, seed):
    torch.manual_seed(seed)
    net = set_mode(Tail(c, gate=gate, momentum=momentum).double(), mode)
    net.bn.requires_grad_(trained)
    x = torch.randn(n, c, h, w, dtype=torch.float64) + mean
    if order == 'channels_last':
        x = layout(x, True)
    elif order == 'transposed':
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif order == 'sliced':
        x = torch.cat([x, x], 3)[..., ::2] + mean
    if mode == 'train' and n * h * w == 1:
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            net(x)
        return
    # two values of mean 100 leave a variance of rounding errors: digits that neither path has
    assert_equal(run(net, x, True), run(net, x, False), 1e-10 if not mean or mode != 'train' or n * h * w > 8 else 1e-6)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('n', [1, 3])
def test_gradients_arrive_in_any_layout(n, channels_last, mode):
    torch.manual_seed(0)
    net = set_mode(Tail(fused=True).double(), mode)
    net.act = nn.SiLU()  # unlike ReLU it hands the layout of the gradient on
    x = layout(torch.randn(n, 6, 3, 4, dtype=torch.float64), channels_last).requires_grad_()
    g = layout(torch.randn(n, 6, 3, 4, dtype=torch.float64), not channels_last)
    inputs = [x, *net.parameters()]
    found = []
    for fused in (True, False):
        net.fused = fused
        first = torch.autograd.grad(net(x), inputs, g, create_graph=True)
        second = torch.autograd.grad(sum((grad * grad.detach().flip(0)).sum() for grad in first), inputs)
        found.append([*torch.autograd.grad(net(x), inputs, g), *second])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('channels_last', [False, True])
def test_derivatives_of_first_and_second_order(mode, channels_last):
    torch.manual_seed(0)
    net = set_mode(Tail(2).double(), mode)
    x, r = (layout(torch.randn(2, 2, 2, 2, dtype=torch.float64), channels_last).requires_grad_() for _ in range(2))
    params = list(net.parameters())

    def f(x, r, *_):  # the checks perturb the parameters themselves
        return net(x, r)

    assert torch.autograd.gradcheck(f, (x, r, *params))
    assert torch.autograd.gradgradcheck(f, (x, r, *params), fast_mode=True)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('how', ['bfloat16', 'float16 autocast', 'bfloat16 autocast'])
@pytest.mark.parametrize(('call_cost', 'integration'), [(1, 'standard'), (2**14, 'standard'), (2**14, 'identity')])
def test_half_precision_errs_no_more_than_the_modules(call_cost, integration, how, channels_last, mode, monkeypatch):
    monkeypatch.setattr(_tail_functions, '_CALL_COST', call_cost)
    dtype = torch.float16 if 'float16' in how.split()[0] and how[0] == 'f' else torch.bfloat16
    errors = {True: {}, False: {}}
    for seed in range(4):
        torch.manual_seed(seed)
        net = set_mode(Block(integration=integration), mode)
        x = layout(torch.randn(8, 16, 12, 12), channels_last).to(dtype).float()
        exact = run(copy.deepcopy(net).double(), x.double(), False)
        for fused in (True, False):
            with torch.autocast('cpu', dtype, enabled='autocast' in how):
                ours = run(net, x, fused) if 'autocast' in how else run(net.to(dtype), x.to(dtype), fused)
            for name, value in exact.items():
                error = (ours[name].double() - value).norm() / value.double().norm()
                errors[fused].setdefault(name, []).append(error.item())
    for name, plain in errors[False].items():
        if name.endswith('num_batches_tracked'):
            continue
        assert sum(errors[True][name]) <= 1.2 * sum(plain) + 1e-6, name


class WithStatistics(TorchDispatchMode):
    """Refuses None for the batch statistics of BatchNorm's derivative, as the operator of CUDA does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.native_batch_norm_backward.default:
            assert args[5] is not None
            assert args[6] is not None
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('needs_y', [False, True])
@pytest.mark.parametrize('samples', [1, 2])
@pytest.mark.parametrize('channels_last', [False, True])
def test_on_a_gpu_without_kernels_the_operators_get_what_they_need(channels_last, samples, needs_y):
    with FakeTensorMode(), torch.device('cuda'), WithStatistics():
        grad, y = (layout(torch.randn(samples, 6, 8, 8), channels_last) for _ in range(2))
        grads = _tail_functions._affine_backward(
            grad, y, torch.randn(samples, 6), torch.randn(6), torch.rand(6), 1e-5, needs_y)
        assert [None if g is None else g.shape for g in grads] == [y.shape if needs_y else None, *[(samples, 6)] * 2]


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('mean', [5.0, 50.0])
def test_half_precision_gradients_have_no_bias_far_from_zero(mean, dtype, channels_last):
    net = Tail().train()
    x, shortcut = (layout(torch.randn(4, 6, 14, 14), channels_last).to(dtype) for _ in range(2))
    grad = torch.randn_like(x) + 8 * x  # along the map, so that the derivative of the variance is large
    x = (x + mean).requires_grad_()
    with torch.autocast('cpu', dtype):
        ours, = torch.autograd.grad(net(x, shortcut), x, grad)
    exact = x.detach().double().requires_grad_()
    reference, = torch.autograd.grad(copy.deepcopy(net).double()(exact, shortcut.double()), exact, grad.double())
    bias = (ours.double() - reference).mean((0, 2, 3)).abs() / reference.std((0, 2, 3))
    assert bias.max() < 2e-3  # measured: up to 1.1e-3, the modules' own up to 3e-4


@pytest.mark.parametrize('channels_last', [False, True])
def test_float32_statistics_are_safe_far_from_zero_and_for_constant_channels(channels_last):
    torch.manual_seed(0)
    net = Tail().train()
    x = torch.randn(8, 6, 14, 14) + 100
    x[:, 0] = 7
    x = layout(x, channels_last)
    exact = run(copy.deepcopy(net).double(), x.double(), False)
    ours, plain = run(net, x, True), run(net, x, False)
    for name, value in exact.items():
        error, reference = ((r[name].double() - value).norm() for r in (ours, plain))
        assert error <= 2 * reference + 1e-6 * value.double().norm(), name


def network(fused=True, drop_path_rate=0.0):
    torch.manual_seed(0)
    return timm.create_model('se_resnet50_plugin', layers=(1, 2, 1, 1), num_classes=5, base_width=16,
                             drop_path_rate=drop_path_rate, zero_init_last=False, attn_fused=fused)


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_traced_by_fx_is_bitwise_equal_and_scripts(mode):
    net = set_mode(network(), mode)
    x = torch.randn(2, 3, 64, 64)
    traced, scripted = (create_feature_extractor(copy.deepcopy(net), ['fc']) for _ in range(2))
    assert any('recalibrate_add_act' in n.name for n in traced.graph.nodes)
    scripted = torch.jit.script(scripted)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(traced(x)['fc'], expected)
        torch.testing.assert_close(scripted(x)['fc'], expected, rtol=1e-4, atol=1e-5)
    for name, value in net.named_buffers():
        assert torch.equal(value, traced.get_buffer(name)), name


def test_scripts_traces_and_exports_the_modules():
    net = network(fused='auto').eval()
    x = torch.randn(2, 3, 64, 64)
    expected = net(x)
    for other in (torch.jit.script(net), torch.jit.trace(net, x)):
        torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5)
    program = torch.export.export(net, (x,), strict=False)  # torch 2.6 does not tell a strict export from a compilation
    assert not any('rsqrt' in str(n.target) for n in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mode', [
    mode if mode == 'train' else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES])
def test_compiles_without_a_graph_break(mode):
    net = set_mode(network().double(), mode)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = copy.deepcopy(net)
    compiled.compile(fullgraph=True, backend='aot_eager')
    results = []
    for model in (compiled, net):
        out = model(x)
        out.square().sum().backward()
        results.append({'out': out.detach(), **{n: p.grad for n, p in model.named_parameters()},
                        **dict(model.named_buffers())})
    assert_equal(*results)


def test_a_compiled_network_is_fused():
    graphs = []

    def keep(graph, example):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    net = network(fused='auto').train()
    net.compile(fullgraph=True, backend=keep)
    net(torch.randn(2, 3, 32, 32))
    assert sum('rsqrt' in str(n.target) for n in graphs[0].graph.nodes) >= 2


def test_inductor_compiles_a_training_step():
    torch._dynamo.reset()
    net = Tail().double()
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    compiled = copy.deepcopy(net)
    compiled.compile(fullgraph=True)
    grads = []
    for model in (compiled, net):
        model(x, x).square().sum().backward()
        grads.append({'input': x.grad.clone(), **{n: p.grad for n, p in model.named_parameters()}})
        x.grad = None
    assert_equal(*grads)


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointed_equals_stored(reentrant):
    net = Block(drop=0.5).double().train()
    x = torch.randn(4, 16, 5, 5, dtype=torch.float64)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=reentrant)

    ours, expected = run(Checkpointed(), x, True), run(net, x, True)
    for name in ('out', 'input', *(n for n, _ in net.named_parameters())):
        torch.testing.assert_close(ours[name if name in ours else f'net.{name}'], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('mode', ['train', 'frozen'])
def test_saves_no_more_than_a_block_without_attention(mode, channels_last):
    def saved(net):
        storages = {}
        params = {p.untyped_storage().data_ptr() for p in net.parameters()}

        def pack(t):
            if t.untyped_storage().data_ptr() not in params:
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
            return t

        x = layout(torch.randn(8, 64, 56, 56), channels_last)
        with saved_tensors_hooks(pack, lambda t: t):
            out = net(x.requires_grad_())
        assert out.requires_grad
        return sum(s.nbytes() for s in storages.values())

    plain, ours = Bottleneck(64, 16), Bottleneck(64, 16)
    attend(ours, SqueezeExcite(64), 'standard', True)
    ratio = saved(set_mode(ours, mode)) / saved(set_mode(plain, mode))
    assert ratio <= 1.01


def test_backward_repeats_with_a_retained_graph():
    net = Tail().double()
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    out = net(x)
    g = torch.randn_like(out)
    kept = g.clone()
    first = torch.autograd.grad(out, [x, *net.parameters()], g, retain_graph=True)
    second = torch.autograd.grad(out, [x, *net.parameters()], g)
    assert torch.equal(g, kept)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(('mode', 'fused'), [('train', False), ('frozen', True), ('eval', True)])
def test_a_training_pass_leaves_the_gradients_of_an_earlier_pass_as_they_are(mode, fused):
    net = Tail().double()
    xs = torch.randn(4, 6, 3, 3, dtype=torch.float64), torch.randn(4, 6, 5, 5, dtype=torch.float64)

    def loss(net, x, mode, fused):
        set_mode(net, mode).fused = fused
        return net(x).square().sum()

    separate = copy.deepcopy(net)
    (loss(net, xs[0], mode, fused) + loss(net, xs[1], 'train', True)).backward()
    loss(separate, xs[0], mode, fused).backward()
    loss(separate, xs[1], 'train', True).backward()
    assert_equal(*({n: p.grad for n, p in each.named_parameters()} for each in (net, separate)))


def test_works_in_inference_mode_and_after_copying_and_pickling():
    net = set_mode(Tail(), 'eval')
    x = torch.randn(2, 6, 3, 3)
    expected, kept = net(x), x.clone()
    with torch.inference_mode():
        for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            torch.testing.assert_close(other(x), expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('n', [1, 3])
def test_overwrites_the_convolution_output_only_where_nobody_sees_it(n, channels_last):
    net, conv = Tail().eval(), nn.Conv2d(6, 6, 1)
    x, seen = layout(torch.randn(n, 6, 4, 4), channels_last), []
    with torch.no_grad():
        expected = net(conv(x), x)
        for hooked in (False, True):
            if hooked:
                conv.register_forward_hook(lambda m, args, out: seen.append(out))
            y = conv(x)
            kept = y.clone()
            out = residual_tail(y, x, net.bn, net.se, None, net.act, conv=conv)
            torch.testing.assert_close(out, expected)
            assert (out.data_ptr() == y.data_ptr()) is not hooked
    assert torch.equal(seen[0], kept)


def test_hooks_on_the_gate_see_it():
    net, seen = Tail(), []
    net.se.gate.register_forward_hook(lambda m, args, out: seen.append(out))
    net(torch.randn(2, 6, 3, 3))
    assert seen[0].shape == (2, 6, 1, 1)


class CustomNorm(nn.BatchNorm2d):
    pass


class CenteredSqueezeExcite(SqueezeExcite):
    def forward(self, x):
        return super().forward(x - x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(('change', 'reason'), [
    (lambda net: setattr(net, 'se', CenteredSqueezeExcite(6)), 'CenteredSqueezeExcite'),
    (lambda net: setattr(net, 'bn', CustomNorm(6)), 'CustomNorm'),
    (lambda net: setattr(net, 'bn', nn.SyncBatchNorm(6)), 'SyncBatchNorm'),
    (lambda net: setattr(net, 'bn', nn.GroupNorm(2, 6)), 'GroupNorm'),
    (lambda net: setattr(net, 'bn', nn.BatchNorm2d(6, affine=False)), 'no weight'),
    (lambda net: net.bn.register_parameter('bias', None), 'no bias'),  # torch 2.14's BatchNorm2d(6, bias=False)
    (lambda net: setattr(net, 'bn', nn.BatchNorm2d(6, track_running_stats=False)), 'running'),
    (lambda net: setattr(net.bn, 'track_running_stats', False), 'running'),
    (lambda net: setattr(net.se, 'squeeze_type', 'max'), 'average'),
    (lambda net: net.bn.register_forward_hook(lambda *_: None), 'hook'),
    (lambda net: setattr(net.se, 'forward', net.se.forward), 'hook'),
    (lambda net: net.se.register_forward_pre_hook(lambda *_: None), 'hook'),
    (lambda net: net.bn.register_full_backward_hook(lambda *_: None), 'hook'),
])
def test_steps_aside_and_says_why(change, reason):
    net = Tail().eval()
    change(net)
    net.eval()
    x = torch.randn(2, 6, 3, 3)
    with pytest.raises(ValueError, match=rf'attn_fused=True, but .*{reason}'):
        net(x)
    net.fused = 'auto'
    ours = None if isinstance(net.bn, nn.SyncBatchNorm) else net(x)  # SyncBatchNorm has no CPU kernel in training only
    if ours is not None:
        net.fused = False
        assert torch.equal(ours, net(x))


def test_a_hook_on_the_activation_sees_the_output():
    net, seen = Tail(), []
    net.act.register_forward_hook(lambda m, args, out: seen.append(out))
    assert net(torch.randn(2, 6, 3, 3)) is seen[0]


def test_frozen_batch_norm_is_fused():
    from timm.utils.model import freeze_batch_norm_2d

    net = set_mode(Tail().double(), 'train')
    net.bn.running_mean.normal_()
    net = freeze_batch_norm_2d(net)
    assert type(net.bn) is not nn.BatchNorm2d
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    assert_equal(run(net, x, True), run(net, x, False))


@pytest.mark.sizes_matter
@pytest.mark.parametrize('gradients', [True, False])
@pytest.mark.parametrize('mode', ['frozen', 'eval'])
def test_an_empty_batch_is_left_to_the_modules(mode, gradients):
    net = set_mode(Tail(fused='auto'), mode)
    with torch.set_grad_enabled(gradients):
        assert net(torch.randn(0, 6, 3, 3)).shape == (0, 6, 3, 3)


def test_functional_transforms_see_the_modules():
    net = Tail(fused='auto').eval()
    x = torch.randn(2, 6, 3, 3)
    expected = torch.autograd.functional.jvp(net, x, torch.ones_like(x))[1]
    torch.testing.assert_close(torch.func.jvp(net, (x,), (torch.ones_like(x),))[1], expected)
    with torch.autograd.forward_ad.dual_level():
        out = net(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(out).tangent, expected)


@pytest.mark.sizes_matter
def test_an_ensemble_of_networks_runs_in_one_vmap():
    nets = [set_mode(Tail(fused='auto').double(), 'eval') for _ in range(2)]
    xs = torch.randn(2, 2, 6, 3, 3, dtype=torch.float64)
    state = {name: torch.stack([net.state_dict()[name] for net in nets]) for name in nets[0].state_dict()}
    found = torch.vmap(lambda state, x: torch.func.functional_call(nets[0], state, x))(state, xs)
    torch.testing.assert_close(found, torch.stack([net(x) for net, x in zip(nets, xs, strict=True)]))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('mode', ['train', 'frozen'])
def test_many_gradients_are_computed_at_once(mode, channels_last):
    net = set_mode(Tail(fused=True), mode).double()
    x = layout(torch.randn(2, 6, 3, 4, dtype=torch.float64), channels_last).requires_grad_()
    out = net(x * 1)
    rows = torch.randn(3, *out.shape, dtype=torch.float64)
    expected = torch.stack([torch.autograd.grad(out, x, row, retain_graph=True)[0] for row in rows])
    batched = torch.autograd.grad(out, x, rows, retain_graph=True, is_grads_batched=True)[0]
    torch.testing.assert_close(batched, expected)
    mapped = torch.func.vmap(lambda row: torch.autograd.grad(out, x, row, retain_graph=True)[0])(rows)
    torch.testing.assert_close(mapped, expected)


def test_hooks_on_all_modules_are_called():
    net, called = Tail(fused='auto'), []
    with nn.modules.module.register_module_forward_hook(lambda module, args, out: called.append(module)):
        net(torch.randn(2, 6, 3, 3))
    assert {net.bn, net.se, net.act} <= set(called)


def test_trains_as_the_modules_do():
    losses = {}
    for fused in (True, False):
        net = network(fused, drop_path_rate=0.2).double().train()
        torch.manual_seed(1)
        x, target = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        losses[fused] = []
        for _ in range(5):
            loss = F.cross_entropy(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[fused].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-7)


@pytest.mark.sizes_matter
def test_auto_leaves_small_maps_to_the_modules_by_the_measured_table():
    """In each group of the table the rule is at least as quick as fusing always, and as fusing never."""
    rows = read_table(Path(__file__).parents[2] / 'results' / 'tail-cpu.csv')
    groups = {}
    for row in rows:
        N, C, size = (int(row[key]) for key in ('batch', 'channels', 'size'))
        x = torch.empty(N, C, size, size, dtype=getattr(torch, row['dtype']), device='cpu').contiguous(
            memory_format=LAYOUTS[row['layout']])
        with torch.set_grad_enabled(row['mode'] == 'train'):
            chosen = is_worthwhile(x)
        group = groups.setdefault((row['mode'], row['dtype'], row['layout']), [])
        group.append((chosen, math.log(float(row['ratio']))))
    assert len(groups) == 8
    for group, found in groups.items():
        by_rule = sum(ratio for chosen, ratio in found if chosen)
        assert by_rule <= min(0, sum(ratio for _, ratio in found)) + 0.02 * len(found), group
        assert len({chosen for chosen, _ in found}) == 2, group


@pytest.mark.sizes_matter
def test_auto_leaves_a_small_map_to_the_modules_and_true_fuses_it():
    bn, se = nn.BatchNorm2d(8), SqueezeExcite(8, 1 / 4)
    x = torch.randn(2, 8, 5, 5)
    assert not can_fuse(x, bn, se)
    assert can_fuse(x, bn, se, fused=True)
    assert can_fuse(torch.randn(8, 256, 16, 16), nn.BatchNorm2d(256), SqueezeExcite(256))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('case', ['owned', 'hook of conv', 'hook of bn', 'hook of se', 'gradients'])
def test_a_small_map_is_recalibrated_in_place_only_where_nobody_sees_it(case, channels_last):
    torch.manual_seed(0)
    modules = {'conv': nn.Conv2d(1, 1, 1), 'bn': nn.BatchNorm2d(6), 'se': SqueezeExcite(6, rd_channels=2).double()}
    y = layout(torch.randn(2, 6, 4, 5, dtype=torch.float64), channels_last)
    expected, before, seen = modules['se'](y).detach(), y.clone(), []
    if case.startswith('hook'):
        modules[case.split()[-1]].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.set_grad_enabled(case == 'gradients'):
        found = recalibrate(y, **modules)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.requires_grad == (case == 'gradients')
    assert (found.data_ptr() == y.data_ptr()) == (case == 'owned')
    assert case == 'owned' or torch.equal(y, before)
    assert len(seen) == (case == 'hook of se')


def one_image(bias=False, channels_last=False, dtype=torch.float64):
    torch.manual_seed(0)
    conv, bn, se = nn.Conv2d(6, 24, 1, bias=bias), nn.BatchNorm2d(24), SqueezeExcite(24, 1 / 4)
    for values, low in ((bn.weight, -1), (bn.bias, -1), (bn.running_mean, -1), (bn.running_var, 0.5)):
        nn.init.uniform_(values, low, 2)
    modules = (m.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format).eval()
               for m in (conv, bn, se))
    return layout(torch.randn(1, 6, 3, 5, dtype=dtype), channels_last), *modules


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('bias', [False, True])
@torch.no_grad()
def test_one_image_is_recalibrated_by_the_weights_of_the_convolution(bias, channels_last, frozen):
    from timm.utils.model import freeze_batch_norm_2d
    x, conv, bn, se = one_image(bias, channels_last)
    expected, kept = se(bn(conv(x))), copy.deepcopy((x, conv.weight, conv.bias))
    bn = freeze_batch_norm_2d(bn) if frozen else bn
    assert can_gate_weights(x, conv, bn, se, True)
    found = gated_conv(x, conv, bn, se)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.stride() == expected.stride()
    for now, before in zip((x, conv.weight, conv.bias), kept, strict=True):
        assert now is before is None or torch.equal(now, before)


@pytest.mark.parametrize('change', [
    lambda x, conv, bn, se: (x.expand(2, -1, -1, -1), conv, bn, se),
    lambda x, conv, bn, se: (x[:, :, :2, :3], conv, bn, se),  # six positions, and six channels
    lambda x, conv, bn, se: (x.bfloat16(), conv, bn, se),
    lambda x, conv, bn, se: (x, conv.float(), bn, se),
    lambda x, conv, bn, se: (x, nn.Conv2d(6, 24, 1, stride=2).double(), bn, se),
    lambda x, conv, bn, se: (x, nn.utils.parametrizations.weight_norm(conv), bn, se),
    lambda x, conv, bn, se: (x, conv, bn.train(), se),
    lambda x, conv, bn, se: (x, conv, nn.Identity(), se),
    lambda x, conv, bn, se: (x, conv, bn, nn.Identity()),
    lambda x, conv, bn, se: (x, conv, bn, SqueezeExcite(24, squeeze='max').double()),
    lambda x, conv, bn, se: (x, conv, bn, bn.register_forward_hook(lambda *_: None) and se),
    lambda x, conv, bn, se: (x, conv, bn, se.register_forward_hook(lambda *_: None) and se),
    lambda x, conv, bn, se: (x, conv.register_forward_hook(lambda *_: None) and conv, bn, se),
])
@torch.no_grad()
def test_the_weights_of_the_convolution_are_left_where_the_result_or_the_time_would_differ(change):
    case = one_image()
    assert can_gate_weights(*case, True)
    with torch.enable_grad():
        assert not can_gate_weights(*case, True)
    with torch.autocast('cpu', torch.bfloat16):
        assert not can_gate_weights(*case, True)
    assert not can_gate_weights(*change(*case), True)


@pytest.mark.sizes_matter
@torch.no_grad()
def test_auto_gates_the_weights_where_the_output_is_large():
    conv, bn, se = nn.Conv2d(64, 256, 1).eval(), nn.BatchNorm2d(256).eval(), SqueezeExcite(256).eval()
    for size, gated in ((24, False), (32, True)):
        x = torch.randn(1, 64, size, size)
        assert can_gate_weights(x, conv, bn, se) is gated
        assert can_gate_weights(x, conv, bn, se, True)
        assert not can_gate_weights(x, conv, bn, se, False)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('act', ['relu', 'hooked', 'silu', 'gradients'])
def test_the_shortcut_is_added_as_by_the_modules(act, channels_last):
    torch.manual_seed(0)
    x, shortcut = (layout(torch.randn(2, 6, 4, 5, dtype=torch.float64), channels_last) for _ in range(2))
    module, seen = nn.SiLU() if act == 'silu' else nn.ReLU(), []
    expected, before = module(x + shortcut), shortcut.clone()
    if act == 'hooked':
        module.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
    summed = x + shortcut
    with torch.set_grad_enabled(act == 'gradients'):
        found = add_shortcut(x, shortcut, module)
    assert torch.equal(found, expected)
    assert torch.equal(shortcut, before)
    assert all(torch.equal(given, summed) for given in seen)
    assert len(seen) == (act == 'hooked')
    assert act != 'relu' or found.data_ptr() == x.data_ptr()
