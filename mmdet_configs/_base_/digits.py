"""Scenes of handwritten digits of 96x96 pixels, as timm_se_plugin.detection.digit_scenes writes them."""

data_root = 'work_dirs/demo/scenes/'
_data = dict(type='CocoDataset', data_root=data_root, data_prefix=dict(img='images/'),
             metainfo=dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')))
_load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
# No flip, which would change a digit's meaning. The scenes have this size; other pictures are resized.
_resize = dict(type='Resize', scale=(96, 96), keep_ratio=True)
train_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='instances_train.json', pipeline=[*_load, _resize, dict(type='PackDetInputs')], **_data))
val_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='instances_val.json', test_mode=True, pipeline=[
        _load[0], _resize, _load[1], dict(type='PackDetInputs', meta_keys=_keys)], **_data))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', metric='bbox', ann_file=data_root + 'instances_val.json')
test_evaluator = val_evaluator
