"""Small Faster R-CNN with an SE-ResNet-18 on scenes of handwritten digits, from scratch; the demo's detector.

timm-se detect demo writes the scenes, trains and prints the result. To train again on the same scenes:

Run: timm-se detect train faster-rcnn_se-r18_fpn_digits
Hardware: 2 CPU cores, two minutes. Result: what the demo prints.
"""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py', './_base_/digits.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='TimmAttentionBackbone', model_name='resnet18', attn='se'),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=64), bbox_head=dict(
        in_channels=64, fc_out_channels=256, num_classes=10)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=64))))
train_cfg, val_cfg, test_cfg = dict(by_epoch=True, max_epochs=5, val_interval=5), dict(), dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=25),
    dict(type='CosineAnnealingLR', T_max=5, end=5, by_epoch=True, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=10))
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook', max_keep_ckpts=1), logger=dict(interval=10))
