from functools import partial

import numpy as np
import pytest
import timm
import torch
import yaml
from digit_runs import TINY, equal, summary, weights

from timm_se_plugin.files.tables import read_table
from timm_se_plugin.files.writing import UnwritableFileError, is_whole
from timm_se_plugin.measuring import turns
from timm_se_plugin.training import (
    evaluate_classifier,
    loop,
    parse_evaluation,
    parse_options,
    timing,
    train_classifier,
)
from timm_se_plugin.training.augmentation import BatchAugmentation
from timm_se_plugin.training.checkpoint import newest_whole, read_checkpoint
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.run import NonFiniteLossError, Run
from timm_se_plugin.weights.folders import write_model


def run(digits, folder, *arguments):
    return train_classifier(parse_options(
        [*TINY, '--data-dir', str(digits), '--output', str(folder.parent), '--experiment', folder.name, *arguments]))


def test_digits_are_learned(digits, tmp_path):
    run(digits, tmp_path / 'run', '--epochs', '6', '--no-aug', '--opt', 'adamw', '--lr', '1e-2')
    losses = [float(row['train_loss']) for row in read_table(tmp_path / 'run' / 'summary.csv')]
    assert losses[-1] < 0.9 * losses[0]


def test_the_last_epochs_at_full_size_are_the_last_with_a_cooldown_too(digits, tmp_path):
    made = Run(parse_options([
        *TINY, '--data-dir', str(digits), '--output', str(tmp_path), '--epochs', '3', '--cooldown-epochs', '2',
        '--train-img-size', '24', '--full-size-epochs', '1']), Process(torch.device('cpu')))
    assert made.epochs == 5
    assert [next(made.train_loader(epoch))[0].shape[-1] for epoch in range(5)] == [24, 24, 24, 24, 32]


def test_a_plateau_after_each_update_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match=r'--sched plateau changes .*; leave out --sched-on-updates'):
        run(digits, tmp_path / 'run', '--sched', 'plateau', '--sched-on-updates')


def test_gradient_checkpointing_that_a_network_does_not_offer_is_a_message(digits, tmp_path):
    with pytest.raises(ValueError, match='--grad-checkpointing is not possible with dla46_c'):
        run(digits, tmp_path / 'run', '--model', 'dla46_c', '--grad-checkpointing')


@pytest.fixture
def one_round(monkeypatch):
    """Measure the time ratio of a run with a few steps: the tests look at what stands beside it."""
    monkeypatch.setattr(loop, 'step_time_ratio', partial(timing.step_time_ratio, rounds=1))


def test_a_run_leaves_what_it_was_and_how_it_went(digits, tmp_path, one_round):
    results = tmp_path / 'results' / 'table.csv'
    row = run(digits, tmp_path / 'run', '--results', str(results))
    told = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert {'model', 'seed', 'torch', 'timm', 'commit', 'machine', 'threads', 'global_batch'} <= told.keys()
    assert (told['device'], told['learning_rate']) == ('cpu', 0.05)
    same = parse_options(['--config', str(tmp_path / 'run' / 'args.yaml')])
    assert {**vars(same), 'config': None} == vars(read_checkpoint(tmp_path / 'run' / 'last.pth.tar')['args'])
    assert (tmp_path / 'run' / 'curves.png').is_file()
    written, = read_table(results)
    assert written['data'] == digits.name
    curves = read_table(results.parent / 'table-curves.csv')
    assert [line['epoch'] for line in curves] == ['0', '1']
    checkpoint = str(tmp_path / 'run' / 'last.pth.tar')
    evaluated = evaluate_classifier(parse_evaluation(['--checkpoint', checkpoint, '--data-dir', str(digits)]))
    for metric in ('top1', 'top5'):
        assert row[metric] == float(written[metric]) == float(curves[-1][f'val_{metric}']) == evaluated[metric]
    model = timm.create_model('se_test_resnet_plugin', num_classes=10)
    assert int(written['parameters']) == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_network(digits, tmp_path):
    from torch._dynamo.utils import counters
    options = '--epochs', '1', '--no-deterministic', '--model-dtype', 'float64'
    run(digits, tmp_path / 'eager', *options)
    counters.clear()
    run(digits, tmp_path / 'compiled', *options, '--torchcompile', 'eager')
    assert counters['stats']['unique_graphs']
    eager, compiled = weights(tmp_path / 'eager'), weights(tmp_path / 'compiled')
    assert eager.keys() == compiled.keys()
    assert all(torch.allclose(eager[key], compiled[key], rtol=1e-9, atol=1e-12) for key in eager)


def test_options_are_part_of_the_result(digits, tmp_path, one_round):
    recipe, results = tmp_path / 'tiny.yaml', tmp_path / 'table.csv'
    options = vars(parse_options(TINY))
    recipe.write_text(yaml.safe_dump({key: options[key] for key in ('img_size', 'crop_pct', 'lr', 'epochs')}))
    ours = (*TINY, '--config', str(recipe), '--data-dir', str(digits), '--output', str(tmp_path),
            '--results', str(results))
    for name, *own in (
            ('pre', '--model-kwargs', 'attn_integration=pre'), ('slow', '--lr', '0.01', '--smoothing', '0.1'),
            ('again', '--lr', '0.01', '--smoothing', '0.1')):
        train_classifier(parse_options([*ours, '--epochs', '1', '--experiment', name, *own]))
    rows = read_table(results)
    assert [row['options'] for row in rows] == [
        "attn_integration='pre' deterministic=True", 'deterministic=True lr=0.01 smoothing=0.1']


class Clock:
    """A clock that a forward pass of the run's network sets forward by 3 seconds, and one of its plain network by 2."""

    def __init__(self):
        self.seconds, self.passes = 0, []

    def perf_counter(self):
        return self.seconds

    def see(self, module, arguments, output):
        if isinstance(module, timm.models.ResNet):
            attention = any(name.endswith('.se') for name, _ in module.named_modules())
            self.seconds += 3 if attention else 2
            self.passes.append(attention)


@pytest.mark.parametrize(('model', 'keyword'), [
    ('se_test_resnet_plugin', 'attn_integration=pre'), ('test_resnet_plugin', 'attn=se'),
    ('seresnet18_plugin', 'attn=eca')])  # which carries SE by itself
def test_the_time_ratio_is_the_networks_step_by_that_of_its_plain_network(
        digits, tmp_path, monkeypatch, model, keyword):
    clock = Clock()
    monkeypatch.setattr(turns, 'time', clock)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)  # where fork_rng warns that it initialises each of them
    made = Run(parse_options([*TINY, '--model', model, '--data-dir', str(digits), '--output', str(tmp_path),
                              '--model-kwargs', keyword]), Process(torch.device('cpu')))
    handle = torch.nn.modules.module.register_module_forward_hook(clock.see)
    ratio = timing.step_time_ratio(made, rounds=1)
    handle.remove()
    assert ratio == 1.5
    assert clock.passes == [False, True, True, False] * 2  # each is first in every other pair


@pytest.mark.parametrize('saved', ['test_resnet_plugin', 'se_test_resnet_plugin'])
def test_the_plain_network_of_a_saved_model_that_has_been_moved_has_no_attention(digits, tmp_path, monkeypatch, saved):
    write_model(timm.create_model(saved), tmp_path / 'weights')
    made = Run(parse_options([
        *TINY, '--model', f'local-dir:{tmp_path}/weights', '--data-dir', str(digits), '--output', str(tmp_path),
        '--model-kwargs', 'attn=se']), Process(torch.device('cpu')))
    (tmp_path / 'weights').rename(tmp_path / 'elsewhere')
    clock = Clock()
    monkeypatch.setattr(turns, 'time', clock)
    with torch.nn.modules.module.register_module_forward_hook(clock.see):
        assert timing.step_time_ratio(made, rounds=1) == 1.5


def test_saved_weights_are_fine_tuned_for_other_classes(digits, tmp_path):
    model = timm.create_model('se_test_resnet_plugin', num_classes=7)
    write_model(model, tmp_path / 'weights')
    options = parse_options([
        *TINY, '--model', f'local-dir:{tmp_path}/weights', '--pretrained', '--data-dir', str(digits), '--epochs', '1',
        '--lr', '1e-9', '--output', str(tmp_path / 'runs'), '--results', str(tmp_path / 'table.csv')])
    train_classifier(options)
    folder, = (tmp_path / 'runs').glob('*/*')
    tuned = weights(folder)
    assert tuned['fc.weight'].shape[0] == 10
    torch.testing.assert_close(tuned['layer1.0.se.fc1.weight'], model.state_dict()['layer1.0.se.fc1.weight'])


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of tensorboard's own imports
def test_tensorboard_has_the_curves(digits, tmp_path):
    pytest.importorskip('tensorboard', reason='the [train] extra brings it')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run(digits, tmp_path / 'run', '--tensorboard')
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard')).Reload()
    rows = read_table(tmp_path / 'run' / 'summary.csv')
    assert [event.value for event in events.Scalars('val_top1')] == pytest.approx([float(r['val_top1']) for r in rows])
    run(digits, tmp_path / 'run', '--tensorboard', '--resume', 'auto')
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard')).Reload()
    assert [event.step for event in events.Scalars('val_top1')] == [int(row['epoch']) for row in rows] == [0, 1]


def test_a_diverged_run_stops_with_the_step_and_its_images_and_keeps_the_checkpoint(digits, tmp_path):
    folder = tmp_path / 'run'
    run(digits, folder)
    good = weights(folder)
    checkpoint = read_checkpoint(folder / 'last.pth.tar')
    checkpoint['args'].epochs = 3
    torch.save(checkpoint | {'optimizer': {**checkpoint['optimizer'], 'param_groups': [
        {**group, 'lr': 1e30, 'initial_lr': 1e30} for group in checkpoint['optimizer']['param_groups']]}},
        folder / 'last.pth.tar')
    said = r'loss is (nan|inf) in epoch 3, batch \d \(step 1\d\), with the images .*\d{4}\.png.*last.pth.tar, is intact'
    with pytest.raises(NonFiniteLossError, match=said):
        run(digits, folder, '--epochs', '3', '--resume', 'auto')
    assert equal(weights(folder), good)


@pytest.mark.parametrize('options', [(), ('--model-ema', '--model-ema-decay', '0.9')])
def test_weights_that_the_last_update_spoilt_are_not_saved(digits, tmp_path, monkeypatch, options):
    folder = tmp_path / 'run'
    updated = Run.updated

    def spoilt(self):
        if (self.epoch, self.batch) == (1, 6):
            with torch.no_grad():
                next(self.model.parameters())[0] = float('inf')
        updated(self)

    monkeypatch.setattr(Run, 'updated', spoilt)
    said = r'conv1.*weight is NaN or infinite after epoch 2, batch 6; .*last\.pth\.tar, is intact'
    with pytest.raises(NonFiniteLossError, match=said):
        run(digits, folder, *options)
    for name in ('last.pth.tar', 'previous.pth.tar', 'model_best.pth.tar'):
        assert all(value.isfinite().all() for value in read_checkpoint(folder / name)['state_dict'].values())
    monkeypatch.setattr(Run, 'updated', updated)
    assert run(digits, folder, *options, '--resume', 'auto')['epochs'] == 2


def test_a_validation_loss_that_is_not_finite_ends_the_run(digits, tmp_path):
    said = r'validation loss is nan after epoch 1, with the weights in .*; there is no checkpoint of an earlier epoch'
    with pytest.raises(NonFiniteLossError, match=said):
        run(digits, tmp_path / 'run', '--grad-accum-steps', '6', '--lr', '1e30')
    assert not (tmp_path / 'run' / 'model_best.pth.tar').exists()


def test_an_unwritable_table_is_refused_before_the_training(digits, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UnwritableFileError, match=r'file cannot be a folder of results'):
        run(digits, tmp_path / 'run', '--results', str(tmp_path / 'file' / 'table.csv'))
    with pytest.raises(ValueError, match=r'is a folder; give the name of a CSV file'):
        run(digits, tmp_path / 'other', '--results', str(tmp_path))
    assert not (tmp_path / 'other' / 'last.pth.tar').exists()
    assert not (tmp_path / 'run' / 'last.pth.tar').exists()


@pytest.mark.parametrize(('opt', 'options', 'expected'), [
    ('sgd', (), 0.1 * 16 / 64), ('lamb', (), 0.1 * 0.5), ('adamw', (), 0.1 * 0.5),
    ('lamb', ('--lr-base-scale', 'linear'), 0.1 * 16 / 64), ('sgd', ('--lr-base-scale', 'sqrt'), 0.1 * 0.5)])
def test_the_rate_follows_the_global_batch_by_timms_rule(digits, tmp_path, opt, options, expected):
    arguments = [value for value in TINY if value not in ('--lr', '0.05')]
    options = parse_options([
        *arguments, '--data-dir', str(digits), '--output', str(tmp_path), '--opt', opt, '--lr-base', '0.1',
        '--lr-base-size', '64', *options])
    assert Run(options, Process(torch.device('cpu'))).learning_rate == pytest.approx(expected)


@pytest.mark.parametrize(('options', 'said'), [
    (('--dataset', 'cifar10'), r'--dataset cifar10 is not a data set; name one as torch/NAME, .*folders and tar files'),
    (('--dataset', 'nope/nope'), '--dataset nope/nope is not a data set'),
    (('--class-map', 'nowhere.txt'), '--class-map nowhere.txt is not a file'),
    (('--mean', '0.5', '0.5'), r'--mean 0.5 0.5 needs one number, or one for each of the 3 channels'),
    (('--opt', 'sgdd'), '--opt sgdd .*not found in registry; timm.optim.list_optimizers'),
    (('--opt-kwargs', 'decay=1'), "--opt sgd with --opt-kwargs {'decay': 1}: .*'decay'"),
    (('--model', 'se_resnet5_plugin'), 'model se_resnet5_plugin is unknown; did you mean .*se_resnet50_plugin'),
    (('--model', 'vit_tiny_patch16_224', '--model-kwargs', 'attn=se'), "takes no 'attn': .*models.*add_attention"),
    (('--model', 'vit_tiny_patch16_224', '--model-kwargs', 'depth=1'), r'takes no images of 32x32 .*224.*img_size=32'),
    (('--model', 'vit_tiny_patch16_224', '--model-kwargs', 'depth=1', 'img_size=32', '--train-img-size', '16'),
     r'takes no images of 16x16 pixels'),
    (('--model', 'vit_tiny_patch16_224', '--model-kwargs', 'depth=1', '--input-size', '3', '32', '64'),
     r"leave out --img-size or --input-size, .* --model-kwargs 'img_size=\(32,64\)'$"),
    (('--model', 'se_inception_v3_plugin'), 'takes no images of 32x32 pixels, but of 299x299.* or give a larger one$'),
    pytest.param(('--device', 'cuda'), '--device cuda needs CUDA, .*; --device cpu works', marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason='there is one'))])
def test_a_mistake_is_named_with_what_is_allowed(digits, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        run(digits, tmp_path / 'run', *options)


def test_a_folder_that_another_training_writes_into_is_refused(digits, tmp_path, monkeypatch):
    begun = []

    def again(run_, termination):
        begun.append(1)
        with pytest.raises(ValueError, match=r'another training writes into .*run; wait until it has ended, or give'):
            run(digits, tmp_path / 'run', '--epochs', '1', '--resume', 'auto')
        return whole(run_, termination)
    whole = loop.train_epoch
    monkeypatch.setattr(loop, 'train_epoch', again)
    run(digits, tmp_path / 'run', '--epochs', '1')
    assert begun == [1]
    assert len(read_table(tmp_path / 'run' / 'summary.csv')) == 1


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(digits, small_disk):
    folder = small_disk / 'run'
    with pytest.raises(UnwritableFileError, match='No space left on device; earlier files are unchanged'):
        run(digits, folder, '--epochs', '9')
    assert is_whole(newest_whole(folder))


FLAT = ('--model', 'test_resnet', '--model-kwargs', 'norm_layer=groupnorm1', '--model-dtype', 'float64')  # no BatchNorm


def test_accumulated_gradients_are_those_of_the_whole_batch(digits, tmp_path):
    run(digits, tmp_path / 'whole', *FLAT, '--epochs', '1')
    run(digits, tmp_path / 'parts', *FLAT, '--epochs', '1', '--batch-size', '4', '--grad-accum-steps', '4')
    whole, parts = weights(tmp_path / 'whole'), weights(tmp_path / 'parts')
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-9, atol=1e-9)


def test_the_averaged_network_is_the_one_evaluated_and_saved_beside(digits, tmp_path, monkeypatch):
    seen, updated = [], Run.updated

    def see(self):
        seen.append({key: value.clone() for key, value in self.model.state_dict().items()})
        updated(self)

    monkeypatch.setattr(Run, 'updated', see)
    run(digits, tmp_path / 'run', '--epochs', '1', '--batch-size', '48', '--model-ema', '--model-ema-decay', '0.75')
    path = tmp_path / 'run' / 'last.pth.tar'
    checkpoint = read_checkpoint(path)
    assert equal(checkpoint['state_dict'], seen[1])
    for key, value in checkpoint['state_dict_ema'].items():
        if value.is_floating_point():  # timm's average begins with the first update
            torch.testing.assert_close(value, 0.75 * seen[0][key] + 0.25 * seen[1][key])
    averaged, last = (evaluate_classifier(parse_evaluation(['--checkpoint', str(path), ema]))['loss']
                      for ema in ('--use-ema', '--no-use-ema'))
    assert float(read_table(tmp_path / 'run' / 'summary.csv')[0]['val_loss']) == pytest.approx(averaged, rel=1e-9)
    assert averaged != last


ONE_STEP = ('--batch-size', '96', '--epochs', '1', '--sched', 'none', '--weight-decay', '0')


@pytest.fixture(scope='module')
def ordinary(digits, tmp_path_factory):
    """Folder of an epoch in float64."""
    folder = tmp_path_factory.mktemp('ordinary') / 'run'
    run(digits, folder, '--epochs', '1', '--lr', '1e-3', '--model-dtype', 'float64')
    return folder


@pytest.mark.parametrize('argument', ['--channels-last', '--grad-checkpointing'])
def test_layout_and_checkpointing_do_not_change_what_is_learned(digits, tmp_path, ordinary, argument):
    run(digits, tmp_path / 'run', '--epochs', '1', '--lr', '1e-3', '--model-dtype', 'float64', argument)
    learned, expected = weights(tmp_path / 'run'), weights(ordinary)
    for key in first_weights():
        torch.testing.assert_close(learned[key], expected[key], rtol=1e-9, atol=1e-12)
    made = Run(parse_options([*TINY, '--data-dir', str(digits), '--output', str(tmp_path), argument]),
               Process(torch.device('cpu'))).model
    assert made.grad_checkpointing == (argument == '--grad-checkpointing')
    assert any(not p.is_contiguous() for p in made.parameters()) == (argument == '--channels-last')


@pytest.mark.parametrize(('precision', 'error'), [
    (('--amp', '--amp-dtype', 'bfloat16'), 0.01),
    pytest.param(('--amp', '--amp-dtype', 'float16'), 0.005, marks=pytest.mark.slow),  # emulated on most CPUs
])
def test_mixed_precision_has_nearly_the_loss_of_float64(digits, tmp_path, ordinary, precision, error):
    row = run(digits, tmp_path / 'run', '--epochs', '1', '--lr', '1e-3', *precision)
    loss, exact = (float(summary(folder)[0]['train_loss']) for folder in (tmp_path / 'run', ordinary))
    assert loss == pytest.approx(exact, rel=error)
    if row['amp']:  # a CPU that would emulate bfloat16 computes in float32
        assert loss != pytest.approx(exact, rel=1e-5)  # float32 has 5e-8


def first_weights():
    """Parameters of the network of a run before its first step."""
    torch.manual_seed(42)
    model = timm.create_model('se_test_resnet_plugin', num_classes=10).double()
    return {key: value.detach() for key, value in model.named_parameters()}


@pytest.mark.parametrize(('arguments', 'norm'), [
    (('--clip-grad', '0.5'), lambda step: torch.cat([s.flatten() for s in step]).norm()),
    (('--clip-grad', '0.001', '--clip-mode', 'value'), lambda step: max(s.abs().max() for s in step))])
def test_a_step_is_as_long_as_its_gradient_is_clipped_to(digits, tmp_path, arguments, norm):
    run(digits, tmp_path / 'run', *ONE_STEP, '--model-dtype', 'float64', '--opt', 'momentum', '--momentum', '0',
        '--lr', '1', *arguments)
    after = weights(tmp_path / 'run')
    steps = [after[key] - value for key, value in first_weights().items()]
    assert norm(steps) == pytest.approx(float(arguments[1]), rel=1e-6)


@pytest.mark.parametrize(('arguments', 'criterion', 'expected'), [
    ((), 'CrossEntropyLoss', {}),
    (('--smoothing', '0.1'), 'LabelSmoothingCrossEntropy', {'smoothing': 0.1}),
    (('--smoothing', '0.1', '--cutmix', '1'), 'SoftTargetCrossEntropy', {}),
    (('--bce-loss', '--smoothing', '0.1', '--bce-target-thresh', '0.2'), 'BinaryCrossEntropy',
     {'smoothing': 0.1, 'target_threshold': 0.2})])
def test_the_loss_is_the_one_asked_for(digits, tmp_path, arguments, criterion, expected):
    made = Run(parse_options([*TINY, '--data-dir', str(digits), '--output', str(tmp_path), *arguments]),
               Process(torch.device('cpu')))
    assert type(made.task.criterion).__name__ == criterion
    assert {key: getattr(made.task.criterion, key) for key in expected} == expected


def test_batches_are_mixed_until_the_epoch_that_ends_it():
    options = parse_options(['--mixup', '1', '--smoothing', '0.1', '--mixup-off-epoch', '1', '--batch-size', '4'])
    augment = BatchAugmentation(options, 10, torch.device('cpu'))
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    np.random.seed(0)
    mixed, targets = augment(x.clone(), y, epoch=0)
    share = ((mixed[0] - x[3]) / (x[0] - x[3])).mean()  # of the image itself; the rest is that of its partner
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets[0, 1], 0.9 * share + 0.01)
    torch.testing.assert_close(targets[0, 4], 0.9 * (1 - share) + 0.01)
    same, targets = augment(x.clone(), y, epoch=1)
    assert torch.equal(same, x)
    torch.testing.assert_close(targets, 0.9 * torch.eye(10)[y] + 0.01)


def test_erasing_is_for_the_share_of_images_asked_for():
    x = torch.rand(500, 3, 8, 8)
    options = parse_options(['--reprob', '0.3', '--remode', 'const'])
    erased = BatchAugmentation(options, 10, torch.device('cpu')).erased(x.clone(), range(500))
    changed = (erased != x).any(1)
    assert 0.24 < changed.flatten(1).any(1).float().mean() < 0.36  # three deviations of 500 draws
    assert not erased.movedim(1, -1)[changed].any()
    unchanged = BatchAugmentation(
        parse_options(['--reprob', '1', '--no-aug']), 10, torch.device('cpu')).erased(x.clone(), range(500))
    assert torch.equal(unchanged, x)


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated:FutureWarning')
def test_a_plateau_lowers_the_learning_rate_when_the_metric_no_longer_improves(digits, tmp_path):
    run(digits, tmp_path / 'run', *FLAT, '--sched', 'plateau', '--eval-metric', 'loss', '--patience-epochs', '0',
        '--lr', '1e-6', '--epochs', '3')
    rates = [float(row['lr']) for row in read_table(tmp_path / 'run' / 'summary.csv')]
    assert rates == pytest.approx([1e-6, 1e-6, 1e-7])


@pytest.mark.parametrize(('capabilities', 'expected'), [
    ({'avx512_bf16': False, 'amx_bf16': False}, ''),
    ({'avx512_bf16': True, 'amx_bf16': False}, 'bfloat16'),
    ({}, 'bfloat16'),  # nothing known, as on ARM
])
def test_a_cpu_that_would_emulate_bfloat16_trains_in_float32(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)
    options = parse_options(['--amp', '--amp-dtype', 'bfloat16'])
    assert Process(torch.device('cpu')).amp_dtype(options) == expected
    assert Process(torch.device('cuda')).amp_dtype(options) == 'bfloat16'


def test_odd_batches_cannot_be_mixed(digits, tmp_path):
    with pytest.raises(ValueError, match='--mixup and --cutmix mix images in pairs: --batch-size 15 is odd'):
        run(digits, tmp_path / 'run', '--mixup', '0.2', '--batch-size', '15')


def test_sync_bn_is_for_cuda(digits, tmp_path):
    with pytest.raises(ValueError, match='--sync-bn needs CUDA'):
        run(digits, tmp_path / 'run', '--sync-bn')


def test_more_classes_in_the_data_than_in_the_model_are_refused(digits, tmp_path):
    with pytest.raises(ValueError, match='--num-classes 9 is too few: the data has 10'):
        run(digits, tmp_path / 'run', '--num-classes', '9')


def test_a_plugins_name_says_its_plain_network():
    assert timing.plain_name('se_resnet50_plugin') == 'resnet50_plugin'
    assert timing.plain_name('sk_resnet18_plugin') == 'resnet18_plugin'
    assert timing.plain_name('se_resnet50_plugin.tv_in1k') == 'resnet50_plugin'
    assert timing.plain_name('sk_resnext26_32x4d_plugin') == 'resnext26_32x4d_plugin'
    assert timing.plain_name('resnet18_plugin') is None
    assert timing.plain_name('seresnet50') is None


def test_too_little_memory_for_the_time_ratio_loses_no_results(digits, tmp_path, monkeypatch, caplog):
    def full(run):
        raise torch.OutOfMemoryError('CUDA out of memory')  # a CPU does not raise this error
    monkeypatch.setattr(loop, 'step_time_ratio', full)
    run(digits, tmp_path / 'run', '--epochs', '1', '--results', str(tmp_path / 'table.csv'))
    written, = read_table(tmp_path / 'table.csv')
    assert written['time_ratio'] == ''
    assert 'the time of a step is not compared with that of the plain network: CUDA out of memory' in caplog.text
