"""Networks with the outputs of timm's ``legacy_*`` models, the PyTorch port of the SENet authors' Caffe release."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from ..placement.surgery import vacate_blocks
from ._architecture import timm_network

__all__ = ['LEGACY', 'legacy_network']

# timm's legacy name -> the network of timm's resnet module to build from, and the arguments that differ.
LEGACY: dict[str, tuple[str, dict[str, Any]]] = {
    'legacy_seresnet18': ('resnet18', {}),
    'legacy_seresnet34': ('resnet34', {}),
    'legacy_seresnet50': ('resnet50', {'stride_in_1x1': True}),
    'legacy_seresnet101': ('resnet101', {'stride_in_1x1': True}),
    'legacy_seresnet152': ('resnet152', {'stride_in_1x1': True}),
    'legacy_seresnext26_32x4d': ('resnext50_32x4d', {'layers': (2, 2, 2, 2)}),
    'legacy_seresnext50_32x4d': ('resnext50_32x4d', {}),
    'legacy_seresnext101_32x4d': ('resnext101_32x4d', {}),
    'legacy_senet154': ('senet154', {}),
}


def legacy_network(base: str) -> Callable[..., nn.Module]:
    """Constructor of a plain network whose strides, pooling and activations are those of timm's legacy networks.

    The stem pools in ceil mode without padding, a ``BasicBlock`` has an activation after its second BatchNorm, and
    ``stride_in_1x1`` puts a Bottleneck's stride into its first convolution.
    """
    build = timm_network(base)

    def create(stride_in_1x1: bool = False, zero_init_last: bool = False, drop_rate: float = 0.2,
               **kwargs: Any) -> nn.Module:
        model: Any = build(zero_init_last=zero_init_last, drop_rate=drop_rate, **kwargs)
        vacate_blocks(model)
        if type(model.maxpool) is nn.MaxPool2d:  # replace_stem_pool and aa_layer put other layers there
            model.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        for module in model.modules():
            if isinstance(module, BasicBlock):
                module.bn2 = _with_act(module.bn2, type(module.act2))
            elif isinstance(module, Bottleneck) and stride_in_1x1:
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
        return model

    return create


class _SeparateReLU(nn.ReLU):
    """ReLU whose output may be overwritten, as timm's block does by the sum with the shortcut.

    ReLU's backward pass needs its output. This one keeps where the output is 0, and is exported as a ReLU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shape: any -> the same."""
        separate = torch.is_grad_enabled()
        if not torch.jit.is_scripting():
            separate = separate and not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        return torch.where(x <= 0, 0.0, x) if separate else F.relu(x)


def _with_act(norm: nn.Module, act_layer: type[nn.Module]) -> BatchNormAct2d:
    if type(norm) is not nn.BatchNorm2d:
        raise ValueError(f'norm_layer={type(norm).__name__} is not possible in a legacy network, whose blocks have an '
                         'activation in their last norm; leave it out')
    like = next(norm.parameters(), torch.empty(0))
    norm_act = BatchNormAct2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, act_layer=act_layer,
        inplace=False, device=like.device, dtype=like.dtype)
    norm_act.load_state_dict(norm.state_dict())
    if type(norm_act.act) is nn.ReLU:
        norm_act.act = _SeparateReLU()
    return norm_act
