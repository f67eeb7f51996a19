"""BCCD (github.com/Shenggan/BCCD_Dataset): pictures of blood cells, 205 to train, 87 to validate and 72 to test."""

data_root = '{{$TIMM_SE_DATA:data}}/bccd/'
_data = dict(type='CocoDataset', data_root=data_root, data_prefix=dict(img='images/'), metainfo=dict(
    classes=('RBC', 'WBC', 'Platelets'), palette=[(220, 60, 60), (90, 60, 200), (240, 200, 0)]))
_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
_load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(320, 240), keep_ratio=True),
         dict(type='LoadAnnotations', with_bbox=True)]
train_pipeline = [
    _load[0], _load[2], _load[1], dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [*_load, dict(type='PackDetInputs', meta_keys=_keys)]
train_dataloader = dict(
    batch_size=4, num_workers=2, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='instances_train.json', pipeline=train_pipeline, **_data))
val_dataloader = dict(
    batch_size=4, num_workers=2, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='instances_val.json', pipeline=test_pipeline, test_mode=True, **_data))
test_dataloader = dict(
    batch_size=4, num_workers=2, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='instances_test.json', pipeline=test_pipeline, test_mode=True, **_data))
val_evaluator = dict(type='CocoMetric', metric='bbox', ann_file=data_root + 'instances_val.json')
test_evaluator = dict(type='CocoMetric', metric='bbox', ann_file=data_root + 'instances_test.json')
