"""A run's folder, as timm's CheckpointSaver leaves it, is shared as the model that it measured."""

import argparse
import json
from collections import OrderedDict

import pytest
import timm
import torch
from parity import images, randomised
from timm.utils import CheckpointSaver, ModelEmaV3, update_summary

from timm_se_plugin import AttentionSpec, push_to_hub
from timm_se_plugin.weights import convert_file, write_model
from timm_se_plugin.weights.runs import read_run


def run(folder, name='se_test_resnet_plugin', model=None, ema=None, **args):
    """The folder after three epochs, of which the second was the best."""
    args = argparse.Namespace(**{
        'model': name, 'num_classes': 5, 'model_kwargs': {}, 'pretrained': False, 'data_dir': '/home/somebody/flowers',
        'dataset': '', 'epochs': 3, 'opt': 'sgd', 'lr': 0.1, 'mean': [0.2, 0.3, 0.4], 'config': '/home/x/short.yaml',
        'lr_base': 0.5, 'seed': 0, 'mixup': 0.0, **args})
    model = model or randomised(timm.create_model(name, num_classes=args.num_classes, **args.model_kwargs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(model, optimizer, args, model_ema=ema, checkpoint_dir=str(folder), recovery_dir=str(folder))
    weights = None
    for epoch, top1 in enumerate((50.0, 70.0, 60.0)):
        with torch.no_grad():
            model.fc.bias.fill_(epoch)
        if epoch == 1:
            weights = {key: value.clone() for key, value in model.state_dict().items()}
        update_summary(epoch, OrderedDict(loss=1.0), OrderedDict(top1=top1), str(folder / 'summary.csv'),
                       write_header=epoch == 0)
        saver.save_checkpoint(epoch, metric=top1)
    return weights


def test_the_best_epoch_is_shared_with_its_row(hub, tmp_path):
    weights = run(tmp_path)
    shared = push_to_hub(tmp_path, 'me/flowers')
    model = timm.create_model('hf-hub:me/flowers', pretrained=True)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert tuple(model.pretrained_cfg['mean']) == (0.2, 0.3, 0.4)
    card = shared.texts['README.md']
    assert '| 2 of 3 | 1.0 | 70.0 |' in card
    assert '`short`: epochs 3, opt sgd, lr 0.1, seed 0' in card
    assert '## Data\n\nflowers' in card
    assert not any('somebody' in text or '/home' in text for text in shared.texts.values())
    from timm_se_plugin.weights.facts import Facts
    card = push_to_hub(tmp_path, 'me/flowers', Facts(data='17 kinds of flowers'), dry_run=True).texts['README.md']
    assert '17 kinds of flowers' in card
    assert '| 70.0 |' in card


def test_the_averaged_weights_are_those_that_were_measured(tmp_path):
    model = randomised(timm.create_model('se_test_resnet_plugin', num_classes=5))
    ema = ModelEmaV3(model)
    with torch.no_grad():
        ema.module.fc.bias.fill_(9.0)
    run(tmp_path, model=model, ema=ema)
    assert float(read_run(tmp_path).model.fc.bias[0].detach()) == 9


def test_attention_that_plain_weights_gained_keeps_its_gate(tmp_path):
    name, kwargs = 'resnet18_plugin', {'attn': 'se', 'layers': [1, 1, 1, 1]}
    trained = randomised(timm.create_model(name, attn_init='identity', num_classes=5, **kwargs))
    run(tmp_path, name, trained, pretrained=True, model_kwargs=kwargs)
    model = read_run(tmp_path).model
    assert AttentionSpec.of(model).gate == 'double_sigmoid'
    with torch.no_grad():
        trained.fc.bias.fill_(1)
        x = images(2, 3, 64, 64, dtype=torch.float32)
        assert torch.equal(model.eval()(x), trained.eval()(x))


def test_the_pooling_of_timms_trainer_is_that_of_the_model(tmp_path):
    name = 'se_test_resnet_plugin'
    trained = randomised(timm.create_model(name, num_classes=5, global_pool='max'))
    run(tmp_path, name, trained, gp='max')
    assert read_run(tmp_path).model.global_pool.pool_type == 'max'


def test_the_batch_norm_options_of_timms_trainer_are_those_of_the_model(tmp_path):
    name = 'mobilenetv3_small_050'
    trained = randomised(timm.create_model(name, num_classes=5, bn_eps=0.1, bn_momentum=0.2)).eval()
    args = argparse.Namespace(model=name, num_classes=5, bn_eps=0.1, bn_momentum=0.2)
    torch.save({'state_dict': trained.state_dict(), 'args': args}, tmp_path / 'last.pth.tar')
    model = read_run(tmp_path).model.eval()
    assert (model.bn1.eps, model.bn1.momentum) == (0.1, 0.2)
    with torch.no_grad():
        x = images(2, 3, 64, 64, dtype=torch.float32)
        assert torch.equal(model(x), trained(x))


def test_the_tags_preprocessing_and_the_learning_rate_of_a_batch_size_are_told(tmp_path):
    name = 'inception_v3_plugin.gluon_in1k'
    run(tmp_path, name, pretrained=True, mean=None, lr=None, lr_base=0.1, lr_base_size=256)
    found = read_run(tmp_path)
    assert found.data_config['mean'] == (0.485, 0.456, 0.406)
    assert 'lr_base 0.1, lr_base_size 256' in found.facts.recipe


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    assert read_run(tmp_path) is None
    torch.save({'state_dict': {'a': torch.zeros(1)}}, tmp_path / 'last.pth.tar')
    with pytest.raises(ValueError, match='does not say which model it belongs to'):
        push_to_hub(tmp_path, 'me/a', dry_run=True)
    for name, said in (('resnet1', 'the model resnet1 is unknown; did you mean'),
                       ('test_resnet', r'last\.pth\.tar does not fit test_resnet, .*: missing .*; unexpected a$')):
        torch.save({'state_dict': {'a': torch.zeros(1)}, 'args': argparse.Namespace(model=name)},
                   tmp_path / 'last.pth.tar')
        with pytest.raises(ValueError, match=said):
            read_run(tmp_path)
    (tmp_path / 'last.pth.tar').write_bytes(b'half')
    with pytest.raises(ValueError, match='is broken, or not a file of weights'):
        push_to_hub(tmp_path, 'me/a', dry_run=True)


def test_a_run_of_a_saved_model_says_that_it_needs_that_model(tmp_path):
    model = write_model(timm.create_model('se_test_resnet_plugin', num_classes=5), tmp_path / 'base')
    run(tmp_path, f"local-dir:{tmp_path / 'base'}", model)
    assert AttentionSpec.of(read_run(tmp_path).model) == AttentionSpec.of(model)
    (tmp_path / 'base').rename(tmp_path / 'moved')
    said = r'model_best\.pth\.tar is of a training that began with local-dir:.*base, .*cannot be read: .*; a folder has'
    with pytest.raises(FileNotFoundError, match=said):
        read_run(tmp_path)


def test_the_classes_of_a_training_go_along_by_name(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import TINY, save_digits

    from timm_se_plugin.training import parse_options, train_classifier
    data = save_digits(tmp_path / 'digits')
    train_classifier(parse_options([
        *TINY, '--data-dir', str(data), '--output', str(tmp_path), '--experiment', 'run', '--epochs', '1']))
    shared = push_to_hub(tmp_path / 'run', 'me/digits', dry_run=True)
    assert json.loads(shared.texts['config.json'])['label_names'] == list('0123456789')


def test_classes_behind_the_names_of_the_data_are_called_by_their_numbers(tmp_path):
    model = timm.create_model('test_resnet', num_classes=4)
    for names, expected in ((['cat', 'dog'], ['cat', 'dog', '2', '3']), (list('abcde'), None)):
        torch.save({'state_dict': model.state_dict(), 'label_names': names, 'epoch': 0,
                    'args': argparse.Namespace(model='test_resnet', num_classes=4)}, tmp_path / 'last.pth.tar')
        assert read_run(tmp_path).label_names == expected
        convert_file(tmp_path / 'last.pth.tar', 'test_resnet_plugin', tmp_path / 'converted')
        says = json.loads((tmp_path / 'converted' / 'config.json').read_text(encoding='utf-8'))
        assert says.get('label_names') == expected


def test_attention_that_a_saved_model_gained_is_that_of_the_run(tmp_path):
    write_model(timm.create_model('test_resnet_plugin', num_classes=5), tmp_path / 'base')
    name = f"local-dir:{tmp_path / 'base'}"
    trained = timm.create_model(name, pretrained=True, attn='se')
    run(tmp_path, name, trained, model_kwargs={'attn': 'se'}, pretrained=True)
    assert AttentionSpec.of(trained).init == 'identity'
    assert AttentionSpec.of(read_run(tmp_path).model) == AttentionSpec.of(trained)


@pytest.mark.parametrize('is_there', [True, False])
def test_weights_of_a_moved_saved_model_are_evaluated_with_the_model_that_is_named(tmp_path, is_there):
    """As timm's train.py writes them, without a description of the network."""
    pytest.importorskip('yaml', reason='the [train] extra')
    from timm_se_plugin.training import parse_evaluation
    write_model(timm.create_model('test_resnet_plugin', num_classes=5), tmp_path / 'base')
    name, moved = f"local-dir:{tmp_path / 'base'}", f"local-dir:{tmp_path / 'moved'}"
    trained = timm.create_model(name, pretrained=True, attn='se')
    run(tmp_path, name, trained, model_kwargs={'attn': 'se'}, pretrained=True)
    (tmp_path / 'base').rename(tmp_path / 'moved')
    model = moved if is_there else 'test_resnet_plugin'
    options = parse_evaluation(['--checkpoint', str(tmp_path / 'last.pth.tar'), '--model', model])
    assert options.model_kwargs.get('attn_init') == ('identity' if is_there else None)


def test_a_run_does_not_need_the_saved_model_it_began_with(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import TINY, save_digits

    from timm_se_plugin.analysis.pruning_study import pruning_study
    from timm_se_plugin.training import evaluate_classifier, parse_evaluation, parse_options, train_classifier
    write_model(timm.create_model('test_resnet_plugin', num_classes=10), tmp_path / 'base')
    options = [*TINY, '--data-dir', str(save_digits(tmp_path / 'digits')), '--output', str(tmp_path), '--experiment',
               'run', '--model', f"local-dir:{tmp_path / 'base'}", '--pretrained', '--model-kwargs', 'attn=se']
    found = train_classifier(parse_options([*options, '--epochs', '1']))
    (tmp_path / 'base').rename(tmp_path / 'moved')
    last = tmp_path / 'run' / 'last.pth.tar'
    metrics = evaluate_classifier(parse_evaluation(['--checkpoint', str(last), '--device', 'cpu']))
    assert metrics['top1'] == pytest.approx(found['top1'])
    for name in (f"local-dir:{tmp_path / 'moved'}", 'test_resnet_plugin'):
        metrics = evaluate_classifier(parse_evaluation(['--checkpoint', str(last), '--device', 'cpu', '--model', name]))
        assert metrics['top1'] == pytest.approx(found['top1'])
    assert pruning_study(last, [0.5], ['mean'], 0, 0.1, tmp_path / 'table.csv', tmp_path / 'pruned')[0]['top1'] == (
        pytest.approx(found['top1']))
    train_classifier(parse_options([*options, '--epochs', '2', '--resume', 'auto']))
    expected = AttentionSpec('se', init='identity')
    assert AttentionSpec.of(read_run(tmp_path / 'run').model).differences(expected) == {}
    convert_file(last, 'test_resnet_plugin', tmp_path / 'converted')
    assert AttentionSpec.of(timm.create_model(f"local-dir:{tmp_path / 'converted'}")).differences(expected) == {}
    with pytest.raises(ValueError, match='compute different functions'):
        convert_file(last, 'test_resnet_plugin', tmp_path / 'other', attn='se')
    assert str(tmp_path) not in push_to_hub(tmp_path / 'run', 'me/digits', dry_run=True).texts['config.json']


@pytest.mark.parametrize(('args', 'upright'), [
    ({}, False), ({'exif_orientation': False}, False), ({'exif_orientation': True}, None), (None, None)])
def test_the_way_that_a_training_read_its_pictures_goes_along(args, upright, tmp_path):
    """timm's trainer and release 0.1.0 have no such option, and read pictures as they are stored."""
    state = timm.create_model('test_resnet', num_classes=4).state_dict()
    run = {} if args is None else {'args': argparse.Namespace(model='test_resnet', num_classes=4, **args), 'epoch': 0}
    torch.save({'state_dict': state, **run}, tmp_path / 'last.pth.tar')
    if run:
        assert read_run(tmp_path).model_config.get('upright') is upright
    convert_file(tmp_path / 'last.pth.tar', 'test_resnet_plugin', tmp_path / 'converted')
    assert json.loads((tmp_path / 'converted' / 'config.json').read_text(encoding='utf-8')).get('upright') is upright
