"""Attention for networks that are built: what it does, and what it refuses."""

import copy
import re
from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
from parity import images, randomised
from timm.layers import convert_sync_batchnorm
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_se_plugin import AttentionSpec, add_attention, remove_attention
from timm_se_plugin.analysis import find_gates
from timm_se_plugin.layers import BottleneckAttention, SqueezeExcite
from timm_se_plugin.measuring import complexity
from timm_se_plugin.placement import ATTENTIONS, AttentionBasicBlock, AttentionBottleneck, fuse_for_inference
from timm_se_plugin.placement.attentions import names_that_start_at_identity
from timm_se_plugin.weights import write_model


def resnet(**kwargs):
    return randomised(timm.create_model('test_resnet', **kwargs)).eval()


@pytest.fixture
def x():
    return images(2, 3, 64, 64, dtype=torch.float32)


class Chain(nn.Sequential):
    """A sequence with a forward of its own, which calls its children."""

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


class Dense(nn.ModuleDict):
    """A dense block as in torchvision: each of its children gets a list of maps."""

    def forward(self, x):
        maps = [x]
        for module in self.values():
            maps.append(module(maps))
        return torch.cat(maps, 1)


class Concatenation(nn.Module):
    """The concatenation of a list of maps."""

    def forward(self, maps):
        return torch.cat(maps, 1)


class ChannelsLast(nn.Module):
    """(N, C, H, W) -> (N, H, W, C), as the stages of Swin."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Containers(nn.Module):
    """A network whose parts call, or whose forward calls, the children of containers."""

    def __init__(self):
        super().__init__()
        self.iterated = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.chain = Chain(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.dense = Dense({'a': Concatenation(), 'b': Concatenation()})
        self.last = ChannelsLast()

    def forward(self, x):
        for module in self.iterated:
            x = module(x)
        return self.last(self.dense(self.chain(x))).mean((1, 2))


class Plain(nn.Module):
    """A network of no family, in which one module is used twice and one is held twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.held = nn.ModuleList([nn.ReLU()])
        self.held.append(self.held[0])
        self.unused = nn.ReLU()
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU())
        self.flat = nn.Flatten()

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = self.twice(self.twice(x))
        x = self.held[0](x)
        return self.flat(self.body(x))


@pytest.mark.parametrize('attn', ATTENTIONS)
def test_no_attention_works_in_place_on_a_view(attn):
    """Where an operation does, autograd copies the whole gradient several times in the backward pass."""
    model = timm.create_model('resnet20_cifar_plugin', attn=attn)
    open_nodes, found = [model(torch.randn(2, 3, 16, 16)).grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            open_nodes += [other for other, _ in node.next_functions]
    assert len(found) > 100
    assert not [node.name() for node in found if 'CopySlices' in node.name()]


@pytest.mark.parametrize('attn', [attn for attn in ATTENTIONS if not attn.startswith('sk')])
def test_every_attention_goes_in_learns_and_comes_out(attn, x):
    model = resnet()
    plain = copy.deepcopy(model)
    added = add_attention(model, attn)
    assert list(added) == [f'layer{stage}.0.se' for stage in (1, 2, 3, 4)]
    assert AttentionSpec.of(model) == AttentionSpec(attn)
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None for layer in added.values() for p in layer.parameters())
    assert remove_attention(model) == added
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert AttentionSpec.of(model) is None


@pytest.mark.parametrize('attn', names_that_start_at_identity())
@pytest.mark.parametrize('sites', [None, r'layer\d', r'layer\d\.0\.conv2'])
def test_identity_changes_nothing_and_its_gates_learn(attn, sites, x):
    model = resnet()
    with torch.no_grad():
        expected = model(x)
        added = add_attention(model, attn, init='identity', sites=sites)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    model(x).square().sum().backward()
    for layer in added.values():
        assert any(p.grad.abs().max() > 0 for p in layer.parameters())


def test_resnets_get_the_plugins_blocks_in_any_place(x):
    for integration in ('standard', 'pre', 'post', 'identity', '3x3'):
        model = resnet()
        add_attention(model, 'se', integration=integration, stages=(1, 3))
        built = timm.create_model('se_test_resnet_plugin', attn_integration=integration, attn_stages=(1, 3)).eval()
        assert [type(m) for m in model.modules()][5:] == [type(m) for m in built.modules()][5:]
        built.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(model(x), built(x))


def test_blocks_keep_their_selective_kernels():
    model = timm.create_model('resnet18_plugin', attn='sk+se')
    assert len(remove_attention(model)) == 8
    assert type(model.layer1[0]) is AttentionBasicBlock
    model(torch.zeros(2, 3, 64, 64))


def test_device_type_and_mode_follow_the_network():
    model = timm.create_model('resnet50', layers=(1, 1, 1, 1)).to(torch.bfloat16).eval()
    for layer in add_attention(model).values():
        assert not layer.training
        assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert type(model.layer1[0]) is AttentionBottleneck
    model = timm.create_model('vgg11_bn', mlp_ratio=1 / 64, device='meta').double()
    for layer in add_attention(model).values():
        assert layer.training
        assert {(p.dtype, p.device.type) for p in layer.parameters()} == {(torch.float64, 'meta')}


def test_a_network_in_training_stays_so_and_counts_no_batch():
    model = timm.create_model('densenet121', block_config=(2, 2, 2, 2)).train()
    model.features.norm5.eval()
    add_attention(model)
    assert model.training
    assert not model.features.norm5.training
    assert model.features.norm0.num_batches_tracked == 0
    assert not any(p.is_meta for p in model.parameters())


def test_sites_follow_a_module_of_any_network(x):
    model = Plain().eval()
    plain = copy.deepcopy(model)
    added = add_attention(model, 'se', sites=r'stem|body(\.0)?', rd_channels=2)
    widths = {name: layer.fc2.out_channels for name, layer in added.items()}
    assert widths == {'stem.se': 4, 'body.se': 6, 'body.0.se': 6}
    assert plain.state_dict().keys() < model.state_dict().keys()
    for name, layer in added.items():
        layer.gate = nn.Threshold(1e9, {'stem.se': 0.5, 'body.0.se': 3., 'body.se': 7.}[name])
    with torch.no_grad():
        y = plain.norm(0.5 * plain.stem(x))
        y = plain.held[0](plain.twice(plain.twice(y)))
        torch.testing.assert_close(model(x), 7 * (3 * plain.body[0](y)).relu().flatten(1))
    assert remove_attention(model) == added


def test_sites_are_a_flag_too_and_come_back(x, tmp_path):
    """BAM where its paper has it: at the end of the first three stages."""
    model = timm.create_model('test_resnet_plugin', attn='bam', attn_sites='layer[1-3]').eval()
    assert [name for name, m in model.named_modules() if isinstance(m, BottleneckAttention)] == [
        f'layer{stage}.se' for stage in (1, 2, 3)]
    assert {type(m) for m in model.modules()} >= {BasicBlock, Bottleneck}
    write_model(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@pytest.mark.parametrize('base', ['test_resnet', 'mobilenetv2_035', 'convnext_atto'])
def test_a_network_that_gained_attention_saves_and_comes_back(base, x, tmp_path):
    model = timm.create_model(base, num_classes=5)
    add_attention(model, 'se', rd_ratio=1 / 4)
    write_model(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert AttentionSpec.of(again) == AttentionSpec('se', rd_ratio=1 / 4)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model.eval()(x))


def test_a_network_that_lost_attention_saves_and_comes_back(x, tmp_path):
    model = timm.create_model('se_mobilenetv2_035_plugin', num_classes=5).eval()
    remove_attention(model)
    write_model(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert AttentionSpec.of(again) is None
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_a_part_of_a_larger_network_can_gain_attention(x):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model('resnetv2_18', features_only=True, layers=(1, 1, 1, 1))

        def forward(self, x):
            return self.backbone(x)[-1]

    detector = Detector().eval()
    shape = detector(x).shape
    added = add_attention(detector)
    assert list(added) == [f'backbone.stages_{i}.blocks.0.conv2.se' for i in range(4)]
    assert detector(x).shape == shape
    assert list(remove_attention(detector.backbone)) == [name.removeprefix('backbone.') for name in added]


@pytest.mark.parametrize(('options', 'left'), [({}, None), ({'attn': 'sk+se'}, 'sk')])
def test_removal_from_the_whole_network_is_recorded_in_the_part_that_had_gained_attention(options, left):
    part = timm.create_model('resnet18_plugin', layers=(1, 1, 1, 1), **options)
    if not options:
        add_attention(part)
    assert len(remove_attention(nn.Sequential(part))) == 4
    spec = AttentionSpec.of(part)
    assert (spec and spec.attn) == left
    if left is None:
        assert len(add_attention(part)) == 4


def test_conversion_of_norms_keeps_the_attention():
    model = timm.create_model('se_mobilenetv1_100_plugin')
    names = [name for name, m in model.named_modules() if isinstance(m, SqueezeExcite)]
    converted = convert_sync_batchnorm(model)
    assert [name for name, m in converted.named_modules() if isinstance(m, SqueezeExcite)] == names
    act = converted.blocks[0][0].bn2.act
    assert act(y := torch.ones(1, 64, 2, 2)).equal(act.se(y))


def test_folding_leaves_a_norm_after_attention(x):
    model = resnet()
    add_attention(model, sites=r'layer\d\.0\.conv2')
    with torch.no_grad():
        torch.testing.assert_close(fuse_for_inference(model)(x), model(x), rtol=1e-4, atol=1e-5)


def compiled(model):
    return torch.compile(model, backend='eager')


def distributed(model):
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        return DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(('wrap', 'kind'), [
    (distributed, 'DistributedDataParallel'), (nn.DataParallel, 'DataParallel'), (compiled, 'OptimizedModule'),
    (torch.jit.script, 'ScriptModule'), (torch.fx.symbolic_trace, 'GraphModule')])
def test_wrapped_networks_are_refused(wrap, kind):
    wrapped = wrap(resnet(scriptable=True))
    for operate in (add_attention, remove_attention):
        with pytest.raises(ValueError, match=f'a {kind} owns its parameters .*; change the network before'):
            operate(wrapped)


@pytest.mark.parametrize(('sites', 'message'), [
    ('twice', 'twice cannot carry attention: a forward pass would compute the attention 2 times instead of once'),
    ('unused', 'unused cannot carry attention: a forward pass would compute the attention not at all instead of once'),
    (r'held\.0', r'held.0 cannot carry attention: the network holds the module in more than one place'),
    ('norm', 'matches norm, a BatchNorm2d, which a conversion to SyncBatchNorm replaces'),
    ('flat', r'flat cannot carry attention: its result has the shape \[1, \d+\], not \(N, C, H, W\)'),
    ('layer1', "attn_sites='layer1' matches no module; names are stem, twice, held"),
    ('(', r"attn_sites='\(' is not a regular expression"),
])
def test_a_site_that_cannot_be_is_one_clear_error_and_changes_nothing(sites, message):
    model = Plain()
    before = [(name, type(m), m.training) for name, m in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        add_attention(model, sites=sites)
    assert [(name, type(m), m.training) for name, m in model.named_modules()] == before
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(('sites', 'message'), [
    ('chain', 'chain cannot carry attention: a forward pass would compute the attention 2 times instead of once'),
    ('dense', 'dense cannot carry attention: its result, or what one of its children gets, is no tensor'),
    ('last', r'last cannot carry attention: its result has the shape \[1, 30, 30, 16\] with the channels last, not'),
])
def test_a_container_that_would_call_attention_by_itself_and_channels_at_the_end_are_refused(sites, message):
    model = Containers()
    keys = list(model.state_dict())
    for size in ((3, 32, 32), (3, 32, 64)):
        with pytest.raises(ValueError, match=message if size[1] == size[2] else message.replace('30, 16', '62, 16')):
            add_attention(model, sites=sites, input_size=size)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks for m in model.modules())


def test_a_sequence_whose_children_the_network_calls_is_followed_by_attention_once():
    model = Containers()
    x = images(2, 3, 32, 32, dtype=torch.float32)
    hidden = model.iterated(x)
    added = add_attention(model, sites='iterated', input_size=(3, 32, 32))
    assert list(added) == ['iterated.se']
    expected = model.last(model.dense(model.chain(added['iterated.se'](hidden)))).mean((1, 2))
    torch.testing.assert_close(model(x), expected)


def test_a_sequence_that_has_a_child_called_se_is_refused_by_that_name():
    model = nn.Sequential(OrderedDict(block=nn.Sequential(OrderedDict(se=nn.Identity(), conv=nn.Conv2d(3, 4, 1)))))
    with pytest.raises(ValueError, match='a Sequential already has se, the name that attention would get'):
        add_attention(model, sites='block')


def test_what_cannot_be_is_one_clear_error():
    with pytest.raises(ValueError, match=r"Plain has no known place for attention, .*; name the modules with sites='"):
        add_attention(Plain())
    with pytest.raises(ValueError, match=r"attn='se' has no option attn_ratio \(did you mean attn_rd_ratio"):
        add_attention(resnet(), 'se', ratio=0.5)
    with pytest.raises(ValueError, match="attn='sk' cannot be added to a network that exists: a Selective Kernel"):
        add_attention(resnet(), 'sk')
    with pytest.raises(ValueError, match="attn='none' adds nothing; call remove_attention"):
        add_attention(resnet(), 'none')
    with pytest.raises(ValueError, match=r'Plain does not take an image of \(1, 64, 64\) on the meta device'):
        add_attention(Plain(), sites='stem', input_size=(1, 64, 64))
    with pytest.raises(ValueError, match=r"attn_fused=True is not possible in Plain, .*; choose 'auto' or False"):
        add_attention(Plain(), sites='stem', fused=True)
    with pytest.raises(ValueError, match='ResNet has no attention of the plugin that could be taken away'):
        remove_attention(resnet())
    with pytest.raises(ValueError, match='attn_stages is not possible in FeatureListNet, which has no list of'):
        add_attention(timm.create_model('resnetv2_18', features_only=True, layers=(1, 1, 1, 1)), stages=2)
    whole = nn.ModuleDict({'backbone': resnet()})  # a detector, say
    with pytest.raises(ValueError, match=r'attn_stages is not possible in ModuleDict, .* or give the part'):
        add_attention(whole, stages=2)
    with pytest.raises(ValueError, match=r'ModuleDict does not take an image .* or the part of the network'):
        add_attention(whole, sites='backbone.layer1')
    assert list(add_attention(whole['backbone'], stages=2)) == ['layer2.0.se']


@pytest.mark.parametrize('call', [add_attention, remove_attention, fuse_for_inference, complexity, find_gates])
@pytest.mark.parametrize(('given', 'kind', 'name'), [
    ('resnet18', 'str', 'resnet18'), (OrderedDict(), 'OrderedDict', 'resnet50'), (None, 'NoneType', 'resnet50')])
def test_what_is_no_network_is_refused_with_the_way_to_one(call, given, kind, name):
    with pytest.raises(ValueError, match=rf"a network is needed .*type {kind}; build it .*create_model\('{name}'\)"):
        call(given)


def test_a_class_derived_from_timms_block_is_named():
    class OwnBlock(BasicBlock):
        def forward(self, x):
            return super().forward(x).square()

    model = ResNet(OwnBlock, (1, 1, 1, 1))
    with pytest.raises(ValueError, match=r'no known place for attention: OwnBlock may compute .* sites='):
        add_attention(model)
    assert list(add_attention(model, sites=r'layer\d\.\d')) == [f'layer{i}.0.attention' for i in (1, 2, 3, 4)]


@pytest.mark.parametrize('size', [64, (64, 64), (3, 64, 0), '3x64x64'])
def test_a_size_that_is_no_image_is_one_clear_error(size):
    model = Plain().eval()
    for operate in (partial(add_attention, sites='stem'), fuse_for_inference, complexity):
        with pytest.raises(ValueError, match=r'input_size=.* is not \(C, H, W\), such as \(3, 224, 224\)'):
            operate(model, input_size=size)


@pytest.mark.parametrize('name', ['test_resnet', 'mobilenetv2_035', 'res2net50_26w_4s', 'resnetv2_18'])
@pytest.mark.parametrize('first', [{}, {'stages': 3}])
def test_a_second_application_is_refused(first, name):
    model = timm.create_model(name)
    add_attention(model, **first)
    for attn, options in (('se', {}), ('eca', {'stages': 2}), ('se', {'sites': 'conv1|conv_stem|stem'})):
        with pytest.raises(ValueError, match=r'carries attention already, at .*; call remove_attention first'):
            add_attention(model, attn, **options)


def test_attention_of_the_networks_own_is_refused_and_left():
    model = timm.create_model('seresnet18')
    with pytest.raises(ValueError, match=r"ResNet carries .* timm's own, at layer1\.0; build seresnet18_plugin with"):
        add_attention(model)
    with pytest.raises(ValueError, match=r"EfficientNet carries .* timm's own, at blocks.0.0.se; name modules with"):
        add_attention(timm.create_model('efficientnet_b0'))
    with pytest.raises(ValueError, match='has no attention of the plugin'):
        remove_attention(model)


@pytest.mark.parametrize(('name', 'place'), [
    ('efficientnet_b0', 'blocks.0.0.se'), ('mobilenetv3_small_050', 'blocks.0.0.se'), ('mixnet_s', 'blocks.2.0.se'),
    ('se_wide_resnet16_8_cifar_plugin', ''), ('se_shake_shake26_2x96d_cifar_plugin', 'layer1.0')])
def test_other_attention_is_refused_and_left(name, place):
    model = timm.create_model(name)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=f'carries attention already, .*at .*{re.escape(place)}'):
        add_attention(model, 'eca')
    assert list(model.state_dict()) == before


def test_attention_that_timm_put_into_its_slots_is_not_taken_away():
    model = timm.create_model('gc_efficientnetv2_rw_t')
    with pytest.raises(ValueError, match='EfficientNet has no attention of the plugin that'):
        remove_attention(model)
    model = timm.create_model('se_shake_shake26_2x96d_cifar_plugin')
    assert len(remove_attention(model)) == 12  # a slot that the plugin has filled


@pytest.mark.parametrize(('base', 'options', 'found'), [
    ('resnet20_cifar_plugin', {}, [1, 2, 3]), ('resnet20_cifar_plugin', {'stages': 2}, [2]),
    ('resnet20_cifar_plugin', {'stages': (1, 3)}, [1, 3]), ('wide_resnet16_8_cifar_plugin', {'stages': 3}, [3]),
    ('wide_resnet16_8_cifar_plugin', {}, [1, 2, 3])])
def test_a_cifar_network_gains_what_its_flag_gives(base, options, found, tmp_path):
    model = timm.create_model(base, num_classes=3)
    added = add_attention(model, 'se', **options)
    assert {int(re.search(r'(?:layer|stages.)(\d)', name)[1]) + ('stages' in name) for name in added} == set(found)
    flagged = timm.create_model(base, attn='se', **{f'attn_{key}': value for key, value in options.items()})
    assert {key for key in flagged.state_dict()} == set(model.state_dict())
    write_model(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert AttentionSpec.of(again) == AttentionSpec.of(model)
    x = images(2, 3, 32, 32).float()
    torch.testing.assert_close(again.eval()(x), model.eval()(x))
    with pytest.raises(ValueError, match=r'attn_stages=\(2, 4\) names a stage .*; choose one or more of 1, 2, 3'):
        add_attention(timm.create_model(base), 'se', stages=(2, 4))


def test_a_network_that_could_not_be_built_again_is_told(caplog):
    add_attention(timm.create_model('mnasnet_100'), 'se')
    assert 'there is no mnasnet_100_plugin: timm cannot build mnasnet_100' in caplog.text


def test_a_network_with_kernels_left_is_recorded_as_such_and_gains_no_second_attention():
    model = timm.create_model('resnet18_plugin', attn='sk+se', attn_sk_stages=(3, 4), attn_select='sum')
    remove_attention(model)
    assert AttentionSpec.of(model) == AttentionSpec('sk', stages=(3, 4), select='sum')
    with pytest.raises(ValueError, match='has Selective Kernels'):
        add_attention(model, 'se', stages=(1,))


def test_a_users_own_module_named_se_stays():
    with pytest.raises(ValueError, match='no attention of the plugin'):
        remove_attention(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), se=nn.ReLU())))


@pytest.mark.parametrize(('name', 'sites'), [
    ('resnet18', r'layer[1-4]\.\d'), ('resnet50', r'layer2\.0'), ('res2net50_26w_4s', r'layer1\.\d'),
    ('ghostnet_050', r'blocks\.1\.0'), ('rexnet_100', r'features\.1')])
def test_a_block_with_a_slot_for_attention_is_followed_by_it(name, sites, x):
    model = timm.create_model(name).eval()
    plain = copy.deepcopy(model)
    added = add_attention(model, 'se', sites=sites)
    blocks = [place for place in added if place.endswith('.attention')]
    assert blocks == list(added)
    for layer in added.values():
        layer.gate = nn.Threshold(1e9, 0.5)
    for place in added:
        plain.get_submodule(place.removesuffix('.attention')).register_forward_hook(lambda m, args, out: 0.5 * out)
    with torch.no_grad():
        expected = plain(x)
        torch.testing.assert_close(model(x), expected)
    assert remove_attention(model) == added
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize('name', ['seresnet18', 'efficientnet_b0', 'regnety_002', 'lcnet_050', 'mobilenetv3_small_050'])
def test_a_trained_attention_of_the_block_is_never_overwritten(name, x):
    model = timm.create_model(name).eval()
    block = next(module_name for module_name, module in model.named_modules()
                 if isinstance(getattr(module, 'se', None), nn.Module))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        add_attention(model, 'eca', sites=re.escape(block), init='identity')
        assert before.keys() < model.state_dict().keys()
        torch.testing.assert_close(model(x), expected)
        remove_attention(model)
        assert torch.equal(model(x), expected)


class Caching(nn.Module):
    """A network that keeps what it computed, counts its calls, and has a tensor with a history."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = self.conv.bias * 2
        self.anchors, self.calls = None, []

    def forward(self, x):
        x = self.conv(x)
        self.anchors = x
        self.calls.append(len(x))
        return x


class SilentTrain(nn.Sequential):
    """As the backbones of MMDetection, whose ``train`` returns nothing."""

    def train(self, mode=True):
        super().train(mode)


def test_a_network_whose_train_method_returns_nothing_gains_attention():
    model = SilentTrain(nn.Conv2d(3, 8, 3))
    assert list(add_attention(model, 'se', sites='0', input_size=(3, 8, 8))) == ['0.se']


def test_the_look_at_a_network_leaves_nothing_in_it():
    model = Caching()
    model(torch.zeros(1, 3, 8, 8))
    seen = []
    model.conv.register_forward_hook(lambda *args: seen.append(1))
    add_attention(model, 'se', sites='conv')
    assert (model.anchors.device.type, model.calls, seen) == ('cpu', [1], [])


@pytest.mark.parametrize('name', ['resnet18', 'resnetv2_18', 'mobilenetv2_035', 'densenet121'])
@pytest.mark.parametrize('fails_at', [1, 3])
def test_an_error_in_the_middle_leaves_the_network_as_it_was(name, fails_at, monkeypatch, x):
    from timm_se_plugin.placement import surgery
    model = timm.create_model(name).eval()
    before = copy.deepcopy(model)
    filled = []

    def fail(place, spec, layer, fill=surgery._fill):
        filled.append(place)
        if len(filled) > fails_at:
            raise RuntimeError('in the middle')
        return fill(place, spec, layer)

    monkeypatch.setattr(surgery, '_fill', fail)
    with pytest.raises(RuntimeError, match='in the middle'):
        add_attention(model)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in before.named_modules()]
    assert AttentionSpec.of(model) is None
    with torch.no_grad():
        assert torch.equal(model(x), before(x))
    monkeypatch.undo()
    add_attention(model)


def test_networks_compiled_in_place_are_refused():
    """Their compiled code leaves out the hooks that are registered after the first call."""
    model = timm.create_model('convnext_atto', depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    model.stages.compile(backend='eager')
    for operate in (add_attention, remove_attention):
        with pytest.raises(ValueError, match=r'a Sequential whose compile\(\) .* before it is compiled'):
            operate(model)
    add_attention(copy.deepcopy(model))  # a copy is not compiled


def test_sharded_networks_are_refused():
    """``fully_shard`` derives a network's class from FSDPModule; what it does beside that needs processes."""
    from torch.distributed.fsdp import FSDPModule

    class Sharded(FSDPModule, Plain):
        def __new__(cls, *args, **kwargs):
            return nn.Module.__new__(cls)

    with pytest.raises(ValueError, match='a FSDPModule owns its parameters'):
        add_attention(Sharded(), sites='stem')
