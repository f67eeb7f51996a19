"""segmentation_models_pytorch and torchvision's detectors around the plugin's networks."""

import pytest
import torch

from timm_se_plugin import add_attention
from timm_se_plugin.placement import attention_modules


@pytest.mark.parametrize('name', ['se_resnet18_plugin', 'sk_resnet18_plugin'])
def test_unet_trains_on_an_encoder_of_the_plugin(name, x):
    smp = pytest.importorskip('segmentation_models_pytorch')
    model = smp.Unet(f'tu-{name}', encoder_weights=None, classes=2)
    model(x).square().mean().backward()
    assert attention_modules(model)
    assert all(p.grad is not None for layer in attention_modules(model).values() for p in layer.parameters())


def test_a_detector_of_torchvision_gains_attention_after_a_call_and_keeps_nothing_of_the_look():
    from torchvision.models import resnet18
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    detector = FasterRCNN(_resnet_fpn_extractor(resnet18(weights=None), 5), 3, min_size=64, max_size=64).eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        expected = detector([image])[0]['boxes']
        added = add_attention(
            detector.backbone, 'se', sites=r'body\.layer\d\.\d\.conv2', init='identity', input_size=(3, 64, 64))
        assert len(added) == 8
        torch.testing.assert_close(detector([image])[0]['boxes'], expected)
    tensors = [value for module in detector.modules() for value in vars(module).values()
               if isinstance(value, torch.Tensor)]
    tensors += [value for module in detector.modules() for value in vars(module).values() if isinstance(value, list)
                for value in value if isinstance(value, torch.Tensor)]
    assert not any(tensor.is_meta for tensor in tensors)
    losses = detector.train()([image], [{'boxes': torch.tensor([[4., 4., 40., 40.]]), 'labels': torch.tensor([1])}])
    sum(losses.values()).backward()
    assert all(p.grad is not None for layer in added.values() for p in layer.parameters())
