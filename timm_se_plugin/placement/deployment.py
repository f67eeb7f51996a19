"""A network for inference only: normalisation folded into convolutions, attention folded into what remains."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..layers import SqueezeExcite
from ..layers._bypass import has_hooks, why_not_squeeze_excite
from ..layers._tail_functions import add_act_
from ..layers.squeeze_excite import Pointwise
from .residual import AttentionBasicBlock, AttentionBottleneck
from .surgery import meta_pass

__all__ = ['fuse_for_inference']

# What would be folded into their weights, they would normalise away.
_STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


@torch.no_grad()
def fuse_for_inference(model: nn.Module) -> nn.Module:
    """Copy of `model` that computes the same in evaluation, with less work; it can't be trained.

    Every BatchNorm that follows a convolution is folded into it. Where a Bottleneck carries SE before its addition,
    the 1x1 convolution W3 between squeeze and excitation commutes with the mean: the first excitation layer becomes
    W1 W3 on the mean of that convolution's input, which is four times narrower.

    A pass on the meta device shows norms that follow more than one convolution (RepVGG's sums); they stay.

    Args:
        model: a network in evaluation mode whose modules register their children in the order in which they run: SE
            blocks of the plugin, and convolutions with BatchNorm everywhere.

    Returns:
        A module whose ``state_dict`` loads into the same function's result on a fresh model.

    Raises:
        ValueError: `model` is in training mode, whose BatchNorm can't be folded.
    """
    if model.training:
        raise ValueError('a network in training mode is not allowed; allowed: model.eval()')
    model = copy.deepcopy(model).requires_grad_(False)
    sees_more = _norms_of_sums(model)
    for module in list(model.modules()):
        _fold_norms(module, sees_more)
    for name, module in list(model.named_modules()):
        fused = _deployed(module)
        if fused is not None:
            if not name:
                return fused
            model.set_submodule(name, fused)
    return model


def _norms_of_sums(model: nn.Module) -> set[nn.Module]:
    """Norms whose input is no convolution's output as it is; none for a network that takes no image alone."""
    made: list[tuple[Tensor, int]] = []  # kept, so that no other tensor is taken for one of them
    found = set()

    def see(norm: nn.Module, args: Any) -> None:
        if not any(args[0] is output and output._version == version for output, version in made):
            found.add(norm)

    hooks = [
        module.register_forward_hook(lambda module, args, output: made.append((output, output._version)))
        if isinstance(module, nn.Conv2d) else module.register_forward_pre_hook(see)
        for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    try:
        meta_pass(model)
    except ValueError:
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _fold_norms(parent: nn.Module, sees_more: set[nn.Module]) -> None:
    """Fold each BatchNorm among the children of `parent` that comes right after a convolution."""
    previous: tuple[nn.Module, str, nn.Module] | None = None
    child: Any
    for name, child in list(parent.named_children()):
        # A convolution with a child carries attention, which comes before the norm; a norm of another width follows
        # more than this convolution.
        if (previous and isinstance(previous[2], nn.Conv2d) and not list(previous[2].children())
                and not isinstance(previous[2], _STANDARDIZED)
                and type(child) in (nn.BatchNorm2d, BatchNormAct2d) and child.running_mean is not None
                and child.num_features == previous[2].out_channels and child not in sees_more):
            holder, conv_name, _ = previous
            setattr(holder, conv_name, fuse_conv_bn_eval(getattr(holder, conv_name), child))
            setattr(parent, name, child.act if isinstance(child, BatchNormAct2d) else nn.Identity())
        previous = (parent, name, child)
        if isinstance(child, nn.Sequential) and len(child):  # a deep stem: its last convolution comes before bn1
            last_name, last = list(child.named_children())[-1]
            previous = (child, last_name, last)


def _deployed(block: Any) -> nn.Module | None:
    if not isinstance(block, (AttentionBasicBlock, AttentionBottleneck)) or block.integration != 'standard':
        return None
    if why_not_squeeze_excite(block.se):
        return None
    if isinstance(block, AttentionBottleneck):
        kind: Any = type(block.se)  # whose own excite may not begin with the layer that is merged
        mergeable = isinstance(block.bn3, nn.Identity) and kind.excite is SqueezeExcite.excite
        return _DeployedBottleneck(block) if mergeable else None
    return _DeployedBasicBlock(block) if isinstance(block.bn2, nn.Identity) else None


def scaled_add_act(x: Tensor, gate: Tensor, shortcut: Tensor, relu: bool) -> Tensor:
    """``relu(x * gate + shortcut)``, in x's memory."""
    return add_act_(x.mul_(gate), shortcut, relu)


def scaled_conv_add_act(
        x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor, shortcut: Tensor, relu: bool,
) -> Tensor:
    """``relu(gate * conv2d(x, weight, bias) + shortcut)`` for a 1x1 convolution; gate has shape (N, C, 1, 1)."""
    assert bias is not None  # of the folded norm; for TorchScript
    if x.shape[0] == 1 and x.shape[2] * x.shape[3] > weight.shape[1]:  # the weights are smaller than the output
        return add_act_(F.conv2d(x, weight * gate.view(-1, 1, 1, 1), bias * gate.flatten()), shortcut, relu)
    return scaled_add_act(F.conv2d(x, weight, bias), gate, shortcut, relu)


torch.fx.wrap('scaled_conv_add_act')  # leaves under fx: they look at shapes and strides
torch.fx.wrap('scaled_add_act')


class _DeployedBottleneck(nn.Module):
    """Bottleneck with SE, its norms folded; the first excitation layer reads the last convolution's input."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.act1 = block.conv1, block.act1
        self.conv2, self.act2, self.aa = block.conv2, block.act2, block.aa
        self.conv3 = block.conv3
        self.relu = type(block.act3) is nn.ReLU
        self.act = nn.Identity() if self.relu else block.act3
        self.downsample = block.downsample
        self.se = block.se
        fc1, conv3 = block.se.fc1, block.conv3
        merged: Any = Pointwise(conv3.in_channels, fc1.out_channels, 1).to(fc1.weight)
        merged.weight.copy_((fc1.weight.flatten(1).double() @ conv3.weight.flatten(1).double())[:, :, None, None])
        merged.bias.copy_(fc1.weight.flatten(1).double() @ conv3.bias.double() + (0 if fc1.bias is None else fc1.bias))
        self.se.fc1 = merged.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """As the block's, in evaluation."""
        shortcut = x
        x = self.act1(self.conv1(x))
        x = self.aa(self.act2(self.conv2(x)))
        gate = self.se.excite(self.se.squeeze(x))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return self.act(scaled_conv_add_act(x, self.conv3.weight, self.conv3.bias, gate, shortcut, self.relu))


class _DeployedBasicBlock(nn.Module):
    """BasicBlock with SE, its norms folded."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.act1, self.aa = block.conv1, block.act1, block.aa
        self.conv2 = block.conv2
        self.relu = type(block.act2) is nn.ReLU
        self.act = nn.Identity() if self.relu else block.act2
        self.downsample = block.downsample
        self.se = block.se

    def forward(self, x: Tensor) -> Tensor:
        """As the block's, in evaluation."""
        shortcut = x
        x = self.aa(self.act1(self.conv1(x)))
        x = self.conv2(x)
        if not torch.jit.is_scripting():
            if has_hooks(self.conv2):
                x = x.clone()  # a hook may have kept it
        gate = self.se.excite(self.se.squeeze(x))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return self.act(scaled_add_act(x, gate, shortcut, self.relu))
