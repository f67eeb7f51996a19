"""What `timm-se doctor` says of the environment."""

import pytest

from timm_se_plugin.measuring.environment import environment


@pytest.mark.mmdet
def test_the_second_build_of_mmdetection_is_not_recommended_beside_the_first():
    pytest.importorskip('mmdet', reason='needs the [mmdet] or the [onedl] extra')
    extras = environment(ask_hub=False)['Extras']
    first, second = ('mmdet', 'onedl') if extras['mmdet'] == 'complete' else ('onedl', 'mmdet')
    assert extras[first] == 'complete'
    assert extras[second].startswith(f'not for this environment, which has {first}')
    assert not any('onedl-mm' in sentence or 'mmcv-lite' in sentence for sentence in extras.values())
