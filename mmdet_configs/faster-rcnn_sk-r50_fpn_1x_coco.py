"""Faster R-CNN with an SK-ResNet-50, COCO, 12 epochs.

No published weights fit this backbone, and those of a plain network cannot gain Selective Kernels. The backbone starts
from scratch with synchronised BatchNorm, unless you give weights of your own by
--cfg-options model.backbone.pretrained=local-dir:<folder of a saved sk_resnet50_plugin>.

Run: torchrun --nproc-per-node 8 -m timm_se_plugin detect train faster-rcnn_sk-r50_fpn_1x_coco
Hardware: 8 GPUs of 16 GB, 2 images each (fewer: --auto-scale-lr). Result: not yet run.
"""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='TimmAttentionBackbone', model_name='sk_resnet50_plugin', norm_cfg=dict(type='SyncBN')))
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook'))
