"""Faster R-CNN with a plain ResNet-18 on BCCD (blood cells), from scratch, 8 epochs.

Data: the folder $TIMM_SE_DATA/bccd, or data/bccd without that variable, with images/ and
instances_{train,val,test}.json.

Run: timm-se detect train faster-rcnn_r18_fpn_bccd --seed 0 --record results/bccd.csv
Hardware: 2 CPU cores. Result: results/bccd.csv.
"""

_base_ = [
    './_base_/narrow_faster-rcnn_r18_fpn.py', './_base_/bccd.py', 'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
train_cfg = dict(max_epochs=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', begin=0, end=8, by_epoch=True, milestones=[6, 7], gamma=0.1)]
optim_wrapper = dict(clip_grad=dict(max_norm=35))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook', max_keep_ckpts=2), logger=dict(interval=10))
