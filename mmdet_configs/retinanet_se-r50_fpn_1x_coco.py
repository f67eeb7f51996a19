"""RetinaNet with an SE-ResNet-50, COCO, 12 epochs.

The backbone starts from torchvision's weights, as mmdet's does. The gates of the added SE start at 1: at first the
features are those of mmdet's backbone.

Run: torchrun --nproc-per-node 8 -m timm_se_plugin detect train retinanet_se-r50_fpn_1x_coco
Hardware: 8 GPUs of 16 GB, 2 images each (fewer: --auto-scale-lr). Result: not yet run.
"""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='TimmAttentionBackbone', model_name='resnet50', attn='se', pretrained='tv_in1k',
        frozen_stages=1, norm_eval=True))
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook'))
