"""The kernels without a GPU: their values, what they are launched with, and that this compiles for common GPUs."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from timm_se_plugin.layers.kernels import available, has_kernels

ROOT = Path(__file__).parents[3]
TYPES = {torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16', torch.int64: '*i64'}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_values_by_tritons_interpreter():
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', 'tests/layers/kernels/interpreted.py'],
        cwd=ROOT, env={**os.environ, 'TRITON_INTERPRET': '1'}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@pytest.mark.slow
def test_blocks_launch_every_kernel_through_tritons_launcher(tmp_path):
    from timm_se_plugin.layers.kernels import passes
    run = subprocess.run(
        [sys.executable, 'tests/layers/kernels/launched.py'], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'TRITON_CACHE_DIR': str(tmp_path)})
    assert run.returncode == 0, run.stderr[-5000:]
    kernels = {name for name, value in vars(passes).items() if type(value).__name__ == 'JITFunction'}
    assert set(run.stdout.split()) == {name for name in kernels if not name.startswith('_')}


def test_no_kernel_is_imported_before_a_gpu_asks():
    code = 'import sys, timm_se_plugin; print("timm_se_plugin.layers.kernels.passes" in sys.modules)'
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == 'False'


def test_without_triton_there_is_one_warning_and_no_kernel(monkeypatch):
    monkeypatch.setattr(available, 'DEVICES', {'cpu'})
    monkeypatch.setitem(sys.modules, 'triton', None)
    available._imports_triton.cache_clear()
    x = torch.zeros(2, 3, 4, 5)
    with pytest.warns(UserWarning, match='Triton cannot be imported'):
        assert not has_kernels(x)
    assert not has_kernels(x)
    available._imports_triton.cache_clear()


def test_where_triton_cannot_call_the_driver_there_is_one_warning_and_no_kernel(monkeypatch):
    """As without a C compiler, where nothing fails before the first launch."""
    runtime = pytest.importorskip('triton.runtime')

    class Driver:
        @property
        def active(self):
            raise RuntimeError('Failed to find C compiler.')

    monkeypatch.setattr(runtime, 'driver', Driver())
    available._reaches_gpu.cache_clear()
    with pytest.warns(UserWarning, match='C compiler.*python3-dev'):
        assert not available._reaches_gpu()
    assert not available._reaches_gpu()  # a second warning would be an error
    available._reaches_gpu.cache_clear()


@pytest.mark.parametrize('x', [
    torch.zeros(2, 3, 4, 5, dtype=torch.float64), torch.zeros(0, 3, 4, 5), torch.zeros(2, 3, 4),
    nn.Parameter(torch.zeros(2, 3, 4, 5))], ids=['float64', 'empty', 'three axes', 'subclass'])
def test_other_maps_are_left_to_the_operators(x, monkeypatch):
    monkeypatch.setattr(available, 'DEVICES', {'cpu'})
    assert not has_kernels(x)


class Context:
    """What autograd gives a Function: its engine would look for the device of a fake tensor."""

    needs_input_grad = (True,) * 12

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def set_materialize_grads(self, value):
        pass

    def mark_non_differentiable(self, *tensors):
        pass


def launches(monkeypatch, dtype, layout, cases):
    """Kernels, arguments and constants of the passes of blocks whose tensors say that they are on a GPU."""
    pytest.importorskip('triton')
    from timm_se_plugin.layers.kernels import functions, launch

    seen = []

    def record(kernel, programs, device, *args, **constants):
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        assert device.type == 'cuda'
        assert {x.device for x in tensors} == {device}
        assert 0 < programs < 2**31
        seen.append((kernel, args, constants))

    monkeypatch.setattr(launch, 'run', record)
    with FakeTensorMode(), torch.device('cuda'), torch.no_grad():
        bn = nn.BatchNorm2d(64)

        def new(shape=(32, 64, 56, 56)):
            return torch.empty(shape, dtype=dtype).contiguous(memory_format=layout if len(shape) == 4 else LAYOUTS[0])

        for pooling, has_factor, has_shortcut, has_gate, relu, batch in cases:
            normalize, scale = Context(), Context()
            call = functions._Pass(bn, batch, pooling, None)
            given = (None, None) if batch else (bn.running_mean, bn.running_var)
            carrier, y, mean, invstd, pooled = functions._Normalize.forward(
                normalize, new(), bn.weight, bn.bias, *given, call)
            factor, gate = (new((32, 64)) if has else None for has in (has_factor, has_gate))
            shortcut = new() if has_shortcut else None
            out = functions._ScaleShiftAdd.forward(
                scale, carrier, y, bn.weight, bn.bias, mean, invstd, factor, shortcut, gate, relu, call)
            assert (out.shape, out.dtype, out.stride(), out.device) == (y.shape, dtype, y.stride(), y.device)
            grads = functions._ScaleShiftAdd.backward(scale, torch.empty_like(out))
            for grad, given in zip(grads[6:9], (factor, shortcut, gate), strict=True):
                assert given is None or (grad.shape, grad.dtype, grad.device) == (given.shape, given.dtype, y.device)
            grads = functions._Normalize.backward(
                normalize, grads[0], None, None, None, None if pooled is None else torch.empty_like(pooled))
            assert (grads[0].shape, grads[0].stride(), grads[0].dtype) == (y.shape, y.stride(), dtype)
            assert grads[1].shape == grads[2].shape == (64,)
    return seen


# pooling, factor, shortcut, shortcut's gate, relu, statistics of the batch
TAIL = ('linear', True, True, False, 1, True)
MIDDLE = ('', False, False, False, 1, True)
BRANCH = ('relu', True, True, False, 2, True)
OTHERS = [
    ('', False, True, True, 1, True), ('', True, True, False, 0, True), ('linear', True, False, False, 1, False),
    ('', False, False, False, 0, False), ('relu', True, False, False, 2, False)]


@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'channels_last'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_operator_between_the_kernels_stays_on_the_gpu(dtype, layout, monkeypatch):
    seen = launches(monkeypatch, dtype, layout, [TAIL, MIDDLE, BRANCH, *OTHERS])
    assert {kernel.__name__ for kernel, _, _ in seen} == {
        'moments', 'statistics', 'apply', 'reduce', 'sample_sums', 'parameter_sums', 'apply_backward'}


@pytest.mark.parametrize(('case', 'forward', 'backward'), [(TAIL, 3, 4), (MIDDLE, 3, 3), (BRANCH, 5, 4)])
def test_a_pass_takes_as_many_launches_as_the_count_says(case, forward, backward, monkeypatch):
    names = [kernel.__name__ for kernel, _, _ in launches(monkeypatch, torch.float32, LAYOUTS[0], [case])]
    assert names.index('apply') == forward - 1
    assert len(names) == forward + backward


@pytest.mark.parametrize(('shape', 'last', 'tiles', 'chunks'), [
    ((256, 256, 56 * 56), True, 49, 2), ((32, 256, 56 * 56), True, 11, 9), ((2, 64, 400 * 608), False, 14, 17)])
def test_the_programs_of_a_map_have_equal_work(shape, last, tiles, chunks):
    pytest.importorskip('triton')
    from timm_se_plugin.layers.kernels import launch
    cut = launch._tiles(*shape, last, 2)
    assert (cut.tiles, cut.chunks) == (tiles, chunks)
    assert chunks == math.ceil(math.ceil(shape[2] / cut.constants['BLOCK_P']) / tiles)  # as the kernels count them


def as_source(kernel, args, constants):
    """What Triton compiles for these arguments: integers that are 1 are constants, multiples of 16 marked as such.

    Those of ``do_not_specialize`` are neither.
    """
    from triton.compiler import ASTSource

    signature, values, attributes = {}, {}, {}
    for i, (name, arg) in enumerate(zip(kernel.arg_names, [*args, *constants.values()], strict=True)):
        signature[name] = 'constexpr'
        if isinstance(arg, torch.Tensor):
            signature[name] = TYPES[arg.dtype]
        elif isinstance(arg, float):
            signature[name] = 'fp32'
        elif isinstance(arg, int) and name not in constants and (arg != 1 or kernel.params[i].do_not_specialize):
            signature[name] = 'i32'
        if signature[name] == 'constexpr':
            values[(i,)] = arg
        elif isinstance(arg, torch.Tensor) or (
                signature[name] == 'i32' and arg % 16 == 0 and not kernel.params[i].do_not_specialize):
            attributes[(i,)] = [['tt.divisibility', 16]]
    return ASTSource(kernel, signature, values, attributes)


def spilled_on_nvidia(compiled, folder):
    """Bytes that ptxas stores for want of registers."""
    from triton.backends import nvidia

    folder.joinpath('kernel.ptx').write_text(compiled.asm['ptx'])
    arch = compiled.metadata.target.arch
    name = 'ptxas-blackwell' if arch >= 100 else 'ptxas'
    ptxas = Path(nvidia.__file__).parent / 'bin' / name
    suffix = 'a' if arch >= 90 else ''
    run = subprocess.run(
        [ptxas, '-v', f'--gpu-name=sm_{arch}{suffix}', folder / 'kernel.ptx', '-o', folder / 'kernel.cubin'],
        capture_output=True, text=True, check=True)
    words = run.stderr.replace(',', '').split()
    return int(words[words.index('spill') - 2])


@pytest.mark.parametrize('arch', [80, 'gfx942', *(pytest.param(arch, marks=pytest.mark.slow) for arch in (90, 100))])
def test_every_kernel_compiles_for_a_gpu_and_spills_nothing(arch, monkeypatch, tmp_path):
    triton = pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    target = GPUTarget('cuda', arch, 32) if isinstance(arch, int) else GPUTarget('hip', arch, 64)
    compiled = set()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for layout in LAYOUTS:
            for kernel, args, constants in launches(monkeypatch, dtype, layout, [TAIL, MIDDLE, BRANCH]):
                touches_maps = 'LAST' in constants
                given = tuple(arg is None for arg in args)
                key = kernel.__name__, dtype, given, *(constants.get(name) for name in ('LAST', 'RELU', 'POOLED_RELU'))
                if key in compiled or (not touches_maps and dtype == torch.bfloat16):
                    continue
                compiled.add(key)
                result = triton.compile(as_source(kernel, args, constants), target=target)
                assert result.metadata.shared <= 48 * 1024  # what every GPU gives without being asked
                if isinstance(arch, int):
                    assert spilled_on_nvidia(result, tmp_path) == 0, key
                else:
                    assert '.vgpr_spill_count: 0\n' in result.asm['amdgcn'], key
    assert len({name for name, *_ in compiled}) == 7
