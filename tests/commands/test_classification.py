"""The commands of classifiers, each run on real digits in the order in which a user runs them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from digit_runs import TINY

from timm_se_plugin.commands import main


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """Folder of a run that `timm-se train` left, and its row of results."""
    folder = tmp_path_factory.mktemp('runs')
    main(['train', *TINY, '--data-dir', str(digits), '--val-split', 'val', '--output', str(folder), '--experiment',
          'run', '--results', str(folder / 'results.csv')])
    return folder / 'run'


def test_train_leaves_a_run_and_a_row(trained):
    assert (trained / 'model_best.pth.tar').is_file()
    with open(trained.parent / 'results.csv', encoding='utf-8') as file:
        assert [row['model'] for row in csv.DictReader(file)] == ['se_test_resnet_plugin']


def test_python_m_reads_a_recipe_and_prints_the_row(digits, tmp_path):
    command = [sys.executable, '-m', 'timm_se_plugin', 'train', '--config', 'cifar10-short', *TINY, '--epochs', '1',
               '--data-dir', str(digits), '--val-split', 'val', '--output', str(tmp_path), '--warmup-epochs', '0',
               '--json']
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert row['recipe'] == 'cifar10-short'
    assert row['epochs'] == 1
    assert (tmp_path / 'cifar10-short').is_dir()


def test_evaluate_measures_what_the_training_measured(trained, printed):
    with open(trained / 'summary.csv', encoding='utf-8') as file:
        last = list(csv.DictReader(file))[-1]
    metrics = printed('evaluate', '--checkpoint', trained / 'last.pth.tar')
    assert metrics['images'] == 50
    assert metrics['top1'] == pytest.approx(float(last['val_top1']))


def test_analyze_writes_the_report(trained, printed, tmp_path):
    assert printed('analyze', '--checkpoint', trained / 'last.pth.tar', '--output', tmp_path / 'gates') == {
        'output': str(tmp_path / 'gates')}
    assert (tmp_path / 'gates' / 'report.html').is_file()


def test_prune_tabulates_accuracy_against_macs(trained, printed, tmp_path):
    pytest.importorskip('torch_pruning', reason='the [analysis] extra')
    rows = printed('prune', trained / 'last.pth.tar', '--shares', '0.25', '--criteria', 'mean', '--epochs', '1',
                   '--results', tmp_path / 'pruning.csv', '--output', tmp_path / 'pruned')
    assert [row['criterion'] for row in rows] == ['whole', 'mean']
    assert rows[1]['macs'] < rows[0]['macs']


@pytest.mark.slow
def test_ablate_passes_other_options_to_the_training(digits, printed, tmp_path):
    recipe = tmp_path / 'tiny.yaml'
    recipe.write_text('epochs: 1\nbatch_size: 16\nimg_size: 32\nworkers: 0\n')
    rows = printed('ablate', 'squeeze', '--config', recipe, '--model', 'se_test_resnet_plugin', '--seeds', '0',
                   '--output', tmp_path / 'runs', '--results', tmp_path / 'table.csv', '--data-dir', digits,
                   '--val-split', 'val')
    assert [row['row'] for row in rows] == ['max', 'avg']
    assert (tmp_path / 'table-squeeze.png').is_file()


def test_an_ablation_whose_runs_fail_says_where_their_logs_are(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_se_plugin.analysis.ablations._train', lambda *_: None)
    with pytest.raises(SystemExit, match='timm-se: 2 of 2 runs failed; their logs are in'):
        main(['ablate', 'squeeze', '--config', 'cifar10-short', '--model', 'se_resnet20_cifar_plugin', '--seeds', '0',
              '--output', str(tmp_path), '--results', str(tmp_path / 'table.csv')])


def test_push_and_pull_carry_a_run_through_the_hub(trained, printed, hub, tmp_path):
    shown = printed('push', trained, 'user/digits', '--license', 'mit', '--dry-run')
    assert shown['url'] is None
    assert not hub.repos
    pushed = printed('push', trained, 'user/digits', '--license', 'mit')
    assert set(pushed['files']) == set(shown['files'])
    pulled = printed('pull', 'user/digits', tmp_path / 'pulled')
    assert set(pulled['files']) == {'config.json', 'model.safetensors'}
    model = timm.create_model(f'local-dir:{tmp_path / "pulled"}', pretrained=True)
    assert model.num_classes == len(model.pretrained_cfg['label_names'])
    with pytest.raises(SystemExit, match='is not an empty folder; name another one'):
        main(['pull', 'user/digits', str(tmp_path / 'pulled')])
    with pytest.raises(SystemExit, match=r'(?s)timm-se: .*nobody/nothing'):
        main(['pull', 'nobody/nothing', str(tmp_path / 'nothing')])


def test_a_branch_is_pushed_and_pulled_by_its_name(trained, printed, hub, tmp_path):
    printed('push', trained, 'user/digits')
    printed('push', trained, 'user/digits', '--revision', 'v2', '--license', 'mit')
    main_files, branch = (hub.repos['user/digits'].files(name) for name in ('main', 'v2'))
    assert b'license: mit' in branch['README.md']
    assert b'license: mit' not in main_files['README.md']
    hub.repos['user/digits'].commit('main', {'config.json': b'{}'})      # main can no longer be loaded
    printed('pull', 'user/digits@v2', tmp_path / 'pulled')
    assert (tmp_path / 'pulled' / 'config.json').read_bytes() == branch['config.json']
    with pytest.raises(SystemExit, match='names no architecture'):
        main(['pull', 'user/digits', str(tmp_path / 'main')])
    with pytest.raises(SystemExit, match='v3'):
        main(['pull', 'user/digits@v3', str(tmp_path / 'none')])


def test_convert_goes_to_timms_network_and_back(printed, tmp_path):
    timms = timm.create_model('seresnet18', num_classes=3)
    from safetensors.torch import save_file
    save_file(timms.state_dict(), tmp_path / 'weights.safetensors')
    said = printed('convert', tmp_path / 'weights.safetensors', 'se_resnet18_plugin', tmp_path / 'ours',
                   '--model-kwargs', 'attn_rd_divisor=8')
    assert not said['unused']
    assert not said['missing']
    printed('convert', f'local-dir:{tmp_path / "ours"}', 'seresnet18', tmp_path / 'timms')
    assert (tmp_path / 'timms' / 'model.safetensors').is_file()


def test_convert_names_a_model_or_a_keyword_that_is_not_there(trained, tmp_path):
    words = 'convert', str(trained / 'last.pth.tar')
    with pytest.raises(SystemExit, match='the model se_test_resnet is unknown; did you mean se_test_resnet_plugin'):
        main([*words, 'se_test_resnet', str(tmp_path)])
    with pytest.raises(SystemExit, match="se_test_resnet_plugin takes no keyword 'foo'"):
        main([*words, 'se_test_resnet_plugin', str(tmp_path), '--model-kwargs', 'foo=1'])


def test_a_path_in_the_place_of_a_model_is_told_what_to_give(digits, trained, tmp_path):
    saved = tmp_path / 'saved'
    saved.mkdir()
    (saved / 'config.json').write_text('{}')
    advice = r'has the weights of a training, .*: `timm-se convert .*\.pth\.tar NETWORK folder`, .* local-dir:folder'
    for name, said in ((f'local-dir:{trained}', advice), (trained / 'last.pth.tar', advice),
                       (saved, rf'is the folder of a saved model, whose name is local-dir:{saved}$'),
                       ('local-dir:nowhere', rf'no saved model in {Path.cwd() / "nowhere"}, which has no config')):
        with pytest.raises(SystemExit, match=said):
            main(['train', '--model', str(name), '--pretrained', '--data-dir', str(digits), '--output', str(tmp_path),
                  '--device', 'cpu', '--batch-size', '16', '--workers', '0'])


@pytest.mark.parametrize(('option', 'value', 'said'), [
    ('--seeds', '0', 'seeds=0 is too few for the demo; give 1 or more'),
    ('--epochs', '0', 'epochs=0 is too few for the demo; give 1 or more'),
    ('--size', '0', 'size=0 is too few for the demo; give 1 or more'),
    ('--batch-size', '1', 'batch_size=1 is too few for the demo; give 2 or more'),
    ('--batch-size', '2000', 'batch_size=2000 is more than the 1437 images; give 1437 or fewer')])
def test_a_demo_that_cannot_end_is_refused_at_once(option, value, said, tmp_path):
    with pytest.raises(SystemExit, match=f'^timm-se: {said}$'):
        main(['demo', '--output', str(tmp_path), option, value])


@pytest.mark.slow    # `make demo` runs the same
def test_the_demo_gives_back_what_it_saved(tmp_path, capsys):
    main(['demo', '--output', str(tmp_path), '--epochs', '1', '--size', '16', '--seeds', '1'])
    said = capsys.readouterr().out
    assert 'It gains SE: 0 of 360 predictions change' in said
    assert 'largest difference of 3600 predicted probabilities: 0.0' in said
    assert 'Gates of SE-ResNet-18' in (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert (tmp_path / 'predictions.png').is_file()
