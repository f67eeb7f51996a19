"""``pretrained=True``: which weights load where, what may be missing, and what is refused."""

import json
import re

import pytest
import timm
import torch
from parity import IS_OLD_TIMM, images, randomised, saved
from safetensors.torch import load_file, save_file

from timm_se_plugin import AttentionSpec
from timm_se_plugin.layers import SqueezeExcite
from timm_se_plugin.models._registry import architectures
from timm_se_plugin.placement import ATTENTIONS
from timm_se_plugin.placement.attentions import names_that_start_at_identity
from timm_se_plugin.weights import write_model


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    model = randomised(timm.create_model('resnet18'))
    return model, saved(model, tmp_path_factory.mktemp('plain'))


@pytest.fixture(scope='module')
def attended(tmp_path_factory):
    model = randomised(timm.create_model('seresnet50', layers=(1, 1, 1, 1)))
    return model, saved(model, tmp_path_factory.mktemp('se'))


def create(name, overlay, **kwargs):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def logits(model, **kwargs):
    with torch.no_grad():
        return model.eval()(images(2, 3, 64, 64, dtype=torch.float32), **kwargs)


def test_every_published_tag_of_a_base_is_a_tag_of_its_plugin_name():
    for name, arch in architectures.items():
        if arch.accepts_attn and arch.source:
            theirs = timm.models.get_arch_pretrained_cfgs(arch.source.timm_name)
            ours = timm.models.get_arch_pretrained_cfgs(name)
            assert [key.partition('.')[2] for key in ours] == [key.partition('.')[2] for key in theirs], name
            for (_, mine), (_, cfg) in zip(ours.items(), theirs.items(), strict=True):
                assert (mine.hf_hub_id, mine.url) == (cfg.hf_hub_id, cfg.url)
                assert mine.architecture == name


def test_names_carry_the_tags_of_timms_trained_networks():
    tags = {name: sorted(key.partition('.')[2] for key in timm.models.get_arch_pretrained_cfgs(name)
                         if timm.models.is_model_pretrained(key) and '.from_' not in key)
            for name, arch in architectures.items() if not arch.accepts_attn and arch.source}
    assert tags == {
        'sk_resnet18_plugin': ['ra_in1k'], 'sk_resnet34_plugin': ['ra_in1k'], 'sk_resnext50_32x4d_plugin': ['ra_in1k'],
        'se_resnet50_plugin': ['a1_in1k', 'a2_in1k', 'a3_in1k', 'ra2_in1k'],
        'se_resnet152d_plugin': ['ra2_in1k'],
        'se_resnext50_32x4d_plugin': ['gluon_in1k', 'racm_in1k'],
        'se_resnext101_32x4d_plugin': ['gluon_in1k'],
        'se_resnext101_32x8d_plugin': ['ah_in1k'],
        'se_resnext101_64x4d_plugin': ['gluon_in1k'],
    }


def test_every_se_name_starts_from_each_published_tag_of_its_base():
    started = 0
    for name, arch in architectures.items():
        if name.startswith('se_') and timm.is_model(arch.base):
            base = timm.models.get_arch_pretrained_cfgs(arch.base)
            expected = {f'from_{key.partition(".")[2]}': cfg for key, cfg in base.items() if cfg.has_weights}
            ours = {key.partition('.')[2]: cfg for key, cfg in timm.models.get_arch_pretrained_cfgs(name).items()}
            assert {tag for tag in ours if tag.startswith('from_')} == expected.keys(), name
            for tag, cfg in expected.items():
                assert (ours[tag].hf_hub_id, ours[tag].url, ours[tag].input_size) == (
                    cfg.hf_hub_id, cfg.url, cfg.input_size)
                started += 1
    assert started >= 300


def test_a_plain_tag_starts_a_network_with_attention(plain, attended):
    model = create('se_resnet18_plugin.from_a1_in1k', plain[1])
    assert AttentionSpec.of(model) == AttentionSpec('se', init='identity')
    torch.testing.assert_close(logits(model), logits(plain[0]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r'does not fit se_resnet50_plugin: unexpected layer1.0.se'):
        create('se_resnet50_plugin.from_a1_in1k', attended[1], layers=(1, 1, 1, 1))


def test_without_a_tag_trained_attention_comes_first_and_then_the_plain_default():
    assert timm.get_pretrained_cfg('se_resnet50_plugin').tag == 'a1_in1k'
    assert timm.get_pretrained_cfg('se_resnet18_plugin').tag == f'from_{timm.get_pretrained_cfg("resnet18").tag}'
    assert timm.get_pretrained_cfg('se_resnet50t_plugin').tag is None


def test_a_tag_brings_the_specification_of_its_weights(attended):
    model = create('se_resnet50_plugin.a1_in1k', attended[1], layers=(1, 1, 1, 1))
    assert AttentionSpec.of(model) == AttentionSpec('se', rd_divisor=8)
    torch.testing.assert_close(logits(model), logits(attended[0]), rtol=1e-4, atol=1e-4)


WAYS = {
    'tag': lambda name, overlay: dict(pretrained_cfg='a1_in1k', pretrained_cfg_overlay=overlay),
    'object': lambda name, overlay: dict(
        pretrained_cfg=timm.get_pretrained_cfg(f'{name}.a1_in1k'), pretrained_cfg_overlay=overlay),
    'dict': lambda name, overlay: dict(
        pretrained_cfg={**timm.get_pretrained_cfg(f'{name}.a1_in1k').to_dict(), **overlay}),
    'script': lambda name, overlay: {
        k: v for k, v in timm.models.resolve_model_input_args(f'{name}.a1_in1k', pretrained_cfg_overlay=overlay).items()
        if k != 'model_name'},
}


@pytest.mark.parametrize('way', WAYS)
def test_a_tag_is_known_however_its_configuration_arrives(way, attended, plain):
    if way == 'script' and IS_OLD_TIMM:
        pytest.skip('timm has resolve_model_input_args from 1.0.31')
    kwargs = WAYS[way]('se_resnet50_plugin', attended[1])
    with pytest.raises(ValueError, match=r"attn_gate='tanh' \(the weights have 'sigmoid'\)"):
        timm.create_model('se_resnet50_plugin', pretrained=True, attn_gate='tanh', layers=(1, 1, 1, 1), **kwargs)
    model = timm.create_model(
        'resnet18_plugin', pretrained=True, attn='se', **WAYS[way]('resnet18_plugin', plain[1]))
    torch.testing.assert_close(logits(model), logits(plain[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('options', 'message'), [
    ({'attn_rd_ratio': 1 / 8, 'attn_bias': False}, r'attn_rd_ratio=0.125 .*, attn_bias=False'),
    ({'attn_integration': 'pre'}, "attn_integration='pre'"),
    ({'attn_init': 'identity'}, "attn_gate='double_sigmoid'"),
])
def test_weights_refuse_another_specification(attended, options, message):
    with pytest.raises(ValueError, match=f'belong to another attention: .*{message}'):
        create('se_resnet50_plugin', attended[1], **options)


def test_weights_with_attention_do_not_load_into_a_plain_network(attended):
    with pytest.raises(ValueError, match=r"attn='none' \(the weights have 'se'\)"):
        create('seresnet50_plugin', attended[1], attn='none')
    with pytest.raises(ValueError, match=r"attn='eca' \(the weights have 'se'\)"):
        create('seresnet50_plugin', attended[1], attn='eca')


@pytest.mark.parametrize('attn', names_that_start_at_identity())
def test_plain_weights_gain_any_attention_that_can_start_at_identity(plain, attn):
    model = create('resnet18_plugin', plain[1], attn=attn)
    assert AttentionSpec.of(model).init == 'identity'
    torch.testing.assert_close(logits(model), logits(plain[0]), rtol=1e-5, atol=1e-5)
    model.init_weights()  # begins again, with gates that change nothing
    assert torch.equal(model.layer1[0].se.eval()(x := images(2, 64, 8, 8, dtype=torch.float32)), x)


@pytest.mark.parametrize('attn', [attn for attn in ATTENTIONS if attn not in names_that_start_at_identity()])
def test_plain_weights_gain_nothing_that_would_change_them(plain, attn):
    message = re.escape(f'weights of a plain resnet18 cannot gain attn={attn!r}, which cannot start without a change')
    with pytest.raises(ValueError, match=message):
        create('resnet18_plugin', plain[1], attn=attn)


def test_the_same_specification_given_explicitly_is_accepted(attended):
    model = create(
        'se_resnet50_plugin', attended[1], layers=(1, 1, 1, 1), attn='se', attn_gate='sigmoid', attn_fused=False)
    assert AttentionSpec.of(model) == AttentionSpec('se', rd_divisor=8, fused=False)


def test_plain_weights_gain_attention_that_changes_nothing_yet(plain, caplog):
    model = create('resnet18_plugin', plain[1], attn='se')
    assert "give attn_init='identity' again whenever you load a checkpoint" in caplog.text
    assert AttentionSpec.of(model).gate == 'double_sigmoid'
    torch.testing.assert_close(logits(model), logits(plain[0]), rtol=1e-5, atol=1e-5)
    model.train()(images(2, 3, 64, 64, dtype=torch.float32)).square().sum().backward()
    gates = [m for m in model.modules() if isinstance(m, SqueezeExcite)]
    assert len(gates) == 8
    assert all(gate.fc2.weight.grad.abs().max() > 0 for gate in gates)


def test_plain_weights_may_gain_attention_in_any_place_and_stage(plain):
    model = create('resnet18_plugin', plain[1], attn='se', attn_integration='3x3', attn_stages=3, num_classes=7)
    reference = create('resnet18_plugin', plain[1])
    model.reset_classifier(0)
    reference.reset_classifier(0)
    torch.testing.assert_close(logits(model), logits(reference), rtol=1e-5, atol=1e-5)


def test_warm_start_with_another_gate_must_be_asked_for(plain):
    with pytest.raises(ValueError, match=r"attn_gate='sigmoid' does not start at .*; choose double_sigmoid"):
        create('resnet18_plugin', plain[1], attn='se', attn_gate='sigmoid')
    model = create('resnet18_plugin', plain[1], attn='se', attn_gate='sigmoid', attn_init='default')
    assert not torch.allclose(logits(model), logits(plain[0]), atol=1e-2)


@pytest.mark.parametrize('drop', ['layer1.0.conv1.weight', 'fc.bias'])
@pytest.mark.parametrize('options', [{}, {'attn': 'se'}, {'num_classes': 1000, 'features_only': True}])
def test_a_missing_key_is_an_error(plain, tmp_path, drop, options):
    weights = {key: value for key, value in plain[0].state_dict().items() if key != drop}
    save_file(weights, tmp_path / 'cut.safetensors')
    with pytest.raises(ValueError, match=f'does not fit resnet18_plugin: missing {drop}$'):
        create('resnet18_plugin', {'file': str(tmp_path / 'cut.safetensors')}, **options)


def test_a_missing_key_is_an_error_for_another_number_of_classes_too(plain, tmp_path):
    weights = {**plain[0].state_dict(), 'head.weight': torch.zeros(1)}
    del weights['layer4.1.bn2.running_mean']
    save_file(weights, tmp_path / 'cut.safetensors')
    with pytest.raises(ValueError, match=r'missing layer4.1.bn2.running_mean; unexpected head.weight'):
        create('resnet18_plugin', {'file': str(tmp_path / 'cut.safetensors')}, num_classes=3)


def test_half_of_an_attention_is_an_error(tmp_path):
    model = timm.create_model('se_resnet18_plugin')
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith('layer2.0.se')}
    save_file(weights, tmp_path / 'half.safetensors')
    with pytest.raises(ValueError, match=r'unexpected layer1.0.se.fc1.bias'):
        create('resnet18_plugin', {'file': str(tmp_path / 'half.safetensors')}, attn='se')


def test_files_that_count_no_batches_load(plain, tmp_path):
    weights = {key: value for key, value in plain[0].state_dict().items() if not key.endswith('num_batches_tracked')}
    save_file(weights, tmp_path / 'old.safetensors')
    model = create('resnet18_plugin', {'file': str(tmp_path / 'old.safetensors')}, attn='se')
    torch.testing.assert_close(logits(model), logits(plain[0]), rtol=1e-5, atol=1e-5)


def test_in_chans_and_num_classes_adapt(plain):
    model = create('resnet18_plugin', plain[1], attn='se', in_chans=1, num_classes=5)
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 5)
    torch.testing.assert_close(model.conv1.weight.sum(1), plain[0].conv1.weight.sum(1))


def test_a_legacy_file_does_not_load_into_the_modern_network(tmp_path):
    overlay = saved(timm.create_model('legacy_seresnet50'), tmp_path)
    with pytest.raises(ValueError, match='does not fit se_resnet50_plugin: missing '):
        create('se_resnet50_plugin', overlay)
    with pytest.raises(ValueError, match=r'does not fit legacy_seresnet50_plugin: unexpected .*se'):
        create('legacy_seresnet50_plugin', overlay, attn='none', pretrained_cfg=dict(overlay, num_classes=1000))


def test_a_saved_model_refuses_another_specification_and_a_saved_plain_one_gains_attention(tmp_path):
    se = timm.create_model('se_resnet10t_plugin', attn_gate='tanh')
    write_model(se, tmp_path / 'se')
    with pytest.raises(ValueError, match=r"attn_gate='relu' \(the weights have 'tanh'\)"):
        timm.create_model(f'local-dir:{tmp_path / "se"}', pretrained=True, attn_gate='relu')
    plain = timm.create_model('resnet10t_plugin')
    write_model(plain, tmp_path / 'plain')
    model = timm.create_model(f'local-dir:{tmp_path / "plain"}', pretrained=True, attn='se')
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)


def test_a_saved_model_may_be_built_with_another_attention_without_its_weights(tmp_path):
    write_model(timm.create_model('resnet10t_plugin', attn='se'), tmp_path)
    name = f'local-dir:{tmp_path}'
    assert AttentionSpec.of(timm.create_model(name, attn='none')) is None
    assert AttentionSpec.of(timm.create_model(name, attn='eca')) == AttentionSpec('eca')
    with pytest.raises(ValueError, match=r"attn='eca' \(the weights have 'se'\)"):
        timm.create_model(name, pretrained=True, attn='eca')


def test_saved_configuration_is_complete_whatever_was_asked(attended, tmp_path):
    model = create('se_resnet50_plugin.a1_in1k', attended[1], layers=(1, 1, 1, 1))
    write_model(model, tmp_path)
    args = json.loads((tmp_path / 'config.json').read_text())['model_args']
    assert AttentionSpec.from_kwargs({k: v for k, v in args.items() if k.startswith('attn')}) == AttentionSpec.of(model)
    reloaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert torch.equal(logits(reloaded), logits(model))
    assert load_file(tmp_path / 'model.safetensors').keys() == model.state_dict().keys()
