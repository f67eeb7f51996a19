import importlib.util
import pickle
import sys

import numpy as np
import pytest
import torch
from detectors import losses_of
from spoiled import PICTURES

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import timm_se_plugin.detection  # noqa: F401, I001
import mmcv
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.utils.dl_utils import mmcv_full_available

pytestmark = pytest.mark.mmdet


def test_mmcv_s_operator_module_is_found_and_reported():
    from mmcv.ops import get_compiler_version
    assert mmcv_full_available()
    if sys.modules['mmcv._ext'].__name__.startswith('timm_se_plugin'):
        assert 'torchvision' in get_compiler_version()


@pytest.fixture
def compat(monkeypatch):
    """A function that runs _compat again, as in a process that has not imported mmcv._ext."""
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    monkeypatch.setattr(checkpoint, 'load_url', checkpoint.load_url)  # so that what it changes is restored
    spec = importlib.util.find_spec('timm_se_plugin.detection._compat')
    return lambda: spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_compiled_operator_module_is_left_alone(tmp_path, monkeypatch, compat):
    (tmp_path / '_ext.py').write_text('')
    monkeypatch.setattr(mmcv, '__path__', [*mmcv.__path__, str(tmp_path)])  # an mmcv that has the module
    compat()
    assert importlib.import_module('mmcv._ext').__file__ == str(tmp_path / '_ext.py')


def test_a_missing_package_is_named_with_what_to_install(monkeypatch, compat):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    with pytest.raises(ModuleNotFoundError, match=r'mmdet is not installed; .*pip install "timm-se-plugin\[mmdet\]"'):
        compat()


def test_resuming_continues_what_an_unbroken_run_does(toy_runner, tmp_path):
    for name in ('whole', 'broken'):
        (tmp_path / name).mkdir()
    whole = toy_runner(4, hook='CheckpointHook', work_dir=tmp_path / 'whole')
    whole.train()
    toy_runner(2, hook='CheckpointHook', work_dir=tmp_path / 'broken', interval=1).train()
    resumed = toy_runner(4, hook='CheckpointHook', work_dir=tmp_path / 'broken', resume=True)
    resumed.train()
    assert resumed.iter == 16
    assert losses_of(resumed) == pytest.approx(losses_of(whole), abs=1e-6)
    assert resumed.optim_wrapper.get_lr() == whole.optim_wrapper.get_lr()


@pytest.mark.parametrize('value', [
    np.float64(0.5), np.float32(0.5), np.arange(3), np.arange(3.), np.array([True]), HistoryBuffer([1., 2.], [1, 1])])
def test_what_mmengine_saves_is_loaded(tmp_path, value):
    torch.save(dict(meta=dict(value=value)), tmp_path / 'a.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))['meta']['value']
    if isinstance(value, HistoryBuffer):
        assert (loaded.mean(), loaded.max(), loaded.current()) == (1.5, 2, 2)
        loaded, value = loaded.data[0], value.data[0]
    np.testing.assert_array_equal(loaded, value)
    assert np.asarray(loaded).dtype == np.asarray(value).dtype


@pytest.mark.parametrize('spoil', ['empty', 'truncated', 'header alone', 'text', 'other bytes'])
def test_a_broken_checkpoint_is_named(tmp_path, spoil):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=torch.nn.Linear(300, 300).state_dict()), path)
    change = PICTURES.get(spoil, lambda path: path.write_bytes(bytes(7 * byte % 256 for byte in path.read_bytes())))
    change(path)
    with pytest.raises(ValueError, match=r'a\.pth is no complete checkpoint of weights; give another one, or copy'):
        CheckpointLoader.load_checkpoint(str(path))


def test_a_folder_in_the_place_of_a_checkpoint_is_told_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=f'{tmp_path} is a folder; give a checkpoint$'):
        CheckpointLoader.load_checkpoint(str(tmp_path))
    torch.save({}, tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match=r'is a folder; give a checkpoint, such as .*/epoch_1\.pth$'):
        CheckpointLoader.load_checkpoint(str(tmp_path))


def test_checkpoints_in_the_format_of_old_releases_of_torch_are_loaded(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(2))), tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))['state_dict']['a'].tolist() == [1, 1]


class RunsCode:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


CALLS = [(print, 'run'), (getattr, HistoryBuffer, '__init__'), (getattr, torch.nn.Linear, 'forward')]


@pytest.mark.parametrize('call', CALLS)
def test_a_local_file_that_would_run_code_is_refused(tmp_path, capsys, call):
    torch.save(dict(state_dict=RunsCode(*call)), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth is no complete checkpoint of weights') as raised:
        CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))
    assert isinstance(raised.value.__cause__, pickle.UnpicklingError)
    assert 'weights_only' not in str(raised.value)  # torch's advice to run the code
    assert 'run\n' not in capsys.readouterr().out


@pytest.mark.parametrize('call', CALLS)
@pytest.mark.parametrize('address', ['https://host/a.pth', 'torchvision://resnet50', 'open-mmlab://resnet50_v1c'])
def test_a_fetched_file_that_would_run_code_is_refused(tmp_path, monkeypatch, capsys, address, call):
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path, *args, **kwargs: torch.save(
        dict(state_dict=RunsCode(*call)), path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(address)
    assert 'run\n' not in capsys.readouterr().out
