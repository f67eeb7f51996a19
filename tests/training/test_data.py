import gzip
import hashlib
import http.server
import random
import struct
import threading
from functools import partial

import numpy as np
import pytest
import torch
from digit_runs import save_digits
from filelock import FileLock
from PIL import Image

from timm_se_plugin.training import parse_options
from timm_se_plugin.training.augmentation import train_transforms
from timm_se_plugin.training.images import UnreadableImageError
from timm_se_plugin.training.loaders import eval_loader, train_loader
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.splits import class_names, open_split

CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear',
          'crop_pct': 1.0, 'crop_mode': 'center'}


def options(digits, *arguments):
    return parse_options(['--data-dir', str(digits), '--batch-size', '16', '--workers', '0', *arguments])


def loader(digits, *arguments, rank=0, world_size=1, training=True):
    given = options(digits, *arguments)
    split = given.train_split if training else given.val_split
    make = train_loader if training else eval_loader
    return make(given, open_split(given, split, training), CONFIG, Process(torch.device('cpu'), rank, world_size))


def batches(*args, epoch=0, start=0, **kwargs):
    return [(x.clone(), y.clone()) for x, y in loader(*args, **kwargs)(epoch, start)]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True))


def test_workers_do_not_change_the_batches(digits):
    assert same(batches(digits), batches(digits, '--workers', '2'))


@pytest.mark.parametrize('mode', ['rrc', 'pad'])
def test_an_epoch_continues_in_the_middle_as_if_it_had_not_stopped(digits, mode):
    whole = batches(digits, '--train-crop-mode', mode, epoch=3)
    assert same(whole[4:], batches(digits, '--train-crop-mode', mode, epoch=3, start=4))


def test_another_epoch_or_seed_brings_other_batches(digits):
    first = batches(digits)
    assert not same(first, batches(digits, epoch=1))
    assert not same(first, batches(digits, '--seed', '1'))


def test_two_processes_see_together_what_one_sees(digits):
    one = batches(digits)
    two = [batches(digits, '--batch-size', '8', rank=rank, world_size=2) for rank in (0, 1)]
    for (x, y), (x0, y0), (x1, y1) in zip(one, *two, strict=True):
        assert torch.equal(torch.stack([x0, x1], 1).flatten(0, 1), x)
        assert torch.equal(torch.stack([y0, y1], 1).flatten(), y)


def test_loading_leaves_the_random_generators_alone(digits):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    batches(digits)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


@pytest.mark.parametrize('name', ['foo', 'rand-x1', 'rand-n1.5', 'original-x1'])
def test_an_augmentation_that_timm_does_not_have_is_a_message(name):
    with pytest.raises(ValueError, match=f'--aa {name} is not an augmentation of timm, such as rand-m7'):
        train_transforms(parse_options(['--aa', name]), CONFIG)


@pytest.mark.parametrize('name', ['rand-m10-mstd0-inc1', 'rand-m9-mstd2-inc1', 'rand-m0', 'v0'])
def test_an_augmentation_that_keeps_no_bits_of_an_image_ends_no_run(digits, name):
    with Image.open(next(digits.glob('train/*/*.png'))) as image:
        transform = train_transforms(parse_options(['--aa', name, '--hflip', '0']), CONFIG)(0)
        seen = []
        for seed in range(100):
            random.seed(seed)
            np.random.seed(seed)
            seen.append(transform(image))
    assert any(not part.any() for part in seen)  # black, as before Pillow 13


@pytest.mark.parametrize('mode', ['rrc', 'pad'])
def test_training_sees_smaller_images_than_evaluation(digits, mode):
    small = ('--train-crop-mode', mode, '--train-img-size', '24', '--epochs', '5', '--full-size-epochs', '2')
    sizes = [{x.shape[-1] for x, _ in batches(digits, *small, epoch=epoch)} for epoch in (2, 3)]
    assert sizes == [{24}, {32}]
    assert {x.shape[-1] for x, _ in batches(digits, *small, training=False)} == {32}


@pytest.mark.parametrize(('mode', 'given', 'expected'), [
    ('--no-aug', (), 'lanczos'), ('--no-aug', ('--interpolation', 'bicubic'), 'bicubic'),
    ('--train-crop-mode=pad', (), 'bilinear'), ('--train-crop-mode=pad', ('--interpolation', 'bicubic'), 'bicubic')])
def test_images_that_are_only_resized_have_one_interpolation(mode, given, expected):
    transform = train_transforms(parse_options([mode, *given]), {**CONFIG, 'interpolation': 'lanczos'})(0)
    assert transform.transforms[0].interpolation.value == expected


def test_a_padded_crop_is_a_part_of_the_whole_image(digits):
    whole, parts = (torch.cat([x for x, _ in batches(
        digits, '--train-crop-mode', 'pad', '--crop-padding', '0', '--hflip', '0', '--train-img-size', size)])
        for size in ('32', '24'))
    for one, part in zip(whole, parts, strict=True):
        windows = one.unfold(1, 24, 1).unfold(2, 24, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (windows == part).flatten(1).all(1).any()


def test_padded_crops_take_timms_other_augmentation(digits):
    pad = ('--train-crop-mode', 'pad', '--hflip', '0', '--crop-padding', '0')
    upright, upside_down = (torch.cat([x for x, _ in batches(digits, *pad, '--vflip', p)]) for p in ('0', '1'))
    assert torch.equal(upside_down, upright.flip(2))
    names = [type(t).__name__ for t in loader(digits, *pad, '--aa', 'rand-m7').dataset.transforms(0).transforms]
    assert names == ['Resize', 'RandomCrop', 'RandAugment', 'MaybePILToTensor']


def test_a_crop_larger_than_the_padded_image_is_refused(digits):
    with pytest.raises(ValueError, match='pad cannot cut 33 pixels out of an image that has 32'):
        loader(digits, '--train-crop-mode', 'pad', '--train-img-size', '33')


def test_last_epochs_at_the_size_of_all_are_refused(digits):
    with pytest.raises(ValueError, match='--full-size-epochs 2 needs --train-img-size'):
        loader(digits, '--full-size-epochs', '2')


def test_images_kept_in_memory_are_the_same(tmp_path):
    data = save_digits(tmp_path)
    expected = batches(data, epoch=1)
    kept = loader(data, '--cache-images')
    list(kept(0))
    for path in data.glob('train/*/*.png'):
        path.unlink()
    assert same([(x.clone(), y.clone()) for x, y in kept(1)], expected)


def test_repeated_augmentation_shows_an_image_several_times_differently(digits):
    x, y = zip(*batches(digits, '--aug-repeats', '3'), strict=True)
    first = torch.cat(x)[0:3]
    assert torch.cat(y)[0:3].unique().numel() == 1
    assert not torch.equal(first[0], first[1])


def test_repeated_augmentation_of_few_images_leaves_out_none_but_its_share(tmp_path):
    data = save_digits(tmp_path, train=511, val=1)
    order = loader(data, '--aug-repeats', '3').batches.order
    assert len(order) == 511
    assert len(set(order)) == 171  # a third, rounded up


@pytest.mark.parametrize('more', [(), ('--aug-repeats', '3')])
def test_the_order_of_the_images_depends_on_the_seed(digits, more):
    orders = [[loader(digits, '--seed', seed, *more).batches.indices(batch) for batch in range(6)] for seed in '121']
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


@pytest.mark.parametrize('world_size', [1, 3, 4])
def test_evaluation_sees_every_image_once_however_many_processes(digits, world_size):
    seen = [x for rank in range(world_size)
            for x, _ in batches(digits, rank=rank, world_size=world_size, training=False)]
    expected = torch.cat([x for x, _ in batches(digits, training=False)])
    seen = torch.cat(seen)
    assert len(seen) == 50
    assert sorted(map(tuple, seen.flatten(1).tolist())) == sorted(map(tuple, expected.flatten(1).tolist()))


@pytest.fixture
def broken(tmp_path):
    """Digits, of which one training and one validation image are cut off."""
    save_digits(tmp_path, train=40, val=20)
    for split in ('train', 'val'):
        path = sorted((tmp_path / split / '3').glob('*.png'))[0]
        path.write_bytes(path.read_bytes()[:60])
    return tmp_path


@pytest.mark.parametrize('workers', ['0', '1'])
def test_a_corrupt_image_ends_the_run_with_its_name(broken, workers):
    name = sorted((broken / 'train' / '3').glob('*.png'))[0].name
    with pytest.raises(UnreadableImageError, match=rf'^3/{name} cannot be read: .*; --corrupt-images skip .*$'):
        batches(broken, '--workers', workers)


@pytest.mark.parametrize('content', [
    b'P6 x 1 255\n', b'II*\0\x08\0\0\0\x01\0', b'P6 100000 100000 255\n'],
    ids=['ValueError', 'struct.error', 'DecompressionBombError'])
def test_whatever_pil_raises_the_image_is_named(broken, content):
    path = sorted((broken / 'train' / '3').glob('*.png'))[0]
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf'3/{path.name} cannot be read'):
        batches(broken)
    assert len(batches(broken, '--corrupt-images', 'skip')) == 2


def test_a_corrupt_image_is_named_and_replaced_in_training(broken, caplog):
    seen = batches(broken, '--corrupt-images', 'skip')
    assert [len(y) for _, y in seen] == [16, 16]
    assert 'cannot be read' in caplog.text
    assert '.png' in caplog.text


def test_a_corrupt_image_does_not_count_in_evaluation(broken, caplog):
    y = torch.cat([y for _, y in batches(broken, '--corrupt-images', 'skip', training=False)])
    assert len(y) == 20
    assert int((y < 0).sum()) == 1
    assert 'it is left out' in caplog.text


def test_no_image_at_all_is_an_error(broken):
    for path in broken.glob('train/*/*.png'):
        path.write_bytes(b'')
    with pytest.raises(UnreadableImageError, match='10 images in a row cannot be read'):
        batches(broken, '--corrupt-images', 'skip')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # timm's reader leaves the file open
def test_tar_files_of_the_splits_are_found(digits, tmp_path):
    import shutil
    for split in ('train', 'val'):
        shutil.make_archive(str(tmp_path / split), 'tar', digits / split)
    assert same(batches(tmp_path), batches(digits))
    assert class_names(open_split(options(tmp_path), 'validation', False)) == [str(i) for i in range(10)]


@pytest.mark.parametrize(('left', 'asked'), [('train', 'validation'), ('val', 'train'), ('val', 'tset')])
def test_a_missing_split_is_not_made_of_the_others(digits, tmp_path, left, asked):
    (tmp_path / left).symlink_to(digits / left)
    with pytest.raises(ValueError, match=f"has no split '{asked}'; it has {left}. Give the name of a split that it "
                                         f"has, or evaluate .* by --data-dir {tmp_path}/{left} --val-share 0.2$"):
        open_split(options(tmp_path), asked, training=False)


def test_a_slice_of_a_folder_is_refused(digits):
    with pytest.raises(ValueError, match=r'a slice such as train\[:10%\] is for data sets of tfds/ and hfds/'):
        loader(digits, '--train-split', 'train[:10%]')


def test_a_folder_without_splits_is_all_of_them(digits, tmp_path):
    assert len(open_split(options(digits / 'val'), 'validation', training=False)) == 50
    for name in ('train', 'car'):  # classes
        (tmp_path / name).symlink_to(digits / 'val' / '3')
    assert class_names(open_split(options(tmp_path), 'validation', training=False)) == ['car', 'train']


def test_networks_for_one_channel_see_grey_images(digits):
    given = options(digits)
    config = {**CONFIG, 'input_size': (1, 32, 32), 'mean': (0.5,), 'std': (0.5,)}
    for make, training in ((train_loader, True), (eval_loader, False)):
        made = make(given, open_split(given, 'train', training), config, Process(torch.device('cpu')))
        grey = next(iter(made()))[0]
        colour, _ = batches(digits, '--val-split', 'train', training=training)[0]
        torch.testing.assert_close(grey, colour[:, :1], rtol=0, atol=0.02)  # the digits are grey


@pytest.mark.parametrize(('name', 'said'), [
    ('torch/cifar10', r'Dataset not found .*; --dataset-download downloads most of these data sets into --data-dir'),
    ('torch/cifar', r'Unknown torchvision dataset cifar'), ('torch/imagenet', 'not present in the root directory'),
    ('wds/digits', r'split train not found .*; --train-split, --val-split, --train-num-samples and')])
def test_data_that_is_not_there_is_named_with_the_option_that_brings_it(tmp_path, name, said):
    if name.startswith('wds'):
        pytest.importorskip('webdataset', reason='streams need webdataset: the [train] extra')
    given = parse_options(['--dataset', name, '--data-dir', str(tmp_path)])
    with pytest.raises((ValueError, OSError), match=said):
        open_split(given, 'train', training=True)


def test_missing_data_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r'there is nothing at --data-dir .*nowhere; --data-dir takes the folder'):
        loader(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='--dataset torch/cifar100 needs --data-dir'):
        open_split(parse_options(['--config', 'cifar100']), 'train', training=True)


def test_a_step_larger_than_the_data_is_refused(digits):
    with pytest.raises(ValueError, match=r'96 training images are fewer than the 400 .*; give a smaller --batch-size'):
        loader(digits, '--batch-size', '100', '--grad-accum-steps', '2', world_size=2)


def test_processes_that_download_into_one_folder_take_turns(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST
    hub, folder = tmp_path / 'hub', tmp_path / 'data'
    hub.mkdir()
    resources = []
    for name, header, size in (('images-idx3', (3, 2, 28, 28), 2 * 28 * 28), ('labels-idx1', (1, 2), 2)):
        for split in ('train', 't10k'):
            magic, *shape = header
            content = gzip.compress(struct.pack(f'>{1 + len(shape)}i', 0x800 + magic, *shape) + bytes(size))
            (hub / f'{split}-{name}-ubyte.gz').write_bytes(content)
            resources.append((f'{split}-{name}-ubyte.gz', hashlib.md5(content).hexdigest()))
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(http.server.SimpleHTTPRequestHandler, directory=str(hub)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(MNIST, 'mirrors', [f'http://127.0.0.1:{server.server_port}/'])
    monkeypatch.setattr(MNIST, 'resources', resources)
    given, found = parse_options(['--dataset', 'torch/mnist', '--dataset-download', '--data-dir', str(folder)]), []
    folder.mkdir()
    with FileLock(folder / '.download.lock'):  # another process downloads
        other = threading.Thread(target=lambda: found.append(open_split(given, 'train', training=True)))
        other.start()
        other.join(1)
        assert other.is_alive()
        assert not (folder / 'MNIST').exists()
    other.join()
    server.shutdown()
    server.server_close()
    assert len(found[0]) == 2
