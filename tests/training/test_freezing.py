"""Parts of a network that a training leaves as they are."""

import pytest
import timm
import torch
import yaml
from digit_runs import TINY, equal, job, train, train_in_pieces, weights
from processes import finish, start_group

from timm_se_plugin.training import parse_options, train_classifier
from timm_se_plugin.training.freezing import freeze
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.run import Run
from timm_se_plugin.weights.folders import write_model


def options(digits, tmp_path, *arguments):
    return parse_options([*TINY, '--data-dir', str(digits), '--output', str(tmp_path), *arguments])


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Arguments that begin with saved weights, and these."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp('start') / 'weights'
    model = timm.create_model('se_test_resnet_plugin', num_classes=10)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    write_model(model, folder)
    return ('--model', f'local-dir:{folder}', '--pretrained'), model.state_dict()


def trained(model):
    """The first parts of the names of the parameters that are trained."""
    return {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(('what', 'expected'), [
    ('backbone', {'fc'}), ('0', {'layer1', 'layer2', 'layer3', 'layer4', 'fc'}), ('2', {'layer3', 'layer4', 'fc'}),
    ('4', {'fc'})])
def test_what_is_frozen_is_the_stem_and_stages_or_all_but_the_classifier(what, expected):
    model = timm.create_model('se_test_resnet_plugin')
    freeze(model, what)
    assert trained(model) == expected


@pytest.mark.parametrize('name', ['bn_inception_plugin', 'test_vit', 'test_efficientnet', 'densenet121'])
def test_other_families_are_frozen_by_their_groups(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    freeze(model, 'backbone')
    head = trained(model)
    freeze(model, '1')
    assert head < trained(model)
    assert not next(model.parameters()).requires_grad


def test_the_base_is_all_but_the_attention_and_the_classifier():
    model = timm.create_model('se_test_resnet_plugin')
    freeze(model, 'base')
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ('.se.' in name or name.startswith('fc.')), name


@pytest.mark.parametrize(('what', 'parts'), [
    pytest.param('backbone', ('fc.',), marks=pytest.mark.slow), ('base', ('fc.', '.se.')),
    pytest.param('2', ('fc.', 'layer3.', 'layer4.'), marks=pytest.mark.slow)])
def test_frozen_weights_and_statistics_stay_to_the_bit_and_a_resumed_run_is_the_same(
        digits, tmp_path, start, what, parts):
    arguments = (*start[0], '--freeze', what, '--model-ema', '--model-ema-decay', '0.5', '--warmup-epochs', '1',
                 '--sched-on-updates')
    train_classifier(options(digits, tmp_path, *arguments, '--experiment', 'whole', '--recovery-interval', '2'))
    whole = weights(tmp_path / 'whole')
    for found in (whole, weights(tmp_path / 'whole', ema=True)):
        changed = [name for name, before in start[1].items() if not torch.equal(found[name], before)]
        assert all(any(part in name for part in parts) for name in changed)
        assert all(any(part in name for name in changed) for part in parts)
    assert yaml.safe_load((tmp_path / 'whole' / 'args.yaml').read_text())['freeze'] == what
    train_in_pieces('--data-dir', str(digits), '--output', str(tmp_path), '--experiment', 'part', *arguments)
    assert equal(weights(tmp_path / 'part'), whole)
    with pytest.raises(ValueError, match=rf"other options than these: freeze=None \(was '{what}'\)"):
        Run(options(digits, tmp_path, *start[0], *arguments[5:], '--experiment', 'part', '--resume', 'auto'),
            Process(torch.device('cpu')))


@pytest.mark.slow
def test_three_processes_keep_the_statistics_to_the_bit(digits, tmp_path, start):
    # A third of a sum of three equal numbers is not always the number.
    this = job(tmp_path / 'run', '--data-dir', str(digits), *start[0], '--freeze', 'base', '--batch-size', '4',
               '--epochs', '1', '--model-ema')
    assert [finish(process) for process in start_group(train, this, this, this)] == [0, 0, 0]
    for ema in (False, True):
        found = weights(tmp_path / 'run', ema)
        changed = [name for name, before in start[1].items() if not torch.equal(found[name], before)]
        assert changed
        assert all('.se.' in name or name.startswith('fc.') for name in changed)


@pytest.mark.parametrize(('arguments', 'said'), [
    (('--freeze', '5'), '--freeze 5 is more stages than the 4 of this network; --freeze backbone freezes'),
    (('--freeze', 'base', '--model', 'test_resnet'), '--freeze base .* this network has none; --freeze backbone'),
    (('--freeze', 'backbone', '--attn-lr-scale', '2'), '--freeze backbone freezes it; --freeze base trains it')])
def test_what_cannot_be_frozen_is_refused(digits, tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        Run(options(digits, tmp_path, *arguments), Process(torch.device('cpu')))


def test_an_unknown_part_to_freeze_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_options(['--freeze', 'neck'])
    assert "'neck' is neither backbone nor base nor a number of stages" in capsys.readouterr().err


def test_random_weights_are_frozen_with_a_warning(digits, tmp_path, caplog):
    Run(options(digits, tmp_path, '--freeze', '1'), Process(torch.device('cpu')))
    assert '--freeze 1 without --pretrained freezes random weights' in caplog.text


def test_stages_that_timm_does_not_name_are_a_message():
    model = timm.create_model('poolformer_s12', device='meta')
    with pytest.raises(ValueError, match=r'--freeze 2 counts stages, and timm does not say .*; --freeze backbone'):
        freeze(model, '2')
    freeze(model, 'backbone')
    assert trained(model) == {'head'}
