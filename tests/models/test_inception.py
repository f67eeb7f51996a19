"""SE-Inception against compositions written out here, and the published numbers of BN-Inception."""

import pytest
import timm
import torch
from parity import images, randomised, relative_error, saved
from timm.layers import SEModule
from timm.models import group_parameters
from torch import nn
from torch.nn import functional as F

from timm_se_plugin.measuring.complexity import complexity
from timm_se_plugin.placement import attention_modules


def attended(model, name):
    """timm's SE layer with the weights of ours, of the paper's width."""
    ours = model.get_submodule(name)
    layer = SEModule(ours.fc1.in_channels, rd_divisor=1).double()
    layer.load_state_dict(ours.state_dict())
    return layer


def inception_v3(model, plain, x):
    for name in plain.layer_names:
        x = getattr(plain, name)(x)
        if name.startswith('Mixed'):
            x = attended(model, f'{name}.se')(x)
    return plain.forward_head(x)


def inception_v4(model, plain, x):
    for i, module in enumerate(plain.features):
        x = module(x)
        if type(module).__name__.startswith(('Inception', 'Reduction')):
            x = attended(model, f'features.{i}.se')(x)
    return plain.forward_head(x)


def inception_resnet_v2(model, plain, x):
    def residual(block, name, x):
        branches = [getattr(block, f'branch{i}')(x) for i in range(3) if hasattr(block, f'branch{i}')]
        branch = attended(model, f'{name}.conv2d.se')(block.conv2d(torch.cat(branches, 1)))
        x = branch * block.scale + x
        return x if name == 'block8' else x.relu()

    for name in plain.layer_names:
        module = getattr(plain, name)
        if name.startswith('repeat'):
            for i, block in enumerate(module):
                x = residual(block, f'{name}.{i}', x)
        elif name == 'block8':
            x = residual(module, name, x)
        else:
            x = module(x)
            if name.startswith('mixed'):
                x = attended(model, f'{name}.se')(x)
    return plain.forward_head(x)


def bn_inception(model, plain, x):
    def conv(layer, x):
        norm = layer.bn
        x = F.conv2d(x, layer.conv.weight, None, layer.conv.stride, layer.conv.kernel_size[0] // 2)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5).relu()

    def pool(x):  # Caffe's
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    x = pool(conv(plain.conv1, x))
    x = pool(conv(plain.conv2, conv(plain.conv2_reduce, x)))
    for name in ('3a', '3b', '3c', '4a', '4b', '4c', '4d', '4e', '5a', '5b'):
        module = getattr(plain, f'inception_{name}')
        halves = name in ('3c', '4e')
        outs = [] if halves else [conv(module.branch1x1, x)]
        for branch in (module.branch3x3, module.branch3x3dbl):
            out = x
            for layer in branch:
                out = conv(layer, out)
            outs.append(out)
        if halves:
            outs.append(pool(x))
        else:
            pooled = F.max_pool2d(x, 3, 1, 1) if name == '5b' else F.avg_pool2d(x, 3, 1, 1)
            outs.append(conv(module.branch_pool[1], pooled))
        x = attended(model, f'inception_{name}.se')(torch.cat(outs, 1))
    return plain.fc(x.mean((2, 3)))


@pytest.mark.parametrize('composed', [
    bn_inception, inception_v3, pytest.param(inception_v4, marks=pytest.mark.slow),
    pytest.param(inception_resnet_v2, marks=pytest.mark.slow)],
    ids=lambda composed: composed.__name__)
def test_matches_timms_modules_with_timms_attention_in_float64(composed):
    base = composed.__name__
    model = randomised(timm.create_model(f'se_{base}_plugin', num_classes=5)).double().eval()
    plain = timm.create_model(base if timm.is_model(base) else f'{base}_plugin', num_classes=5).double().eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if '.se.' not in key})
    x, y = (images(1, 3, 128, 128).requires_grad_() for _ in range(2))
    out, expected = model(x), composed(model, plain, y)
    assert relative_error(out, expected) < 1e-10
    out.square().sum().backward()
    expected.square().sum().backward()
    assert relative_error(x.grad, y.grad) < 1e-8


def test_bn_inception_has_the_parameters_of_its_port_and_the_macs_of_table_2():
    """Cadene's port counts 11,295,240 with a bias in each convolution, which the norm after it makes idle."""
    model = timm.create_model('bn_inception_plugin')
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 69
    params = sum(p.numel() for p in model.parameters())
    assert params + sum(conv.out_channels for conv in convs) == 11_295_240
    assert round(complexity(model).macs / 1e9, 2) == 2.03
    assert round(complexity(timm.create_model('se_bn_inception_plugin')).macs / 1e9, 2) == 2.03  # 2.04 with pooling


@pytest.mark.parametrize('size', [(96, 75), (97, 128)])
def test_bn_inception_takes_any_size(size):
    model = timm.create_model('bn_inception_plugin', features_only=True).eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, *size))
    for level, reduction in zip(features, model.feature_info.reduction(), strict=True):
        assert level.shape[-2:] == tuple(-(-side // reduction) for side in size)


def test_bn_inception_refuses_another_stride():
    with pytest.raises(ValueError, match='output_stride=16 is not 32, the only stride'):
        timm.create_model('bn_inception_plugin', output_stride=16)


def test_each_module_of_bn_inception_is_a_group_of_layer_decay():
    model = timm.create_model('se_bn_inception_plugin', device='meta')
    groups: dict[str, set[int]] = {}
    for name, group in group_parameters(model, model.group_matcher(), reverse=True).items():
        groups.setdefault(name.partition('.')[0], set()).add(group)
    modules = [f'inception_{name}' for name in ('3a', '3b', '3c', '4a', '4b', '4c', '4d', '4e', '5a', '5b')]
    assert [groups[name] for name in ('conv1', 'conv2', *modules, 'fc')] == [{i} for i in (0, 0, *range(1, 12))]


@pytest.mark.parametrize('name', ['inception_v3', 'inception_v4', 'inception_resnet_v2', 'bn_inception'])
def test_the_classifier_has_a_name(name):
    model = timm.create_model(f'{name}_plugin', device='meta')
    assert model.get_submodule(model.get_classifier(name_only=True)) is model.get_classifier()


def test_gradient_checkpointing_computes_the_levels_of_bn_inception_again():
    model = timm.create_model('bn_inception_plugin')
    model.set_grad_checkpointing()
    calls = []
    model.inception_5b.register_forward_pre_hook(lambda *_: calls.append(True))
    level, = model.forward_intermediates(torch.rand(2, 3, 64, 64), 1, intermediates_only=True)
    level.sum().backward()
    assert len(calls) == 2


def test_torchvisions_weights_load_with_and_without_the_auxiliary_classifier(tmp_path):
    theirs = timm.create_model('inception_v3', aux_logits=True)
    overlay = saved(theirs, tmp_path)
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=overlay)
    model = timm.create_model('se_inception_v3_plugin.from_tv_in1k', **kwargs).eval()
    assert len(attention_modules(model)) == 11
    assert model.AuxLogits is None
    with_aux = timm.create_model('inception_v3_plugin.tv_in1k', aux_logits=True, **kwargs).eval()
    x = images(1, 3, 299, 299, dtype=torch.float32)
    with torch.no_grad():
        logits, aux = theirs.eval()(x)
        assert relative_error(model(x), logits) < 1e-4
        assert torch.equal(with_aux(x)[1], aux)
