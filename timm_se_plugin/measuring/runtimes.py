"""The time that attention costs in inference runtimes, relative to the plain network in the same runtime."""

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from ..placement import fuse_for_inference
from .provenance import provenance
from .turns import time_in_turns

__all__ = ['NETWORKS', 'RUNTIMES', 'measure_runtime']

# The plain network, timm's with attention, and the plugin's with the same weights.
NETWORKS = {
    'resnet50 se': ('resnet50', 'seresnet50', {'model_name': 'resnet50_plugin', 'attn': 'se', 'attn_rd_divisor': 8}),
    'resnext50_32x4d sk': ('resnext50_32x4d', 'skresnext50_32x4d', {
        'model_name': 'sk_resnext50_32x4d_plugin', 'attn_rd_divisor': 32}),
}
RUNTIMES = ('eager', 'compiled', 'onnxruntime, traced', 'onnxruntime, dynamo', 'openvino')

Step = Callable[[torch.Tensor], Any]


def _variants(names: tuple[str, str, dict[str, Any]], folded: bool) -> dict[str, nn.Module]:
    plain, by_timm, options = names
    models = {
        'plain': timm.create_model(plain), 'timm': timm.create_model(by_timm), 'ours': timm.create_model(**options)}
    for model in models.values():
        model.eval()
    if folded:
        models.update({f'{name}, folded': fuse_for_inference(model) for name, model in models.items()})
    return models


def _onnx(model: nn.Module, path: Path, size: int, dynamo: bool) -> Path:
    x = torch.randn(2 if dynamo else 1, 3, size, size)
    dynamic: dict[str, Any] = {'dynamic_axes': {'x': {0: 'batch'}}}
    if dynamo:
        dynamic = {'dynamic_shapes': ({0: torch.export.Dim('batch', min=1)},)}
    torch.onnx.export(copy.deepcopy(model), (x,), str(path), input_names=['x'], dynamo=dynamo, **dynamic)
    return path


@contextmanager
def _step(model: nn.Module, runtime: str, size: int, threads: int) -> Iterator[Step]:
    """A function from a batch to the network's output."""
    if runtime in ('eager', 'compiled'):
        called: Any = model.to(memory_format=torch.channels_last)
        if runtime == 'compiled':
            called = torch.compile(model, dynamic=False)

        def run(x: torch.Tensor) -> Any:
            with torch.inference_mode():
                return called(x.contiguous(memory_format=torch.channels_last))

        # Networks of one class, and all batch sizes, count together towards the limit of compiled programs.
        with torch._dynamo.config.patch(recompile_limit=64):
            yield run
        return
    with TemporaryDirectory() as folder:
        path = _onnx(model, Path(folder, 'model.onnx'), size, runtime.endswith('dynamo'))
        if runtime == 'openvino':
            import openvino
            compiled = openvino.compile_model(str(path), 'CPU', {
                'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'})
            yield lambda x: compiled(x.numpy())[0]
            return
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Otherwise the threads of one variant still wait actively while the next one has its turn.
        options.add_session_config_entry('session.force_spinning_stop', '1')
        session = onnxruntime.InferenceSession(str(path), options)
        yield lambda x: session.run(None, {'x': x.numpy()})[0]


def measure_runtime(
        network: str, runtime: str, batches: tuple[int, ...] = (1, 8), size: int = 224, rounds: int = 15,
) -> list[dict[str, Any]]:
    """Time the variants of a network in a runtime, in turns.

    The output of each variant is first compared with that of the network in eager mode.

    Args:
        network: one of ``NETWORKS``.
        runtime: one of ``RUNTIMES``.
        batches: numbers of images.
        size: height and width of an image.
        rounds: number of measured turns.

    Returns:
        A row for each batch and variant: the median milliseconds, and the median over turns of the ratio to the plain
        network (for folded variants to the folded plain network), with its quartiles.

    Raises:
        AssertionError: the output in the runtime differs from that in eager mode.
    """
    threads = torch.get_num_threads()
    # The compiler fuses BatchNorm with the operators around it, so the folded networks are left out to save time.
    models = _variants(NETWORKS[network], folded=runtime != 'compiled')
    rows = []
    with ExitStack() as stack:
        steps = {name: stack.enter_context(_step(copy.deepcopy(model), runtime, size, threads))
                 for name, model in models.items()}
        for batch in batches:
            x = torch.randn(batch, 3, size, size)
            with torch.inference_mode():
                for name, step in steps.items():
                    np.testing.assert_allclose(np.asarray(step(x)), models[name](x).numpy(), rtol=1e-2, atol=1e-3)
            seconds = time_in_turns({name: partial(step, x) for name, step in steps.items()}, rounds)
            for name, own in seconds.items():
                reference = seconds['plain, folded' if name.endswith('folded') else 'plain']
                low, median, high = statistics.quantiles(
                    [elapsed / other for elapsed, other in zip(own, reference, strict=True)], n=4)
                rows.append({
                    'network': network, 'runtime': runtime, 'batch': batch, 'size': size, 'variant': name,
                    'milliseconds': round(1e3 * statistics.median(own), 2), 'ratio': round(median, 3),
                    'ratio_q25': round(low, 3), 'ratio_q75': round(high, 3), 'rounds': rounds,
                    **provenance(torch.device('cpu'))})
    return rows
