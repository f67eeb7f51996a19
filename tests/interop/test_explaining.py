"""Libraries that explain a prediction, or count what a network computes, by hooks on its modules."""

import copy

import pytest
import torch

from timm_se_plugin.measuring import complexity


def by_modules(model):
    """A copy that calls module after module, as timm's networks do."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if hasattr(module, 'fused'):
            module.fused = False
    return copied


@pytest.mark.filterwarnings('ignore:Setting .*hooks:UserWarning')  # Captum says so
@pytest.mark.parametrize('method', ['DeepLift', 'GuidedBackprop', 'IntegratedGradients', 'Saliency'])
def test_captum_attributes_as_without_fusing(model, method, x):
    attr = pytest.importorskip('captum.attr')
    x.requires_grad_()
    ours, expected = (getattr(attr, method)(each).attribute(x, target=1) for each in (model, by_modules(model)))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert ours.abs().max() > 0


@pytest.mark.parametrize('part', ['layer4', 'layer4.0.conv1', 'layer1.0'])
def test_grad_cam_draws_the_same_map_as_without_fusing(model, part, x):
    cam = pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    maps = []
    for each in (model, by_modules(model)):
        with cam.GradCAM(model=each, target_layers=[each.get_submodule(part)]) as drawn:
            maps.append(drawn(input_tensor=x, targets=[ClassifierOutputTarget(3)] * len(x)))
    assert maps[0].shape == (2, 64, 64)
    assert maps[0].max() > 0
    torch.testing.assert_close(*map(torch.from_numpy, maps), rtol=1e-3, atol=1e-4)


def test_counters_count_what_this_package_counts(model, x):
    fvcore, torchinfo = pytest.importorskip('fvcore.nn'), pytest.importorskip('torchinfo')
    ours = complexity(model, x.shape[1:])
    counted = fvcore.FlopCountAnalysis(model, x[:1]).unsupported_ops_warnings(False).by_operator()
    assert counted['conv'] + counted['linear'] == ours.macs
    assert torchinfo.summary(model, input_data=x[:1], verbose=0).total_params == ours.params
