"""Faster R-CNN with a plain ResNet-18 on BCCD (blood cells), from scratch, 8 epochs.

The data: $TIMM_SE_DATA/bccd, or data/bccd if it is not set, with images/ and instances_{train,val,test}.json.

Neck and head are narrower than COCO's, and anchors start at 16 pixels: platelets are about 20 wide.

Run: python tools/train_detector.py faster-rcnn_r18_fpn_bccd --seed 0 --record results/bccd.csv
Hardware: 2 CPU cores. Result: results/bccd.csv.
"""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py', './_base_/bccd.py', 'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='TimmAttentionBackbone', model_name='resnet18'),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128, anchor_generator=dict(scales=[4])),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=128), bbox_head=dict(
        in_channels=128, fc_out_channels=512, num_classes=3)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)))
train_cfg = dict(max_epochs=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', begin=0, end=8, by_epoch=True, milestones=[6, 7], gamma=0.1)]
optim_wrapper = dict(clip_grad=dict(max_norm=35))
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook', max_keep_ckpts=2), logger=dict(interval=10))
