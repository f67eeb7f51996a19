"""Small networks with attention, and timm's own beside them, for the tools around PyTorch to work on."""

import timm
from parity import randomised

import timm_se_plugin

SMALL = {'layers': (1, 1, 1, 1), 'channels': (16, 32, 64, 128), 'num_classes': 5}


def small(name, **kwargs):
    """A narrow network with weights that matter, in evaluation."""
    return randomised(timm.create_model(name, **{**SMALL, **kwargs})).eval()


def gained(**kwargs):
    """timm's plain network that gained SE after it was built."""
    model = timm.create_model('resnet18', **SMALL)
    timm_se_plugin.add_attention(model, 'se', **{'rd_ratio': 1 / 4, **kwargs})
    return randomised(model).eval()


NETWORKS = {
    'se_resnet18': lambda: small('se_resnet18_plugin', attn_rd_ratio=1 / 4),
    'se_resnet50': lambda: small('se_resnet50_plugin', attn_rd_ratio=1 / 4),
    'sk_resnet18': lambda: small('sk_resnet18_plugin'),
    'gained': gained,
}
