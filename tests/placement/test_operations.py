"""Whatever is done with a network, in whatever order: it computes what its modules do, and an error changes nothing."""

import copy
import tempfile

import pytest
import timm
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from parity import images, randomised, relative_error
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from timm_se_plugin import add_attention, fuse_for_inference, remove_attention
from timm_se_plugin.placement.attentions import ATTENTIONS
from timm_se_plugin.weights import write_model

SIZE = (3, 48, 48)
SMALL = {'layers': (1, 1, 1, 1), 'channels': (8, 16, 24, 32), 'num_classes': 3}
NETWORKS = {
    'resnet18': SMALL, 'seresnet18': SMALL, 'se_resnet18_plugin': {**SMALL, 'attn_rd_ratio': 1 / 4},
    'se_resnet50_plugin': {**SMALL, 'attn_rd_ratio': 1 / 4, 'attn_integration': 'pre'},
    'sk_resnet18_plugin': SMALL, 'resnetv2_18': {'layers': (1, 1, 1, 1), 'channels': (8, 16, 24, 32), 'num_classes': 3},
    'se_resnet20_cifar_plugin': {'num_classes': 3, 'channels': (8, 16, 24)},
    'mobilenetv3_small_050': {'num_classes': 3},
}
ADDED = sorted(name for name, record in ATTENTIONS.items() if not record.selects_kernels)
ADDITIONS = st.fixed_dictionaries({
    'attn': st.sampled_from(ADDED),
    'init': st.sampled_from(['default', 'identity']),
    'sites': st.sampled_from([None, r'layer\d\.0', r'layer[12]\.0\.conv1', r'stages\.\d\.blocks\.0\.conv1', r'nothing',
                              r'layer1\.0\.bn1', r'blocks\.\d\.0.*']),
})
OPERATIONS = st.one_of(
    st.tuples(st.just('add'), ADDITIONS),
    st.tuples(st.sampled_from(
        ['remove', 'fuse', 'save', 'copy', 'hook', 'prune', 'train', 'modules', 'quantise']), st.none()))


def outputs(model):
    """What the network computes, and whether what it computes module by module is the same."""
    x = images(2, *SIZE)
    with torch.no_grad():
        found = model(x)
        modules = copy.deepcopy(model)
        for module in modules.modules():
            if hasattr(module, 'fused'):
                module.fused = False
        torch.testing.assert_close(found, modules(x), rtol=1e-9, atol=1e-9)
    return found


def picture(model):
    """All that an error may not change."""
    return (str(model), {key: value.clone() for key, value in model.state_dict().items()},
            [(name, type(module), len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
             for name, module in model.named_modules()], copy.deepcopy(getattr(model, '_model_args', {})))


def assert_unchanged(before, after):
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(value, after[1][key]) for key, value in before[1].items())
    assert before[2:] == after[2:]


def perform(model, operation, options):
    """The network after an operation, and whether it computes the same as before."""
    if operation == 'add':
        sites = {} if options['sites'] is None else {'sites': options['sites']}
        add_attention(model, options['attn'], init=options['init'], input_size=SIZE, **sites)
        return model.eval(), options['init'] == 'identity'
    if operation == 'remove':
        remove_attention(model)
        return model, False
    if operation == 'fuse':
        return fuse_for_inference(model, input_size=SIZE), True
    if operation == 'save':
        with tempfile.TemporaryDirectory() as folder:
            return write_model(model, folder).double().eval(), True
    if operation == 'copy':
        return copy.deepcopy(model), True
    if operation == 'hook':
        conv = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
        conv.register_forward_hook(lambda module, args, output: 1.5 * output)
        return model, False
    if operation == 'prune':
        tp = pytest.importorskip('torch_pruning')
        pruned = copy.deepcopy(model)
        tp.pruner.MagnitudePruner(
            pruned, images(1, *SIZE), importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.25,
            ignored_layers=[pruned.get_classifier()], round_to=2).step()
        return pruned, False
    if operation == 'quantise':
        example = images(2, *SIZE).float()
        prepared = prepare_fx(copy.deepcopy(model).float(), get_default_qconfig_mapping('x86'), (example,))
        with torch.no_grad():
            prepared(example)
            assert relative_error(convert_fx(prepared)(example).double(), model(example.double())) < 0.5
        return model, True
    if operation == 'train':
        model.train()(images(2, *SIZE)).square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        model.zero_grad()
        return model.eval(), False
    for module in model.modules():
        if hasattr(module, 'fused'):
            module.fused = False
    return model, True


@pytest.mark.filterwarnings('ignore')  # of Torch-Pruning
@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.sampled_from(sorted(NETWORKS)), st.lists(OPERATIONS, min_size=1, max_size=4))
def test_any_order_of_operations(name, operations):
    torch.manual_seed(0)
    model = randomised(timm.create_model(name, **NETWORKS[name])).double().eval()
    expected = outputs(model)
    for operation, options in operations:
        before = picture(model)
        try:
            changed, is_same = perform(model, operation, options)
        except (ValueError, RuntimeError) as error:
            if operation == 'train' or (isinstance(error, RuntimeError) and operation != 'prune'):
                raise
            assert_unchanged(before, picture(model))
            torch.testing.assert_close(outputs(model), expected, rtol=0, atol=0)
            continue
        if changed is not model:
            assert_unchanged(before, picture(model))
        model = changed
        found = outputs(model)
        if is_same:
            torch.testing.assert_close(found, expected, rtol=1e-4 if operation == 'save' else 1e-9, atol=1e-4)
        expected = found
