"""Networks on a GPU: fused against module by module, and what people do with them there.

With TIMM_SE_REHEARSAL=1 the tests run on the CPU, as far as it has what they need.
"""

import copy
import os
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.layers.kernels import has_kernels

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # for deterministic products; read at the first product
REHEARSAL = os.environ.get('TIMM_SE_REHEARSAL') == '1'
DEVICE = 'cpu' if REHEARSAL else 'cuda'
LAYOUTS = (torch.contiguous_format, torch.channels_last)
NAMES = ('se_resnet18_plugin', 'se_resnet50_plugin', 'se_resnext50_32x4d_plugin', 'sk_resnet18_plugin',
         'resnet18_plugin', 'resnet50_plugin')  # the last two without attention
pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason='no GPU')]
needs_gpu = pytest.mark.skipif(REHEARSAL, reason='a CPU has none')


@pytest.fixture(autouse=True)
def _exact():
    allowed = torch.backends.cudnn.allow_tf32  # as it is by default in convolutions, not in matrix products
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def network(name='se_resnet18_plugin', layout=LAYOUTS[0], **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, layers=(1, 1, 1, 1), zero_init_last=False, **options)
    return model.to(DEVICE).to(memory_format=layout)


def batch(layout=LAYOUTS[0], samples=4):
    x = torch.randn(samples, 3, 64, 64, device=DEVICE).contiguous(memory_format=layout)
    return x, torch.arange(samples, device=DEVICE)


def step(model, x, y, dtype=None):
    with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
        out = model(x)
    F.cross_entropy(out.float(), y).backward()
    return {'out': out.detach(), **{n: p.grad for n, p in model.named_parameters()}, **dict(model.named_buffers())}


def distance(results, reference):
    return {name: ((results[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-6)).item()
            for name, value in reference.items() if value.is_floating_point()}


@needs_gpu
def test_a_gpus_maps_have_kernels():
    assert has_kernels(torch.zeros(1, 2, 3, 4, device=DEVICE))


@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'channels_last'])
@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
@pytest.mark.parametrize('name', NAMES)
def test_a_network_equals_its_modules(name, mode, layout):
    x, y = batch(layout)
    results = []
    for fused in ('auto', False):
        model = network(name, layout, attn_fused=fused).train(mode != 'eval')
        if mode == 'frozen':
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        results.append(step(model, x, y))
    errors = distance(*results)
    assert max(errors.values()) < 2e-2, max(errors, key=errors.get)  # float32 through some 20 norms and ReLUs
    assert errors['out'] < 1e-4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'channels_last'])
def test_mixed_precision_errs_no_more_than_the_modules(layout, dtype):
    x, y = batch(layout)
    exact = step(network(layout=layout, attn_fused=False), x, y)
    ours, modules = (distance(step(network(layout=layout, attn_fused=fused), x, y, dtype), exact)
                     for fused in ('auto', False))
    assert sum(ours.values()) < 1.3 * sum(modules.values())


@needs_gpu
def test_grad_scaler_trains_and_skips_what_overflows():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40)
    x, y = batch()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() < 2.0**40  # infinite gradients were seen
    assert losses[-1] < 0.1 * losses[0]


@needs_gpu
@pytest.mark.parametrize('name', NAMES[:2] + NAMES[3:4])
def test_a_training_step_is_captured_as_a_graph(name):
    x, y = batch()
    model = network(name).train()
    expected = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), 0.01) for m in (model, expected)]
    before = copy.deepcopy(model.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizers[0].zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizers[0].step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizers[0].zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        F.cross_entropy(model(x), y).backward()
        optimizers[0].step()
    model.load_state_dict(before)
    for _ in range(3):
        graph.replay()
        optimizers[1].zero_grad(set_to_none=True)
        F.cross_entropy(expected(x), y).backward()
        optimizers[1].step()
    for (key, value), theirs in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, theirs, rtol=1e-3, atol=1e-4, msg=key)


@needs_gpu
@pytest.mark.filterwarnings('ignore:Synchronization debug mode is a prototype')  # torch warns whenever it is used
def test_no_step_waits_for_the_gpu():
    x, y = batch()
    model = network().train()
    step(model, x, y)
    model.zero_grad(set_to_none=True)
    torch.cuda.set_sync_debug_mode('error')
    try:
        F.cross_entropy(model(x), y).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('name', NAMES[:1] + NAMES[3:4])
def test_equal_steps_give_equal_bits(name):
    x, y = batch()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (step(network(name).train(), x, y) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_checkpointing_changes_no_gradient():
    x, y = batch()
    results = []
    for on in (True, False):
        model = network().train()
        model.set_grad_checkpointing(on)
        results.append({k: v for k, v in step(model, x, y).items() if 'running' not in k and 'batches' not in k})
    assert max(distance(*results).values()) < 1e-4
    results.clear()
    for run in (partial(checkpoint, use_reentrant=True), lambda layer, maps: layer(maps)):
        torch.manual_seed(0)
        maps = torch.randn(2, 64, 16, 16, device=DEVICE, requires_grad=True)
        layer = network().train().layer1
        out = run(layer, maps)
        out.square().sum().backward()
        results.append({'out': out.detach(), 'maps': maps.grad, **{n: p.grad for n, p in layer.named_parameters()}})
    assert max(distance(*results).values()) < 1e-4


@pytest.fixture
def process_group(tmp_path):
    torch.empty(1, device=DEVICE)  # a mesh made before the process uses the GPU gives a warning, an error here
    store = f'file://{tmp_path}/store'
    dist.init_process_group('gloo' if REHEARSAL else 'nccl', init_method=store, rank=0, world_size=1)
    try:
        yield init_device_mesh(DEVICE, (1,))
    finally:  # a group that is left would end every later test that makes one
        dist.destroy_process_group()


@pytest.mark.parametrize('name', NAMES[:1] + NAMES[3:4])
def test_wrappers_for_several_processes_change_no_gradient(process_group, name):
    """In one process, which gathers parameters and shares gradients as several do."""
    x, y = batch()
    expected = step(network(name).train(), x, y)
    parallel = DistributedDataParallel(network(name).train())
    step(parallel, x, y)
    assert max(distance({n: p.grad for n, p in parallel.module.named_parameters()}, {
        n: expected[n] for n, _ in parallel.module.named_parameters()}).values()) < 1e-4
    sharded = network(name).train()
    for stage in (sharded.layer1, sharded.layer2, sharded.layer3, sharded.layer4):
        fully_shard(stage[0], mesh=process_group)
    fully_shard(sharded, mesh=process_group)
    step(sharded, x, y)
    assert max(distance({n: p.grad.full_tensor() for n, p in sharded.named_parameters()}, {
        n: expected[n] for n, _ in sharded.named_parameters()}).values()) < 1e-4


@needs_gpu
def test_two_streams_and_every_device_compute_the_same():
    x, _ = batch()
    model = network().eval()
    with torch.no_grad():
        expected = model(x)
        streams = [torch.cuda.Stream() for _ in range(2)]
        torch.cuda.synchronize()
        outs = []
        for stream in streams:
            with torch.cuda.stream(stream):
                outs.append(model(x))
        torch.cuda.synchronize()
        for out in outs:
            assert torch.equal(out, expected)
        for i in range(1, torch.cuda.device_count()):
            moved = copy.deepcopy(model).to(f'cuda:{i}')
            torch.testing.assert_close(moved(x.to(f'cuda:{i}')).to(DEVICE), expected)


def test_a_faster_rcnn_takes_a_step_and_detects():
    """RoIAlign and NMS are torchvision's, forward and backward, on the GPU."""
    pytest.importorskip('torchvision')
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    results = []
    for fused in ('auto', False):
        body = network(attn_fused=fused)
        levels = {f'layer{i}': str(i) for i in range(1, 5)}
        torch.manual_seed(0)
        detector = FasterRCNN(
            BackboneWithFPN(body, levels, [64, 128, 256, 512], 64), 3, min_size=128, max_size=128,
            rpn_post_nms_top_n_train=50, box_detections_per_img=10).to(DEVICE).train()
        images = [torch.rand(3, 128, 128, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(i))
                  for i in range(2)]
        targets = [{'boxes': torch.tensor([[10.0, 10.0, 70.0, 80.0]], device=DEVICE),
                    'labels': torch.tensor([1], device=DEVICE)}] * 2
        torch.manual_seed(1)  # of the samples of proposals
        losses = detector(images, targets)
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in body.layer4.parameters())
        results.append({name: loss.detach() for name, loss in losses.items()})
        with torch.no_grad():
            assert all(len(found['boxes']) <= 10 for found in detector.eval()(images))
    for name, loss in results[0].items():
        torch.testing.assert_close(loss, results[1][name], rtol=2e-2, atol=1e-3, msg=name)


def test_two_epochs_in_mixed_precision_learn(tmp_path):
    """CIFAR-10 where TIMM_SE_DATA has it, else scikit-learn's digits."""
    pytest.importorskip('timm', minversion='1.0.31', reason='the [train] extra')
    cifar10 = Path(os.environ.get('TIMM_SE_DATA', 'none'), 'cifar10')
    if cifar10.is_dir() and not REHEARSAL:
        arguments, floor = ['--config', 'cifar10-short', '--data-dir', str(cifar10)], 0.4
    else:
        pytest.importorskip('sklearn')
        from digit_runs import TINY, save_digits
        arguments, floor = [*TINY, '--data-dir', str(save_digits(tmp_path / 'digits', 960, 200))], 0.2    # twice chance
    from timm_se_plugin.training import parse_options, train_classifier
    row = train_classifier(parse_options([
        *arguments, '--epochs', '2', '--device', DEVICE, '--amp', '--amp-dtype', 'bfloat16', '--output', str(tmp_path),
        '--experiment', 'run']))
    assert row['top1'] > floor
