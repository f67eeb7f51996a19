"""A network for inference only: normalisation folded into convolutions, attention folded into what remains."""

import copy
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..layers import SqueezeExcite
from ..layers._bypass import has_hooks
from ..layers._tail_functions import add_act_
from ..layers.squeeze_excite import why_not_squeeze_excite
from .residual import AttentionBasicBlock, AttentionBottleneck
from .structure import check_network, choose_fused, image_size, run_structure, structure_of

__all__ = ['fuse_for_inference']

# Exact classes: a subclass, as of a parametrised or standardised convolution, may not convolve with ``weight``.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


@torch.no_grad()
def fuse_for_inference(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> nn.Module:
    """Copy of `model` that computes the same in evaluation, with less work; it can't be trained.

    Every BatchNorm that is the only reader of a convolution's output is folded into it. A pass through a copy of the
    network's structure finds them; every other BatchNorm stays and runs as before. Where a Bottleneck
    carries SE before its addition, the 1x1 convolution W3 between squeeze and excitation commutes with the mean: the
    first excitation layer becomes W1 W3 on the mean of that convolution's input, which is four times narrower.

    To compare the two on images of your own::

        torch.testing.assert_close(fuse_for_inference(model)(images), model(images), rtol=1e-3, atol=1e-4)

    Args:
        model: a network in evaluation mode that takes one batch of images.
        input_size: (C, H, W) of an image; if None, the size in the network's configuration.

    Returns:
        The copy.

    Raises:
        ValueError: `model` is no network; it or a BatchNorm in it is in training mode, so that it can't be folded; or
            the network does not accept such an image.
    """
    check_network(model)
    name = next((name for name, module in model.named_modules()
                 if module.training and (module is model or isinstance(module, nn.BatchNorm2d))), None)
    if name is not None:
        raise ValueError(f'{name or "the network"} is in training mode, whose BatchNorm cannot be folded; call '
                         'model.eval() first')
    pairs = _foldable(model, input_size or image_size(model))
    model = copy.deepcopy(model).requires_grad_(False)
    choose_fused(model)  # blocks without their norm can't run by the fused path
    for conv_name, norm_name in pairs:
        conv: Any = model.get_submodule(conv_name).eval()  # timm's reparameterize_model leaves it in training mode
        norm: Any = model.get_submodule(norm_name)
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        model.set_submodule(norm_name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity().eval())
    for name, module in list(model.named_modules()):
        fused = _deployed(module)
        if fused is not None:
            fused.training = module.training  # its children keep the mode that they have
            if not name:
                return fused
            model.set_submodule(name, fused)
    return model


class _Reads(TorchDispatchMode):
    """Counts how often operators read each watched tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[Tensor] = []  # kept alive, so that no new tensor gets the id of one
        self.counts: dict[int, int] = {}

    def watch(self, tensor: Tensor) -> None:
        self.watched.append(tensor)
        self.counts[id(tensor)] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if id(leaf) in self.counts:
                self.counts[id(leaf)] += 1
        return func(*args, **(kwargs or {}))


def _foldable(model: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Names of each convolution whose output only a norm reads in a pass, and of that norm."""
    own = dict(model.named_modules())
    holders = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    structure = structure_of(model)
    reads = _Reads()
    made: dict[str, list[Tensor]] = {}
    seen: dict[str, list[Tensor]] = {}
    for name, module in structure.named_modules():
        original = own[name]
        if has_hooks(original) or holders[id(original)] > 1 or not isinstance(
                getattr(original, 'weight', None), nn.Parameter):
            continue
        if type(original) in _CONVOLUTIONS:
            def keep(module: Any, args: Any, output: Tensor, name: str = name) -> None:
                made.setdefault(name, []).append(output)
                reads.watch(output)

            module.register_forward_hook(keep)
        elif type(original) in _NORMS and original.running_mean is not None:
            module.register_forward_pre_hook(lambda module, args, name=name: seen.setdefault(name, []).append(args[0]))
    with reads:
        outputs = run_structure(structure, input_size)
    for leaf in tree_leaves(outputs):  # the caller reads outputs
        if id(leaf) in reads.counts:
            reads.counts[id(leaf)] += 1
    once = {id(outputs[0]): name for name, outputs in made.items() if len(outputs) == 1}
    pairs = []
    for norm, inputs in seen.items():
        conv = once.get(id(inputs[0])) if len(inputs) == 1 else None
        if conv is not None and reads.counts[id(inputs[0])] == 1:
            pairs.append((conv, norm))
    return pairs


def _deployed(block: Any) -> nn.Module | None:
    """The inference form of a block with SE before the addition; None for a block that stays unchanged."""
    if not isinstance(block, AttentionBasicBlock | AttentionBottleneck) or block.integration != 'standard':
        return None
    if has_hooks(block, block.se) or why_not_squeeze_excite(block.se):
        return None
    if not (block.drop_path is None or hasattr(block.drop_path, 'drop_prob')):  # stochastic depth, idle in evaluation
        return None
    if isinstance(block, AttentionBasicBlock):
        return _DeployedBasicBlock(block) if isinstance(block.bn2, nn.Identity) else None
    conv, first = block.conv3, block.se.fc1
    kind: Any = type(block.se)  # whose own excite may not begin with the layer that is merged
    is_mergeable = (
        isinstance(block.bn3, nn.Identity) and type(conv) is nn.Conv2d and conv.kernel_size == (1, 1)
        and conv.stride == (1, 1) and conv.groups == 1 and conv.bias is not None and not has_hooks(conv, first)
        and type(first) is nn.Conv2d and isinstance(first.weight, nn.Parameter)
        and kind.excite is SqueezeExcite.excite)
    return _DeployedBottleneck(block) if is_mergeable else None


def scaled_add_act(x: Tensor, gate: Tensor, shortcut: Tensor, relu: bool) -> Tensor:
    """``relu(x * gate + shortcut)``, written into x's memory."""
    return add_act_(x.mul_(gate), shortcut, relu)


def scaled_conv_add_act(
        x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor, shortcut: Tensor, relu: bool,
) -> Tensor:
    """``relu(gate * conv2d(x, weight, bias) + shortcut)`` for a 1x1 convolution; gate has shape (N, C, 1, 1)."""
    assert bias is not None  # the folded norm has given one; TorchScript needs the assertion
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # the batch size would become a constant
    if not is_traced and x.shape[0] == 1 and x.shape[2] * x.shape[3] > weight.shape[1]:  # the weights are smaller
        return add_act_(F.conv2d(x, weight * gate.view(-1, 1, 1, 1), bias * gate.flatten()), shortcut, relu)
    return scaled_add_act(F.conv2d(x, weight, bias), gate, shortcut, relu)


torch.fx.wrap('scaled_conv_add_act')  # single nodes under fx, since they read shapes and strides
torch.fx.wrap('scaled_add_act')


class _DeployedBottleneck(nn.Module):
    """Bottleneck with SE, its last norm folded; the first excitation layer reads the last convolution's input."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = block.conv1, block.bn1, block.act1
        self.conv2, self.bn2, self.drop_block, self.act2, self.aa = (
            block.conv2, block.bn2, block.drop_block, block.act2, block.aa)
        self.conv3 = block.conv3
        self.relu = type(block.act3) is nn.ReLU and not has_hooks(block.act3)
        self.act = nn.Identity().eval() if self.relu else block.act3
        self.downsample = block.downsample
        self.se = block.se
        fc1, conv3 = block.se.fc1, block.conv3
        merged: Any = nn.Conv2d(conv3.in_channels, fc1.out_channels, 1).to(fc1.weight)
        merged.weight.copy_((fc1.weight.flatten(1).double() @ conv3.weight.flatten(1).double())[:, :, None, None])
        merged.bias.copy_(fc1.weight.flatten(1).double() @ conv3.bias.double() + (0 if fc1.bias is None else fc1.bias))
        self.se.fc1 = merged.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """The output of the block in evaluation mode."""
        shortcut = x
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        gate = self.se.excite(self.se.squeeze(x))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return self.act(scaled_conv_add_act(x, self.conv3.weight, self.conv3.bias, gate, shortcut, self.relu))


class _DeployedBasicBlock(nn.Module):
    """BasicBlock with SE, its last norm folded."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.drop_block, self.act1, self.aa = (
            block.conv1, block.bn1, block.drop_block, block.act1, block.aa)
        self.conv2 = block.conv2
        self.relu = type(block.act2) is nn.ReLU and not has_hooks(block.act2)
        self.act = nn.Identity().eval() if self.relu else block.act2
        self.downsample = block.downsample
        self.se = block.se

    def forward(self, x: Tensor) -> Tensor:
        """The output of the block in evaluation mode."""
        shortcut = x
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        x = self.conv2(x)
        if not torch.jit.is_scripting():
            if type(self.conv2) is not nn.Conv2d or has_hooks(self.conv2):
                x = x.clone()  # a hook may have kept x, which is overwritten below
        gate = self.se.excite(self.se.squeeze(x))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return self.act(scaled_add_act(x, gate, shortcut, self.relu))
