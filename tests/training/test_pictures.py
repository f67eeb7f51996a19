"""A picture is what its file says: its orientation, its depth, its channels."""

from io import BytesIO

import numpy as np
import pytest
import timm
import torch
from digit_runs import TINY
from PIL import Image
from spoiled import PICTURES, save_colours, saved_anew, sixteen_bits

from timm_se_plugin.files.pictures import Picture
from timm_se_plugin.sharing.push import push_to_hub
from timm_se_plugin.training import evaluate_classifier, parse_evaluation, parse_options, train_classifier
from timm_se_plugin.training.augmentation import train_transforms
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.training.config import different_options, options_of
from timm_se_plugin.training.images import UnreadableImageError
from timm_se_plugin.training.loaders import eval_loader
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.splits import open_split
from timm_se_plugin.weights.runs import read_run

CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear',
          'crop_pct': 1.0, 'crop_mode': 'center'}


@pytest.fixture
def colours(tmp_path):
    return save_colours(tmp_path / 'data', train=8, val=2)


def seen(colours, *arguments, **config):
    """What a network sees of the validation pictures."""
    options = parse_options(['--data-dir', str(colours), '--batch-size', '16', '--workers', '0', *arguments])
    loader = eval_loader(options, open_split(options, 'validation', training=False), {**CONFIG, **config},
                         Process(torch.device('cpu')))
    return torch.cat([x for x, _ in loader()])


@pytest.mark.parametrize('turned', [0, 3])
@pytest.mark.parametrize('ending', ['.png', '.tif'])
def test_pictures_are_upright_unless_it_is_asked_for_timms_way(colours, turned, ending):
    expected = seen(colours)
    path = sorted(colours.glob('validation/*/*.png'))[turned]
    saved_anew(path, ending=ending)
    PICTURES['upright by its tag'](path.with_suffix(ending))
    torch.testing.assert_close(seen(colours), expected, rtol=0, atol=0)
    if ending == '.png':  # Pillow always turns TIFF
        assert torch.equal(seen(colours, '--no-exif-orientation')[turned], expected[turned].rot90(1, (1, 2)))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_is_pillows(orientation):
    from PIL import ImageOps
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype='uint8'))
    picture.getexif()[0x0112] = orientation
    file = BytesIO()
    picture.save(file, 'PNG', exif=picture.getexif())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert np.array_equal(np.asarray(Picture('RGB')(Image.open(file))), expected)


def test_a_run_keeps_the_way_that_it_began_with(tmp_path):
    now = vars(parse_options([]))
    old = options_of({'args': parse_options(['--no-exif-orientation'])})
    assert different_options(old, now) == ['exif_orientation=True (was False)']
    del (args := parse_options([])).exif_orientation  # as in a checkpoint of timm or of an earlier release
    assert not options_of({'args': args})['exif_orientation']
    torch.save({'state_dict': timm.create_model('test_resnet').state_dict(), 'args': args}, tmp_path / 'old.pth.tar')
    assert not parse_evaluation(['--checkpoint', str(tmp_path / 'old.pth.tar')]).exif_orientation
    assert parse_evaluation([]).exif_orientation


@pytest.mark.parametrize('low', [0, 255])
@pytest.mark.parametrize('ending', ['.png', '.tif', '.pgm'])
def test_16_bits_are_scaled_to_8(colours, low, ending):
    for path in colours.glob('validation/*/*.png'):
        saved_anew(path, lambda picture: picture.convert('L'))
    expected = seen(colours)
    assert expected.std() > 0.01
    for path in colours.glob('validation/*/*.png'):
        saved_anew(path, lambda picture: sixteen_bits(picture, low), ending)
    torch.testing.assert_close(seen(colours), expected, rtol=0, atol=0)


def test_pixels_without_a_known_range_are_refused_by_name(colours):
    path = colours / 'validation' / 'red' / '00.png'
    PICTURES['fractions'](path)
    with pytest.raises(UnreadableImageError, match=r'red/00\.tif cannot be read: its pixels are .* in mode F'):
        seen(colours)


def test_a_picture_that_cannot_be_cropped_is_named(colours):
    path = colours / 'validation' / 'red' / '00.png'
    PICTURES['narrow'](path)
    with pytest.raises(UnreadableImageError, match=r'red/00\.png cannot be read: '):
        seen(colours, crop_mode='border')
    assert seen(colours, '--corrupt-images', 'skip', crop_mode='border').shape[0] == 6


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA'])
def test_a_picture_in_lab_is_read_in_every_mode(mode):
    picture = Image.new('RGB', (2, 2), (200, 40, 90)).convert('LAB')
    assert Picture(mode)(picture).tobytes() == picture.convert('RGB').convert(mode).tobytes()


def run(data, folder, *arguments):
    return train_classifier(parse_options([
        *TINY, '--no-aug', '--epochs', '1', '--data-dir', str(data), '--output', str(folder.parent),
        '--experiment', folder.name, *arguments]))


@pytest.mark.parametrize('arguments', [
    ('--input-size', '1', '32', '32'), ('--model-kwargs', 'in_chans=1'),
    ('--input-size', '1', '32', '32', '--model-kwargs', 'in_chans=1')])
def test_size_and_network_have_the_same_channels_in_training_evaluation_and_sharing(
        colours, tmp_path, hub, arguments):
    if arguments[0] == '--input-size':
        arguments = (*arguments, '--crop-pct', '1')
    row = run(colours, tmp_path / 'run', '--model', 'se_resnet20_cifar_plugin', *arguments)
    checkpoint = str(tmp_path / 'run' / 'last.pth.tar')
    assert read_checkpoint(checkpoint)['args'].model_kwargs == {'in_chans': 1}
    assert evaluate_classifier(parse_evaluation(['--checkpoint', checkpoint]))['top1'] == row['top1']
    trained = read_run(tmp_path / 'run')
    assert trained.data_config['input_size'] == (1, 32, 32)
    of_colours = trained.model.pretrained_cfg
    for name in ('mean', 'std'):
        assert len(of_colours[name]) == 3
        assert trained.data_config[name] == pytest.approx((sum(of_colours[name]) / 3,))
    push_to_hub(tmp_path / 'run', 'user/grey')
    assert timm.create_model('hf-hub:user/grey', pretrained=True).pretrained_cfg['mean'] == pytest.approx(
        trained.data_config['mean'])


def test_a_size_and_a_network_of_other_channels_are_refused(colours, tmp_path):
    with pytest.raises(ValueError, match=r'--input-size 3 32 32 has 3 channels and the network takes 1; .*in_chans=3'):
        run(colours, tmp_path / 'run', '--input-size', '3', '32', '32', '--model-kwargs', 'in_chans=1')
    with pytest.raises(ValueError, match='takes 5 channels, and pictures are read with 1, 3 or 4'):
        run(colours, tmp_path / 'run', '--model-kwargs', 'in_chans=5')
    four = {**CONFIG, 'input_size': (4, 32, 32), 'mean': (0.5,) * 4, 'std': (0.5,) * 4}
    with pytest.raises(ValueError, match=r"--aa rand-m9 is for 1 or 3 channels, .* takes 4; --aa '' leaves it out"):
        train_transforms(parse_options(['--data-dir', str(colours), '--aa', 'rand-m9']), four)
    train_transforms(parse_options(['--config', 'imagenet-a2', '--data-dir', str(colours), '--aa', '']), four)


@pytest.mark.parametrize('channels', [1, 3])
def test_a_data_set_of_torchvision_is_read_in_the_networks_mode(tmp_path, channels):
    folder = tmp_path / 'MNIST' / 'raw'
    folder.mkdir(parents=True)
    pixels = torch.randint(256, (40, 28, 28), dtype=torch.uint8)
    for split in ('train', 't10k'):  # MNIST's own format
        (folder / f'{split}-images-idx3-ubyte').write_bytes(
            np.array([2051, 40, 28, 28], '>i4').tobytes() + pixels.numpy().tobytes())
        (folder / f'{split}-labels-idx1-ubyte').write_bytes(
            np.array([2049, 40], '>i4').tobytes() + (np.arange(40) % 10).astype('uint8').tobytes())
    size = () if channels == 3 else ('--input-size', '1', '32', '32')
    row = run(tmp_path, tmp_path / 'run', '--dataset', 'torch/mnist', *size)
    assert row['epochs'] == 1
