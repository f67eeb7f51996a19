import re

import pytest
import timm
import torch
from digit_runs import save_digits

from timm_se_plugin.training import (
    evaluate_classifier,
    list_recipes,
    parse_evaluation,
    parse_options,
    train_classifier,
)
from timm_se_plugin.training.config import different_options, own_options, read_recipe, run_columns
from timm_se_plugin.training.options import RECIPES
from timm_se_plugin.weights.runs import data_config


def recipe(folder, text):
    path = folder / 'mine.yaml'
    path.write_text(text)
    return str(path)


def test_the_command_line_stands_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    path = recipe(tmp_path, 'epochs: 7\nlr: 1e-3\namp: true\nmean: [0.5, 0.4, 0.3]\nmodel_kwargs: {attn: se}\n')
    options = parse_options(['--config', path, '--epochs', '9', '--no-amp'])
    assert (options.epochs, options.lr, options.amp, options.mean) == (9, 1e-3, False, [0.5, 0.4, 0.3])
    assert options.model_kwargs == {'attn': 'se'}
    assert options.momentum == parse_options([]).momentum


@pytest.mark.parametrize(('given', 'size'), [
    ([], [1, 28, 28]), (['--img-size', '32'], [1, 32, 32]), (['--input-size', '1', '24', '24'], [1, 24, 24]),
    (['--img-size', '32', '--input-size', '3', '24', '24'], [3, 24, 24])])
def test_an_image_size_stands_over_the_recipes_and_the_checkpoints(tmp_path, given, size):
    path = recipe(tmp_path, 'input_size: [1, 28, 28]\nmodel: resnet18\n')
    trained = parse_options(['--config', path])
    torch.save({'args': trained, 'state_dict': {'weight': torch.zeros(1)}}, tmp_path / 'last.pth.tar')
    model = timm.create_model('resnet18', in_chans=size[0])
    for options in (parse_options(['--config', path, *given]),
                    parse_evaluation(['--checkpoint', str(tmp_path / 'last.pth.tar'), *given])):
        assert list(data_config(vars(options), model)['input_size']) == size


def test_the_image_size_of_a_vit_is_the_one_that_it_was_made_for():
    model = timm.create_model('vit_tiny_patch16_224', depth=1, img_size=(32, 64), device='meta')
    assert data_config(vars(parse_options([])), model)['input_size'] == (3, 32, 64)
    assert data_config(vars(parse_options(['--img-size', '48'])), model)['input_size'] == (3, 48, 48)


def test_a_key_that_is_no_option_is_named_with_what_was_meant(tmp_path):
    with pytest.raises(ValueError, match=r"'weight_decy' in the recipe .* not an option; did you mean weight_decay\?"):
        parse_options(['--config', recipe(tmp_path, 'weight_decy: 1')])


@pytest.mark.parametrize('content', ['model: [a\nlr: 3', 'model: é'])
def test_a_file_that_is_not_yaml_is_named(tmp_path, content):
    (tmp_path / 'mine.yaml').write_text(content, encoding='latin-1')
    with pytest.raises(ValueError, match=r'^the recipe .*mine\.yaml is not YAML in UTF-8: '):
        parse_options(['--config', str(tmp_path / 'mine.yaml')])


def test_a_missing_recipe_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"'cifar' is neither a file nor a packaged recipe; the packaged .* cifar10,"):
        read_recipe('cifar')


def test_the_folder_of_a_run_in_the_place_of_a_recipe_is_told_its_recipe(tmp_path):
    (tmp_path / 'args.yaml').write_text('epochs: 1')
    with pytest.raises(ValueError, match=f'{tmp_path}. is the folder of a run; give {tmp_path}/args.yaml$'):
        read_recipe(str(tmp_path))


@pytest.mark.parametrize(('text', 'said'), [
    ('epochs: 0', '--epochs: .0. is not a positive integer'),
    ('smoothing: 2', '--smoothing: .2. is not a number from 0 to 1'),
    ('crop_pct: 320/0', 'is not a number above 0 and up to 1'),
    ('lr: -1', '--lr: .-1. is not a positive number'),
    ('lr: true', 'argument --lr: expected one argument'),
])
def test_values_of_a_recipe_are_checked_as_on_the_command_line(tmp_path, capsys, text, said):
    with pytest.raises(SystemExit):
        parse_options(['--config', recipe(tmp_path, text)])
    assert re.search(said, capsys.readouterr().err)


def test_augmentation_is_switched_off_and_on(tmp_path):
    assert parse_options(['--no-aug']).no_aug
    path = recipe(tmp_path, 'no_aug: true')
    assert parse_options(['--config', path]).no_aug
    assert not parse_options(['--config', path, '--no-no-aug']).no_aug
    assert not parse_options(['--config', recipe(tmp_path, 'no_aug: false')]).no_aug


def test_every_recipe_says_its_source_and_whether_it_was_run():
    for name in list_recipes():
        comment = (RECIPES / f'{name}.yaml').read_text().split('\nmodel')[0].lower()
        assert 'arxiv' in comment or 'from scratch' in comment, name
        assert 'not yet run' in comment or 'results/' in comment, name


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    """Eight digits, to train and to evaluate on."""
    folder = save_digits(tmp_path_factory.mktemp('few'), train=8, val=0)
    (folder / 'val').symlink_to(folder / 'train')
    return folder


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name == 'cifar10-short' else pytest.mark.slow)
    for name in list_recipes()])
@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated:FutureWarning')
def test_every_recipe_builds_its_network_and_runs_an_epoch(name, few, tmp_path):
    options = parse_options([
        '--config', name, '--dataset', '', '--data-dir', str(few), '--train-split', 'train', '--num-classes', '10',
        '--img-size', '32', '--batch-size', '4', '--validation-batch-size', '8', '--epochs', '1', '--workers', '0',
        '--warmup-epochs', '0', '--no-pin-mem', '--device', 'cpu', '--amp-dtype', 'bfloat16',
        '--output', str(tmp_path)])
    assert timm.is_model(options.model)
    row = train_classifier(options)
    model = timm.create_model(options.model, num_classes=10, device='meta', **options.model_kwargs)
    assert row['parameters'] == sum(p.numel() for p in model.parameters())
    checkpoint, = tmp_path.glob(f'{name}/*/last.pth.tar')
    evaluated = evaluate_classifier(parse_evaluation(['--checkpoint', str(checkpoint)]))
    assert (row['top1'], row['top5']) == (evaluated['top1'], evaluated['top5'])


def test_a_run_is_named_by_its_checkpoint_when_its_recipe_is_gone(tmp_path):
    path = recipe(tmp_path, 'lr: 0.3\n')
    options = parse_options(['--config', path, '--model', 'resnet18', '--data-dir', str(tmp_path / 'cells')])
    checkpoint = {'args': options, 'epoch': 4, 'position': {'world_size': 2, 'global_batch': 64}}
    named = run_columns(checkpoint)
    assert named == {'model': 'resnet18', 'options': '', 'seed': options.seed, 'epochs': 5, 'recipe': 'mine',
                     'data': 'cells', 'global_batch': 64}
    (tmp_path / 'mine.yaml').unlink()
    assert run_columns(checkpoint) == {**named, 'options': 'lr=0.3'}


def test_a_run_whose_fraction_was_rounded_otherwise_is_continued():
    now = parse_options(['--crop-pct', '224/400'])
    assert now.crop_pct != 0.56
    assert different_options({**vars(now), 'crop_pct': 0.56}, vars(now)) == []
    assert different_options({**vars(now), 'crop_pct': 0.57}, vars(now)) == [f'crop_pct={now.crop_pct!r} (was 0.57)']


def test_a_grey_run_that_its_own_args_yaml_continues_keeps_its_name(tmp_path):
    given = ['--model', 'resnet18', '--data-dir', str(tmp_path), '--input-size', '1', '28', '28']
    options = parse_options(given)
    path = recipe(tmp_path, 'model_kwargs: {in_chans: 1}\ninput_size: [1, 28, 28]\nmodel: resnet18\nconfig: null\n')
    again = parse_options(['--config', path, '--data-dir', str(tmp_path)])
    assert again.model_kwargs == {'in_chans': 1}
    assert own_options(again) == own_options(options) == 'input_size=[1, 28, 28]'


@pytest.mark.parametrize(('name', 'before', 'epochs'), [('cifar10', 82, 123), ('cifar100', 150, 225)])
def test_the_learning_rate_falls_after_as_many_epochs_as_in_the_paper(name, before, epochs):
    from timm.scheduler import create_scheduler
    options = parse_options(['--config', name])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, _ = create_scheduler(options, optimizer, 1)
    rates = []
    for epoch in range(options.epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch + 1)
    assert [rates.count(rate) for rate in sorted(set(rates), reverse=True)] == [
        before, epochs - before, options.epochs - epochs]


def test_a_seed_that_numpy_does_not_take_is_one_clear_error(capsys):
    with pytest.raises(SystemExit):
        parse_options(['--seed', str(2**32)])
    assert "argument --seed: '4294967296' is not an integer from 0 to 4294967295" in capsys.readouterr().err
