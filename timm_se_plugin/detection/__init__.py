"""Attention in MMDetection, registered by import.

In a config: ``custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)``.
"""

from . import _compat as _compat  # first: it provides the operators of mmcv.ops, which the others import
from .backbone import TimmAttentionBackbone
from .checkpoint_hook import WholeCheckpointHook
from .coco import CocoDataset, CocoMetric
from .plugin_layers import AttentionResNet, SEPlugin, SKPlugin
from .running import ProgressHook

__all__ = ['AttentionResNet', 'CocoDataset', 'CocoMetric', 'ProgressHook', 'SEPlugin', 'SKPlugin',
           'TimmAttentionBackbone', 'WholeCheckpointHook']
