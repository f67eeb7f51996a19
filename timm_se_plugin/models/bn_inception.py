"""BN-Inception (Ioffe and Szegedy, arXiv 1502.03167), which timm does not have."""

from functools import partial
from typing import Any

import torch
from timm.layers import ConvNormAct, create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

from ._timm_methods import LayerByLayer

__all__ = ['BnInception', 'BnInceptionModule']


class HalvingMaxPool2d(nn.MaxPool2d):
    """3x3 max pooling that halves the resolution and rounds up, as a padded convolution of stride 2 does.

    On even maps the result is that of Caffe's pooling (``ceil_mode``), which on odd maps is one position smaller.
    """

    def __init__(self) -> None:
        super().__init__(kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Pool. Shape: (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2))."""
        return F.max_pool2d(F.pad(x, [0, 2, 0, 2], value=-float('inf')), 3, 2)


class BnInceptionModule(nn.Module):
    """Inception module with two 3x3 convolutions in the place of a 5x5 (Figure 5 of the paper's appendix).

    Shape: (N, in_chs, H, W) -> (N, out_chs, H, W), or half the resolution where there is no 1x1 branch.

    Args:
        in_chs: channels of the input.
        widths: channels of the branches: 1x1 (0 in a module that halves the resolution); 3x3 reduce, 3x3; double 3x3
            reduce, double 3x3; pool projection.
        max_pool: whether a module that keeps the resolution pools by the maximum and not by the average.
        conv_block: constructor of a convolution with norm and activation.
        device: device of the parameters.
        dtype: type of the parameters.
    """

    def __init__(
            self,
            in_chs: int,
            widths: tuple[int, int, int, int, int, int],
            max_pool: bool = False,
            conv_block: Any = ConvNormAct,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        one, three_reduce, three, double_reduce, double, projection = widths
        conv = partial(conv_block, device=device, dtype=dtype)
        stride = 1 if one else 2
        self.branch1x1 = conv(in_chs, one, 1) if one else None
        self.branch3x3 = nn.Sequential(conv(in_chs, three_reduce, 1), conv(three_reduce, three, 3, stride=stride))
        self.branch3x3dbl = nn.Sequential(
            conv(in_chs, double_reduce, 1), conv(double_reduce, double, 3), conv(double, double, 3, stride=stride))
        if one:
            pool = nn.MaxPool2d(3, 1, 1) if max_pool else nn.AvgPool2d(3, 1, 1)
            self.branch_pool: nn.Module = nn.Sequential(pool, conv(in_chs, projection, 1))
        else:
            self.branch_pool = HalvingMaxPool2d()

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches."""
        outs = [self.branch3x3(x), self.branch3x3dbl(x), self.branch_pool(x)]
        if self.branch1x1 is not None:
            outs.insert(0, self.branch1x1(x))
        return torch.cat(outs, 1)


class BnInception(LayerByLayer, nn.Module):
    """BN-Inception, "Inception-v2" of https://arxiv.org/abs/1502.03167, in the form of the SE paper's Table 2.

    Without biases before the norms it has 11,285,224 parameters: the 11,295,240 of the port of its Caffe release less
    one bias for each of 10,016 channels.

    Shape: (N, in_chans, H, W) -> (N, num_classes).

    Args:
        num_classes: 0 for no classifier.
        in_chans: channels of the images.
        output_stride: 32, as in timm's Inceptions.
        drop_rate: dropout before the classifier.
        global_pool: timm's name of the pooling; empty for none.
        norm_layer: timm's name of the norm.
        norm_eps: epsilon of the norm.
        act_layer: timm's name of the activation.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ValueError: an invalid ``output_stride``.
    """

    def __init__(
            self,
            num_classes: int = 1000,
            in_chans: int = 3,
            output_stride: int = 32,
            drop_rate: float = 0.,
            global_pool: str = 'avg',
            norm_layer: str = 'batchnorm2d',
            norm_eps: float = 1e-5,
            act_layer: str = 'relu',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output_stride != 32:
            raise ValueError(f'output_stride={output_stride!r} is not 32, the only stride of this network')
        self.num_classes = num_classes
        self.in_chans = in_chans
        conv: Any = partial(
            ConvNormAct, norm_layer=norm_layer, act_layer=act_layer, norm_kwargs={'eps': norm_eps},
            act_kwargs={'inplace': True})
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}

        self.conv1 = conv(in_chans, 64, 7, stride=2, **dd)
        self.pool1 = HalvingMaxPool2d()
        self.conv2_reduce = conv(64, 64, 1, **dd)
        self.conv2 = conv(64, 192, 3, **dd)
        self.pool2 = HalvingMaxPool2d()
        # The widths are those of the Caffe release that the SE paper starts from.
        module: Any = partial(BnInceptionModule, conv_block=conv, **dd)
        self.inception_3a = module(192, (64, 64, 64, 64, 96, 32))
        self.inception_3b = module(256, (64, 64, 96, 64, 96, 64))
        self.inception_3c = module(320, (0, 128, 160, 64, 96, 0))
        self.inception_4a = module(576, (224, 64, 96, 96, 128, 128))
        self.inception_4b = module(576, (192, 96, 128, 96, 128, 128))
        self.inception_4c = module(576, (160, 128, 160, 128, 160, 128))
        self.inception_4d = module(608, (96, 128, 192, 160, 192, 128))
        self.inception_4e = module(608, (0, 128, 192, 192, 256, 0))
        self.inception_5a = module(1056, (352, 192, 320, 160, 224, 128))
        self.inception_5b = module(1024, (352, 192, 320, 192, 224, 128), max_pool=True)
        self.layer_names = [name for name, _ in self.named_children()]
        self.feature_info = [
            {'num_chs': 64, 'reduction': 2, 'module': 'conv1'}, {'num_chs': 192, 'reduction': 4, 'module': 'conv2'},
            {'num_chs': 320, 'reduction': 8, 'module': 'inception_3b'},
            {'num_chs': 608, 'reduction': 16, 'module': 'inception_4d'},
            {'num_chs': 1024, 'reduction': 32, 'module': 'inception_5b'}]
        self.num_features = 1024
        self.drop_rate = drop_rate
        self.global_pool, self.head_drop, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of the network in groups, for learning rates that decay with depth."""
        modules = [(rf'^inception_(\d){letter}', (i,)) for i, letter in enumerate('abcde')]  # timm sorts by numbers
        return {'stem': r'^conv[12]', 'blocks': r'^inception_(\d)' if coarse else modules}

    def forward_features(self, x: Tensor) -> Tensor:
        """Features of the last module. Shape: (N, in_chans, H, W) -> (N, 1024, H / 32, W / 32)."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([getattr(self, name) for name in self.layer_names], x)
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(self.conv2_reduce(x)))
        x = self.inception_3c(self.inception_3b(self.inception_3a(x)))
        x = self.inception_4c(self.inception_4b(self.inception_4a(x)))
        x = self.inception_4e(self.inception_4d(x))
        return self.inception_5b(self.inception_5a(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, and classify unless `pre_logits`. Shape: (N, 1024, H, W) -> (N, num_classes)."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return self.forward_head(self.forward_features(x))

