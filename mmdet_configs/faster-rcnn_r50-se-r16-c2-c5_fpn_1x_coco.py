"""Faster R-CNN with mmdet's own ResNet-50 and SE as plugin layers (r = 16, stages 2 to 5), COCO, 12 epochs.

The gates start at 1: at first the features are those of mmdet's R50. In the frozen first stage, the gates stay 1.

Run: torchrun --nproc-per-node 8 -m timm_se_plugin detect train faster-rcnn_r50-se-r16-c2-c5_fpn_1x_coco
Hardware: 8 GPUs of 16 GB, 2 images each (fewer: --auto-scale-lr). Result: not yet run.
"""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='SEPlugin', rd_ratio=1 / 16), position='after_conv3')]))
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook'))
