import importlib.util
import os
from pathlib import Path

import pytest
import torch
from detectors import losses_of

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

from timm_se_plugin.detection.checkpoint_hook import AtomicBackend
from timm_se_plugin.files.writing import is_whole

pytestmark = pytest.mark.mmdet


def test_a_checkpoint_is_whole_only_with_every_byte(tmp_path):
    path = tmp_path / 'a.pth'
    assert not is_whole(path)
    torch.save(dict(w=torch.randn(1000)), path)
    data = path.read_bytes()
    assert is_whole(path)
    path.write_bytes(data[:-1])
    assert not is_whole(path)
    path.write_bytes(data[:2000] + bytes(4) + data[2004:])
    assert not is_whole(path)
    path.write_bytes(b'')
    assert not is_whole(path)


def test_a_write_that_fails_leaves_the_file_there_was(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'a.pth'
    AtomicBackend().put(b'old', path)
    monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        AtomicBackend().put(b'new', path)
    assert path.read_bytes() == b'old'


def test_the_hook_writes_through_the_atomic_backend(toy_runner, tmp_path, monkeypatch):
    written = []
    put = AtomicBackend.put
    monkeypatch.setattr(AtomicBackend, 'put', lambda *args: written.append(Path(args[2]).name) or put(*args))
    toy_runner(2, interval=1).train()
    assert written == ['epoch_1.pth', 'epoch_2.pth']
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize(('broken', 'pointer', 'expected'), [
    ([], 'epoch_3.pth', 3),
    ([3], 'epoch_3.pth', 2),  # half a file
    ([3, 2], 'epoch_3.pth', 1),
    ([], '', 3),  # killed while it wrote last_checkpoint
    ([], None, 3),  # killed before
    ([], 'epoch_2.pth', 3),  # killed between the two files
    ([], 'epoch_9.pth', 3),  # removed, or the folder was moved
    ([1, 2, 3], 'epoch_3.pth', 0),  # nothing left: from the beginning
])
def test_resuming_uses_the_last_whole_checkpoint(toy_runner, tmp_path, broken, pointer, expected):
    toy_runner(3, interval=1).train()
    for epoch in (1, 2, 3):
        path = tmp_path / f'epoch_{epoch}.pth'
        os.utime(path, (epoch, epoch))
        if epoch in broken:
            path.write_bytes(path.read_bytes()[:-100])
            os.utime(path, (epoch, epoch))
    last = tmp_path / 'last_checkpoint'
    last.unlink()
    if pointer is not None:
        last.write_text(pointer and str(tmp_path / pointer))
    runner = toy_runner(4, resume=True)
    epochs = []
    runner.train_loop.run_epoch, run_epoch = lambda: (epochs.append(runner.epoch), run_epoch()), \
        runner.train_loop.run_epoch
    runner.train()
    assert epochs == list(range(expected, 4))


def test_the_oldest_checkpoint_goes_only_after_the_new_one_is_there(toy_runner, tmp_path, monkeypatch):
    seen = []
    put = AtomicBackend.put
    monkeypatch.setattr(
        AtomicBackend, 'put', lambda *args: seen.append(sorted(p.name for p in tmp_path.glob('*.pth'))) or put(*args))
    toy_runner(3, interval=1, max_keep_ckpts=1).train()
    assert seen == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_3.pth']


def test_a_copied_folder_resumes_from_the_checkpoint_that_it_names(toy_runner, tmp_path):
    toy_runner(11, interval=1).train()
    for i, path in enumerate(sorted(tmp_path.glob('*.pth'))):  # epoch_9 is the last one
        os.utime(path, (i, i))
    runner = toy_runner(12, resume=True)
    runner.train_loop.run_epoch, run_epoch = lambda: (epochs.append(runner.epoch), run_epoch()), \
        runner.train_loop.run_epoch
    epochs = []
    runner.train()
    assert epochs == [11]


def test_a_checkpoint_that_its_owner_moved_is_not_missed(toy_runner, tmp_path):
    runner = toy_runner(4, interval=1, max_keep_ckpts=1)

    def run_epoch():
        if runner.epoch == 2:
            (tmp_path / 'epoch_2.pth').unlink()
        run()
    run, runner.train_loop.run_epoch = runner.train_loop.run_epoch, run_epoch
    runner.train()
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_4.pth']


def test_a_killed_run_resumes_and_its_loss_curve_goes_on(toy_runner, tmp_path):
    for name in ('whole', 'killed'):
        (tmp_path / name).mkdir()
    whole = toy_runner(3, work_dir=tmp_path / 'whole', interval=1)
    whole.train()
    pid = os.fork()  # the child dies at its 13th sample, in the middle of the second epoch
    if pid == 0:
        toy_runner(3, work_dir=tmp_path / 'killed', interval=1, kill_at=13).train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert [path.name for path in (tmp_path / 'killed').glob('*.pth')] == ['epoch_1.pth']
    resumed = toy_runner(3, work_dir=tmp_path / 'killed', resume=True, interval=1)
    resumed.train()
    assert losses_of(resumed) == pytest.approx(losses_of(whole), abs=1e-6)
