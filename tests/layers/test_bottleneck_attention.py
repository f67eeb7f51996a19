import pytest
import torch
from parity import images, randomised, relative_error
from torch import nn
from torch.nn import functional as F

from timm_se_plugin.layers import BottleneckAttention


def test_is_the_papers_equations_in_float64():
    layer = randomised(BottleneckAttention(32, rd_ratio=1 / 4)).double().train()
    x = images(3, 32, 9, 11)

    def conv(x, conv, **kwargs):
        return F.conv2d(x, conv.weight, conv.bias, **kwargs)

    def norm(x, bn):
        return F.batch_norm(x, None, None, bn.weight, bn.bias, training=True)

    mlp = conv(conv(x.mean((2, 3), keepdim=True), layer.channel[0]).relu(), layer.channel[2])
    channel = norm(mlp, layer.channel[3])  # equation 3
    s = layer.spatial
    f = norm(conv(x, s[0]), s[1]).relu()
    f = norm(conv(f, s[3], padding=4, dilation=4), s[4]).relu()
    f = norm(conv(f, s[6], padding=4, dilation=4), s[7]).relu()
    spatial = norm(conv(f, s[9]), s[10])  # equation 4
    assert relative_error(layer(x), x + x * torch.sigmoid(channel + spatial)) < 1e-12  # equations 1 and 2


def test_widths_and_options():
    layer = BottleneckAttention(64, dilation=2, act_layer=nn.SiLU)
    assert [c.out_channels for c in layer.modules() if isinstance(c, nn.Conv2d)] == [4, 64, 4, 4, 4, 1]
    assert layer.spatial[3].dilation == (2, 2)
    assert isinstance(layer.channel[1], nn.SiLU)
    assert BottleneckAttention(64, rd_channels=7).spatial[0].out_channels == 7
    with pytest.raises(ValueError, match='rd_ratio=16 is not a fraction'):
        BottleneckAttention(64, rd_ratio=16)
    with pytest.raises(ValueError, match='rd_channels=0: the inner width must be a positive integer'):
        BottleneckAttention(64, rd_channels=0)
