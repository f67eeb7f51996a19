"""Whatever is done with a network, in whatever order: it computes what its modules do, and an error changes nothing."""

import copy
import random
import tempfile
from collections import Counter

import pytest
import timm
import torch
from parity import images, randomised, relative_error
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from timm_se_plugin import add_attention, fuse_for_inference, remove_attention
from timm_se_plugin.layers import SelectiveKernel
from timm_se_plugin.placement import AttentionSpec
from timm_se_plugin.placement.attentions import ATTENTIONS
from timm_se_plugin.placement.recalibration import attention_in
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
SITES = {'mobilenetv3_small_050': [None, r'blocks\.\d\.0.*'], 'se_resnet20_cifar_plugin': [None, r'layer1\.0\.conv1']}
OPERATIONS = ['fuse', 'save', 'copy', 'hook', 'prune', 'train', 'modules', 'quantise']


def drawn(generator, name, model):
    """An operation, and its options; attention is added where there is none, and else taken away or refused."""
    has_attention = AttentionSpec.of(model) is not None
    operation = generator.choice(OPERATIONS + 3 * ['remove' if has_attention else 'add'] + ['add'])
    # Torch-Pruning itself follows neither attention that a hook calls nor the branches of a Selective Kernel.
    if operation == 'prune' and any(
            attention_in(module) or isinstance(module, SelectiveKernel) for module in model.modules()):
        operation = 'copy'
    sites = SITES.get(name, [None, r'layer\d\.0', r'layer[12]\.0\.conv1', r'layer1\.0\.bn1', 'nothing'])
    attn = generator.choice(ADDED)
    inits = ['default', 'identity'] if ATTENTIONS[attn].starts_at_identity else ['default']
    return operation, {'attn': attn, 'init': generator.choice(inits), 'sites': generator.choice(sites)}


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
def test_any_order_of_operations():
    done = Counter()
    for seed in range(3 * len(NETWORKS)):
        name = sorted(NETWORKS)[seed % len(NETWORKS)]
        generator = random.Random(seed)
        torch.manual_seed(0)
        model = randomised(timm.create_model(name, **NETWORKS[name])).double().eval()
        expected = outputs(model)
        for _ in range(4):
            operation, options = drawn(generator, name, model)
            before = picture(model)
            try:
                changed, is_same = perform(model, operation, options)
            except Exception as error:
                # Torch-Pruning ends in errors of many classes where it does not understand a network.
                if operation == 'train' or not (operation == 'prune' or isinstance(error, ValueError)):
                    raise
                assert_unchanged(before, picture(model))
                torch.testing.assert_close(outputs(model), expected, rtol=0, atol=0)
                done[f'{operation} refused'] += 1
                continue
            if changed is not model:
                assert_unchanged(before, picture(model))
            model = changed
            found = outputs(model)
            if is_same:
                tolerance = 1e-4 if operation == 'save' else 1e-9  # files have 32 bits for each weight
                torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
            expected = found
            done[operation] += 1
    assert {'add', 'add refused', 'remove', *OPERATIONS} <= done.keys(), done
