import copy
import functools
import io
import pickle
import warnings

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from parity import set_mode
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from timm_se_plugin.layers.batch_norm_relu import batch_moments
from timm_se_plugin.layers.selective_kernel import SelectiveKernel, SelectiveKernelAttn, selective_channels

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def build(in_channels=16, out_channels=32, mode='train', dtype=torch.float64, **kwargs):
    """A layer whose norms and statistics are not at their starting values, which would hide a missing term."""
    torch.manual_seed(0)
    layer = SelectiveKernel(in_channels, out_channels, dtype=dtype, **kwargs)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return set_mode(layer, mode)


def batch(layout=torch.contiguous_format, dtype=torch.float64, channels=16, samples=3):
    torch.manual_seed(1)
    return torch.randn(samples, channels, 9, 7, dtype=dtype).contiguous(memory_format=layout)


def run(layer, x, function=None):
    """Output, gradients of input and parameters, and buffers, of a copy of the layer."""
    layer = copy.deepcopy(layer)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = layer(x) if function is None else function(layer, x)
    torch.manual_seed(2)
    out.backward(torch.randn(out.shape, dtype=torch.float64).to(out))
    return [out.detach(), x.grad, *[p.grad for p in layer.parameters()], *layer.buffers()]


def worst(results, references):
    assert len(results) == len(references)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
               for a, b in zip(results, references, strict=True))


def unfused(layer):
    layer = copy.deepcopy(layer)
    layer.fused = False
    return layer


def paper(layer, x, branches, weigh=True):
    """Equations 1 to 6 as they are written, on the layer's parameters; branches are (padding, dilation, groups)."""
    def norm_relu(y, bn):
        mean, var = (bn.running_mean, bn.running_var) if not bn.training else (
            y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False))
        y = (y - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + bn.eps).sqrt()
        return (bn.weight.view(-1, 1, 1) * y + bn.bias.view(-1, 1, 1)).clamp(min=0)

    us = []
    for path, (padding, dilation, groups) in zip(layer.paths, branches, strict=True):
        us.append(norm_relu(F.conv2d(x, path.conv.weight, None, 1, padding, dilation, groups), path.bn))
    u = sum(us)
    if not weigh:
        return u
    s = u.sum((2, 3), keepdim=True) / (u.shape[2] * u.shape[3])
    z = norm_relu(torch.einsum('nchw,dchw->ndhw', s, layer.attn.fc_reduce.weight), layer.attn.bn)
    logits = torch.einsum('ndhw,cdhw->nchw', z, layer.attn.fc_select.weight).chunk(len(us), 1)
    total = sum(logit.exp() for logit in logits)
    return sum(u * logit.exp() / total for u, logit in zip(us, logits, strict=True))


@pytest.mark.parametrize(('fused', 'layout'), [('auto', LAYOUTS[0]), ('auto', LAYOUTS[1]), (False, LAYOUTS[0])])
@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
@pytest.mark.parametrize('kwargs', [
    {}, {'split_input': True}, {'stride': 2}, {'groups': 4}, {'dilation': 2},
    {'split_input': True, 'stride': 2, 'dilation': 2, 'groups': 8}, {'keep_3x3': False},
    {'aa_layer': timm.layers.BlurPool2d, 'stride': 2}, {'drop_layer': nn.Identity}, {'act_layer': nn.Identity},
], ids=str)
def test_matches_timm_in_float64(kwargs, mode, layout, fused):
    layer = build(rd_divisor=8, fused=fused, mode=mode, **kwargs).to(memory_format=layout)
    theirs = timm.layers.SelectiveKernel(16, 32, **{'split_input': False, **kwargs}).double()
    if 'act_layer' in kwargs:
        theirs.attn.act = nn.Identity()  # timm drops the option on the way to the attention
    theirs.load_state_dict(layer.state_dict())
    results = run(layer, batch(layout))
    assert worst(results, run(set_mode(theirs, mode), batch(layout))) < 1e-10
    assert results[0].is_contiguous(memory_format=layout)


class Convolutions(TorchDispatchMode):
    """Strides and dilations of the convolutions that are computed."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen = [*getattr(self, 'seen', []), (args[3][0], args[5][0])]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(('dilation', 'stride', 'computed'), [
    (1, 2, [(2, 1), (1, 1)]), (1, 3, [(3, 1), (3, 2)]), (2, 2, [(1, 1), (2, 4)])])
def test_a_branch_whose_stride_is_its_dilation_convolves_the_pixels_that_it_reads(dilation, stride, computed):
    layer = build(dilation=dilation, stride=stride)
    for height in (7, 8, 9):
        x = batch()[:, :, :height].contiguous()
        with Convolutions() as convolutions:
            results = run(layer, x)
        assert convolutions.seen == computed
        assert worst(results, run(unfused(layer), x)) < 1e-10


@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
@pytest.mark.parametrize(('kwargs', 'branches'), [
    ({'kernels': (3, 5, 7)}, [(1, 1, 1), (2, 2, 1), (3, 3, 1)]),
    ({'kernels': (1, 3, 5, 7), 'keep_3x3': False}, [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1)]),
    ({'kernels': (3, 7), 'groups': (2, 8), 'keep_3x3': False}, [(1, 1, 2), (3, 1, 8)]),
    ({'kernels': (1, 5), 'dilation': 2}, [(0, 2, 1), (4, 4, 1)]),
    ({'kernels': (3, 5, 7), 'select': 'sum'}, [(1, 1, 1), (2, 2, 1), (3, 3, 1)]),
], ids=str)
def test_matches_the_papers_equations_in_float64(kwargs, branches, mode):
    layer = build(mode=mode, **kwargs)
    reference = run(layer, batch(), lambda m, x: paper(m, x, branches, kwargs.get('select') != 'sum'))
    for fused in ('auto', False):
        layer.fused = fused
        results = run(layer, batch())
        size = len(results) - len(list(layer.buffers()))  # the transcription moves no running statistics
        assert worst(results[:size], reference[:size]) < 1e-10


@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_running_statistics_move_as_in_batch_norm(momentum, layout, mode):
    layer = build(mode=mode)
    for path in layer.paths:
        path.bn.momentum = momentum
    plain = unfused(layer)
    for i in range(3):
        x = batch(layout) + i
        with torch.set_grad_enabled(i != 1):
            layer(x)
            plain(x)
    for (name, ours), theirs in zip(layer.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)
    assert layer.paths[0].bn.num_batches_tracked == (3 if mode == 'train' else 0)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_moments_keep_their_digits_far_from_zero(layout):
    y = (torch.randn(4, 8, 13, 11) + 100).contiguous(memory_format=layout)
    mean, var = batch_moments(y)
    exact = torch.var_mean(y.double(), (0, 2, 3), unbiased=False)
    torch.testing.assert_close(mean.double(), exact[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('kernels', [(3, 5), (3, 5, 7)])
def test_one_hook_sees_weights_that_sum_to_one(kernels, fused):
    layer = build(kernels=kernels, fused=fused)
    seen = []
    layer.attn.register_forward_hook(lambda module, args, out: seen.append(out))
    layer(batch())
    assert seen[0].shape == (3, len(kernels), 32, 1, 1)
    torch.testing.assert_close(seen[0].sum(1), torch.ones_like(seen[0][:, 0]))
    assert seen[0].std() > 0.01


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('kernels', [(3, 3), (3, 3, 3)])
def test_equal_branches_give_the_branch(kernels, fused):
    layer = build(kernels=kernels, fused=fused)
    for path in layer.paths[1:]:
        path.load_state_dict(layer.paths[0].state_dict())
    x = batch()
    torch.testing.assert_close(layer(x), copy.deepcopy(layer.paths[0])(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kwargs', [
    {'kernels': (3, 7)}, {'dilation': 2}, {'select': 'sum'}, {'act_layer': nn.SiLU},
    {'norm_layer': functools.partial(nn.GroupNorm, 4)},
    {'drop_layer': functools.partial(timm.layers.DropBlock2d, 0.9, 3)},
], ids=str)
def test_an_option_changes_the_result(kwargs):
    layer, other = build(), build(**kwargs)
    other.load_state_dict(layer.state_dict(), strict=False)
    torch.manual_seed(3)
    assert (layer(batch()) - other(batch())).abs().max() > 1e-3


@pytest.mark.parametrize(('kwargs', 'key', 'shape'), [
    ({'stride': 2}, None, (3, 32, 5, 4)),
    ({'stride': 2, 'aa_layer': timm.layers.BlurPool2d}, None, (3, 32, 5, 4)),
    ({'groups': 4}, 'paths.1.conv.weight', (32, 4, 3, 3)),
    ({'groups': (2, 8)}, 'paths.1.conv.weight', (32, 2, 3, 3)),
    ({'split_input': True}, 'paths.1.conv.weight', (32, 8, 3, 3)),
    ({'keep_3x3': False}, 'paths.1.conv.weight', (32, 16, 5, 5)),
    ({'kernels': (1, 3)}, 'paths.0.conv.weight', (32, 16, 1, 1)),
    ({'kernels': (3, 5, 7)}, 'attn.fc_select.weight', (96, 32, 1, 1)),
    ({}, 'attn.fc_reduce.weight', (32, 32, 1, 1)),
    ({'rd_min_channels': 4}, 'attn.fc_reduce.weight', (4, 32, 1, 1)),
    ({'rd_ratio': 1 / 4, 'rd_min_channels': 1}, 'attn.fc_reduce.weight', (8, 32, 1, 1)),
    ({'rd_channels': 5}, 'attn.fc_reduce.weight', (5, 32, 1, 1)),
    ({'rd_divisor': 8}, 'attn.fc_reduce.weight', (8, 32, 1, 1)),
], ids=str)
def test_an_option_changes_the_shape(kwargs, key, shape):
    layer = build(**kwargs)
    assert tuple(layer(batch()).shape if key is None else layer.state_dict()[key].shape) == shape


def test_width_rules():
    # The official prototxt's SKNet-50: d = 32, 32, 32, 64 at widths 128, 256, 512, 1024.
    assert [selective_channels(c) for c in (128, 256, 512, 1024)] == [32, 32, 32, 64]
    for channels in range(8, 2100, 8):
        for ratio, divisor in ((1 / 8, 16), (1 / 16, 8), (1 / 16, 32)):
            theirs = timm.layers.make_divisible(channels * ratio, divisor)
            assert selective_channels(channels, ratio, divisor) == theirs


@pytest.mark.parametrize(('kwargs', 'message'), [
    ({'kernels': (3,)}, 'two branches'),
    ({'kernels': (3, 4)}, 'odd'),
    ({'kernels': (3, -1)}, 'odd'),
    ({'groups': (1, 1, 1)}, 'groups'),
    ({'groups': 3}, 'groups=.3, 3. do not divide 16 input and 32 output'),
    ({'split_input': True, 'groups': 16}, 'with split_input'),
    ({'in_channels': 15, 'split_input': True}, 'split_input'),
    ({'select': 'max'}, 'softmax, sum'),
    ({'fused': 'yes'}, "'auto'"),
    ({'fused': 0}, "'auto'"),
    ({'kernels': 3}, 'kernels=3: a sequence of sizes is needed'),
    ({'groups': (1, 0)}, 'groups=.1, 0.: one positive number is needed'),
    ({'out_channels': 0}, 'out_channels=0: a positive integer is needed'),
    ({'rd_channels': 0}, 'rd_channels=0'),
    ({'rd_divisor': 0}, 'rd_divisor=0'),
    ({'rd_min_channels': -1}, 'rd_min_channels=-1'),
    ({'stride': 0}, 'stride=0'),
    ({'dilation': 0}, 'dilation=0'),
], ids=str)
def test_a_mistake_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def hooked(layer):
    layer.paths[1].act.register_forward_hook(lambda module, args, out: None)


def untracked(layer):
    layer.paths[0].bn.track_running_stats = False


@pytest.mark.parametrize(('kwargs', 'change', 'reason'), [
    ({'act_layer': nn.SiLU}, None, 'SiLU'),
    ({'norm_layer': functools.partial(nn.GroupNorm, 4)}, None, 'GroupNorm'),
    ({'norm_layer': functools.partial(nn.BatchNorm2d, affine=False)}, None, 'no weight'),
    ({}, lambda layer: layer.paths[0].bn.register_parameter('bias', None), 'no bias'),
    ({}, untracked, 'running statistics'),
    ({'norm_layer': functools.partial(nn.BatchNorm2d, track_running_stats=False)}, None, 'running statistics'),
    ({'drop_layer': nn.Identity}, None, 'drop'),
    ({'aa_layer': timm.layers.BlurPool2d, 'stride': 2}, None, 'anti-aliasing'),
    ({'select': 'sum'}, None, 'no attention'),
    ({}, hooked, 'hooks'),
], ids=lambda value: value if isinstance(value, str) else "")
def test_fused_steps_aside_or_says_why(kwargs, change, reason):
    torch.manual_seed(0)
    layer = SelectiveKernel(16, 32, dtype=torch.float64, **kwargs)
    if change:
        change(layer)
    assert worst(run(layer, batch()), run(unfused(layer), batch())) == 0
    layer.fused = True
    with pytest.raises(ValueError, match=reason):
        layer(batch())


def test_many_gradients_are_computed_at_once():
    layer, x = build(), batch().requires_grad_()
    out = layer(x)
    rows = torch.randn(3, *out.shape, dtype=out.dtype)
    expected = torch.stack([torch.autograd.grad(out, x, row, retain_graph=True)[0] for row in rows])
    batched = torch.autograd.grad(out, x, rows, is_grads_batched=True)[0]
    torch.testing.assert_close(batched, expected)


def test_functional_transforms_and_dual_numbers_see_the_modules():
    layer, x = build(mode='eval'), batch()
    expected = torch.func.jvp(unfused(layer), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1], expected)
    with torch.autograd.forward_ad.dual_level():
        out = layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(out).tangent, expected)


def test_hooks_on_the_branches_and_on_all_modules_are_called():
    layer = build()
    calls = []
    handle = layer.paths[0].register_forward_hook(lambda module, args, out: calls.append(module))
    layer(batch())
    assert calls == [layer.paths[0]]
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: calls.append(module))
    layer(batch())
    handle.remove()
    assert layer.paths[1].bn in calls


@pytest.mark.parametrize('no_grad', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kernels', [(3, 5), (3, 5, 7)])
def test_inference_leaves_what_a_hook_saw_and_the_input_alone(kernels, layout, no_grad):
    layer = build(mode='eval', kernels=kernels, dtype=torch.float32)
    x = batch(layout, torch.float32)
    before, expected, seen = x.clone(), unfused(layer)(x), []
    with no_grad():
        assert (layer(x) - expected).abs().max() < 1e-5
        layer.paths[0].conv.register_forward_hook(lambda module, args, out: seen.append(out))
        layer(x)
        assert torch.equal(seen[0], F.conv2d(x, layer.paths[0].conv.weight, None, 1, 1))
    assert torch.equal(x, before)


def test_inference_leaves_the_input_alone_where_a_convolution_was_replaced():
    layer = build(32, 32, mode='eval')
    layer.paths[0].conv = nn.Identity()
    x = batch(channels=32)
    before = x.clone()
    with torch.no_grad():
        layer(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize('mode', ['train', 'frozen'])
def test_saves_less_than_timm_and_never_the_branches(mode):
    """Full maps kept: input, y1 and y2. Module by module there are U1 and U2 too; timm stacks and multiplies."""
    def saved(layer):
        layer = set_mode(layer, mode).float()
        known = {t.untyped_storage().data_ptr() for t in layer.state_dict().values()}
        sizes, alive = {}, []

        def pack(t):
            storage = t.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage.nbytes()
                alive.append(t)  # or the next tensor may get its address
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = layer(torch.randn(4, 32, 28, 28).requires_grad_())
        return sum(sizes.values()) / (4 * out.numel())

    layer = build(32, 32)
    ours, plain = saved(layer), saved(unfused(layer))
    assert ours < 3.05 < 4.95 < plain
    assert ours < saved(timm.layers.SelectiveKernel(32, split_input=False)) - 2.9


@pytest.mark.parametrize(('kernels', 'layout'), [((3, 5), LAYOUTS[1]), ((3, 5, 7), LAYOUTS[0])])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [True, False])
@pytest.mark.parametrize('mode', ['train', 'frozen'])
def test_half_precision_loses_no_more_than_module_by_module(dtype, autocast, layout, mode, kernels):
    exact = build(32, 32, mode=mode, kernels=kernels)
    exact.attn.eval()  # a norm over four values would turn one rounded ReLU into luck
    layer = copy.deepcopy(exact).to(torch.float32 if autocast else dtype)
    exact.load_state_dict(layer.state_dict())

    def mixed(layer, x):
        with torch.autocast('cpu', dtype, enabled=autocast):
            return layer(x)

    def error(layer, x, reference):
        results = run(layer, x, mixed)
        assert results[0].dtype == dtype
        assert all(a.dtype == p.dtype for a, p in zip(results[2:], layer.parameters(), strict=False))
        return sum(((a.double() - b).norm() / b.double().norm().clamp(min=1e-30)).item()
                   for a, b in zip(results, reference, strict=True))

    ratios = []
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(4, 32, 9, 7).to(dtype).contiguous(memory_format=layout)
        reference = run(exact, x.double())
        ratios.append(error(layer, x, reference) / error(unfused(layer), x, reference))
    assert sorted(ratios)[1] < 1.25


@pytest.mark.parametrize('layouts', [LAYOUTS, LAYOUTS[::-1]])
def test_a_gradient_of_another_layout_is_understood(layouts):
    layer = build(32, 32)

    def back(layer, x):
        return layer(x).contiguous(memory_format=layouts[1])
    results = run(layer, batch(layouts[0], channels=32), back)
    assert worst(results, run(unfused(layer), batch(layouts[0], channels=32))) < 1e-10


@pytest.mark.parametrize('kernels', [(3, 5), (3, 5, 7)])
def test_backward_twice_and_checkpoint(kernels):
    layer = build(kernels=kernels, mode='frozen')
    expected = run(layer, batch())

    def twice(layer, x):
        out = layer(x)
        out.backward(torch.randn_like(out), retain_graph=True)
        for tensor in (x, *layer.parameters()):
            tensor.grad = None
        return out
    assert worst(run(layer, batch(), twice), expected) < 1e-14
    for reentrant in (False, True):
        again = run(layer, batch(), lambda m, x: checkpoint(m, x, use_reentrant=reentrant))  # noqa: B023
        assert worst(again, expected) < 1e-14


def test_a_training_pass_leaves_the_gradients_of_an_earlier_pass_as_they_are():
    layer, x = build(mode='frozen'), batch()
    layer.attn.bn.momentum = 0.0  # PyTorch's own norm does not have this property
    expected = run(layer, x)

    def train_too(layer, x):
        out = layer(x)
        layer.train()(x.detach())
        return out
    results = run(layer, x, train_too)
    gradients = slice(0, -len(list(layer.buffers())))  # the buffers do change
    assert worst(results[gradients], expected[gradients]) < 1e-14


@pytest.mark.parametrize('mode', ['train', 'frozen'])
@pytest.mark.parametrize('kernels', [(3, 5), (3, 5, 7)])
def test_second_derivatives_are_those_of_the_modules(kernels, mode):
    layer, x = build(kernels=kernels, mode=mode), batch()
    products = [
        torch.autograd.functional.hvp(lambda x, m=m: m(x).pow(3).sum(), x, torch.ones_like(x))[1]
        for m in (layer, unfused(layer))]
    assert worst(*([product] for product in products)) < 1e-10
    results = []
    for m in (layer, unfused(layer)):
        y = x.clone().requires_grad_()
        inputs = [y, *m.parameters()]
        grads = torch.autograd.grad(m(y).pow(3).sum(), inputs, create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        again = torch.autograd.grad(penalty, inputs, allow_unused=True)
        results.append([*grads, *again])
    assert worst(*results) < 1e-8


@pytest.mark.parametrize('gradients', [True, False])
@pytest.mark.parametrize('fused', ['auto', False])
def test_a_hook_that_changes_the_weights_is_obeyed_for_every_branch(fused, gradients):
    layer = build(mode='frozen', fused=fused)
    factor = torch.tensor([2.0, 0.25], dtype=torch.float64).view(1, 2, 1, 1, 1)
    layer.attn.register_forward_hook(lambda module, args, out: out * factor)
    x = batch().requires_grad_()
    us = [path(x) for path in layer.paths]
    weights = SelectiveKernelAttn.forward(layer.attn, sum(u.mean((2, 3), keepdim=True) for u in us)) * factor
    expected = us[0] * weights[:, 0] + us[1] * weights[:, 1]
    with torch.set_grad_enabled(gradients):
        out = layer(x)
    torch.testing.assert_close(out, expected)
    if gradients:
        inputs = [x, *layer.parameters()]
        grads = [torch.autograd.grad(value.square().sum(), inputs) for value in (out, expected)]
        assert worst(*grads) < 1e-10


def test_frozen_parameters_get_no_gradient():
    layer = build()
    layer.paths[0].requires_grad_(False)
    layer.attn.requires_grad_(False)
    plain = unfused(layer)
    for m in (layer, plain):
        m(batch()).square().sum().backward()
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or worst([ours.grad], [theirs.grad]) < 1e-10


@pytest.mark.parametrize('mode', [
    'train', *(pytest.param(mode, marks=pytest.mark.slow) for mode in ('frozen', 'eval'))])
@pytest.mark.parametrize('kwargs', [{}, {'kernels': (3, 5, 7)}, {'split_input': True}, {'select': 'sum'}], ids=str)
def test_compiles_to_one_graph_without_custom_functions(kwargs, mode):
    torch._dynamo.reset()
    layer = build(mode=mode, **kwargs)
    compiled = functools.partial(lambda m, x: torch.compile(m, backend='aot_eager', fullgraph=True)(x))
    assert worst(run(layer, batch(), compiled), run(unfused(layer), batch())) < 1e-10


@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
@pytest.mark.parametrize('kwargs', [{}, {'kernels': (3, 5, 7)}, {'split_input': True}, {'select': 'sum'}], ids=str)
def test_traced_equals_eager_bitwise_and_scripts(kwargs, mode):
    layer = build(mode=mode, **kwargs)
    traced = torch.fx.symbolic_trace(layer)
    for a, b in zip(run(traced, batch()), run(layer, batch()), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(traced)(batch()), copy.deepcopy(layer)(batch()), rtol=0, atol=0)
    for module in (layer, traced):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch.jit is deprecated
            scripted = torch.jit.script(copy.deepcopy(module))
            buffer = io.BytesIO()
            torch.jit.save(scripted, buffer)
            buffer.seek(0)
            loaded = torch.jit.load(buffer)
        results = run(layer, batch(), lambda m, x: loaded(x))  # noqa: B023
        assert (results[0] - run(layer, batch())[0]).abs().max() < 1e-10


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_a_traced_graph_changes_its_mode_with_its_norms(mode):
    traced = torch.fx.symbolic_trace(build(mode=mode))
    other = 'eval' if mode == 'train' else 'train'
    for a, b in zip(run(set_mode(traced, other), batch()), run(build(mode=other), batch()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_an_empty_batch_is_one_without_images(mode, layout):
    x = batch(layout)[:0]
    results = run(build(mode=mode), x)
    torch.testing.assert_close(results, run(unfused(build(mode=mode)), x), rtol=0, atol=0, equal_nan=True)
    assert results[0].shape == (0, 32, 9, 7)


@pytest.mark.parametrize('gradients', [True, False])
def test_an_image_without_its_batch_gets_torchs_own_error(gradients):
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match=r'expected 4D input \(got 3D input\)'):
        build()(batch()[0])


def test_norms_may_count_no_batches():
    layer = build()
    for path in layer.paths:
        path.bn.num_batches_tracked = None
    with torch.no_grad():
        assert worst([copy.deepcopy(layer)(batch())], [unfused(layer)(batch())]) < 1e-10


def test_a_traced_graph_may_be_asked_for_any_value():
    layer = build(mode='eval')
    traced = torch.fx.symbolic_trace(layer)
    conv = next(node for node in traced.graph.nodes if node.target == 'paths.0.conv')
    output = next(node for node in traced.graph.nodes if node.op == 'output')
    output.args = ((output.args[0], conv),)
    traced.recompile()
    with torch.no_grad():
        assert torch.equal(traced(batch())[1], layer.paths[0].conv(batch()))


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_exports_to_plain_operators(mode):
    layer = build(mode=mode)
    program = torch.export.export(layer, (batch(),))
    assert (program.module()(batch()) - copy.deepcopy(layer)(batch())).abs().max() < 1e-10
    assert not [n for n in program.graph.nodes if n.op == 'call_function' and 'aten' not in str(n.target)
                and 'getitem' not in str(n.target) and '_operator' not in str(n.target)]


def test_one_sample_trains_on_the_attentions_running_statistics():
    layer = build()
    before = copy.deepcopy(layer.attn.state_dict())
    assert worst(run(layer, batch(samples=1)), run(unfused(layer), batch(samples=1))) < 1e-10
    reference = copy.deepcopy(layer)
    reference.attn.bn.eval()
    assert torch.equal(layer(batch(samples=1)), reference(batch(samples=1)))
    assert all(torch.equal(before[key], value) for key, value in layer.attn.state_dict().items())
    with pytest.raises(ValueError, match='more than'):
        layer(batch(samples=1)[:, :, :1, :1])
    layer.attn.bn.register_forward_hook(lambda *args: None)  # it waits for the norm, which refuses
    with pytest.raises(ValueError, match='more than'):
        layer(batch(samples=1))


def test_copies_and_pickles():
    layer = build()
    layer(batch())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert worst(run(other, batch()), run(layer, batch())) == 0


def test_trains_in_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        layer = build()
        results = run(layer, batch(), lambda m, x: nn.parallel.DistributedDataParallel(m)(x))
    finally:
        torch.distributed.destroy_process_group()
    assert worst(results, run(layer, batch())) < 1e-14


@pytest.mark.parametrize('name', ['skresnet18', 'skresnet50', 'skresnext50_32x4d'])
def test_takes_timms_weights_as_they_are(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, timm.layers.SelectiveKernel):
            width = module.attn.fc_reduce.out_channels
            ratio, divisor = {'skresnet18': (1 / 8, 16), 'skresnet50': (1 / 16, 8)}.get(name, (1 / 16, 32))
            ours = SelectiveKernel(
                module.in_channels, module.out_channels, groups=module.paths[0].conv.groups,
                split_input=module.split_input, rd_ratio=ratio, rd_divisor=divisor, device='meta')
            assert ours.attn.fc_reduce.out_channels == width
            assert ({k: v.shape for k, v in ours.state_dict().items()}
                    == {k: v.shape for k, v in module.state_dict().items()})
