"""Through the dynamo exporter to onnxruntime: the same outputs, for any batch size."""

import pytest
import torch
from networks import shallow
from parity import images, relative_error

from timm_se_plugin import fuse_for_inference

onnxruntime = pytest.importorskip('onnxruntime', reason='needs the [export] extra')
pytest.importorskip('onnxscript', reason='needs the [export] extra')


@pytest.mark.filterwarnings('ignore')  # the exporter's own deprecations
@pytest.mark.parametrize('name', ['se_resnet50_plugin', 'sk_resnext50_32x4d_plugin', 'deployed'])
def test_onnx_equals_eager_for_any_batch(name, tmp_path):
    model = shallow(name if name != 'deployed' else 'se_resnet50_plugin').eval()
    model = fuse_for_inference(model) if name == 'deployed' else model
    x = images(2, 3, 64, 64, dtype=torch.float32)
    path = tmp_path / 'model.onnx'
    torch.onnx.export(
        model, (x,), path, dynamo=True, input_names=['x'], dynamic_shapes={'x': {0: torch.export.Dim('n', min=1)}},
        verbose=False)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for n in (1, 2, 5):
        x = images(n, 3, 64, 64, dtype=torch.float32)
        out, = session.run(None, {'x': x.numpy()})
        with torch.no_grad():
            assert relative_error(torch.from_numpy(out), model(x)) < 1e-4
