import pytest

from timm_se_plugin.measuring.environment import environment


def test_the_second_build_of_mmdetection_is_not_recommended_beside_the_first():
    extras = environment(ask_hub=False)['Extras']
    others = {'mmdet': 'onedl', 'onedl': 'mmdet'}
    complete = [extra for extra in others if extras.get(extra) == 'complete']
    if not complete:
        pytest.skip('needs a complete extra mmdet or onedl')
    assert extras[others[complete[0]]].startswith(f'not for this environment, which has {complete[0]}')
    assert not any('onedl-mm' in sentence or 'mmcv-lite' in sentence for sentence in extras.values())
