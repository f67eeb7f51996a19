import copy
import sys

import pytest
import timm
import torch
from parity import images, randomised

from timm_se_plugin import add_attention
from timm_se_plugin.analysis import gate_statistics
from timm_se_plugin.analysis.pruning import prune_by_gates
from timm_se_plugin.measuring.complexity import complexity
from timm_se_plugin.weights import write_model

pytest.importorskip('torch_pruning', reason='pruning needs the [analysis] extra')
SIZE = (3, 32, 32)


def network(name, **kwargs):
    return randomised(timm.create_model(name, num_classes=3, **kwargs)).double().eval()


def statistics(model):
    return gate_statistics(model, [(images(4, *SIZE), torch.tensor([0, 1, 2, 0]))], 'abc')


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('se_resnet26_plugin', {'attn_integration': '3x3'}), ('mobilenetv3_small_050', {})])
def test_channels_whose_gate_is_always_shut_leave_without_a_change_of_the_output(name, kwargs):
    model = network(name, **kwargs)
    for layer in statistics(model).layers:
        attention = model.get_submodule(layer.name)
        first, last = (m for m in attention.modules() if isinstance(m, torch.nn.Conv2d))
        quarter = torch.randperm(last.out_channels)[:last.out_channels // 4]
        with torch.no_grad():
            last.bias[quarter] = -1e4
            first.weight[:, quarter] = 0
    pruned = prune_by_gates(model, statistics(model), 0.25, SIZE)
    x = images(2, *SIZE, seed=5)
    torch.testing.assert_close(pruned.eval()(x), model(x), rtol=1e-9, atol=1e-9)
    assert complexity(pruned, SIZE).macs < 0.9 * complexity(model, SIZE).macs


@pytest.mark.parametrize('name', ['se_test_resnet_plugin', 'seresnet18', 'regnety_002'])
def test_a_quarter_of_every_gate_leaves_and_the_network_still_learns(name):
    model = network(name)
    before = statistics(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune_by_gates(model, before, 0.25, SIZE)
    for layer, smaller in zip(before.layers, statistics(pruned).layers, strict=True):
        assert smaller.means.shape[2] == layer.means.shape[2] * 3 // 4
    pruned.train()(images(2, *SIZE)).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('without_gradients', [torch.no_grad, torch.inference_mode])
def test_a_network_is_pruned_whatever_is_frozen_and_keeps_it_so(without_gradients):
    model = network('se_test_resnet_plugin')
    before = statistics(model)
    expected = prune_by_gates(model, before, 0.25, SIZE)
    model.train()
    for module in (model.conv1, model.bn1, model.layer1):
        module.requires_grad_(False).eval()
    with without_gradients():
        pruned = prune_by_gates(model, before, 0.25, SIZE)
    assert {name: p.shape for name, p in pruned.named_parameters()} == {
        name: p.shape for name, p in expected.named_parameters()}
    assert [p.requires_grad for p in pruned.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [module.training for module in pruned.modules()] == [module.training for module in model.modules()]
    pruned(images(2, *SIZE)).sum().backward()


def test_a_pruned_network_knows_its_widths():
    model = network('se_test_resnet_plugin')
    pruned = prune_by_gates(model, statistics(model), 0.25, SIZE)
    assert pruned.num_features == pruned.head_hidden_size == pruned.fc.in_features == model.num_features * 3 // 4
    x = images(2, *SIZE)
    features = pruned.forward_intermediates(x, intermediates_only=True)
    assert [level['num_chs'] for level in pruned.feature_info] == [level.shape[1] for level in features]
    pruned.reset_classifier(10)
    torch.testing.assert_close(pruned.double()(x), pruned.fc(pruned.forward_head(pruned.forward_features(x), True)))


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('mobilenetv3_small_050', {}),  # which has more features before its classifier than in its last map
    ('mobilenetv3_small_050', {'num_classes': 0}), ('se_test_resnet_plugin', {'num_classes': 0})])
def test_a_pruned_network_knows_the_widths_of_its_last_map_and_of_its_head(name, kwargs):
    model = randomised(timm.create_model(name, **kwargs)).double().eval()
    pruned = prune_by_gates(model, statistics(model), 0.25, SIZE)
    last = pruned.forward_features(images(1, *SIZE))
    assert pruned.num_features == last.shape[1]
    assert pruned.head_hidden_size == pruned.forward_head(last, pre_logits=True).shape[1]


def test_a_pruned_backbone_knows_the_widths_of_its_levels():
    model = randomised(timm.create_model('se_test_resnet_plugin', features_only=True, out_indices=(1, 3, 4)))
    pruned = prune_by_gates(model.double(), statistics(model), 0.25, SIZE)
    found = [level.shape[1] for level in pruned.eval()(images(1, *SIZE))]
    assert pruned.feature_info.channels() == found != model.feature_info.channels()


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('se_test_resnet_plugin', {}),
    ('seresnet18', {'layers': (1, 1, 1, 1), 'channels': (16, 32, 64, 128)}),
    ('seresnext50_32x4d', {'layers': (1, 1, 1, 1), 'channels': (16, 32, 64, 128)}),
    ('resnet18', {'layers': (1, 1, 1, 1), 'channels': (16, 32, 64, 128)})])
def test_the_widths_travel_with_a_saved_network(name, kwargs, tmp_path):
    """Also the widths of one that Torch-Pruning itself has made, and of one that is pruned again after loading."""
    import torch_pruning as tp
    model = timm.create_model(name, num_classes=3, **kwargs)
    if name == 'resnet18':
        add_attention(model, 'se', rd_ratio=1 / 4)
    model = randomised(model).eval()
    pruned = prune_by_gates(model, statistics(model.double()), 0.25, SIZE).float()
    x = images(2, *SIZE, dtype=torch.float32)
    for turn in range(2):
        loaded = write_model(pruned, tmp_path / str(turn))
        assert complexity(loaded, SIZE).macs == complexity(pruned, SIZE).macs < complexity(model, SIZE).macs
        torch.testing.assert_close(loaded(x), pruned.eval()(x))
        levels = timm.create_model(f'local-dir:{tmp_path / str(turn)}', features_only=True, pretrained=True)
        assert levels.feature_info.channels() == [level.shape[1] for level in levels(x)]
        pruned = copy.deepcopy(loaded)
        tp.pruner.MagnitudePruner(pruned, x, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.25,
                                  ignored_layers=[pruned.fc]).step()


def test_a_pruned_network_whose_name_takes_no_widths_is_not_written(tmp_path):
    model = timm.create_model('mobilenetv3_small_050', num_classes=3).eval()
    pruned = prune_by_gates(model, statistics(model.double()), 0.25, SIZE)
    with pytest.raises(ValueError, match=r'mobilenetv3_small_050 is not written: .* as after pruning; torch\.save'):
        write_model(pruned, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_classifier_that_was_replaced_by_hand_is_not_written(tmp_path):
    model = timm.create_model('mobilenetv3_small_050', num_classes=3)
    model.classifier = torch.nn.Linear(model.classifier.in_features, 7)
    with pytest.raises(ValueError, match=r'classifier has others, .* if timm\.create_model makes it, by num_classes'):
        write_model(model, tmp_path)


def test_widths_that_fit_no_layer_are_refused():
    with pytest.raises(ValueError, match=r"pruned_widths gives 'layer1.9.conv1' the widths \[8, 8\]"):
        timm.create_model('se_test_resnet_plugin', pruned_widths={'layer1.9.conv1': [8, 8]})
    with pytest.raises(ValueError, match=r"'layer1.0.bn1' the widths \[8, 8\]"):
        timm.create_model('se_test_resnet_plugin', pruned_widths={'layer1.0.bn1': [8, 8]})


def test_the_criterion_decides_which_channels_leave():
    model = network('se_test_resnet_plugin', attn_stages=4)
    found = statistics(model)
    layer, = found.layers

    def left(criterion, seed=0):  # the classifier's columns, which are all different
        columns = prune_by_gates(model, found, 0.25, SIZE, criterion, seed).fc.weight[0]
        return {int((model.fc.weight[0] == column).nonzero()) for column in columns}

    count = layer.means.shape[2] * 3 // 4
    assert left('mean') == set(layer.mean.abs()[0].topk(count).indices.tolist())
    assert left('deviation') == set(layer.std[0].topk(count).indices.tolist())
    assert left('mean') != left('deviation')
    assert left('random') == left('random') != left('random', seed=1)
    assert left('random') not in (left('mean'), left('deviation'))


def test_a_pruned_network_still_has_the_fused_tail():
    pruned = prune_by_gates(network('se_test_resnet_plugin'), statistics(network('se_test_resnet_plugin')), 0.25, SIZE)
    assert {module.fused for module in pruned.modules() if hasattr(module, 'fused')} == {'auto'}
    assert type(pruned.layer1[0].se.fc1).__name__ == 'Conv2d'
    x = images(2, *SIZE)
    fused = pruned.eval()(x)
    for module in pruned.modules():
        if hasattr(module, 'fused'):
            module.fused = False
    torch.testing.assert_close(fused, pruned(x), rtol=1e-9, atol=1e-9)


def test_a_network_that_has_to_run_fused_is_pruned_and_loaded_again(tmp_path):
    model = network('se_test_resnet_plugin', attn_fused=True)
    pruned = prune_by_gates(model, statistics(model), 0.25, SIZE)
    assert [module.fused for module in pruned.modules() if hasattr(module, 'fused')] == [True] * 4
    again = write_model(pruned, tmp_path)
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(again.double()(x), pruned(x), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_pruned_is_refused():
    model = network('se_test_resnet_plugin')
    with pytest.raises(ValueError, match="criterion='size' is not one of mean"):
        prune_by_gates(model, statistics(model), 0.5, SIZE, 'size')
    with pytest.raises(ValueError, match='share=1 is not between 0 and 1'):
        prune_by_gates(model, statistics(model), 1, SIZE)
    model = network('sk_test_resnet_plugin')
    with pytest.raises(ValueError, match='no channels that an SE gate scales'):
        prune_by_gates(model, statistics(model), 0.5, SIZE)
    model = network('test_convnext')
    add_attention(model, 'se')
    with pytest.raises(ValueError, match='that can be removed; linear layers keep their widths'), \
            pytest.warns(UserWarning, match='Unwrapped parameters'):  # Torch-Pruning's word on scales of ConvNeXt
        prune_by_gates(model, statistics(model), 0.5, SIZE)


def test_attention_on_the_output_of_a_convolution_is_pruned_with_it():
    torchvision = pytest.importorskip('torchvision')
    model = torchvision.models.resnet18(num_classes=3)
    add_attention(model, 'se', sites=r'layer\d\.\d\.conv2', input_size=SIZE)
    model = randomised(model).double().eval()
    keys = list(model.state_dict())
    for layer in statistics(model).layers:
        attention = model.get_submodule(layer.name)
        quarter = range(attention.fc2.out_channels // 4)
        torch.nn.init.constant_(attention.fc2.bias[quarter], -1e4)
    pruned = prune_by_gates(model, statistics(model), 0.25, SIZE)
    assert list(pruned.state_dict()) == keys
    assert [layer.means.shape[2] for layer in statistics(pruned).layers] == [
        layer.means.shape[2] * 3 // 4 for layer in statistics(model).layers]
    assert pruned.fc.in_features == 384


def test_a_network_with_a_classifier_but_no_number_of_features_is_pruned():
    model = network('se_test_resnet_plugin')
    del model.num_features, model.head_hidden_size  # as in a user's own network
    assert prune_by_gates(model, statistics(model), 0.25, SIZE).fc.in_features == model.fc.in_features * 3 // 4


def test_statistics_of_another_network_are_refused():
    model = network('se_test_resnet_plugin')
    with pytest.raises(ValueError, match=r'of another network: they have layer1\.1\.se, and .* has layer1\.0\.se'):
        prune_by_gates(model, statistics(network('se_resnet18_plugin')), 0.25, SIZE)


def test_a_compiled_network_is_pruned_without_being_compiled():
    def refuse(*args):
        raise AssertionError('compiled')

    model = network('se_test_resnet_plugin')
    compiled = torch.compile(model, backend=refuse)
    expected = prune_by_gates(model, statistics(model), 0.25, SIZE)
    pruned = prune_by_gates(compiled, statistics(compiled), 0.25, SIZE)
    assert type(pruned) is type(model)
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in pruned.state_dict().items())


def test_a_network_without_a_configuration_is_pruned_at_its_own_size():
    model = network('se_test_resnet_plugin', in_chans=1)
    model.pretrained_cfg = None
    del model.in_chans
    size = (1, 32, 32)
    found = gate_statistics(model, [(images(4, *size), torch.tensor([0, 1, 2, 0]))], 'abc')
    assert prune_by_gates(model, found, 0.25, size).num_features == model.num_features * 3 // 4


@pytest.mark.parametrize(('shares', 'criteria', 'epochs', 'lr', 'said'), [
    ([0.25, 2], ['mean'], 1, 0.01, 'share=2 is not between'), ([0.25], ['size'], 1, 0.01, "'size' is not one of"),
    ([0.25], ['mean'], -1, 0.01, 'epochs=-1 is below 0'), ([0.25], ['mean'], 1, -0.1, 'lr=-0.1 is below 0')])
def test_what_a_study_cannot_do_is_refused_before_the_checkpoint_is_read(shares, criteria, epochs, lr, said, tmp_path):
    from timm_se_plugin.analysis.pruning_study import pruning_study
    with pytest.raises(ValueError, match=said):
        pruning_study(tmp_path / 'none.pth.tar', shares, criteria, epochs, lr, tmp_path / 'table.csv', tmp_path)


class Epochs(list):
    """Batches that are the same in each epoch."""

    def __call__(self, epoch):
        return iter(self)


@pytest.mark.parametrize('momentum', [0, 0.9])
def test_a_pruned_network_is_fine_tuned_with_the_momentum_of_its_training(momentum, monkeypatch):
    pytest.importorskip('sklearn', reason='training needs the [train] extra')
    from timm_se_plugin.analysis.pruning_study import _fine_tune
    from timm_se_plugin.training import parse_options
    from timm_se_plugin.training.process import Process
    model = network('se_test_resnet_plugin').float()
    before = model.fc.weight.clone()
    batches = Epochs([(images(4, *SIZE).float(), torch.tensor([0, 1, 2, 0]))])
    options = parse_options(['--opt', 'adamw', '--momentum', str(momentum), '--device', 'cpu'])
    made, sgd = [], torch.optim.SGD
    monkeypatch.setattr(torch.optim, 'SGD', lambda *args, **kwargs: made.append(sgd(*args, **kwargs)) or made[0])
    _fine_tune(model, batches, 1, 0.1, options, Process(torch.device('cpu')))
    assert [(group['momentum'], group['nesterov']) for group in made[0].param_groups] == [(momentum, momentum > 0)]
    assert not torch.equal(model.fc.weight, before)


def test_a_study_asks_for_torch_pruning_before_the_checkpoint_is_read(tmp_path, monkeypatch):
    from timm_se_plugin.analysis.pruning_study import pruning_study
    monkeypatch.setitem(sys.modules, 'torch_pruning', None)
    with pytest.raises(ModuleNotFoundError, match='torch_pruning'):
        pruning_study(tmp_path / 'none.pth.tar', [0.25], ['mean'], 1, 0.01, tmp_path / 'table.csv', tmp_path)


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('se_resnet20_cifar_plugin', {}),  # whose shortcuts pad channels
    ('se_shufflenetv2_050_plugin', {}), ('se_bn_inception_plugin', {}), ('resnet18_plugin', {'attn': 'gc'})])
def test_what_torch_pruning_does_not_follow_is_refused(name, kwargs):
    model = network(name, **kwargs)
    with pytest.raises(ValueError, match='Torch-Pruning cannot follow'):
        prune_by_gates(model, gate_statistics(model, [(images(4, 3, 64, 64), torch.tensor([0, 1, 2, 0]))], 'abc'), 0.5,
                       (3, 64, 64))


@pytest.mark.slow
def test_a_study_tabulates_accuracy_against_macs(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import TINY, save_digits

    from timm_se_plugin.analysis.pruning_study import pruning_study
    from timm_se_plugin.files.tables import read_table
    from timm_se_plugin.training import parse_options, train_classifier
    data = save_digits(tmp_path / 'digits')
    trained = train_classifier(parse_options([
        *TINY, '--data-dir', str(data), '--output', str(tmp_path), '--experiment', 'run', '--epochs', '1']))
    whole, quarter, half = pruning_study(
        tmp_path / 'run' / 'last.pth.tar', [0.25, 0.5], ['mean'], 1, 0.01, tmp_path / 'table.csv',
        tmp_path / 'pruned')
    assert whole['macs'] > quarter['macs'] > half['macs']
    assert whole['top1_pruned'] == whole['top1'] == trained['top1']
    assert (whole['parameters'], whole['macs']) == (trained['parameters'], trained['macs'])
    rows = read_table(tmp_path / 'table.csv')
    assert [(row['share'], float(row['top1_pruned']), float(row['top1'])) for row in rows] == [
        (share, row['top1_pruned'], row['top1']) for share, row in (('0', whole), ('0.25', quarter), ('0.5', half))]
    kept = timm.create_model(f"local-dir:{tmp_path / 'pruned' / 'mean-0.5'}", pretrained=True)
    assert complexity(kept, kept.pretrained_cfg['input_size']).macs == half['macs']
    train_classifier(parse_options([
        *TINY, '--data-dir', str(data), '--output', str(tmp_path), '--experiment', 'wide', '--epochs', '1',
        '--model-kwargs', 'attn_rd_ratio=1/4']))
    wide, = pruning_study(tmp_path / 'wide' / 'last.pth.tar', [], [], 1, 0.01, tmp_path / 'table.csv', tmp_path)
    assert [row['parameters'] for row in read_table(tmp_path / 'table.csv')] == [
        str(row['parameters']) for row in (whole, quarter, half, wide)]  # the rows of the first run are kept
    with pytest.raises(ValueError, match='no option called colour'):
        pruning_study(tmp_path / 'run' / 'last.pth.tar', [0.25], ['mean'], 1, 0.01, tmp_path / 't.csv', tmp_path,
                      colour=1)
