"""Faster R-CNN with an SE-ResNet-18 on BCCD (blood cells), from scratch, 8 epochs.

Run: timm-se detect train faster-rcnn_se-r18_fpn_bccd --seed 0 --record results/bccd.csv
Hardware: 2 CPU cores. Result: results/bccd.csv.
"""

_base_ = './faster-rcnn_r18_fpn_bccd.py'
model = dict(backbone=dict(attn='se'))
