import re

import pytest
import timm

from timm_se_plugin.analysis.ablations import FailedRunsError, draw_ablation, open_network, run_study, summary
from timm_se_plugin.analysis.studies import STUDIES, study_network, study_rows
from timm_se_plugin.files.tables import read_table


@pytest.mark.parametrize('study', STUDIES)
def test_every_row_builds_and_differs_from_the_others(study):
    built = set()
    for row in STUDIES[study]:
        model = timm.create_model(open_network(study_network(study)), device='meta', **row.options)
        settings = [(getattr(m, 'integration', ''), getattr(m, 'squeeze_type', '')) for m in model.modules()]
        built.add(repr(model) + str(settings))
        if row.parameters:  # the paper rounds up: 45.68 million are its 45.7, and 30.59 its 30.7
            millions = sum(p.numel() for p in model.parameters()) / 1e6
            assert row.parameters - 0.12 < millions < row.parameters + 0.05, row.name
    if study != 'branches':  # the sum keeps its branches and drops the attention
        assert len(built) == len(STUDIES[study])


def test_the_attention_of_a_name_is_opened():
    assert open_network('se_resnet50_plugin') == open_network('resnet50_plugin') == 'resnet50_plugin'
    assert open_network('sk_resnext26_32x4d_plugin') == 'resnext26_32x4d_plugin'
    for name in ('resnet50', 'se_nothing_plugin'):
        with pytest.raises(ValueError, match='is not a network of the plugin; an ablation needs one'):
            open_network(name)
    with pytest.raises(ValueError, match="no study is called 'x'; the studies are ratio"):
        study_rows('x')


RUN = {'study': 'squeeze', 'model': 'm', 'recipe': 'r', 'epochs': '3', 'options': "attn='se' img_size=64",
       'parameters': '5', 'macs': '6', 'train_loss': '', 'paper_top1_error': '22.28', 'paper_parameters_millions': ''}


def test_seeds_are_put_together_and_compared_with_the_papers_own_network():
    pytest.importorskip('scipy', reason='the [train] extra')
    rows = [{**RUN, 'row': row, 'seed': str(seed), 'top1': str(top1), 'train_loss': '0.5'} for row, seed, top1 in (
        ('max', 0, 0.5), ('max', 1, 0.75), ('avg', 1, 0.875), ('avg', 0, 0.5))]
    maximum, average = summary([*rows, {**rows[0], 'options': "attn='se'", 'train_loss': ''}])[:2]
    assert maximum['errors'] == {'0': 50, '1': 25}
    assert (maximum['error'], average['error']) == (37.5, 31.25)
    assert (maximum['difference'].mean, maximum['difference'].seeds) == (6.25, 2)
    assert maximum['losses'] == [0.5, 0.5]
    assert average['difference'] is None
    assert average['settings'] == 'img_size=64'


def test_the_options_of_a_study_are_not_settings_of_its_trainings():
    for study, rows in STUDIES.items():
        for row in rows:
            options = ' '.join(f'{key}={value!r}' for key, value in {**row.options, 'input_size': [3, 64, 64]}.items())
            run = {**RUN, 'study': study, 'row': row.name, 'seed': '0', 'top1': '0.5', 'options': options}
            line, = summary([run])
            assert line['settings'] == 'input_size=[3, 64, 64]'
    line, = summary([{**run, 'study': 'squeeze', 'row': 'avg', 'options': "attn='se' attn_rd_divisor=4"}])
    assert line['settings'] == 'attn_rd_divisor=4'


def test_trainings_with_other_settings_are_not_put_together():
    rows = [{**RUN, 'row': 'max', 'seed': '0', 'top1': '0.5', 'options': f"attn='se' img_size={size}"}
            for size in (32, 64)]
    assert [(line['settings'], len(line['errors'])) for line in summary(rows)] == [
        ('img_size=32', 1), ('img_size=64', 1)]


@pytest.mark.parametrize('other', [
    {'data': 'birds'}, {'global_batch': '64'}, {'amp': 'bfloat16'}, {'torchcompile': 'inductor'}])
def test_trainings_on_other_data_or_in_other_steps_are_not_put_together(other):
    first = {**RUN, 'row': 'max', 'seed': '0', 'top1': '0.5'}  # without these columns, as rows from before them
    lines = summary([first, {**first, 'seed': '1', 'top1': '0.75', **other}])
    assert [line['errors'] for line in lines] == [{'0': 50}, {'1': 25}]


def test_errors_are_drawn_with_their_range_above_the_papers(tmp_path):
    pytest.importorskip('scipy', reason='the [train] extra')
    rows = [{**RUN, 'row': 'max', 'seed': seed, 'paper_top1_error': '22.5', 'top1': top1}
            for seed, top1 in enumerate(('0.5', '0.75', '0.75'))]
    rows.append({**RUN, 'row': 'avg', 'seed': '7', 'paper_top1_error': '', 'top1': '0.25'})
    ours, paper = draw_ablation(rows, tmp_path / 'plot.png').axes
    assert ours.get_title() == 'squeeze: m\nr, 3 epochs img_size=64'
    assert list(ours.containers[0].lines[0].get_ydata()) == [pytest.approx(100 / 3), 75]
    ranges, = ours.containers[0].lines[2]
    assert [[y for _, y in segment] for segment in ranges.get_segments()] == [pytest.approx([25, 50]), [75, 75]]
    assert list(paper.lines[0].get_ydata()) == [22.5, pytest.approx(float('nan'), nan_ok=True)]
    assert [label.get_text() for label in paper.get_xticklabels()] == ['max', 'avg']
    assert (tmp_path / 'plot.png').is_file()


@pytest.mark.slow
def test_a_study_trains_resumes_and_tabulates(tmp_path, monkeypatch):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import TINY, save_digits
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    data = save_digits(tmp_path / 'digits')
    recipe = tmp_path / 'tiny.yaml'
    recipe.write_text('epochs: 1\nworkers: 0\nimg_size: 32\nbatch_size: 16\nlog_interval: 1\n')
    arguments = [*TINY[TINY.index('--img-size'):TINY.index('--epochs')], '--data-dir', str(data)]
    table = tmp_path / 'table.csv'
    runs = tmp_path / 'runs/test_resnet_plugin/tiny/squeeze'

    def study(*more):
        return run_study('squeeze', str(recipe), 'se_test_resnet_plugin', [0], tmp_path / 'runs', table,
                         devices=('cpu',), arguments=[*arguments, *more])

    with pytest.raises(FailedRunsError, match='2 of 2 runs failed; their logs are in'):
        study('--data-dir', str(tmp_path / 'nowhere'))
    assert 'nowhere' in (runs / 'max-seed0.log').read_text()
    study()
    rows = read_table(table)
    assert [(row['row'], row['paper_top1_error'], row['epochs']) for row in rows] == [
        ('max', '22.57', '1'), ('avg', '22.28', '1')]
    for row in rows:
        result, = read_table(runs / f'{row["row"]}-seed0/result.csv')
        assert [row[key] for key in ('top1', 'top5', 'parameters', 'options')] == [
            result[key] for key in ('top1', 'top5', 'parameters', 'options')]
        assert float(row['train_loss']) > 0
    before = (runs / 'max-seed0/result.csv').stat().st_mtime_ns
    (runs / 'avg-seed0/result.csv').unlink()  # as if it had been killed before its end
    study()
    assert (runs / 'max-seed0/result.csv').stat().st_mtime_ns == before
    assert read_table(table)[1]['top1'] == rows[1]['top1']


def test_a_network_of_two_studies_is_trained_once(tmp_path):
    yaml = pytest.importorskip('yaml', reason='the [train] extra')
    from timm_se_plugin.analysis.ablations import _command, _finished_run
    from timm_se_plugin.training import parse_options
    average, = [row for row in STUDIES['squeeze'] if row.name == 'avg']
    maximum, = [row for row in STUDIES['squeeze'] if row.name == 'max']

    def finished(row, *arguments):
        command = _command(row, 0, 'cifar10', 'test_resnet_plugin', ('--data-dir', 'moved/data', *arguments))
        return _finished_run(tmp_path / 'squeeze', row, 0, command)

    options = parse_options(_command(average, 0, 'cifar10', 'test_resnet_plugin', ('--data-dir', 'a/data')))
    other = tmp_path / 'excitation/sigmoid-seed0'
    other.mkdir(parents=True)
    (other / 'args.yaml').write_text(yaml.safe_dump(vars(options)))
    assert finished(average) is None
    (other / 'result.csv').write_text('top1\n0.5\n')
    assert finished(average) == other
    assert finished(maximum) is finished(average, '--lr', '0.2') is finished(average, '--data-dir', 'b/other') is None


@pytest.mark.parametrize('option', ['--model-kwargs', '--seed=3'])
def test_an_option_that_the_study_gives_is_refused(option, tmp_path):
    with pytest.raises(ValueError, match=r'^the study sets --(model-kwargs|seed) for each row'):
        run_study('ratio', 'cifar10', None, [0], tmp_path, tmp_path / 'table.csv', arguments=[option, 'attn_bias=True'])


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--lr', 'much'], "'much' is not a positive number"), (['--epoch', '3'], 'unrecognized arguments: --epoch 3')])
def test_an_option_that_the_training_refuses_is_named_before_the_first_run(arguments, message, tmp_path, capsys):
    pytest.importorskip('yaml', reason='the [train] extra')
    with pytest.raises(SystemExit):
        run_study('squeeze', 'cifar10', 'test_resnet_plugin', [0], tmp_path, tmp_path / 'table.csv',
                  arguments=arguments)
    said = capsys.readouterr().err
    assert re.fullmatch(rf'usage: timm-se ablate \[OPTIONS\]\ntimm-se ablate: error: .*{message}\n', said)
    assert not list(tmp_path.iterdir())


def test_all_rows_share_arguments_of_the_network_that_the_study_does_not_set(tmp_path):
    pytest.importorskip('yaml', reason='the [train] extra')
    from timm_se_plugin.analysis.ablations import _command
    from timm_se_plugin.training import parse_options
    shared = {'zero_init_last': False, 'attn_rd_divisor': 4}
    for row in STUDIES['squeeze']:
        options = parse_options(_command(row, 0, 'cifar10', 'test_resnet_plugin', (), shared))
        assert options.model_kwargs == {**row.options, **shared}
    with pytest.raises(ValueError, match=r"^the study 'ratio' sets attn, attn_rd_ratio of the network; leave out"):
        run_study('ratio', 'cifar10', None, [0], tmp_path, tmp_path / 'table.csv',
                  model_kwargs={'attn': 'sk', 'attn_rd_ratio': 1 / 4, 'zero_init_last': False})
    with pytest.raises(ValueError, match=r"^resnet18_plugin takes no keyword 'zero_init_lst'"):
        run_study('squeeze', 'cifar10', 'resnet18_plugin', [0], tmp_path, tmp_path / 'table.csv',
                  model_kwargs={'zero_init_lst': False})


def test_the_result_of_a_run_with_other_options_is_refused(tmp_path):
    yaml = pytest.importorskip('yaml', reason='the [train] extra')
    from timm_se_plugin.training import parse_options
    row = STUDIES['squeeze'][0]
    arguments = ['--config', 'cifar10', '--model', 'test_resnet_plugin', '--seed', '0', '--lr', '0.1', '--model-kwargs']
    options = parse_options([*arguments, *(f'{key}={value!r}' for key, value in row.options.items())])
    folder = tmp_path / 'test_resnet_plugin/cifar10/squeeze/max-seed0'
    folder.mkdir(parents=True)
    (folder / 'args.yaml').write_text(yaml.safe_dump({**vars(options), 'num_classes': 10}))  # as the data has
    (folder / 'result.csv').write_text('top1\n0.5\n')
    with pytest.raises(ValueError, match=r'a run with other options: lr=0\.2 \(was 0\.1\)$'):
        run_study('squeeze', 'cifar10', 'test_resnet_plugin', [0], tmp_path, tmp_path / 'table.csv',
                  arguments=['--lr', '0.2', '--workers', '9'])
    with pytest.raises(ValueError, match=r"a run with other options: data='other' \(was ''\)$"):
        run_study('squeeze', 'cifar10', 'test_resnet_plugin', [0], tmp_path, tmp_path / 'table.csv',
                  arguments=['--lr', '0.1', '--data-dir', 'some/other'])


def test_rows_that_do_not_fit_are_left_out(caplog):
    from timm_se_plugin.analysis.ablations import _fits
    fourth = next(row for row in STUDIES['stages'] if row.name == 'fourth')
    assert not _fits('resnet20_cifar_plugin', fourth)  # it has three stages
    assert "'fourth' is left out" in caplog.text
