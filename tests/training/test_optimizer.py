"""The attention's own weight decay and learning rate."""

import pytest
import timm
import torch
import yaml
from digit_runs import TINY, equal, summary, train_in_pieces, weights

from timm_se_plugin.placement import attention_modules
from timm_se_plugin.training import parse_options, train_classifier
from timm_se_plugin.training.optimizer import make_optimizer
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.run import Run

OWN = ('--attn-weight-decay', '0.3', '--attn-lr-scale', '4')


def options(digits, tmp_path, *arguments):
    return parse_options([*TINY, '--data-dir', str(digits), '--output', str(tmp_path), '--weight-decay', '0.1',
                          *arguments])


def settings(run):
    """Learning rate and weight decay of each parameter by its name."""
    by_parameter = {p: (group['lr'], group['weight_decay']) for group in run.optimizer.param_groups
                    for p in group['params']}
    return {name: by_parameter[p] for name, p in run.model.named_parameters()}


@pytest.mark.parametrize('schedule', ['none', 'constant', 'cosine'])
def test_the_attention_has_its_own_decay_and_a_multiple_of_the_rate(digits, tmp_path, schedule):
    run = Run(options(digits, tmp_path, *OWN, '--sched', schedule), Process(torch.device('cpu')))
    assert run.optimizer.param_groups[0]['lr'] == 0.05  # the one that a run's table shows
    attention = tuple(f'{name}.' for name in attention_modules(run.model))
    assert attention
    for name, found in settings(run).items():
        own, vector = name.startswith(attention), name.endswith('.bias') or run.model.get_parameter(name).ndim < 2
        assert found == (0.2 if own else 0.05, 0 if vector else 0.3 if own else 0.1), name


def test_the_multiple_stays_through_a_schedule_and_a_resumed_run_is_the_same(digits, tmp_path, monkeypatch):
    def save_and_stop(run):
        save(run)
        raise KeyboardInterrupt
    arguments = (*OWN, '--warmup-epochs', '1', '--epochs', '3', '--sched-on-updates', '--recovery-interval', '2')
    train_classifier(options(digits, tmp_path, *arguments, '--experiment', 'whole'))
    save = Run.save
    with monkeypatch.context() as context:
        context.setattr(Run, 'save', save_and_stop)
        for resume in (), ('--resume', 'auto'):
            with pytest.raises(KeyboardInterrupt):
                train_classifier(options(digits, tmp_path, *arguments, '--experiment', 'part', *resume))
    run = Run(options(digits, tmp_path, *arguments, '--experiment', 'part', '--resume', 'auto'),
              Process(torch.device('cpu')))
    first, *_, last = run.optimizer.param_groups
    assert run.batch == 4
    assert last['lr'] == pytest.approx(4 * first['lr'])
    train_classifier(options(digits, tmp_path, *arguments, '--experiment', 'part', '--resume', 'auto'))
    assert equal(weights(tmp_path / 'part'), weights(tmp_path / 'whole'))
    told = yaml.safe_load((tmp_path / 'whole' / 'args.yaml').read_text())
    assert (told['attn_weight_decay'], told['attn_lr_scale']) == (0.3, 4)
    with pytest.raises(ValueError, match=r'of a run with other options than these: attn_lr_scale=1.0 \(was 4.0\)'):
        Run(options(digits, tmp_path, *arguments[:2], *arguments[4:], '--experiment', 'part', '--resume', 'auto'),
            Process(torch.device('cpu')))


def test_layer_decay_is_timms_and_multiplies_with_the_attentions_values(digits, tmp_path):
    arguments = ('--layer-decay', '0.5', '--sched', 'none')
    plain, own = (Run(options(digits, tmp_path, *arguments, *more), Process(torch.device('cpu'))) for more in ((), OWN))
    layers = ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4', 'fc')
    depths = dict(zip(layers, (0, 0, 1, 2, 3, 4, 5), strict=True))
    attention = tuple(f'{name}.' for name in attention_modules(own.model))
    mixed = settings(own)
    for name, (rate, decay) in settings(plain).items():
        expected = 0.05 * 0.5 ** (5 - depths[name.split('.')[0]])
        assert rate == pytest.approx(expected)
        ours = name.startswith(attention)
        assert mixed[name] == (pytest.approx(4 * expected if ours else expected), 0.3 if ours and decay else decay)
    assert plain.lr == own.lr == pytest.approx(0.05)


def test_a_run_with_layer_decay_is_the_same_when_it_is_resumed(digits, tmp_path):
    arguments = ('--data-dir', str(digits), '--output', str(tmp_path), '--layer-decay', '0.7', '--warmup-epochs', '1',
                 '--sched-on-updates')
    train_classifier(parse_options([*TINY, *arguments, '--recovery-interval', '2', '--experiment', 'whole']))
    train_in_pieces(*arguments, '--experiment', 'part')
    assert equal(weights(tmp_path / 'part'), weights(tmp_path / 'whole'))
    assert summary(tmp_path / 'part') == summary(tmp_path / 'whole')


@pytest.mark.parametrize('arguments', [(), ('--attn-weight-decay', '0.1', '--attn-lr-scale', '1')])
def test_without_values_of_its_own_the_attention_trains_as_all_the_rest(digits, tmp_path, arguments):
    run = Run(options(digits, tmp_path, *arguments), Process(torch.device('cpu')))
    assert all(found == (0.05, 0.1 if run.model.get_parameter(name).ndim > 1 else 0)
               for name, found in settings(run).items())


def test_an_optimizer_of_second_order_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match='--opt adahessian needs second derivatives, which the training does not'):
        Run(options(digits, tmp_path, '--opt', 'adahessian'), Process(torch.device('cpu')))


def test_a_network_without_attention_is_refused(digits, tmp_path):
    given = options(digits, tmp_path, '--attn-lr-scale', '2', '--model', 'test_resnet')
    with pytest.raises(ValueError, match=r'^--attn-weight-decay and .* need a network with attention, and test_resnet'):
        make_optimizer(timm.create_model('test_resnet'), given, 0.1)
