"""Checkpoints that circulate: the CIFAR repositories, the SE-ResNets made from them, prefixes and other names."""

import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from parity import images, randomised, relative_error
from torch import nn

from timm_se_plugin.weights.convert import convert, convert_file
from timm_se_plugin.weights.reading import read_weights

CHECKPOINTS = Path(os.environ.get('TIMM_SE_DATA', ''), 'checkpoints')
CIFAR10 = CHECKPOINTS.parent / 'cifar10' / 'val.tar'
needs_data = pytest.mark.skipif(
    not os.environ.get('TIMM_SE_DATA') or not CHECKPOINTS.is_dir(), reason='TIMM_SE_DATA has no checkpoints')


class Excitation(nn.Module):
    """SE of the reproduction (``SE.conv1``), or of linear layers without bias (``se.fc.0``)."""

    def __init__(self, width, linear):
        super().__init__()
        self.linear = linear
        if linear:
            self.fc = nn.Sequential(
                nn.Linear(width, width // 16, bias=False), nn.ReLU(), nn.Linear(width // 16, width, bias=False))
        else:
            self.conv1, self.conv2 = nn.Conv2d(width, width // 16, 1), nn.Conv2d(width // 16, width, 1)

    def forward(self, x):
        if self.linear:
            return x * self.fc(x.mean((2, 3))).sigmoid()[..., None, None]
        return x * self.conv2(self.conv1(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()


class Block(nn.Module):
    """A block of the public repositories, basic or with a bottleneck."""

    def __init__(self, wide, planes, stride, expansion, se, pads):
        super().__init__()
        out = planes * expansion
        self.expansion, self.stride, self.pads = expansion, stride, pads
        if expansion == 1:
            self.conv1 = nn.Conv2d(wide, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, out, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(wide, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False), nn.BatchNorm2d(out)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        self.changes = stride > 1 or wide != out
        if self.changes and not pads:
            self.shortcut = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.new = out - wide
        if se:
            self.add_module('SE' if se == 'conv' else 'se', Excitation(out, se == 'linear'))
        self.excited = se and ('SE' if se == 'conv' else 'se')

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.expansion > 1:
            y = self.bn3(self.conv3(y.relu()))
        if self.excited:
            y = self.get_submodule(self.excited)(y)
        if self.changes and self.pads == 'both':
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))
        elif self.changes and self.pads == 'behind':
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new))
        return (y + self.shortcut(x)).relu()


class Public(nn.Module):
    """A network of the public repositories."""

    def __init__(self, widths, expansion=1, se='', pads='', blocks=2):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        wide = widths[0]
        self.stages = len(widths)
        for i, width in enumerate(widths, 1):
            stage = []
            for j in range(blocks):
                stage.append(Block(wide, width, 2 if i > 1 and j == 0 else 1, expansion, se, pads))
                wide = width * expansion
            self.add_module(f'layer{i}', nn.Sequential(*stage))
        self.linear = nn.Linear(wide, 7)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f'layer{i}')(x)
        return self.linear(x.mean((2, 3)))


def assert_same_outputs(model, original):
    x = images(3, 3, 32, 32)
    with torch.no_grad():
        expected = original.double().eval()(x)
        assert expected.std() > 1e-3
        assert relative_error(model.double().eval()(x), expected) < 1e-9


FOUR = {'layers': (2, 2, 2, 2), 'channels': (16, 32, 64, 128), 'stem_width': 16, 'num_classes': 7}


@pytest.mark.parametrize(('name', 'expansion'), [('resnet18', 1), ('resnet50', 4)])
@pytest.mark.parametrize(('prefix', 'se', 'kwargs'), [
    ('', '', {}), ('se_', 'conv', {}), ('se_', 'linear', {'attn_bias': False})])
def test_resnets_with_a_stem_for_cifar(name, expansion, prefix, se, kwargs):
    original = randomised(Public((16, 32, 64, 128), expansion, se))
    model = timm.create_model(f'{prefix}{name}_cifar_plugin', **FOUR, **kwargs)
    conversion = convert(original.state_dict(), model)
    assert conversion.layout == 'pytorch-cifar'
    assert_same_outputs(model, original)
    assert conversion.mapped['fc.weight'] == 'linear.weight'
    assert any('stride in the 3x3 convolution' in note for note in conversion.notes) == (expansion > 1)
    assert any("the attention is attn='se'" in note for note in conversion.notes) == bool(se)


def test_the_networks_of_senet_pytorch_for_cifar():
    """They have three stages, 1x1 convolutions as shortcuts, and SE of linear layers without bias."""
    original = randomised(Public((16, 32, 64), se='linear', blocks=3))
    state = {key.replace('.shortcut.', '.downsample.').replace('linear.', 'fc.'): value
             for key, value in original.state_dict().items()}
    model = timm.create_model('se_resnet20_cifar_plugin', shortcut='B', attn_bias=False, num_classes=7)
    convert(state, model)
    assert_same_outputs(model, original)


def test_the_reproduction_of_se_resnet50_has_its_parameters_and_macs():
    from timm_se_plugin.measuring.complexity import complexity
    cost = complexity(timm.create_model('se_resnet50_cifar_plugin', num_classes=1000), (3, 224, 224))
    assert cost.params == 28_080_344
    assert round(cost.macs / 1e9, 2) == 63.60


@pytest.mark.parametrize('pads', ['both', 'behind'])
@pytest.mark.parametrize('prefix', ['', 'se_'])
def test_shortcuts_that_pad_on_both_sides_are_reordered_exactly(prefix, pads):
    original = randomised(Public((16, 32, 64), se='conv' if prefix else '', pads=pads, blocks=3))
    model = timm.create_model(f'{prefix}resnet20_cifar_plugin', num_classes=7)
    conversion = convert(original.state_dict(), model, padding=None if pads == 'both' else pads)
    assert_same_outputs(model, original)
    assert ("assumed that shortcuts put the zeros for new channels on both sides (padding='both')" in conversion.notes
            ) == (pads == 'both')


def test_shortcuts_of_weights_without_a_classifier_are_reordered():
    model, whole = (randomised(timm.create_model('resnet20_cifar_plugin')) for _ in range(2))
    weights = {key: value.clone() for key, value in whole.state_dict().items()}
    convert(weights, whole, padding='both')
    convert({key: value for key, value in weights.items() if not key.startswith('fc.')}, model, padding='both')
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items()
               if not key.startswith('fc.'))


@pytest.mark.parametrize('options', [{'attn': 'eca'}, {'attn': 'bam'}, {'attn': 'se', 'attn_integration': 'pre'}])
def test_attention_that_depends_on_the_order_of_channels_is_not_reordered(options):
    model = timm.create_model('resnet20_cifar_plugin', **options)
    with pytest.raises(ValueError, match=rf"padding='both' reorders channels, .*attn='{options['attn']}'"):
        convert(model.state_dict(), model, padding='both')


def test_attention_that_weights_gain_does_not_stop_the_reordering():
    original = randomised(Public((16, 32, 64), pads='both', blocks=3))
    model = timm.create_model('resnet20_cifar_plugin', num_classes=7, attn='eca', attn_init='identity')
    convert(original.state_dict(), model)
    assert_same_outputs(model, original)


def test_a_padding_that_is_not_known_or_concerns_nothing_is_refused():
    state = Public((16, 32, 64), pads='both', blocks=3).state_dict()
    with pytest.raises(ValueError, match="padding='left' is not one of both, behind"):
        convert(state, timm.create_model('resnet20_cifar_plugin', num_classes=7), padding='left')
    with pytest.raises(ValueError, match='which resnet18_cifar_plugin does not have; leave the option out'):
        convert(Public((16, 32, 64, 128)).state_dict(), timm.create_model('resnet18_cifar_plugin', **FOUR),
                padding='both')


def test_a_mean_for_other_channels_is_refused_and_one_alone_leaves_the_other_assumed(tmp_path):
    file = tmp_path / 'weights.pth'
    torch.save(Public((16, 32, 64), pads='both', blocks=3).state_dict(), file)
    with pytest.raises(ValueError, match=r'mean=\(0.5,\) has 1 values, and the images of resnet20_cifar_plugin have 3'):
        convert_file(file, 'resnet20_cifar_plugin', tmp_path / 'model', mean=[0.5])
    assert not (tmp_path / 'model').exists()
    conversion = convert_file(file, 'resnet20_cifar_plugin', tmp_path / 'model', std=[0.25, 0.25, 0.5])
    assert any(note.startswith('assumed that images are normalised by mean (') and 'std' not in note
               for note in conversion.notes)
    cfg = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True).pretrained_cfg
    assert tuple(cfg['std']) == (0.25, 0.25, 0.5)


@needs_data
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # timm leaves the archive open
@pytest.mark.parametrize(('depth', 'step', 'top1'), [
    (20, 10, 0.795), (32, 10, None), pytest.param(20, 1, 0.810, marks=pytest.mark.slow)])
def test_real_checkpoints_have_their_accuracy(depth, step, top1, tmp_path):
    file, = CHECKPOINTS.glob(f'resnet{depth}-*.th')
    conversion = convert_file(file, f'resnet{depth}_cifar_plugin', tmp_path / 'assumed')
    assert any('both sides' in note for note in conversion.notes)
    assert any('normalised by mean (0.4914' in note and ' and std' in note for note in conversion.notes)
    if top1 is None:
        return
    normalised = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
    conversion = convert_file(file, f'resnet{depth}_cifar_plugin', tmp_path, **normalised)
    assert not any('normalised' in note for note in conversion.notes)
    from timm.data import create_dataset, create_transform, resolve_data_config
    from torch.utils.data import DataLoader, Subset
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    config = resolve_data_config(model=model)
    assert {key: tuple(config[key]) for key in normalised} == normalised
    transform = create_transform(**config)
    pictures = Subset(create_dataset('', root=str(CIFAR10), transform=transform), range(0, 10_000, step))
    loader = DataLoader(pictures, 500)
    with torch.no_grad():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    assert round(correct * step / 10_000, 3) == top1


@pytest.mark.parametrize('prefix', ['model.', 'net.', 'module.', '_orig_mod.', 'timm_model.', 'backbone.',
                                    'model._orig_mod.'])
def test_a_prefix_that_all_keys_share_is_taken_off_and_reported(prefix):
    original = randomised(timm.create_model('seresnet18', **SMALL))
    model = timm.create_model('se_resnet18_plugin', attn_rd_divisor=8, **SMALL)
    conversion = convert({f'{prefix}{key}': value for key, value in original.state_dict().items()}, model)
    assert f'the prefix {prefix} of every key was removed' in conversion.notes
    assert_same_outputs(model, original)


SMALL = {'layers': (1, 1, 1, 1), 'channels': (16, 32, 64, 128), 'num_classes': 5}


def test_what_is_no_part_of_the_network_is_left_out_and_reported(tmp_path):
    network = randomised(timm.create_model('resnet18', **SMALL))
    lightning = nn.Module()
    lightning.model, lightning.criterion = network, nn.CrossEntropyLoss(weight=torch.ones(5))
    averaged = torch.optim.swa_utils.AveragedModel(network)
    for module, unused in ((lightning, 'criterion.weight'), (averaged, 'n_averaged')):
        torch.save({'state_dict': module.state_dict()}, tmp_path / 'last.ckpt')
        weights, said = read_weights(tmp_path / 'last.ckpt')
        model = timm.create_model('resnet18_plugin', **SMALL)
        assert convert(weights, model, meta=said).unused == (unused,)
        assert_same_outputs(model, network)
    with pytest.raises(ValueError, match=r'do not fit resnet18_plugin: missing'):
        convert({'criterion.weight': torch.ones(5)}, model)


@pytest.mark.parametrize('holder', ['model_state_dict', 'state_dict_ema', 'model_ema', 'net', 'state_dict'])
def test_weights_are_found_under_the_names_of_many_trainings(holder, tmp_path):
    state = timm.create_model('resnet18', **SMALL).state_dict()
    torch.save({'epoch': 3, holder: state, 'optimizer': {}}, tmp_path / 'last.ckpt')
    weights, said = read_weights(tmp_path / 'last.ckpt')
    assert weights.keys() == state.keys()
    assert said['epoch'] == 3


def test_other_names_can_be_given(tmp_path):
    original = randomised(timm.create_model('resnet18', **SMALL))
    state = {key.replace('fc.', 'logits.').replace('layer1.', 'stage1.'): value
             for key, value in original.state_dict().items()}
    torch.save(state, tmp_path / 'weights.pth')
    conversion = convert_file(tmp_path / 'weights.pth', 'resnet18_plugin', tmp_path / 'out', num_classes=5,
                              renames={'logits': 'fc', 'stage1': 'layer1'}, layers=SMALL['layers'],
                              channels=SMALL['channels'])
    assert not conversion.missing
    assert_same_outputs(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True), original)
    model = timm.create_model('resnet18_plugin', **SMALL)
    with pytest.raises(ValueError, match='rename head=fc: no key has the part head; the first keys are conv1'):
        convert(state, model, renames={'head': 'fc'})
    with pytest.raises(ValueError, match='rename bn1=bn2 gives two weights the same key'):
        convert(state, model, renames={'bn1': 'bn2'})


def test_a_part_of_keys_becomes_a_number_or_is_taken_off():
    from timm_se_plugin.commands.command_line import parse
    original = randomised(timm.create_model('resnet18', **SMALL))
    state = {f"encoder.{key.replace('layer1.0.', 'layer1.first.')}": value
             for key, value in original.state_dict().items()}
    given = ['convert', 'a.pth', 'resnet18_plugin', 'out', '--rename', 'first=0', 'encoder=']
    model = timm.create_model('resnet18_plugin', **SMALL)
    convert(state, model, renames=parse(given).rename)
    assert_same_outputs(model, original)
