import multiprocessing
import os
import resource
import signal
from argparse import Namespace

import pytest
import torch

from timm_se_plugin.files.writing import UnwritableFileError, is_whole, write_atomically
from timm_se_plugin.training.checkpoint import (
    CheckpointError,
    newest_whole,
    read_checkpoint,
    save_checkpoint,
)
from timm_se_plugin.training.continuing import checkpoint_of


def state(number, size=1000):
    return {'state_dict': {'w': torch.full((size,), float(number))}, 'epoch': number}


def number(folder):
    return read_checkpoint(newest_whole(folder))['epoch']


def test_the_newest_is_read_and_the_one_before_and_the_best_are_kept(tmp_path):
    for i in range(4):
        save_checkpoint(tmp_path, state(i), best=i == 1)
    assert number(tmp_path) == 3
    assert read_checkpoint(tmp_path / 'previous.pth.tar')['epoch'] == 2
    assert read_checkpoint(tmp_path / 'model_best.pth.tar')['epoch'] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['last.pth.tar', 'model_best.pth.tar', 'previous.pth.tar']


def test_what_says_that_it_was_the_best_is_not_there_before_the_best(tmp_path):
    save_checkpoint(tmp_path, state(0))
    (tmp_path / 'model_best.pth.tar').mkdir()  # so that it cannot be written
    with pytest.raises(UnwritableFileError):
        save_checkpoint(tmp_path, state(1), best=True)
    assert number(tmp_path) == 0


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_passed_over(tmp_path, caplog, share):
    save_checkpoint(tmp_path, state(0))
    save_checkpoint(tmp_path, state(1))
    last = tmp_path / 'last.pth.tar'
    last.write_bytes(last.read_bytes()[:int(share * last.stat().st_size)])
    assert number(tmp_path) == 0
    assert 'last.pth.tar is not a whole checkpoint; an older one is used' in caplog.text


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    save_checkpoint(tmp_path, state(0))
    save_checkpoint(tmp_path, state(1))
    last = tmp_path / 'last.pth.tar'
    content = bytearray(last.read_bytes())
    at = content.find(torch.ones(8).numpy().tobytes()) + 5
    content[at] ^= 4
    last.write_bytes(content)
    assert not is_whole(last)
    with pytest.raises(CheckpointError, match='not a whole checkpoint'):
        read_checkpoint(last)
    assert number(tmp_path) == 0


def test_between_the_two_renames_nothing_is_lost(tmp_path):
    save_checkpoint(tmp_path, state(0))
    save_checkpoint(tmp_path, state(1))
    os.replace(tmp_path / 'last.pth.tar', tmp_path / 'new-last.pth.tar')  # as if killed after the first rename
    assert number(tmp_path) == 1
    save_checkpoint(tmp_path, state(2))
    assert number(tmp_path) == 2


def test_where_only_the_best_is_left_the_run_continues_from_it(tmp_path):
    for i in range(3):
        save_checkpoint(tmp_path, state(i), best=i == 0)
    (tmp_path / 'last.pth.tar').write_bytes(b'')
    (tmp_path / 'previous.pth.tar').unlink()
    assert newest_whole(tmp_path) == tmp_path / 'model_best.pth.tar'
    with pytest.raises(ValueError, match='holds a run already; --resume auto continues it, and --experiment names'):
        checkpoint_of(Namespace(resume=None), tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save({'weights': 1}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='it has no state_dict'):
        read_checkpoint(tmp_path / 'other.pth')
    torch.save({'state_dict': {}, 'model': torch.nn.Flatten()}, tmp_path / 'whole.pth')
    with pytest.raises(CheckpointError, match=r'has plain data alone: .*Flatten was not an allowed global by default$'):
        read_checkpoint(tmp_path / 'whole.pth')
    with pytest.raises(CheckpointError, match='is a folder; name a checkpoint in it, such as'):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match='there is no checkpoint'):
        read_checkpoint(tmp_path / 'nothing.pth')


def _save_with_limit(folder, limit, answers):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for write in (lambda: save_checkpoint(folder, state(1, size=100_000)),
                  lambda: write_atomically(folder / 'table.csv', bytes(200_000))):
        try:
            write()
            answers.put('')
        except UnwritableFileError as error:
            answers.put(str(error))


def test_files_that_cannot_grow_leave_those_before(tmp_path):
    save_checkpoint(tmp_path, state(0))
    write_atomically(tmp_path / 'table.csv', b'a,b')
    context = multiprocessing.get_context('forkserver')
    answers = context.Queue()
    process = context.Process(target=_save_with_limit, args=(tmp_path, 100_000, answers))
    process.start()
    for _ in range(2):
        assert 'cannot be written: [Errno 27] File too large; earlier files are unchanged' in answers.get(timeout=60)
    process.join()
    assert number(tmp_path) == 0
    assert (tmp_path / 'table.csv').read_bytes() == b'a,b'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['last.pth.tar', 'table.csv']


def test_a_full_disk_leaves_the_checkpoint_before(small_disk):
    save_checkpoint(small_disk, state(0, size=1_200_000))  # 4.8 of 8 MiB
    with pytest.raises(UnwritableFileError, match='No space left on device; earlier files are unchanged'):
        save_checkpoint(small_disk, state(1, size=1_200_000))
    assert number(small_disk) == 0
    assert [p.name for p in small_disk.iterdir()] == ['last.pth.tar']
