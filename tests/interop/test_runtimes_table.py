"""The table of runtimes is measured with the real runtimes."""

import pytest

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.measuring import runtimes

pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning', 'ignore::FutureWarning')


@pytest.mark.parametrize('runtime', ['eager', 'onnxruntime, traced', 'openvino'])
def test_every_variant_is_timed_beside_the_plain_network(runtime):
    if runtime == 'openvino':
        pytest.importorskip('openvino')
    rows = runtimes.measure_runtime('resnet50 se', runtime, (1,), size=64, rounds=2)
    assert [row['variant'] for row in rows] == [
        'plain', 'timm', 'ours', 'plain, folded', 'timm, folded', 'ours, folded']
    assert rows[0]['ratio'] == rows[3]['ratio'] == 1
