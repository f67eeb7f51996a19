"""The one place that looks behind timm's entrypoints: these tests fail when timm moves what it looks at."""

import timm
from timm.models.resnet import Bottleneck, ResNet

from timm_se_plugin.models._blueprint import blueprint


def test_blueprint_is_what_the_entrypoint_builds():
    plan = blueprint('seresnet50')
    assert plan.model_cls is ResNet
    assert plan.variant == 'seresnet50'
    assert plan.kwargs == {'block': Bottleneck, 'layers': (3, 4, 6, 3), 'block_args': {'attn_layer': 'se'}}


def test_recording_leaves_timm_alone():
    before = timm.models.resnet.build_model_with_cfg, timm.models.resnet._create_resnet
    blueprint.__wrapped__('resnet18')
    assert (timm.models.resnet.build_model_with_cfg, timm.models.resnet._create_resnet) == before
    assert isinstance(timm.create_model('resnet10t'), ResNet)


def test_every_resnet_has_a_blueprint():
    for name in timm.list_models(module='resnet', include_tags=False):
        assert blueprint(name).model_cls is ResNet
