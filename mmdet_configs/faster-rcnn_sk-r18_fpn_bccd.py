"""Faster R-CNN with an SK-ResNet-18 on BCCD (blood cells), from scratch, 8 epochs.

Run: python tools/train_detector.py faster-rcnn_sk-r18_fpn_bccd
Hardware: 2 CPU cores, about half an hour. Result: not yet run.
"""

_base_ = './faster-rcnn_r18_fpn_bccd.py'
model = dict(backbone=dict(attn='sk'))
