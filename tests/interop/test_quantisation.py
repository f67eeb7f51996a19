"""Quantisation: FX, PyTorch 2 export (pt2e) and torchao lose no more than on timm's own SE network."""

import copy

import pytest
import torch
from interop_networks import gained, small
from parity import relative_error
from torch import nn

torchao = pytest.importorskip('torchao')
fx_quantisation = pytest.importorskip('torch.ao.quantization.quantize_fx')

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning', 'ignore::FutureWarning')


def by_fx(model, x, train=False):
    from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
    mapping = get_default_qat_qconfig_mapping('x86') if train else get_default_qconfig_mapping('x86')
    prepare = fx_quantisation.prepare_qat_fx if train else fx_quantisation.prepare_fx
    prepared = prepare(copy.deepcopy(model).train(train), mapping, (x,))
    if train:
        prepared(x).sum().backward()
    with torch.no_grad():
        prepared.eval()(x)
    return fx_quantisation.convert_fx(prepared)


def excitation_is_quantised(quantised):
    return all('quantized' in type(quantised.get_submodule(f'layer{stage}.0.se.{layer}')).__module__
               for stage in (1, 2, 3, 4) for layer in ('fc1', 'fc2'))


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', ['se_resnet18_plugin', 'resnet18 that gained SE'])
def test_fx_quantises_the_excitation_as_timms(name, train, x):
    torch.manual_seed(0)
    model = small(name, attn_rd_divisor=8) if name.endswith('plugin') else gained(rd_ratio=1 / 16, rd_divisor=8)
    reference = small('seresnet18')
    model.load_state_dict(reference.state_dict())
    quantised, timms_quantised = by_fx(model, x, train), by_fx(reference, x, train)
    assert excitation_is_quantised(quantised)
    with torch.no_grad():
        error = relative_error(quantised(x), model(x))
        expected = relative_error(timms_quantised(x), reference(x))
    assert error < 1.5 * expected + 0.02


def test_pt2e_quantises_every_kind(model, x):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )
    exported = torch.export.export(model, (x,)).module()
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()))
    with torch.no_grad():
        prepared(x)
        assert relative_error(convert_pt2e(prepared)(x), model(x)) < 0.25


def test_torchao_quantises_the_weights_of_every_kind(model, x):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8WeightOnlyConfig())
    assert any('Int8' in type(module.weight).__name__ or 'Affine' in type(module.weight).__name__
               for module in quantised.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        assert relative_error(quantised(x), model(x)) < 0.05
