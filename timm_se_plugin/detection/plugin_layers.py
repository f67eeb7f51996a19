"""Attention for MMDetection's own backbones, placed by their argument ``plugins``."""

from typing import Any

from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import SelectiveKernel, SqueezeExcite
from ..layers.squeeze_excite import INITS, check_option

__all__ = ['AttentionResNet', 'SEPlugin', 'SKPlugin']


@MODELS.register_module()
class SEPlugin(SqueezeExcite):
    """:class:`~timm_se_plugin.layers.SqueezeExcite` as a plugin layer of mmdet's ResNet, ResNeXt, Res2Net and RegNet.

    In a configuration: ``plugins=[dict(cfg=dict(type='SEPlugin'), stages=(True,) * 4, position='after_conv3')]``.
    Each of several plugins in one block needs a ``postfix`` of its own. ``after_conv3`` is where the paper places SE.
    Res2Net takes no other position: mmdet passes a number of channels after conv1 and conv2 that Res2Net does not have
    there.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        in_channels: C, which mmdet passes.
        rd_ratio: inner width as a fraction of C.
        rd_channels: inner width, used instead of ``rd_ratio``.
        rd_divisor: 1 for the paper's rule for the width, 8 for timm's.
        squeeze: ``'avg'``, ``'max'`` or ``'none'``.
        bias: whether both layers have a bias.
        gate: name of the gate; by default ``'double_sigmoid'`` with ``init='identity'``, else ``'sigmoid'``.
        init: with ``'identity'`` every gate is exactly 1 before training, so that the features of a pretrained
            backbone do not change. mmdet trains nothing in frozen stages, where the gates stay 1. ``'default'`` is
            PyTorch's initialisation, or that of the backbone's ``init_cfg`` for convolutions.

    Raises:
        ValueError: an unknown ``init``, ``squeeze`` or ``gate``, or a gate that cannot be 1 with ``init='identity'``.
    """

    _abbr_ = 'se'

    def __init__(
            self,
            in_channels: int,
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            squeeze: str = 'avg',
            bias: bool = True,
            gate: str | None = None,
            init: str = 'identity',
    ) -> None:
        gate = gate or ('double_sigmoid' if init == 'identity' else 'sigmoid')
        super().__init__(in_channels, rd_ratio, rd_channels, rd_divisor, squeeze, bias, gate=gate, init=init)

    def init_weights(self) -> None:
        """Restore gates of 1. MMEngine calls this after ``init_cfg`` and before it loads pretrained weights."""
        if self.init == 'identity':
            self.init_identity()


@MODELS.register_module()
class SKPlugin(SelectiveKernel):
    """:class:`~timm_se_plugin.layers.SelectiveKernel` as a plugin layer, which follows a convolution.

    In the paper the unit replaces the 3x3 convolution, which ``plugins`` cannot do; for SKNet itself use
    ``TimmAttentionBackbone`` with ``attn='sk'``. Unlike SKNet's unit, this layer has depthwise branches and can start
    as the identity. The position is ``after_conv1`` or ``after_conv2``, where a ReLU has made the input non-negative.
    In a configuration: ``plugins=[dict(cfg=dict(type='SKPlugin'), position='after_conv2')]``.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        in_channels: C, which mmdet passes.
        kernels: sizes of the branches' kernels, as for ``SelectiveKernel``.
        rd_ratio: inner width as a fraction of C, the paper's 1 / r.
        rd_channels: inner width, used instead of ``rd_ratio``.
        rd_divisor: 1 for the paper's rule for the width, 8 for timm's.
        rd_min_channels: smallest inner width, the paper's L; 32 if None.
        groups: groups of the branches' convolutions; C (depthwise) if None.
        init: with ``'identity'`` every branch passes its input on, so that a non-negative input comes out unchanged,
            whatever is selected, as long as BatchNorm uses running statistics (``norm_eval``, frozen stages,
            inference). ``'default'`` is PyTorch's initialisation, or that of the backbone's ``init_cfg``.

    Raises:
        ValueError: an unknown ``init``, or what ``SelectiveKernel`` refuses.
    """

    _abbr_ = 'sk'

    def __init__(
            self,
            in_channels: int,
            kernels: tuple[int, ...] = (3, 5),
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            rd_min_channels: int | None = None,
            groups: int | None = None,
            init: str = 'identity',
    ) -> None:
        check_option('init', init, INITS)
        super().__init__(
            in_channels, kernels=kernels, groups=groups or in_channels, rd_ratio=rd_ratio, rd_channels=rd_channels,
            rd_divisor=rd_divisor, rd_min_channels=rd_min_channels)
        self.init = init
        self.init_weights()

    def init_weights(self) -> None:
        """Restore the identity. MMEngine calls this after ``init_cfg`` and before it loads pretrained weights."""
        for module in self.paths.modules() if self.init == 'identity' else ():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight, module.groups)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
                nn.init.constant_(module.running_var, 1 - module.eps)  # type: ignore[arg-type]


class PluginBasicBlock(BasicBlock):
    """mmdet's BasicBlock with plugins ``after_conv1`` and ``after_conv2``, where the paper places SE."""

    def __init__(self, inplanes: int, planes: int, *args: Any, plugins: list[dict] | None = None,
                 **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        positions = {'after_conv1': [], 'after_conv2': []}  # type: dict[str, list[dict]]
        for plugin in plugins or []:
            if plugin['position'] not in positions:
                raise ValueError(f'position={plugin["position"]!r} does not exist in a BasicBlock (depths 18 and 34), '
                                 f'which has {" and ".join(positions)}')
            positions[plugin['position']].append(plugin['cfg'])
        self.after_conv1_plugin_names, self.after_conv2_plugin_names = (
            self.make_block_plugins(planes, configs) for configs in positions.values())

    make_block_plugins = Bottleneck.make_block_plugins
    forward_plugin = Bottleneck.forward_plugin

    def _residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.forward_plugin(out, self.after_conv1_plugin_names)
        out = self.norm2(self.conv2(out))
        return self.forward_plugin(out, self.after_conv2_plugin_names)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block. Shape: (N, inplanes, H, W) -> (N, planes, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        if self.with_cp and x.requires_grad:
            return self.relu(checkpoint(self._residual, x, use_reentrant=False) + identity)
        return self.relu(self._residual(x) + identity)


@DETECTION_MODELS.register_module()
class AttentionResNet(ResNet):
    """mmdet's ResNet, whose depths 18 and 34 take ``plugins`` too, ``after_conv1`` and ``after_conv2``.

    State-dict keys, arguments and results are those of mmdet's ResNet; therefore the same pretrained weights load.
    """

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """Make a stage, as mmdet does. Its `arch_settings` stay, by which it chooses how weights begin."""
        block = kwargs.pop('block')
        return super().make_res_layer(block=PluginBasicBlock if block is BasicBlock else block, **kwargs)
