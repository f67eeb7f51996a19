"""Faster R-CNN with an SE-ResNet-101, COCO, 12 epochs.

Run: torchrun --nproc-per-node 8 -m timm_se_plugin detect train faster-rcnn_se-r101_fpn_1x_coco
Hardware: 8 GPUs of 16 GB, 2 images each (fewer: --auto-scale-lr). Result: not yet run.
"""

_base_ = './faster-rcnn_se-r50_fpn_1x_coco.py'
model = dict(backbone=dict(model_name='resnet101'))
