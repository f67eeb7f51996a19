"""Weights with other names compute what their originals do; what would not is refused."""

import argparse
import json

import pytest
import timm
import torch
import torchvision
from parity import images, needs_new_timm, randomised, relative_error
from safetensors.torch import load_file, save_file

from timm_se_plugin.models._registry import architectures
from timm_se_plugin.weights import write_model
from timm_se_plugin.weights.convert import convert, convert_file, convert_to_timm
from timm_se_plugin.weights.layouts import layout_of
from timm_se_plugin.weights.reading import read_weights

DEPTH = dict(layers=(2, 1, 1, 1))
SHALLOW = dict(layers=(1, 1, 1, 1))
LEGACY = [name for name in timm.list_models('legacy_se*') if f'{name}_plugin' in architectures]


@torch.no_grad()
def assert_same_outputs(model, original, tolerance=1e-10):
    x = images(2, 3, 97, 97)
    assert relative_error(model.double().eval()(x), original.double().eval()(x)) < tolerance


def converted(original, name, tmp_path, **kwargs):
    """The original's file, converted."""
    torch.save(original.state_dict(), tmp_path / 'weights.pth')
    state, meta = read_weights(tmp_path / 'weights.pth')
    model = timm.create_model(name, **kwargs)
    return model, convert(state, model, meta=meta)


def test_there_are_nine_legacy_networks():
    assert len(LEGACY) == 9


@pytest.mark.parametrize('depth', [DEPTH, pytest.param({}, marks=pytest.mark.slow)], ids=['shallow', 'whole'])
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] if any(d in name for d in ('101', '152', '154')) else [])
    for name in LEGACY])
def test_legacy_networks_and_cadenes_names(name, depth, tmp_path):
    original = randomised(timm.create_model(name, **depth))
    assert any(key.startswith('layer0.') for key in original.state_dict())
    model, conversion = converted(original, f'{name}_plugin', tmp_path, **depth)
    assert conversion.layout == 'cadene'
    assert conversion.mapped['layer1.0.se.fc1.weight'] == 'layer1.0.se_module.fc1.weight'
    assert not conversion.unused
    assert not conversion.missing
    assert_same_outputs(model, original)
    back, _ = convert_to_timm(model, name) if not depth else (None, None)
    if back is not None:
        assert all(torch.equal(value, original.state_dict()[key]) for key, value in back.state_dict().items())


def test_seresnet50(tmp_path):
    original = randomised(timm.create_model('seresnet50', **DEPTH))
    model, conversion = converted(original, 'se_resnet50_plugin', tmp_path, **DEPTH)  # of the same widths
    assert conversion.layout == 'resnet'
    assert_same_outputs(model, original)


def test_skresnet18_and_back(tmp_path):
    original = randomised(timm.create_model('skresnet18'))
    options = architectures['sk_resnet18_plugin'].source.attn.to_kwargs()
    model, conversion = converted(original, 'sk_resnet18_plugin', tmp_path, **options)
    assert conversion.layout == 'timm-sk'
    assert_same_outputs(model, original)
    back, _ = convert_to_timm(model.float(), 'skresnet18')
    assert back.state_dict().keys() == original.state_dict().keys()
    assert_same_outputs(back, original)


@pytest.mark.parametrize(('name', 'original'), [
    ('resnet18', torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1] * 4)),
    ('resnext50_32x4d', torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, [1] * 4, groups=32, width_per_group=4))])
def test_torchvisions_resnets_warm_start_a_network_with_attention(name, original, tmp_path):
    randomised(original)
    model, conversion = converted(
        original, f'{name}_plugin', tmp_path, attn='se', attn_init='identity', layers=(1, 1, 1, 1))
    assert_same_outputs(model, original)
    assert {key.split('.')[2] for key in conversion.missing} == {'se'}
    with pytest.raises(ValueError, match=r"without attn='se', which se_resnet18_plugin has; make .* attn_init='iden"):
        converted(timm.create_model('resnet18'), 'se_resnet18_plugin', tmp_path)


def mmpretrain_names(state):
    """As mmpretrain's SEResNet and LinearClsHead name them (mmpretrain/models/backbones/seresnet.py)."""
    names = {}
    for key, value in state.items():
        key = key.replace('.se.fc1.', '.se_layer.conv1.conv.').replace('.se.fc2.', '.se_layer.conv2.conv.')
        names[f'head.{key}' if key.startswith('fc.') else f'backbone.{key}'] = value
    return names


def test_mmpretrains_names(tmp_path):
    original = randomised(timm.create_model('seresnet50', **DEPTH))
    state = {**mmpretrain_names(original.state_dict()), 'data_preprocessor.mean': torch.zeros(3)}
    torch.save({'state_dict': state, 'meta': {'epoch': 1, 'cfg': "model = dict(backbone=dict(type='SEResNet'))"}},
               tmp_path / 'a.pth')
    conversion = convert_file(tmp_path / 'a.pth', 'se_resnet50_plugin', tmp_path / 'out', **DEPTH)
    assert conversion.layout == 'mmpretrain'
    assert conversion.unused == ('data_preprocessor.mean',)
    assert conversion.mapped['layer1.0.se.fc2.bias'] == 'backbone.layer1.0.se_layer.conv2.conv.bias'
    assert_same_outputs(timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True), original)
    written = json.loads((tmp_path / 'out' / 'conversion.json').read_text())
    assert written['mapped'] == dict(conversion.mapped)


# Caffe.

def number(value):
    out = b''
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def part(tag, data):
    return number(tag << 3 | 2) + number(len(data)) + data


def caffemodel(layers):
    """Bytes of a NetParameter (caffe.proto) with these blobs, written by the wire format."""
    net = part(1, b'SE-ResNet')
    for name, blobs in layers.items():
        layer = part(1, name.encode()) + part(2, b'Convolution')
        for blob in blobs:
            shape = part(1, b''.join(number(size) for size in blob.shape))
            layer += part(7, part(7, shape) + part(5, blob.contiguous().numpy().astype('<f4').tobytes()))
        net += part(100, layer)
    return net


def caffe_layers_of(legacy):
    """Layers of models/SE-ResNet-50.prototxt of github.com/hujie-frank/SENet with the weights of timm's port."""
    state = legacy.state_dict()
    layers = {}

    def conv(layer, key, flip=False, biased=False):
        weight = state[f'{key}.weight']
        layers[layer] = [weight.flip(1) if flip else weight] + ([state[f'{key}.bias']] if biased else [])

    def norm(layer, key, factor):
        layers[f'{layer}/bn'] = [
            state[f'{key}.running_mean'] * factor, state[f'{key}.running_var'] * factor, torch.tensor([factor])]
        layers[f'{layer}/bn/scale'] = [state[f'{key}.weight'], state[f'{key}.bias']]

    conv('conv1/7x7_s2', 'layer0.conv1', flip=True)
    norm('conv1/7x7_s2', 'layer0.bn1', 999.98)
    for stage in (1, 2, 3, 4):
        for i in range(len(getattr(legacy, f'layer{stage}'))):
            ours, theirs = f'layer{stage}.{i}', f'conv{stage + 1}_{i + 1}_'
            for layer, j in (('1x1_reduce', 1), ('3x3', 2), ('1x1_increase', 3)):
                conv(theirs + layer, f'{ours}.conv{j}')
                norm(theirs + layer, f'{ours}.bn{j}', 999.98)
            if i == 0:
                conv(theirs + '1x1_proj', f'{ours}.downsample.0')
                norm(theirs + '1x1_proj', f'{ours}.downsample.1', 1.0)
            conv(theirs + '1x1_down', f'{ours}.se_module.fc1', biased=True)
            conv(theirs + '1x1_up', f'{ours}.se_module.fc2', biased=True)
    layers['classifier'] = [state['last_linear.weight'], state['last_linear.bias']]
    return layers


def test_a_caffemodel_with_the_names_of_the_release(tmp_path):
    pytest.importorskip('google.protobuf')
    original = randomised(timm.create_model('legacy_seresnet50', **DEPTH, num_classes=7))
    (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_layers_of(original)))
    conversion = convert_file(tmp_path / 'a.caffemodel', 'legacy_seresnet50_plugin', tmp_path / 'out', **DEPTH)
    assert conversion.layout == 'caffe'
    assert conversion.mapped['layer2.0.bn3.running_var'] == 'conv3_1_1x1_increase/bn.1'
    assert {key.rpartition('.')[2] for key in conversion.missing} == {'num_batches_tracked'}
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert_same_outputs(model, original, 1e-5)  # the factor of BatchNorm's statistics is in float32
    cfg = model.pretrained_cfg
    assert [round(255 * mean) for mean in cfg['mean']] == [123, 117, 104]
    assert [round(1 / std) for std in cfg['std']] == [255] * 3
    with pytest.raises(ValueError, match="weights with caffe's names are not of se_resnet50_plugin"):
        convert_file(tmp_path / 'a.caffemodel', 'se_resnet50_plugin', tmp_path / 'out', **DEPTH)


@pytest.mark.parametrize('data', [b'', b'\xff' * 20, part(100, part(1, b'a') + part(7, part(7, part(1, b'\x05'))))])
def test_a_file_that_is_no_caffemodel_is_refused(tmp_path, data):
    pytest.importorskip('google.protobuf')
    (tmp_path / 'a.caffemodel').write_bytes(data)
    with pytest.raises(ValueError, match=r'is not a .caffemodel|has 0 values for the shape \(5,\)'):
        read_weights(tmp_path / 'a.caffemodel')


# What is refused.

@pytest.mark.parametrize('name', ['legacy_seresnet50', 'legacy_seresnext50_32x4d', 'legacy_senet154'])
def test_legacy_weights_do_not_become_the_modern_networks(name, tmp_path):
    modern = {'legacy_senet154': 'senet154_plugin'}.get(name, name.replace('legacy_seres', 'se_res') + '_plugin')
    with pytest.raises(ValueError, match=rf"cadene's names are not of {modern}, .*strides and pooling"):
        converted(timm.create_model(name, **DEPTH), modern, tmp_path, **DEPTH)


def test_modern_weights_do_not_become_a_legacy_network(tmp_path):
    with pytest.raises(ValueError, match=r"resnet's names are not of legacy_seresnet50_plugin, .*give weights with"):
        converted(timm.create_model('seresnet50', **DEPTH), 'legacy_seresnet50_plugin', tmp_path, **DEPTH)


def test_a_named_source_is_compared_with_the_target():
    few = dict(layers=(1, 1, 1, 1), num_classes=10)
    legacy = randomised(timm.create_model('legacy_seresnet18', **few))
    model = timm.create_model('legacy_seresnet18_plugin', **few)
    convert(legacy.state_dict(), model, legacy)
    assert_same_outputs(model, legacy)
    with pytest.raises(ValueError, match='legacy_seresnet18 have the same keys and shapes, but compute'):
        convert(legacy.state_dict(), timm.create_model('se_resnet18_plugin', **few), legacy)
    plain = randomised(timm.create_model('resnet18', **few))
    warm = timm.create_model('se_resnet18_plugin', attn_init='identity', **few)
    convert(plain.state_dict(), warm, plain)
    assert_same_outputs(warm, plain)


@pytest.mark.parametrize(('name', 'options', 'timm_name', 'message'), [
    ('se_resnet18_plugin', {'attn_gate': 'tanh', 'attn_rd_divisor': 8}, 'seresnet18', 'compute different functions'),
    ('se_resnet18_plugin', {'attn_init': 'identity', 'attn_rd_divisor': 8}, 'seresnet18', 'different functions'),
    ('legacy_seresnet18_plugin', {'attn': 'se', 'attn_rd_divisor': 8}, 'seresnet18', 'compute different functions'),
    ('se_resnet18_plugin', {}, 'seresnet18', r'of another shape layer1.0.se.fc1.bias'),  # timm's widths are others
    ('se_resnet18_plugin', {}, 'resnet18', r'do not fit se_resnet18_plugin: missing layer1.0.se.fc1.bias'),
    ('se_resnet18_plugin', {}, 'resnet34', 'unexpected layer1.2'),
    ('se_resnet18_plugin', {}, 'resnet18_plugin', "is not one of timm's own models"),
    ('se_resnet18_plugin', {}, 'resnet19', "is not one of timm's own models"),
])
def test_a_network_that_timms_name_is_not_does_not_go_back(name, options, timm_name, message):
    with pytest.raises(ValueError, match=message):
        convert_to_timm(timm.create_model(name, num_classes=10, **options), timm_name)


def test_names_that_tell_the_attention_refuse_another(tmp_path):
    original = timm.create_model('seresnet50', **DEPTH)
    torch.save(mmpretrain_names(original.state_dict()), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"another attention .*attn_gate='tanh' \(the weights have 'sigmoid'\)"):
        convert_file(tmp_path / 'a.pth', 'se_resnet50_plugin', tmp_path / 'out', attn_gate='tanh', **DEPTH)
    meta = {'cfg': "model = dict(backbone=dict(type='SEResNet', style='caffe'))"}
    torch.save({'state_dict': mmpretrain_names(original.state_dict()), 'meta': meta}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"says style='caffe', so its network has strides in the 1x1 conv"):
        convert_file(tmp_path / 'a.pth', 'se_resnet50_plugin', tmp_path / 'out', **DEPTH)


def test_missing_unexpected_and_wrong_shapes_are_named_and_nothing_is_loaded():
    state = dict(timm.create_model('resnet18', num_classes=10).state_dict())
    model = timm.create_model('resnet18_plugin', num_classes=10)
    before = model.conv1.weight.clone()
    del state['layer1.0.conv1.weight']
    state |= {'extra.weight': torch.zeros(1), 'bn1.bias': torch.zeros(65), 'conv1.weight': torch.zeros(64, 3, 7, 7)}
    with pytest.raises(ValueError, match=r'missing layer1.0.conv1.weight; unexpected extra.weight; of another shape '
                                         r'bn1.bias \(65,\) instead of \(64,\)'):
        convert(state, model)
    assert torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize('rename', [lambda key: f'encoder.{key}', lambda key: key.replace('.se.', '.attention.')])
def test_weights_under_other_names_are_not_called_weights_without_attention(rename):
    model = timm.create_model('se_test_resnet_plugin', num_classes=3)
    with pytest.raises(ValueError, match=r'do not fit se_test_resnet_plugin: .*unexpected (encoder|layer1.0.atten)'):
        convert({rename(key): value for key, value in model.state_dict().items()}, model)


def test_a_state_dict_tells_which_options_of_attention_it_needs(tmp_path):
    model = timm.create_model('se_test_resnet_plugin', num_classes=5, attn_gate='tanh')
    torch.save(model.state_dict(), tmp_path / 'mine.pth')
    with pytest.raises(ValueError, match=r"another attention .*attn_gate='sigmoid' \(the weights have 'tanh'\)"):
        convert_file(tmp_path / 'mine.pth', 'se_test_resnet_plugin', tmp_path / 'saved')
    conversion = convert_file(tmp_path / 'mine.pth', 'se_test_resnet_plugin', tmp_path / 'saved', attn_gate='tanh')
    assert not any('assumed that the attention' in note for note in conversion.notes)


def test_half_of_an_attention_is_missing():
    state = dict(timm.create_model('seresnet18').state_dict())
    half = {key: value for key, value in state.items() if not key.startswith('layer2.0.se')}
    model = timm.create_model('se_resnet18_plugin', attn_init='identity', attn_rd_divisor=8)
    with pytest.raises(ValueError, match=r'missing layer2.0.se.fc1.bias'):
        convert(half, model)


# Files.

@pytest.mark.parametrize('held', [
    lambda state: state, lambda state: {'state_dict': state, 'args': argparse.Namespace(lr=1)},
    lambda state: {'model': state}, lambda state: {f'module.{key}': value for key, value in state.items()},
    lambda state: {'state_dict': {key: value * 0 for key, value in state.items()}, 'state_dict_ema': state},
])
def test_weights_are_found_in_what_trainings_write(tmp_path, held):
    state = timm.create_model('resnet18').state_dict()
    torch.save(held(dict(state)), tmp_path / 'a.pth')
    found, _ = read_weights(tmp_path / 'a.pth')
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize('beside', [{'args': '--lr 1'}, {'args': ['--lr', '1']}, {'meta': 'my network'}])
def test_what_lies_beside_the_weights_may_be_anything(tmp_path, beside):
    torch.save({'state_dict': timm.create_model('resnet18').state_dict(), **beside}, tmp_path / 'a.pth')
    assert convert_file(tmp_path / 'a.pth', 'resnet18_plugin', tmp_path / 'out').layout == 'resnet'


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'there is no file .*gone.pth'):
        read_weights(tmp_path / 'gone.pth')
    torch.save({'epoch': 3}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='has no weights'):
        read_weights(tmp_path / 'a.pth')
    torch.save({'state_dict': {'a': torch.zeros(100)}}, tmp_path / 'a.pth')
    (tmp_path / 'a.pth').write_bytes((tmp_path / 'a.pth').read_bytes()[:-50])
    with pytest.raises(ValueError, match='is broken, or not a file of weights'):
        read_weights(tmp_path / 'a.pth')


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth'])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    (tmp_path / name).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n')
    with pytest.raises(ValueError, match=rf'{name} is a pointer of Git LFS, .*run `git lfs pull`'):
        read_weights(tmp_path / name)


def test_a_whole_model_is_refused_without_the_advice_to_run_its_code(tmp_path):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / 'a.pt')
    with pytest.raises(ValueError, match=r'Unsupported global.*Conv2d.*save model.state_dict\(\) alone') as refused:
        read_weights(tmp_path / 'a.pt')
    assert 'will likely succeed' not in str(refused.value)
    assert '\n' not in str(refused.value)


class Attack:
    def __reduce__(self):
        import os
        return os.system, ('touch attacked',)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'hook': Attack()}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='is broken, or not a file of weights'):
        read_weights(tmp_path / 'a.pth')
    assert not (tmp_path / 'attacked').exists()


@needs_new_timm
def test_a_saved_model_is_converted_and_its_preprocessing_kept(tmp_path):
    original = randomised(timm.create_model('seresnet18', num_classes=7, in_chans=1))
    write_model(original, tmp_path / 'timm', data_config={'mean': (0.25,)})
    convert_file(f'local-dir:{tmp_path / "timm"}', 'se_resnet18_plugin', tmp_path / 'ours', attn_rd_divisor=8)
    conversion = convert_file(f'local-dir:{tmp_path / "ours"}', 'seresnet18', tmp_path / 'back')
    assert len(conversion.mapped) == len(original.state_dict())
    for folder in ('ours', 'back'):
        model = timm.create_model(f'local-dir:{tmp_path / folder}', pretrained=True)
        assert (model.num_classes, model.in_chans, list(model.pretrained_cfg['mean'])) == (7, 1, [0.25])
        assert not {'tag', 'license', 'paper_ids', 'origin_url'} & model.pretrained_cfg.keys()
    assert timm.create_model(f'local-dir:{tmp_path / "back"}').pretrained_cfg['architecture'] == 'seresnet18'
    ours, theirs = (load_file(tmp_path / folder / 'model.safetensors') for folder in ('back', 'timm'))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.fixture
def small_saved_model(tmp_path):
    """A saved network for small images, with preprocessing that is not that of its name."""
    model = randomised(timm.create_model('resnet18_plugin', num_classes=3, global_pool='max', **SHALLOW))
    write_model(model, tmp_path / 'saved', data_config={
        'input_size': (3, 64, 64), 'crop_mode': 'squash', 'crop_pct': 0.9, 'interpolation': 'bilinear'})
    return f'local-dir:{tmp_path / "saved"}'


@pytest.mark.parametrize('name', ['resnet18', 'resnet18_plugin'])
def test_size_and_crop_of_a_saved_model_are_kept(small_saved_model, tmp_path, name):
    convert_file(small_saved_model, name, tmp_path / 'out', global_pool='max', **SHALLOW)
    saved, converted = (timm.create_model(place, pretrained=True) for place in (
        small_saved_model, f'local-dir:{tmp_path / "out"}'))
    for is_test in (False, True):
        theirs, ours = (timm.data.resolve_model_data_config(model, use_test_size=is_test)
                        for model in (saved, converted))
        assert ours == theirs
    assert_same_outputs(converted, saved)


@pytest.mark.parametrize('name', ['resnet18', 'resnet18_plugin'])
def test_another_pooling_is_refused(small_saved_model, tmp_path, name):
    with pytest.raises(ValueError, match='same features and pool them differently; make both with the same global_p'):
        convert_file(small_saved_model, name, tmp_path / 'out', **SHALLOW)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('option', [{'source': 'resnet18'}, {'renames': {'fc': 'head'}}, {'padding': 'both'}])
def test_an_option_for_files_is_refused_with_a_saved_model(small_saved_model, tmp_path, option):
    with pytest.raises(ValueError, match=r'is for a file of weights; the config.json of .* leave the option out'):
        convert_file(small_saved_model, 'resnet18', tmp_path / 'out', **option)


@pytest.mark.parametrize(('model', 'kwargs', 'target'), [
    ('resnet18_plugin', {'attn': 'se', 'attn_gate': 'tanh'}, 'se_resnet18_plugin'),
    ('legacy_seresnet18_plugin', {}, 'se_resnet18_plugin'),
    ('resnet18_plugin', {'attn': 'se', 'attn_init': 'identity'}, 'se_resnet18_plugin')])
def test_a_training_says_what_its_weights_are_of(tmp_path, model, kwargs, target):
    few = {'layers': (1, 1, 1, 1)}
    kwargs = {**kwargs, **few}
    args = argparse.Namespace(
        model=model, model_kwargs=kwargs, num_classes=3, mean=[0.25] * 3, img_size=64, drop_path=0.1)
    network = randomised(timm.create_model(model, num_classes=3, **kwargs))
    torch.save({'state_dict': network.state_dict(), 'args': args}, tmp_path / 'last.pth.tar')
    with pytest.raises(ValueError, match='have the same keys and shapes, but compute different functions'):
        convert_file(tmp_path / 'last.pth.tar', target, tmp_path / 'out', **few)
    convert_file(tmp_path / 'last.pth.tar', model, tmp_path / 'out', drop_path_rate=0.1, **kwargs)
    saved = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert_same_outputs(saved, network)
    cfg = saved.pretrained_cfg
    assert (list(cfg['mean']), cfg['input_size']) == ([0.25] * 3, (3, 64, 64))


def test_a_training_of_a_network_for_one_size_of_images_is_converted(tmp_path):
    kwargs = {'depth': 1, 'img_size': 32}
    network = timm.create_model('vit_tiny_patch16_224', num_classes=3, **kwargs)
    args = argparse.Namespace(model='vit_tiny_patch16_224', model_kwargs=kwargs, num_classes=3, img_size=32)
    torch.save({'state_dict': network.state_dict(), 'args': args}, tmp_path / 'last.pth.tar')
    convert_file(tmp_path / 'last.pth.tar', 'vit_tiny_patch16_224', tmp_path / 'out')
    saved = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = images(2, 3, 32, 32).float()
    torch.testing.assert_close(saved(x), network.eval()(x))


def test_preprocessing_is_that_of_the_source(tmp_path):
    torch.save(timm.create_model('resnet18', num_classes=3).state_dict(), tmp_path / 'a.pth')
    convert_file(tmp_path / 'a.pth', 'resnet18_plugin', tmp_path / 'out', source='resnet18.tv_in1k')
    cfg = timm.create_model(f'local-dir:{tmp_path / "out"}').pretrained_cfg
    theirs = timm.get_pretrained_cfg('resnet18.tv_in1k')
    assert (cfg['interpolation'], cfg['crop_pct']) == (theirs.interpolation, theirs.crop_pct)


@pytest.mark.parametrize('name', [
    'convnext_atto', 'regnetx_002', *(pytest.param(name, marks=pytest.mark.slow) for name in (
        'vgg11_bn', 'resnetv2_50', 'xception41'))])
def test_networks_of_other_families_are_converted_there_and_back(name, tmp_path):
    original = randomised(timm.create_model(name, num_classes=3))
    model, conversion = converted(original, f'{name}_plugin', tmp_path, num_classes=3)
    assert conversion.layout == 'resnet'
    assert convert_to_timm(model, name)[1].missing == ()


def test_heads_of_timms_families_are_not_taken_for_mmpretrains():
    for name in ('convnext_atto', 'regnetx_002', 'vgg11_bn', 'resnetv2_50', 'xception41'):
        keys = timm.create_model(name, device='meta').state_dict()
        assert 'head.fc.weight' in keys
        assert layout_of(keys) == 'resnet'


def test_classes_and_channels_are_those_of_the_file(tmp_path):
    save_file(timm.create_model('seresnet50', num_classes=4, in_chans=2, **DEPTH).state_dict(),
              tmp_path / 'a.safetensors')
    convert_file(tmp_path / 'a.safetensors', 'se_resnet50_plugin', tmp_path / 'out', **DEPTH)
    model = timm.create_model(f'local-dir:{tmp_path / "out"}')
    assert (model.num_classes, model.in_chans) == (4, 2)


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnetv2_50', {'layers': (1, 1, 1, 1)}),  # whose classifier is a convolution
    ('densenet121', {'block_config': (1, 1, 1, 1)}), ('regnetx_002', {})])
def test_classes_and_channels_of_other_families_are_those_of_the_file(name, kwargs, tmp_path):
    network = timm.create_model(name, num_classes=4, in_chans=2, **kwargs)
    for saved in (network.state_dict(), {'state_dict': network.state_dict(), 'args': argparse.Namespace(
            model=name, model_kwargs=kwargs)}):
        torch.save(saved, tmp_path / 'a.pth')
        convert_file(tmp_path / 'a.pth', f'{name}_plugin', tmp_path / 'out', **kwargs)
        model = timm.create_model(f'local-dir:{tmp_path / "out"}')
        assert (model.num_classes, model.in_chans) == (4, 2)


@pytest.mark.parametrize('option', [
    {'mean': (123.675, 116.28, 103.53), 'std': (58.395, 57.12, 57.375)}, {'std': (0., 1., 1.)},
    {'mean': (float('nan'),) * 3}])
def test_a_mean_or_deviation_for_other_pixels_is_refused(small_saved_model, tmp_path, option):
    with pytest.raises(ValueError, match='is not for pixels from 0 to 1; divide numbers for pixels from 0 to 255'):
        convert_file(small_saved_model, 'resnet18_plugin', tmp_path / 'out', global_pool='max', **SHALLOW, **option)


def test_a_conversion_says_which_keys_changed():
    state = timm.create_model('resnet18').state_dict()
    text = str(convert(dict(state), timm.create_model('se_resnet18_plugin', attn_init='identity')))
    assert text.startswith(f'layout resnet: {len(state)} mapped, 0 unused, 32 missing\n')
    assert 'conv1.weight -> conv1.weight' not in text
    assert '  layer1.0.se.fc1.weight missing, keeps its initial value' in text


def test_a_conversion_says_no_more_than_a_reader_has_to_know():
    state = {key.replace('fc.', 'linear.'): value
             for key, value in timm.create_model('resnet20_cifar_plugin').state_dict().items()
             if not key.endswith('num_batches_tracked')}
    text = str(convert(state, timm.create_model('resnet20_cifar_plugin')))
    assert text.splitlines()[-2:] == ['  linear.weight -> fc.weight', '  linear.bias -> fc.bias']
    assert 'num_batches' not in text
