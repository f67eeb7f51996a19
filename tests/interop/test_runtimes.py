"""ONNX Runtime and OpenVINO compute what PyTorch does, from either exporter, with any batch."""

import numpy as np
import pytest
import torch
from detectors import FAMILIES, detector_with_scores, write_pictures
from interop_networks import small
from parity import images

from timm_se_plugin import fuse_for_inference

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning', 'ignore::FutureWarning')


def exported(model, path, dynamo):
    # torch.export takes the batch of a single image for a constant, with any network.
    example = images(2 if dynamo else 1, 3, 64, 64, dtype=torch.float32)
    dynamic = {'dynamic_shapes': ({0: torch.export.Dim('batch', min=1)},)} if dynamo else {
        'dynamic_axes': {'x': {0: 'batch'}}}
    torch.onnx.export(model, (example,), str(path), input_names=['x'], dynamo=dynamo, **dynamic)
    return path


@pytest.mark.parametrize('dynamo', [False, True], ids=['traced', 'dynamo'])
@pytest.mark.parametrize('deployed', [False, True], ids=['as it is', 'deployed'])
def test_onnx_runtime_agrees_for_any_batch(model, deployed, dynamo, tmp_path):
    network = fuse_for_inference(model) if deployed else model
    session = onnxruntime.InferenceSession(exported(network, tmp_path / 'model.onnx', dynamo))
    for batch in (1, 3):
        x = images(batch, 3, 64, 64, dtype=torch.float32)
        with torch.no_grad():
            expected = model(x)
        found = session.run(None, {'x': x.numpy()})[0]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('deployed', [False, True], ids=['as it is', 'deployed'])
def test_openvino_agrees_for_any_batch(model, deployed, tmp_path):
    openvino = pytest.importorskip('openvino')
    network = fuse_for_inference(model) if deployed else model
    path = exported(network, tmp_path / 'model.onnx', False)
    compiled = openvino.compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for batch in (1, 3):
        x = images(batch, 3, 64, 64, dtype=torch.float32)
        with torch.no_grad():
            expected = model(x)
        np.testing.assert_allclose(compiled(x.numpy())[0], expected.numpy(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('dynamo', [False, True], ids=['traced', 'dynamo'])
def test_the_graph_has_as_many_nodes_as_timms(dynamo, tmp_path):
    counts = [len(onnx.load(exported(small(name), tmp_path / f'{name}.onnx', dynamo)).graph.node)
              for name in ('seresnet50', 'se_resnet50_plugin')]
    assert counts[1] <= counts[0]


def test_the_choice_between_two_kernels_is_exported_as_a_softmax_and_two_products(tmp_path):
    for dynamo in (False, True):
        graph = onnx.load(exported(small('sk_resnet18_plugin'), tmp_path / 'model.onnx', dynamo)).graph
        kinds = [node.op_type for node in graph.node]
        assert kinds.count('Softmax') == 4
        assert kinds.count('Mul') == 8
        assert not {'Where', 'Less', 'Sub', 'Mod', 'Shape', 'Slice'} & set(kinds)


@pytest.mark.mmdet
@pytest.mark.parametrize('name', FAMILIES)
def test_openvino_runs_an_exported_detector_on_pictures_of_any_size(name, tmp_path):
    openvino = pytest.importorskip('openvino')
    pytest.importorskip('mmdet')
    import timm_se_plugin.detection  # noqa: F401  (mmdet needs its operators)
    from timm_se_plugin.boxes import open_onnx_detector
    from timm_se_plugin.boxes.onnx_detector import prepared
    from timm_se_plugin.detection.onnx_export import export_detector
    from timm_se_plugin.files.onnx_files import DETECTOR, open_onnx_file

    path, pictures = tmp_path / 'a.onnx', write_pictures(tmp_path / 'pictures')
    export_detector(detector_with_scores(name, tmp_path), path, [pictures])
    session, said = open_onnx_file(path, DETECTOR)
    compiled = openvino.compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for _, picture in open_onnx_detector(path).pictures(sorted(pictures.iterdir())):
        x, _ = prepared(picture, said)
        result = compiled(x)
        for output, expected in zip(session.get_outputs(), session.run(None, {'images': x}), strict=True):
            found = result[output.name]
            close = np.isclose(found, expected, atol=0.05 if output.name == 'boxes' else 1e-3)
            assert close.mean() > 0.98, output.name  # two almost equal scores may change places
