"""TimmAttentionBackbone: what it builds, freezes, loads and refuses."""

import argparse
import copy
import importlib.util
import socket

import pytest
import timm
import torch
from parity import randomised
from safetensors.torch import save_file
from torch import nn

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

from mmdet.registry import MODELS
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_checkpoint

from timm_se_plugin.detection import TimmAttentionBackbone
from timm_se_plugin.measuring.complexity import saved_bytes
from timm_se_plugin.placement import attention_modules
from timm_se_plugin.weights import write_model

pytestmark = pytest.mark.mmdet


def build(model_name='resnet18', init=True, **cfg):
    init_default_scope('mmdet')
    model = MODELS.build(dict(type='TimmAttentionBackbone', model_name=model_name, **cfg))
    if init:
        model.init_weights()
    return model


def features(model, size=64):
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * size * size).view(2, 3, size, size))


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def attention_parameters(model):
    prefixes = tuple(attention_modules(model))
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.fixture(scope='module')
def plain():
    torch.manual_seed(0)
    return randomised(timm.create_model('resnet18')).eval()


@pytest.fixture(scope='module')
def plain_file(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp('plain') / 'plain.safetensors'
    save_file(plain.state_dict(), path)
    return str(path)


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError('the network was asked')
    monkeypatch.setattr(socket.socket, 'connect', refused)


@pytest.mark.parametrize(('name', 'out_indices', 'cfg'), [
    ('resnet18', (1, 2, 3, 4), {}),
    ('resnet18', (0, 2), dict(attn='se', attn_gate='tanh')),
    ('se_resnet18_plugin', (3,), {}),
    ('resnet50d', (1, 2, 3, 4), dict(attn='sk', model_args=dict(layers=(1, 1, 1, 1)))),
    ('regnety_002', (1, 2, 3, 4), {}),
    ('efficientnet_b0', (1, 2, 4), {}),
    ('swin_tiny_patch4_window7_224', (1, 3), dict(model_args=dict(img_size=64))),
])
def test_features_are_timms_with_channels_and_strides_for_an_fpn(name, out_indices, cfg):
    model = build(name, out_indices=out_indices, **cfg)
    outs = features(model)
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == [
        (2, c, 64 // s, 64 // s) for c, s in zip(model.out_channels, model.strides, strict=True)]
    options = {k: v for k, v in cfg.items() if k.startswith('attn')} | cfg.get('model_args', {})
    theirs = timm.create_model(model.model_name, features_only=True, out_indices=out_indices, **options).eval()
    theirs.load_state_dict({k.removeprefix('net.'): v for k, v in model.state_dict().items()})
    for out, expected in zip(outs, features(theirs), strict=True):
        if out.shape != expected.shape:  # timm's swin has channels last
            expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_state_dict_keys_are_timms():
    keys = timm.create_model('se_resnet18_plugin', num_classes=0).state_dict().keys()
    assert build(attn='se').state_dict().keys() == keys


@pytest.mark.parametrize('attn', ['se', 'sk'])
def test_frozen_stages_freeze_stem_and_stages_but_not_a_fresh_attention(attn):
    model = build(attn=attn, frozen_stages=2)
    frozen = [n for n, _ in model.named_parameters() if n.startswith(('conv1', 'bn1', 'layer1', 'layer2'))]
    attention = attention_parameters(model)
    assert any(n.startswith('layer1') for n in attention)
    assert set(frozen) - attention == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert model.train() is model
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            in_attention = name.startswith(tuple(attention_modules(model)))
            is_frozen = name.startswith(('bn1', 'layer1', 'layer2')) and not in_attention
            assert module.training is not is_frozen, name
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not changed & set(frozen)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_freeze_attention_says_otherwise(plain_file):
    assert not attention_parameters(build(attn='se', frozen_stages=4, freeze_attention=True)) & learning(
        build(attn='se', frozen_stages=4, freeze_attention=True))
    model = build(attn='se', frozen_stages=4, pretrained=plain_file)  # plain weights: the attention is fresh
    assert learning(model) == attention_parameters(model)
    trained = build('se_resnet50_plugin', init=False, frozen_stages=4, pretrained='a1_in1k')
    assert learning(trained) == set()
    trained = build('se_resnet50_plugin', init=False, frozen_stages=4, pretrained=True, freeze_attention=False)
    assert learning(trained) == attention_parameters(trained)


def test_frozen_stages_of_another_family_are_timms_levels():
    model = build('regnety_002', frozen_stages=1)
    assert {n.split('.')[0] for n in learning(model) - attention_parameters(model)} == {'s2', 's3', 's4'}
    with pytest.raises(ValueError, match=r'frozen_stages=1 is not possible for efficientnet_b0'):
        build('efficientnet_b0', frozen_stages=1)
    with pytest.raises(ValueError, match=r'frozen_stages=5 is not a level of resnet18_plugin; give .* 0 to 4, or -1'):
        build(frozen_stages=5)


def test_norm_eval_keeps_running_statistics_and_trains_weight_and_bias():
    model = build(attn='se', norm_eval=True).train()
    mean = model.bn1.running_mean.clone()
    model(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert torch.equal(model.bn1.running_mean, mean)
    assert model.training
    assert model.bn1.weight.grad is not None


@pytest.mark.parametrize('norm', ['BN', 'FrozenBN'])
def test_the_fused_tail_serves_frozen_statistics(norm):
    x = torch.randn(2, 3, 128, 128)
    saved, grads = {}, {}
    for name, cfg in dict(
            plain={}, fused=dict(attn='se'), unfused=dict(attn='se', attn_fused=False)).items():
        torch.manual_seed(0)
        model = build('resnet50', norm_eval=True, norm_cfg=dict(type=norm), out_indices=(4,),
                      model_args=dict(layers=(1, 1, 1, 1)), **cfg).train()
        saved[name] = saved_bytes(model, x)
        model(x)[0].square().sum().backward()
        grads[name] = {n: p.grad for n, p in model.named_parameters()}
    assert saved['fused'] <= 1.01 * saved['unfused']
    if norm == 'BN':  # with a constant norm the plain network keeps no input of it; a gate's gradient needs one
        assert saved['fused'] <= 1.01 * saved['plain']
        assert saved['unfused'] > 1.1 * saved['plain']
    torch.testing.assert_close(grads['fused'], grads['unfused'], rtol=1e-3, atol=1e-4)


def test_norm_cfg_chooses_the_norm(monkeypatch):
    for distributed, norm in ((True, 'SyncBatchNorm'), (False, 'BatchNorm2d')):
        monkeypatch.setattr('timm_se_plugin.detection.backbone.is_distributed', lambda answer=distributed: answer)
        types = {type(m).__name__ for m in build(norm_cfg=dict(type='SyncBN')).modules() if 'Norm' in type(m).__name__}
        assert types == {norm}
    model = build(norm_cfg=dict(type='FrozenBN'))
    types = {type(m).__name__ for m in model.modules() if 'Norm' in type(m).__name__}
    assert types == {'FrozenBatchNorm2d'}
    assert not any('bn' in name for name in learning(model))
    assert not any('bn' in name for name in learning(build(norm_cfg=dict(type='BN', requires_grad=False))))
    with pytest.raises(ValueError, match="type='GN', which is none of BN, SyncBN, FrozenBN"):
        build(norm_cfg=dict(type='GN'))


def test_a_runner_of_one_process_keeps_the_activations_in_norms():
    model = build('mobilenetv1_100', norm_cfg=dict(type='SyncBN'))
    expected = features(model)
    torch.testing.assert_close(features(revert_sync_batchnorm(model)), expected)


@pytest.mark.parametrize('attn', ['se', 'sk'])
def test_with_cp_keeps_less_and_changes_no_gradient(attn):
    x, grads, saved = torch.randn(2, 3, 64, 64), [], []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = build(attn=attn, with_cp=with_cp, frozen_stages=0).train()
        saved.append(saved_bytes(model, x))
        model(x)[-1].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert saved[1] < 0.5 * saved[0]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize('cfg', [
    {}, dict(frozen_stages=1, norm_eval=True), dict(norm_cfg=dict(type='FrozenBN')), dict(out_indices=(1, 2))])
def test_a_warm_start_gives_the_plain_features(plain, plain_file, cfg):
    attended = build(attn='se', pretrained=plain_file, **cfg)
    assert not hasattr(attended, 'pretrained_cfg')  # nothing says how the file's pictures were normalised
    assert attended.attn.init == 'identity'
    expected = build(pretrained=plain_file, **cfg)
    for out, theirs in zip(features(attended), features(expected), strict=True):
        torch.testing.assert_close(out, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features(expected)[1], plain.forward_intermediates(
        torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64), intermediates_only=True)[2], rtol=1e-4, atol=1e-4)


def test_weights_are_asked_for_in_init_weights_alone(no_network, monkeypatch):
    asked = []
    monkeypatch.setattr(
        timm.models._builder, 'load_state_dict_from_hf', lambda *args, **kwargs: asked.append(args) or {})
    for name, pretrained, cfg in (
            ('resnet50', True, dict(attn='se')), ('resnet50.tv_in1k', True, {}), ('se_resnet50_plugin', 'ra2_in1k', {}),
            ('resnet50', 'hf-hub:timm/resnet50.a1_in1k', dict(attn='se')), ('resnet50', 'local-dir:gone', {}),
            ('resnet50', 'gone.pth', {})):
        build(name, init=False, pretrained=pretrained, **cfg)
    assert asked == []
    with pytest.raises(ValueError, match='does not fit resnet50_plugin: missing'):  # of the empty file
        build('resnet50', pretrained=True)
    assert len(asked) == 1


def test_an_architecture_does_not_depend_on_whether_weights_are_loaded(plain_file):
    cfg = dict(attn='se', pretrained=plain_file)
    loaded, built = build(**cfg), build(init=False, **cfg)
    assert loaded.attn == built.attn
    built.load_state_dict(loaded.state_dict())
    for mine, theirs in zip(features(loaded), features(built), strict=True):
        assert torch.equal(mine, theirs)


def test_a_saved_model_loads_with_the_options_it_was_saved_with(plain, tmp_path):
    se = randomised(timm.create_model('se_resnet18_plugin', attn_gate='tanh'))
    write_model(se, tmp_path / 'se')
    place = f'local-dir:{tmp_path / "se"}'
    model = build('se_resnet18_plugin', attn_gate='tanh', pretrained=place, frozen_stages=4)
    assert learning(model) == set()
    assert torch.equal(model.layer1[0].se.fc1.weight, se.layer1[0].se.fc1.weight)
    with pytest.raises(ValueError, match=r"other attention .* attn_gate='sigmoid' \(the weights have 'tanh'\)"):
        build('se_resnet18_plugin', pretrained=place)
    with pytest.raises(ValueError, match=r"do not fit resnet34_plugin; model_name='se_resnet18_plugin' is"):
        build('resnet34', pretrained=place)
    timm.models.save_for_hf(plain, tmp_path / 'plain', safe_serialization=True)
    warm = build(attn='se', pretrained=f'local-dir:{tmp_path / "plain"}')
    for out, theirs in zip(features(warm), features(build(pretrained=f'local-dir:{tmp_path / "plain"}')), strict=True):
        torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)
    for name in ('resnet18', 'resnet18_plugin'):
        timm.models.save_for_hf(timm.create_model(name), tmp_path / name, safe_serialization=True)
        with pytest.raises(ValueError, match=(
                f"holds a {name}, whose weights do not fit se_resnet18_plugin; model_name='resnet18_plugin' with "
                "attn='se' adds the attention to them$")):
            build('se_resnet18_plugin', pretrained=f'local-dir:{tmp_path / name}')


def test_init_cfg_loads_as_mmengine_users_know_it(plain, tmp_path):
    torch.save(  # as the classifiers' trainer does; torchvision's have a classifier too
        dict(state_dict=plain.state_dict(), args=argparse.Namespace(model='resnet18')), tmp_path / 'classifier.pth')
    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth')))
    assert torch.equal(model.layer4[1].conv2.weight, plain.layer4[1].conv2.weight)
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in model.state_dict().items()}), tmp_path / 'det.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'det.pth'), prefix='backbone.')
    for attn in ('se', 'cbam'):  # CBAM has a norm, whose counter a checkpoint lacks too
        again = build(init_cfg=[dict(type='Kaiming', layer='Conv2d'), cfg], attn=attn, attn_init='identity')
        for out, theirs in zip(features(again), features(model), strict=True):
            torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)
    se = timm.create_model('resnet18_plugin', attn='se', attn_init='identity')
    torch.save(dict(state_dict=se.state_dict()), tmp_path / 'se.pth')
    torch.save(dict(state_dict=nn.ModuleDict(dict(
        backbone=build(attn='se', attn_init='identity', init=False))).state_dict()), tmp_path / 'se_det.pth')
    for file in ('se.pth', 'se_det.pth'):
        with pytest.raises(ValueError, match=r"the weights belong to another attention .* attn_gate='sigmoid'"):
            load_checkpoint(build(attn='se') if file == 'se.pth' else nn.ModuleDict(dict(backbone=build(attn='se'))),
                            str(tmp_path / file))
    with pytest.raises(ValueError, match='pretrained=True and init_cfg of type Pretrained both name weights'):
        build(init_cfg=cfg, pretrained=True)


def test_identity_survives_an_init_cfg():
    model = build(attn='se', attn_init='identity', init_cfg=dict(type='Kaiming', layer='Conv2d'))
    assert (model.layer1[0].se.excite(torch.randn(2, 64, 1, 1)) == 1).all()


@pytest.mark.parametrize(('theirs', 'mine', 'message'), [
    (dict(model_name='resnet34'), {}, r'does not fit resnet18_plugin: unexpected layer1.2[^;]*$'),
    (dict(model_name='resnet18d'), {}, r'missing .*unexpected'),
    (dict(model_name='resnet50'), {}, r'of another shape .*\(64, 64, 1, 1\) instead of \(64, 64, 3, 3\)'),
    (dict(attn='se'), {}, r'unexpected layer1.0.se'),
    (dict(attn='se'), dict(attn='se', attn_rd_ratio=1 / 8), r'of another shape layer1.0.se'),
    ({}, dict(attn='sk'), r'missing layer1.0.conv1.paths'),
    (None, {}, r'does not fit resnet18_plugin: missing'),
])
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, theirs, mine, message):
    state = build(**theirs).state_dict() if theirs is not None else {'layer9.weight': torch.zeros(1)}
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=message):
        load_checkpoint(build(**mine), str(tmp_path / 'other.pth'))


@pytest.mark.parametrize(('cfg', 'message'), [
    (dict(model_name='resnet51'), r"'resnet51' is not a timm model: did you mean .*resnet50"),
    (dict(model_name='hf-hub:timm/resnet50'), 'is not a timm model'),
    (dict(out_indices=(1, 5)), r'\(1, 5\) are not levels of resnet18_plugin, which has 0 \(act1\), 1 \(layer1\), 2'),
    (dict(out_indices=(-1,)), 'out_indices'),
    (dict(out_indices=()), 'out_indices'),
    (dict(model_name='efficientnet_b0', out_indices=(9,)), r'efficientnet_b0, which has 0 \(blocks.0\)'),
    (dict(model_name='regnety_002', attn='se'), 'there is no regnety_002_plugin'),
    (dict(model_name='se_resnet18_plugin', attn='sk'), 'resnet18_plugin accepts any'),
    (dict(attn='se', attn_rd_ratio=16), 'did you mean 1/16'),
    (dict(attn_rd_ratio=1 / 8), 'attn_rd_ratio'),
    (dict(depth=50), "has no argument 'depth'"),
    (dict(pretrained='a9_in1k'), "has no tag 'a9_in1k'"),
    (dict(model_name='resnet18.a9_in1k'), "has no tag 'a9_in1k'"),
    (dict(model_name='resnet18.a1_in1k', pretrained='tv_in1k'), "a1_in1k' and pretrained='tv_in1k' name different"),
    (dict(norm_cfg=dict(type='BN', momentum=0.01)), 'norm_cfg has the keys momentum; only type and requires_g'),
    (dict(attn='sk', pretrained=True), 'cannot gain'),
    (dict(model_name='se_resnet50_plugin', attn_gate='tanh', pretrained=True), 'belong to another attention'),
])
def test_a_mistake_is_named_when_the_backbone_is_built(cfg, message):
    with pytest.raises(ValueError, match=message):
        build(init=False, **cfg)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"pretrained='gone/a.pth' is not a file"):
        build(pretrained='gone/a.pth')


def test_a_backbone_can_be_copied():
    model = build(attn='se', frozen_stages=1)
    clone = copy.deepcopy(model)
    assert isinstance(clone, TimmAttentionBackbone)
    assert learning(clone) == learning(model)
    clone.load_state_dict(model.state_dict())
