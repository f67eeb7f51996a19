import copy
import importlib.util

import pytest
import torch

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from timm_se_plugin.detection import SEPlugin, SKPlugin
from timm_se_plugin.measuring.complexity import complexity

pytestmark = pytest.mark.mmdet


def plugin(position='after_conv3', stages=None, **cfg):
    out = dict(cfg=dict(type='SEPlugin', **cfg), position=position)
    return out if stages is None else out | dict(stages=stages)


def build(**cfg):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg))
    model.eval()  # mmdet's returns None
    return model


def se_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, SEPlugin)]


BACKBONES = [
    dict(type='ResNet', depth=50, base_channels=8),
    dict(type='ResNet', depth=50, base_channels=8, style='caffe'),
    dict(type='ResNetV1d', depth=50, base_channels=16),
    dict(type='ResNeXt', depth=50, groups=4, base_width=4),
    dict(type='Res2Net', depth=50, scales=4, base_width=26),
    dict(type='RegNet', arch='regnetx_400mf'),
    dict(type='AttentionResNet', depth=50, base_channels=8),
]


@pytest.mark.parametrize('backbone', BACKBONES, ids=lambda b: b['type'])
def test_a_backbone_with_identity_plugins_is_the_plain_one(backbone, tmp_path):
    plain = build(**backbone)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    attended = build(**backbone, plugins=[plugin()],
                     init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth')))
    attended.init_weights()
    assert len(se_names(attended)) == sum(attended.stage_blocks)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(attended(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize('backbone', [b for b in BACKBONES if b['type'] != 'Res2Net'], ids=lambda b: b['type'])
def test_plugins_sit_after_conv2_and_several_with_a_postfix(backbone):
    model = build(**backbone, plugins=[
        plugin('after_conv2'), plugin('after_conv3', postfix='_a'),
        plugin('after_conv3', postfix='_b', stages=(False, False, False, True))])
    assert {name.split('.')[-1] for name in se_names(model.layer1)} == {'se', 'se_a'}
    assert {name.split('.')[-1] for name in se_names(model.layer4)} == {'se', 'se_a', 'se_b'}
    model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('depth', [18, 34])
def test_basic_blocks_take_plugins_and_stay_mmdet_s_without(depth):
    plain = build(type='ResNet', depth=depth, base_channels=8)
    x = torch.randn(2, 3, 64, 64)
    for plugins in (None, [plugin('after_conv1'), plugin('after_conv2', postfix=2)]):
        model = build(type='AttentionResNet', depth=depth, base_channels=8, plugins=plugins)
        missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
        assert unexpected == []
        assert all('.se' in name for name in missing)
        assert len(se_names(model)) == (2 * sum(model.stage_blocks) if plugins else 0)
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize('depth', [18, 50])
def test_blocks_begin_as_mmdets_when_nothing_is_loaded(depth):
    for zero in (True, False):
        plain, ours = (last_norms(type=kind, depth=depth, base_channels=8, zero_init_residual=zero)
                       for kind in ('ResNet', 'AttentionResNet'))
        assert ours == plain
        assert (max(ours) == 0) == zero


def last_norms(**config):
    """Sum of the weights of each block's last norm, after a start without trained weights."""
    model = build(**config)
    model.init_weights()
    last = 'bn2' if config['depth'] == 18 else 'bn3'
    return [float(norm.weight.detach().sum()) for name, norm in model.named_modules() if name.endswith(last)]


def test_basic_block_gates_what_conv2_made_before_the_shortcut():
    model = build(type='AttentionResNet', depth=18, base_channels=8, plugins=[plugin('after_conv2')])
    block, x = model.layer1[0], torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        torch.nn.init.constant_(block.bn2.bias, 3.)  # a batch norm in inference does nothing at first
        block.se.fc2.bias.fill_(-40.)  # gate 0: only the shortcut is left
        torch.testing.assert_close(block(x), x.relu())
        block.se.fc2.bias.fill_(40.)  # gate 2
        residual = block.norm2(block.conv2(block.relu(block.norm1(block.conv1(x)))))
        torch.testing.assert_close(block(x), (2 * residual + x).relu())


def test_basic_block_gates_what_conv2_reads():
    model = build(type='AttentionResNet', depth=18, base_channels=8, plugins=[plugin('after_conv1')])
    block, x = model.layer1[0], torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        block.se.fc2.bias.fill_(40.)  # gate 2
        expected = block.norm2(block.conv2(2 * block.norm1(block.conv1(x)).relu()))
        torch.testing.assert_close(block(x), (expected + x).relu())


def test_basic_block_has_no_third_convolution():
    with pytest.raises(ValueError, match=r'after_conv3.*which has after_conv1 and after_conv2'):
        build(type='AttentionResNet', depth=18, plugins=[plugin('after_conv3')])


def test_checkpointing_basic_blocks_changes_no_gradient():
    grads = []
    for with_cp in (False, True):
        model = build(type='AttentionResNet', depth=18, base_channels=8, with_cp=with_cp,
                      plugins=[plugin('after_conv2', init='default')])
        model.train()
        model(torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64))[-1].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert any(g.abs().sum() > 0 for g in grads[0])
    torch.testing.assert_close(grads[0], grads[1])


def test_identity_survives_kaiming_and_gives_way_to_pretrained_weights(tmp_path):
    cfg = dict(type='AttentionResNet', depth=18, base_channels=8, plugins=[plugin('after_conv2')])
    model = build(**cfg, init_cfg=dict(type='Kaiming', layer='Conv2d'))
    before = model.layer1[0].se.fc1.weight.clone()
    model.init_weights()
    se = model.layer1[0].se
    assert not torch.equal(se.fc1.weight, before)
    assert (se.excite(torch.randn(2, 8, 1, 1)) == 1).all()
    torch.nn.init.ones_(se.fc2.weight)
    torch.save(model.state_dict(), tmp_path / 'trained.pth')
    again = build(**cfg, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'trained.pth')))
    again.init_weights()
    assert (again.layer1[0].se.fc2.weight == 1).all()


def test_every_option_of_the_plugin_reaches_the_layer():
    assert SEPlugin(32).gate(torch.zeros(1)) == 1
    assert SEPlugin(32, init='default').gate(torch.zeros(1)) == 0.5
    assert SEPlugin(32, init='default').fc2.weight.abs().sum() > 0
    assert SEPlugin(32, rd_ratio=1 / 4).fc1.out_channels == 8
    assert SEPlugin(32, rd_channels=5).fc1.out_channels == 5
    assert SEPlugin(40, rd_ratio=1 / 4, rd_divisor=8).fc1.out_channels == 8
    assert SEPlugin(32, squeeze='max').squeeze_type == 'max'
    assert SEPlugin(32, bias=False).fc1.bias is None
    assert SEPlugin(32, gate='tanh', init='default').gate(torch.ones(1)) == torch.ones(1).tanh()
    with pytest.raises(ValueError, match='init'):
        SEPlugin(32, init='zero')
    with pytest.raises(ValueError, match='double_sigmoid'):
        SEPlugin(32, gate='sigmoid')


@pytest.mark.parametrize('backbone', [b for b in BACKBONES if b['type'] != 'Res2Net'], ids=lambda b: b['type'])
@pytest.mark.parametrize('position', ['after_conv1', 'after_conv2'])
def test_a_selective_kernel_plugin_starts_as_the_identity_and_learns(backbone, position, tmp_path):
    plain = build(**backbone)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    model = build(**backbone, plugins=[dict(cfg=dict(type='SKPlugin'), position=position)], norm_eval=True,
                  init_cfg=[dict(type='Kaiming', layer='Conv2d'),
                            dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))])
    model.init_weights()
    model.train()
    out, expected = model(x := torch.randn(2, 3, 64, 64))[-1], plain(x)[-1]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    out.square().sum().backward()
    units = [module for module in model.modules() if isinstance(module, SKPlugin)]
    assert len(units) == sum(model.stage_blocks)
    assert all(p.grad.abs().sum() > 0 for p in units[0].paths[1].parameters())


def test_a_selective_kernel_plugin_selects_between_kernels():
    unit = SKPlugin(8, rd_channels=4, init='default')
    x = torch.randn(2, 8, 6, 6)
    weights = unit.attn(sum(path(x) for path in unit.paths).mean((2, 3), keepdim=True))
    torch.testing.assert_close(unit(x), sum(w * path(x) for w, path in zip(weights.unbind(1), unit.paths, strict=True)))
    assert [path.conv.dilation for path in SKPlugin(8, kernels=(3, 5, 7)).paths] == [(1, 1), (2, 2), (3, 3)]
    assert SKPlugin(8, groups=2).paths[0].conv.groups == 2
    assert SKPlugin(64, rd_ratio=1 / 4, rd_min_channels=8).attn.fc_reduce.out_channels == 16
    assert SKPlugin(40, rd_ratio=1 / 4, rd_divisor=8).attn.fc_reduce.out_channels == 16
    with pytest.raises(ValueError, match='init'):
        SKPlugin(8, init='zero')


def test_the_attention_of_an_mmdet_backbone_is_counted():
    plain = complexity(build(type='AttentionResNet', depth=18, base_channels=8), (3, 64, 64))
    model = build(type='AttentionResNet', depth=18, base_channels=8, plugins=[plugin('after_conv2', rd_channels=2)])
    cost = complexity(model, (3, 64, 64))
    # Two blocks of each width: SE's weights, C * 2 and 2 * C, and its biases, 2 and C.
    assert cost.attention_params == 2 * sum(2 * 2 * width + 2 + width for width in (8, 16, 32, 64))
    assert cost.params == plain.params + cost.attention_params
