"""Faster R-CNN with an SE-Inception-v3, COCO, 12 epochs.

The backbone starts from torchvision's weights, and the gates of the added SE start at 1. The stem of Inception does not
pad: maps are a little smaller than the picture divided by the stride, and the neck resizes each map to the size of the
next finer one.

Run: torchrun --nproc-per-node 8 -m timm_se_plugin detect train faster-rcnn_se-inception-v3_fpn_1x_coco
Hardware: 8 GPUs of 16 GB, 2 images each (fewer: --auto-scale-lr). Result: not yet run.
"""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),  # the normalisation that the weights were trained with
    backbone=dict(
        _delete_=True, type='TimmAttentionBackbone', model_name='inception_v3', attn='se', pretrained='tv_in1k',
        frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=[192, 288, 768, 2048]))
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook'))
