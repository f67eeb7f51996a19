"""Threads and devices that lack something: signals, float64, CUDA."""

import threading
from types import SimpleNamespace

import pytest
import torch
from digit_runs import TINY, equal, weights
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_se_plugin.analysis import statistics
from timm_se_plugin.analysis.pipeline import analyze, parse_analysis
from timm_se_plugin.analysis.pruning_study import pruning_study
from timm_se_plugin.files.hub_files import read_config_json
from timm_se_plugin.training import evaluate_classifier, loop, parse_evaluation, parse_options, train_classifier
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.training.classifiers import open_classifier
from timm_se_plugin.training.process import Process, init_process
from timm_se_plugin.training.run import Run


def options(digits, folder, *arguments):
    return parse_options([*TINY, '--data-dir', str(digits), '--output', str(folder.parent), '--experiment',
                          folder.name, '--epochs', '1', *arguments])


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained') / 'run'
    train_classifier(options(digits, folder))
    return folder


def test_training_runs_in_any_thread(digits, tmp_path, trained):
    results = []
    thread = threading.Thread(target=lambda: results.append(train_classifier(options(digits, tmp_path / 'run'))))
    thread.start()
    thread.join()
    assert results
    assert equal(weights(tmp_path / 'run'), weights(trained))


class WithoutFloat64(TorchDispatchMode):
    """Refuses what Apple's GPUs cannot compute."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            assert not (isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64), function
        return found


def test_a_step_on_apples_gpu_needs_no_float64(digits, tmp_path, monkeypatch, trained):
    assert Process(torch.device('mps')).sum_dtype == torch.float32
    assert Process(torch.device('cuda')).sum_dtype == torch.float64
    train_epoch = loop.train_epoch

    def without(*arguments):
        with WithoutFloat64():
            train_epoch(*arguments)
    monkeypatch.setattr(loop, 'train_epoch', without)
    monkeypatch.setattr(Process, 'sum_dtype', torch.float32)
    train_classifier(options(digits, tmp_path / 'run'))
    assert equal(weights(tmp_path / 'run'), weights(trained))


class WithoutCopies(TorchDispatchMode):
    """Refuses copies between the CPU and a GPU, for which a process waits until the GPU has computed everything."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default:
            assert found.device.type == args[0].device.type
        return found


@pytest.mark.parametrize('labels', [(), (3,)])
def test_a_batch_is_counted_without_waiting_for_the_gpu(labels):
    with FakeTensorMode(), torch.device('cuda'), WithoutCopies():
        sums = torch.zeros(3, dtype=torch.float64)
        result = {'loss': torch.zeros(()), 'output': torch.zeros(4, 3)}
        run = SimpleNamespace(sums=sums, _losses=[], is_multilabel=bool(labels))
        Run.count(run, result, torch.zeros(4, *labels, dtype=torch.int64))
        assert run.sums.device.type == 'cuda'


def test_float64_weights_are_refused_on_apples_gpu():
    given = parse_options(['--device', 'mps', '--model-dtype', 'float64'])
    with pytest.raises(ValueError, match='--model-dtype float64 does not run on --device mps'), init_process(given):
        pass


def test_two_data_types_of_16_bits_at_once_are_refused():
    given = ['--device', 'cpu', '--model-dtype', 'bfloat16', '--amp']
    with pytest.raises(ValueError, match=r'--amp computes in float16, .*; give --amp-dtype bfloat16'), init_process(
            parse_options(given)):
        pass
    with init_process(parse_options([*given, '--amp-dtype', 'bfloat16'])):
        pass


def test_statistics_of_gates_on_apples_gpu_are_summed_on_the_cpu():
    sums = statistics._Sums(3, 1, 4, torch.device('mps'))
    assert {sums.counts.device.type, sums.means.device.type} == {'cpu'}
    sums.add(torch.ones(2, 1, 4, 1), torch.tensor([0, 2]), None)
    assert sums.means[:, 0, 0].tolist() == [1, 0, 1]


def test_a_device_that_is_not_there_is_a_message(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for device, said in (('gpu', 'is not a device of torch, such as cpu or cuda:1'), ('cuda:1', 'needs CUDA')):
        with pytest.raises(ValueError, match=f'--device {device} {said}'):
            open_classifier('test_resnet', device)
        with pytest.raises(ValueError, match=f'--device {device} {said}'), init_process(
                parse_options(['--device', device])):
            pass


def test_a_checkpoint_of_a_gpu_is_used_on_a_machine_without_one(tmp_path, monkeypatch, trained):
    checkpoint = read_checkpoint(trained / 'last.pth.tar')
    checkpoint['args'].device, checkpoint['args'].dist_backend = 'cuda:7', 'nccl'
    checkpoint['args'].exif_orientation = False
    path = str(tmp_path / 'gpu.pth.tar')
    torch.save(checkpoint, path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert evaluate_classifier(parse_evaluation(['--checkpoint', path]))['images'] == 50
    analyze(parse_analysis(['--checkpoint', path, '--output', str(tmp_path / 'analysis'), '--pictures', '2']))
    rows = pruning_study(path, [0.25], ['mean'], 0, 0.01, tmp_path / 'pruning.csv', tmp_path / 'pruned')
    assert [row['share'] for row in rows] == [0, 0.25]
    assert read_config_json(f"local-dir:{tmp_path / 'pruned' / 'mean-0.25'}")['upright'] is False
    with pytest.raises(ValueError, match='--device cuda needs CUDA'):
        evaluate_classifier(parse_evaluation(['--checkpoint', path, '--device', 'cuda']))
