"""The tables of the pages put together only trainings that differ in nothing but their seed."""

import importlib.util
import re
from pathlib import Path

import pytest

from timm_se_plugin.files.tables import write_table

pytest.importorskip('scipy', reason='the [train] extra')

RUN = {'model': 'resnet18_plugin', 'options': '', 'seed': 0, 'epochs': 15, 'recipe': 'flowers', 'top1': 0.5,
       'parameters': 1, 'macs': 2, 'time_ratio': '', 'global_batch': 32, 'amp': 'bfloat16', 'torchcompile': '',
       'data': ''}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """tools/update_tables.py, which reads the tables of an empty folder, and a function that writes one."""
    path = Path(__file__).parents[1] / 'tools' / 'update_tables.py'
    spec = importlib.util.spec_from_file_location('update_tables', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'ROOT', tmp_path)
    (tmp_path / 'results').mkdir()

    def write(name, rows):
        write_table(tmp_path / 'results' / f'{name}.csv', rows)
        write_table(tmp_path / 'results' / f'{name}-curves.csv', [{**row, 'train_loss': 1.5} for row in rows])
    return module, write


def cells(markdown):
    return [line[2:-2].split(' | ') for line in markdown.splitlines()[2:]]


def test_a_training_has_a_row_over_its_seeds_and_the_difference_of_the_pairs(tables):
    module, write = tables
    write('flowers', [
        *({**RUN, 'seed': seed, 'top1': top1, 'data': data} for seed, top1, data in (
            (0, 0.5, ''), (1, 0.75, 'flowers160'), (2, 0.5, 'flowers160'))),
        *({**RUN, 'model': 'se_resnet18_plugin', 'seed': seed, 'top1': top1} for seed, top1 in ((1, 0.8), (0, 0.6))),
        {**RUN, 'epochs': 30}])
    rows = [row[:5] for row in cells(module.training_table('flowers.csv'))]
    # Differences of 5 and 10 points: mean 7.5, half of the interval t(0.975, 1 degree) 12.7062 * 3.5355 / sqrt(2).
    assert rows == [
        ['resnet18_plugin', '15', '3', '58.33 ± 14.43', ''],
        ['se_resnet18_plugin', '15', '2', '70.00 ± 14.14', '+7.50 (-24.27 to +39.27)'],
        ['resnet18_plugin', '30', '1', '50.00', '']]


@pytest.mark.parametrize(('own', 'said'), [
    ({}, 'two rows with the seed 0'), ({'seed': 1, 'global_batch': 64}, 'global_batch: 32, 64'),
    ({'seed': 1, 'amp': ''}, "amp: '', bfloat16"), ({'seed': 1, 'torchcompile': 'inductor'}, "torchcompile: '', indu"),
    ({'seed': 1, 'data': 'birds'}, 'data: birds, flowers160'),
    ({'model': 'se_resnet18_plugin', 'global_batch': 64}, 'global_batch: 32, 64')])
def test_trainings_that_differ_in_more_than_their_seed_are_refused(tables, own, said):
    module, write = tables
    write('flowers', [{**RUN, 'data': 'flowers160'}, {**RUN, **own}])
    with pytest.raises(ValueError, match=f'resnet18_plugin.*{said}'):
        module.training_table('flowers.csv')


@pytest.mark.parametrize('table', ['starts_table', 'last_norms_table'])
def test_trainings_with_another_recipe_are_not_compared(tables, table):
    module, write = tables
    write('flowers-64', [
        RUN, {**RUN, 'options': 'zero_init_last=False', 'recipe': 'other'}, {**RUN, 'options': "attn='eca'"},
        {**RUN, 'options': "attn='eca' attn_init='identity'", 'recipe': 'other'}])
    with pytest.raises(ValueError, match='recipe: flowers, other'):
        getattr(module, table)('flowers-64.csv', 'resnet18', 15)


def test_detectors_of_other_lengths_have_rows_of_their_own(tables):
    module, write = tables
    write('bccd', [{'model': 'faster-rcnn_r18_fpn_bccd', 'options': '', 'seed': seed, 'epochs': epochs, 'map': value,
                    'map_50': 0.5, 'map_75': 0.5} for seed, epochs, value in ((0, 8, 0.5), (1, 8, 0.6), (2, 12, 0.9))])
    assert [row[1:4] for row in cells(module.bccd_table())] == [['8', '2', '0.550 ± 0.071'], ['12', '1', '0.900']]


def test_curves_of_trainings_with_other_options_have_names_of_their_own(tables, monkeypatch):
    from matplotlib.figure import Figure
    module, write = tables
    epochs = [{**RUN, 'epochs': 45, 'epoch': epoch, 'val_top1': 0.5} for epoch in range(2)]
    write('cifar10', [*epochs, *({**row, 'options': "attn='eca'", 'seed': 1} for row in epochs)])
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: drawn.append(figure))
    module.draw_curves('curves.png')
    assert [text.get_text() for text in drawn[0].legends[0].texts] == [
        'resnet18_plugin, 45 epochs, 1 seed', "resnet18_plugin attn='eca', 45 epochs, 1 seed"]


def test_the_first_page_says_of_each_number_whose_network_it_is_and_whether_it_has_attention(tables):
    module, write = tables
    ratios = {'plain': 1, 'timm': 1.2, 'plain fused': 0.8, 'fused': 0.9}
    attn_base = {'SE-resnet50': ('se', 'resnet50'), 'SK-resnext50_32x4d': ('sk', 'resnext50_32x4d')}
    rows = []
    for case in module._FACTS:
        name, mode, batch, height, width, layout = re.fullmatch(r'(.+): (\w+), (\d+)x(\d+)x(\d+), (.+)', case).groups()
        attn, base = attn_base[name]
        rows += [{'attn': attn, 'base': base, 'split_input': False, 'mode': mode, 'dtype': 'float32', 'compiled': False,
                  'batch': batch, 'height': height, 'width': width, 'layout': layout.replace(' ', '_'),
                  'variant': variant, 'ratio': ratio, 'saved_bytes_ratio': ratio + 1}
                 for variant, ratio in ratios.items()]
    write('speed-cpu', rows)
    write('cifar10', [{**RUN, 'model': f'{se}resnet20_cifar_plugin', 'top1': top1}
                      for se, top1 in (('', 0.5), ('se_', 0.75))])
    write('bccd', [{'model': f'faster-rcnn_{se}r18_fpn_bccd', 'options': '', 'seed': 0, 'epochs': 8, 'map': value}
                   for se, value in (('', 0.25), ('se-', 0.5))])
    table = module.facts_table()
    assert table.splitlines()[0] == (
        "|  | timm's, plain | timm's, with attention | ours, plain | ours, with attention |")
    found = cells(table)
    assert [row[1:] for row in found[:6]] == [['1.00', '1.20', '0.80', '0.90']] * 5 + [
        ['2.000', '2.200', '1.800', '1.900']]
    assert [row[1:] for row in found[6:]] == [['', '', '50.00', '75.00'], ['', '', '0.250', '0.500']]


def test_gates_of_one_seed_do_not_count_as_two_seeds(tables):
    module, write = tables
    gate = {**RUN, 'layer': 'layer1.0.se', 'branch': '', 'mean': 0.5, 'channel_std': 0.1, 'std': 0.1,
            'specificity': 0.2}
    earlier = {**gate, 'global_batch': ''}  # as rows from before there was the column
    write('gates', [earlier, {**gate, 'seed': 1, 'data': 'flowers160'}])
    assert [row[:4] for row in cells(module.gates_table())] == [['resnet18_plugin', 'flowers', '15', '2']]
    write('gates', [earlier, {**gate, 'data': 'flowers160'}])
    with pytest.raises(ValueError, match='resnet18_plugin: two rows with the seed 0'):
        module.gates_table()
    write('gates', [{**gate, 'branch': branch} for branch in ('3x3', '5x5')])  # of a Selective Kernel
    assert [row[3] for row in cells(module.gates_table())] == ['1']


def test_what_enlarged_images_change_in_selective_kernels_is_that_of_the_largest_kernel_by_seed(tables):
    module, write = tables
    write('gates-scale', [
        {**RUN, 'model': 'sk_resnet18_plugin', 'seed': seed, 'unit': 'layer1.0.conv1', 'scale': scale, 'branch': branch,
         'mean': mean if branch == '5x5' else 1 - mean}
        for scale, means in ((1.0, (0.5, 0.4)), (1.5, (0.6, 0.4)), (2.0, (0.75, 0.65)))
        for branch in ('3x3', '5x5') for seed, mean in enumerate(means)])
    # Differences of 0.1 and 0 at 1.5x: mean 0.05, half of the interval 12.7062 * 0.0707 / sqrt(2); equal ones at 2x.
    assert cells(module.scale_table()) == [[
        'sk_resnet18_plugin', 'flowers', '15', 'layer1.0.conv1', '2', '0.450 ± 0.071', '+0.050 (-0.585 to +0.685)',
        '+0.250 (+0.250 to +0.250)']]


def test_networks_that_were_fine_tuned_with_another_learning_rate_have_rows_of_their_own(tables):
    module, write = tables
    pruned = {'model': 'm', 'checkpoint_seed': 0, 'criterion': 'mean', 'share': 0.25, 'epochs': 1, 'lr': 0.01,
              'parameters': 1, 'macs': 1, 'top1_pruned': 0.5, 'top1': 0.75, 'checkpoint_data': ''}
    rows = [{**pruned, 'criterion': 'whole', 'share': 0, 'epochs': 0, 'lr': 0}, pruned]
    write('pruning', [*rows, {**pruned, 'lr': 0.1, 'top1': 0.25}, {**pruned, 'criterion': 'random', 'top1': 0.5}])
    assert [(row[2], *row[-2:]) for row in cells(module.pruning_table())] == [
        ('whole', '75.00', ''), ('mean', '75.00', '+25.00'), ('random', '50.00', ''), ('mean', '25.00', '')]
    write('pruning', [*rows, {**pruned, 'checkpoint_data': 'birds'}])
    with pytest.raises(ValueError, match=r'm: two rows with the seed 0, mean, 0\.25'):
        module.pruning_table()


def test_the_figure_of_all_attentions_tells_how_many_seeds_it_rests_on(tables, monkeypatch):
    from matplotlib.figure import Figure
    module, write = tables
    seeds = {'none': 3, 'eca': 2, 'gc': 3, 'bam': 1}
    runs = [{**RUN, 'options': '' if attn == 'none' else f"attn='{attn}'", 'seed': seed, 'top1': 0.5 + seed ** 2 / 10}
            for attn, count in seeds.items() for seed in range(count)]
    write('flowers-64', runs)
    write('attentions-cpu', [{'base': 'resnet18', 'mode': 'train', 'variant': attn, 'ratio': 1.5}
                             for attn in ('plain', 'eca', 'gc', 'bam')])
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: drawn.append(figure))
    module.draw_attentions('attentions.png')
    assert drawn[0].axes[0].get_title().endswith(': mean of 2 to 3 seeds and 95 % interval')
    assert sorted(text.get_text() for text in drawn[0].axes[0].texts) == ['eca', 'gc']
    write('flowers-64', [run for run in runs if not run['seed']])
    module.draw_attentions('attentions.png')  # one seed has no interval
    assert drawn[1].axes[0].get_title() == 'ResNet-18 on flowers of 64 pixels'
    write('flowers-64', [*runs, runs[0]])
    with pytest.raises(ValueError, match='two rows with the seed 0'):
        module.draw_attentions('attentions.png')


def test_a_table_of_times_names_every_machine_and_version_and_has_one_size_of_image(tables):
    module, write = tables
    row = {'network': 'resnet50 se', 'runtime': 'eager', 'batch': 1, 'size': 224, 'variant': 'timm', 'ratio': 1.5,
           'rounds': 9, 'device': 'x86_64', 'threads': 2, 'torch': '2.13', 'timm': '1.0.31'}
    write('runtimes-cpu', [row, {**row, 'variant': 'ours', 'torch': '2.14', 'threads': 1}, {**row, 'size': 64}])
    table = module.runtimes_table()
    assert 'Device x86_64, 1 and 2 threads, torch 2.13 and 2.14, timm 1.0.31; medians' in table
    assert '| resnet50 se | eager | 1.50 | 1.50 |' in table
    write('runtimes-cpu', [row, {**row, 'size': 64, 'ratio': 3}])
    assert '| 1.50 |' in module.runtimes_table()


def test_a_table_without_its_end_takes_no_text_with_it(tables):
    module, _ = tables
    with pytest.raises(ValueError, match='the table int8 has no <!-- end --> before speed-cuda'):
        module.filled('<!-- table: int8 -->\nold\n\nA paragraph.\n\n<!-- table: speed-cuda -->\nold\n<!-- end -->\n')
    with pytest.raises(ValueError, match='the table speed-cuda has no <!-- end --> before the end of the page'):
        module.filled('<!-- table: speed-cuda -->\nold\n')
    assert module.filled('A page without tables.') == 'A page without tables.'
    filled = module.filled('<!-- table: speed-cuda -->\nold\n<!-- end -->\n\nA paragraph.\n')
    assert filled == '<!-- table: speed-cuda -->\nNot yet run.\n<!-- end -->\n\nA paragraph.\n'
