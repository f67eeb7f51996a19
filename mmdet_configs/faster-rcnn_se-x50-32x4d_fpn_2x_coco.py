"""Faster R-CNN with an SE-ResNeXt-50 (32x4d), COCO, 24 epochs.

Run: torchrun --nproc-per-node 8 -m timm_se_plugin detect train faster-rcnn_se-x50-32x4d_fpn_2x_coco
Hardware: 8 GPUs of 16 GB, 2 images each (fewer: --auto-scale-lr). Result: not yet run.
"""

_base_ = './faster-rcnn_se-x50-32x4d_fpn_1x_coco.py'
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 22], gamma=0.1)]
