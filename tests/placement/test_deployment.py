import copy
import pickle
from functools import partial

import pytest
import timm
import torch
from networks import STRUCTURES, TRANSFORMED, shallow
from parity import images, randomised, relative_error
from timm.layers import StdConv2d
from torch import fx, nn

import timm_se_plugin
from timm_se_plugin.layers import SqueezeExcite
from timm_se_plugin.placement.deployment import fuse_for_inference


def deployed(name, **kwargs):
    model = shallow(name, **kwargs).eval()
    return model, fuse_for_inference(model)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in TRANSFORMED else pytest.mark.slow) for name in STRUCTURES])
def test_computes_the_same(name):
    model = shallow(name).double().eval()
    fused = fuse_for_inference(model)
    for n, size in [(1, 64), (1, 32), (3, 65)]:
        x = images(n, 3, size, size)
        with torch.no_grad():
            expected = model(x)
            for memory_format in (torch.contiguous_format, torch.channels_last):
                found = fused.to(memory_format=memory_format)(x.to(memory_format=memory_format))
                assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize('name', ['se_resnet18_plugin', 'se_resnet50_plugin'])
def test_computes_the_same_in_float32(name):
    model = timm.create_model(name).eval()
    x = images(2, 3, 96, 96, dtype=torch.float32)
    with torch.no_grad():
        assert relative_error(fuse_for_inference(model)(x), model(x)) < 1e-5


@pytest.mark.parametrize('integration', ['standard', 'pre', 'post', 'identity', '3x3'])
@pytest.mark.parametrize('options', [{}, {'attn_squeeze': 'max'}, {'attn_bias': False}, {'attn_stages': 2}])
def test_computes_the_same_at_every_place(integration, options):
    model, fused = deployed('se_test_resnet_plugin', attn_integration=integration, **options)
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < 1e-5


@pytest.mark.parametrize(('name', 'options'), [
    ('se_test_resnet_plugin', {}), ('se_test_resnet_plugin', {'attn_integration': 'post'}),
    ('sk_test_resnet_plugin', {}), ('resnet18_plugin', {})])
def test_a_network_that_has_to_run_fused_is_deployed(name, options):
    model, fused = deployed(name, attn_fused=True, **options)
    x = images(2, 3, 96, 96, dtype=torch.float32)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < 1e-5
    assert any(getattr(module, 'fused', None) is True for module in model.modules())


def test_leaves_no_norm_and_leaves_the_model_alone():
    model, fused = deployed('se_resnet50_plugin')
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('name', ['se_resnet18_plugin', 'se_resnet50_plugin'])
def test_a_deployed_network_is_in_evaluation_mode_and_can_be_fused_again(name):
    _, fused = deployed(name, num_classes=3)
    assert not any(module.training for module in fused.modules())
    x = images(2, 3, 64, 64, dtype=torch.float32)
    assert torch.equal(fuse_for_inference(fused)(x), fused(x))


def test_first_excitation_layer_is_a_quarter_as_wide():
    _, fused = deployed('se_resnet50_plugin')
    assert fused.layer1[0].se.fc1.weight.shape == (8, 32, 1, 1)
    # By hand: a gate's weights act on the mean of the convolution's input as on the mean of its output.
    block = fused.layer4[0]
    h = images(2, 256, 7, 7, dtype=torch.float32)
    model, _ = deployed('se_resnet50_plugin')
    plain = model.layer4[0]
    direct = plain.se.fc1(plain.bn3(plain.conv3(h)).mean((2, 3), keepdim=True))
    assert relative_error(block.se.fc1(h.mean((2, 3), keepdim=True)), direct) < 1e-4


@pytest.mark.parametrize('name', [
    'se_resnet50_plugin', pytest.param('se_resnet10t_plugin', marks=pytest.mark.slow)])
def test_can_be_saved_copied_scripted_traced_exported_and_compiled(name, tmp_path):
    _, fused = deployed(name)
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        expected = fused(x)
        fresh = fuse_for_inference(shallow(name).eval())
        torch.save(fused.state_dict(), tmp_path / 'weights.pt')
        fresh.load_state_dict(torch.load(tmp_path / 'weights.pt'))
        assert torch.equal(fresh(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(fused))(x), expected)
        assert torch.equal(copy.deepcopy(fused)(x), expected)
        torch.testing.assert_close(torch.jit.script(fused)(x), expected)
        assert torch.equal(fx.symbolic_trace(fused)(x), expected)
        batch = torch.export.Dim('batch', min=2)
        program = torch.export.export(fused, (x,), dynamic_shapes={'x': {0: batch}})
        torch.testing.assert_close(program.module()(x), expected)
        assert program.module()(torch.cat([x, x, x])).shape == (6, 1000)
        torch.testing.assert_close(torch.compile(fused, fullgraph=True, backend='aot_eager')(x), expected)


def test_a_network_is_folded_in_inference_mode_too():
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.inference_mode():
        model, fused = deployed('se_test_resnet_plugin')
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        assert relative_error(fused(x), model(x)) < 1e-5


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match=r'in training mode, .*; call model.eval\(\) first'):
        fuse_for_inference(timm.create_model('se_resnet10t_plugin').train())
    partly = timm.create_model('se_resnet10t_plugin').eval()
    partly.layer2[0].bn1.train()
    with pytest.raises(ValueError, match=r'^layer2\.0\.bn1 is in training mode'):
        fuse_for_inference(partly)


def test_plain_timm_networks_are_folded_too():
    model = randomised(timm.create_model('resnet26d')).eval()
    x = images(1, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        assert relative_error(timm_se_plugin.fuse_for_inference(model)(x), model(x)) < 1e-5


def test_gradients_pass_through():
    model = timm.create_model('se_resnet18_plugin', num_classes=2).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    ours, theirs = (torch.autograd.grad(net(x).sum(), x)[0] for net in (fuse_for_inference(model), model))
    torch.testing.assert_close(ours, theirs)


def test_a_block_alone_is_deployed():
    block = timm.create_model('se_resnet18_plugin').layer1[0].double().eval()
    x = torch.randn(1, 64, 8, 8, dtype=torch.float64)
    deployed = fuse_for_inference(block, input_size=(64, 8, 8))
    assert type(deployed) is not type(block)
    torch.testing.assert_close(deployed(x), block(x))


class DoubledSqueezeExcite(SqueezeExcite):
    def forward(self, x):
        return 2 * super().forward(x)


class ClampedSqueezeExcite(SqueezeExcite):
    def excite(self, z):
        return super().excite(z.clamp(min=0) + 1)


@pytest.mark.parametrize('kind', [DoubledSqueezeExcite, ClampedSqueezeExcite])
@pytest.mark.parametrize(('name', 'channels'), [('se_resnet18_plugin', 64), ('se_resnet50_plugin', 256)])
def test_attention_that_computes_something_else_stays(name, channels, kind):
    block = timm.create_model(name).layer1[1]
    block.se = kind(channels)
    block = block.double().eval()
    x = torch.randn(1, channels, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fuse_for_inference(block, input_size=(channels, 8, 8))(x), block(x))


@pytest.mark.parametrize(('conv', 'norm'), [
    (StdConv2d, nn.BatchNorm2d), (nn.Conv2d, partial(nn.BatchNorm2d, track_running_stats=False))])
def test_what_cannot_be_folded_stays(conv, norm):
    model = nn.Sequential(conv(3, 4, 3), norm(4)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fuse_for_inference(model)(x), model(x))


def test_a_norm_of_a_sum_stays():
    model = randomised(timm.create_model('repvit_m0_9', num_classes=3)).eval()
    x = images(2, 3, 64, 64).to(next(model.parameters()).dtype)
    torch.testing.assert_close(fuse_for_inference(model)(x), model(x), rtol=1e-4, atol=1e-4)


def _with_group_norm(block):
    block.bn1 = nn.GroupNorm(4, block.bn1.num_features)


def _with_standardised_convolution(block):
    conv = block.conv2
    block.conv2 = StdConv2d(conv.in_channels, conv.out_channels, 3, stride=conv.stride, padding=1)


def _with_weight_norm(block):
    block.conv1 = nn.utils.weight_norm(block.conv1)


def _with_parametrisation(block):
    nn.utils.parametrizations.weight_norm(block.conv2)


def _with_synchronised_norm(block):
    block.bn1 = nn.SyncBatchNorm.convert_sync_batchnorm(block.bn1)


def _with_frozen_norm(block):
    block.bn1 = timm.layers.freeze_batch_norm_2d(block.bn1)


def _with_sequences(block):
    block.bn1 = nn.Sequential(block.bn1, nn.Tanh())
    block.conv2 = nn.Sequential(block.conv2, nn.Dropout())


def _with_hook(block):
    block.conv1.register_forward_hook(lambda module, args, output: output + 1)


class LowRank(nn.Module):
    """A convolution with an addition of low rank, as adapters have it."""

    def __init__(self, conv):
        super().__init__()
        self.base = conv
        self.down = nn.Conv2d(conv.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def _with_adapter(block):
    block.conv1, block.conv2 = LowRank(block.conv1), LowRank(block.conv2)


@pytest.mark.parametrize('change', [
    _with_group_norm, _with_standardised_convolution, _with_weight_norm, _with_parametrisation,
    _with_synchronised_norm, _with_frozen_norm, _with_sequences, _with_hook, _with_adapter])
@pytest.mark.parametrize('name', [
    pytest.param('se_resnet18_plugin', marks=pytest.mark.slow), 'se_resnet26_plugin'])
@pytest.mark.filterwarnings('ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning')
def test_a_block_with_changed_modules_computes_what_it_did(name, change):
    model = timm.create_model(name, layers=(1, 1, 1, 1))
    for stage in (model.layer1, model.layer3):
        change(stage[0])
    model = randomised(model).double().eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(fuse_for_inference(model)(x), model(x)) < 1e-10


class RunsBackwards(nn.Module):
    """Norms that are registered in another order than they run."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn1 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))


def test_networks_whose_branches_timm_has_merged_are_folded():
    model = timm.utils.reparameterize_model(randomised(timm.create_model('repghostnet_050', num_classes=5)).eval())
    x = images(1, 3, 64, 64)
    fused = fuse_for_inference(model.double())  # timm's merged convolutions are in training mode
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < 1e-5


class KeepsWhatItConvolved(nn.Module):
    """A convolution whose output has another reader than its norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x), x


@pytest.mark.parametrize(('kind', 'folded'), [(RunsBackwards, 2), (KeepsWhatItConvolved, 0)])
def test_norms_are_folded_as_they_run_and_only_where_nobody_else_reads(kind, folded):
    model = randomised(kind()).double().eval()
    x = images(2, 3, 16, 16)
    fused = fuse_for_inference(model, input_size=(3, 16, 16))
    torch.testing.assert_close(fused(x), model(x))
    assert sum(isinstance(module, nn.Identity) for module in fused.modules()) == folded


def test_a_network_that_does_not_take_the_image_is_one_clear_error():
    with pytest.raises(ValueError, match=r'Linear does not take an image of \(3, 224, 224\).*; give the input_size'):
        fuse_for_inference(nn.Linear(2, 2).eval())
