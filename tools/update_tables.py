"""Fill the tables of README.md, results/README.md and docs/ from the CSV files in results/, and draw the plots.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. With --check nothing is written, and the exit status
is 1 if a table differs from its CSV file.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from timm_se_plugin.analysis.ablations import summary
from timm_se_plugin.analysis.seeds import Difference, paired_difference
from timm_se_plugin.files.tables import read_table
from timm_se_plugin.measuring.runtimes import NETWORKS, RUNTIMES
from timm_se_plugin.placement import ATTENTIONS
from timm_se_plugin.training.timing import plain_name

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, str]

RUN = ('model', 'options', 'seed', 'epochs', 'recipe')  # what names a row of a training and its curve
# In these columns, trainings that are put together or compared agree.
ALIKE = ('epochs', 'recipe', 'global_batch', 'amp', 'torchcompile', 'data')
VARIANTS = {
    'plain fused': 'plain, fused', 'timm': "timm's", 'unfused': 'module by module', 'fused': 'fused', 'floor': 'floor',
    'timm folded': "timm's, folded", 'deployed': 'deployed',
}


def read(name: str) -> list[Row]:
    """Rows of results/NAME; an empty list if there is no such file."""
    return read_table(ROOT / 'results' / name)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, or 'Not yet run.' without rows."""
    if not rows:
        return 'Not yet run.'
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _case(row: Row) -> str:
    name = f'{row["attn"].upper()}-{row["base"]}' + (' split' if row['split_input'] == 'True' else '')
    mode = {'frozen': 'train, frozen statistics'}.get(row['mode'], row['mode'])
    extras = [row['dtype']] if row['dtype'] != 'float32' else []
    extras += ['compiled'] if row['compiled'] == 'True' else []
    size = f'{row["batch"]}x{row["height"]}x{row["width"]}'
    return ', '.join([f'{name}: {mode}', size, row['layout'].replace('_', ' '), *extras])


def _order(row: Row) -> tuple[object, ...]:
    return (row['attn'], row['base'] != 'resnet50', row['base'], row['split_input'], row['mode'] != 'inference',
            row['mode'], row['compiled'], int(row['batch']), row['layout'] != 'nchw')


def _cases(rows: list[Row]) -> dict[str, dict[str, Row]]:
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(_case(row), {})[row['variant']] = row
    return cases


def _note(rows: list[Row], compared: str) -> str:
    """Under a table of times: on what and how often they were measured; empty without rows."""
    if not rows:
        return ''
    device, threads, torch, timm = (
        ' and '.join(sorted({row[column] for row in rows})) for column in ('device', 'threads', 'torch', 'timm'))
    rounds = {int(row['rounds']) for row in rows}
    return (f'\n\nDevice {device}, {threads} threads, torch {torch}, timm {timm}; '
            f'medians of ratios, measured in turns ({_ends(rounds)} rounds), {compared}')


def _ends(numbers: set[int]) -> str:
    """The least and the greatest number, or the one number that there is."""
    return ' to '.join(str(number) for number in dict.fromkeys((min(numbers), max(numbers))))


def speed_table(device: str) -> str:
    """Time ratios of each case, bytes saved for the backward pass where it trains, and peak memory on CUDA."""
    memory = {'saved_bytes_ratio': 'bytes', **({'peak_memory_ratio': 'memory'} if device == 'cuda' else {})}
    rows = sorted(read(f'speed-{device}.csv'), key=_order)
    body = []
    for case, variants in _cases(rows).items():
        cells = [f'{float(variants[v]["ratio"]):.2f}' if v in variants else '' for v in VARIANTS]
        ratios = [variants[v][key] if v in variants else '' for key in memory for v in ('timm', 'fused')]
        body.append([case, *cells, *(f'{float(ratio):.3f}' if ratio else '' for ratio in ratios)])
    note = _note(rows, 'to the plain network, and in the columns "folded" and "deployed" to the plain network with '
                       'BatchNorm folded, which is quicker.')
    whose = [f'{what}, {VARIANTS[v]}' for what in memory.values() for v in ('timm', 'fused')]
    return markdown(['case', *VARIANTS.values(), *whose], body) + note


def draw_speed(device: str, path: Path) -> None:
    """Draw the medians and quartiles of the time ratios, timm's beside the plugin's."""
    from matplotlib.figure import Figure

    rows = sorted(read(f'speed-{device}.csv'), key=_order)
    cases = {case: v for case, v in _cases(rows).items() if {'timm', 'fused'} <= v.keys()}
    figure = Figure(figsize=(9, 1 + 0.36 * len(cases)), layout='constrained')
    axes = figure.subplots()
    for offset, variant, colour in ((-0.2, 'timm', 'tab:gray'), (0.2, 'fused', 'tab:blue')):
        ratios = [float(v[variant]['ratio']) for v in cases.values()]
        low = [r - float(v[variant]['ratio_q25']) for r, v in zip(ratios, cases.values(), strict=True)]
        high = [float(v[variant]['ratio_q75']) - r for r, v in zip(ratios, cases.values(), strict=True)]
        y = [i + offset for i in range(len(cases))]
        axes.errorbar(ratios, y, xerr=[[max(0, e) for e in low], [max(0, e) for e in high]],
                      fmt='o', color=colour, label=VARIANTS[variant])
    axes.axvline(1, color='black', linewidth=1)
    axes.set_yticks(range(len(cases)), list(cases), fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis='x', alpha=0.3)
    axes.set_xlabel('time, as a ratio to the plain network (median and quartiles)')
    axes.legend()
    figure.savefig(path, dpi=110)


def _spread(values: list[float], digits: int) -> str:
    """Mean and, with several values, the standard deviation."""
    return f'{statistics.mean(values):.{digits}f}' + (
        f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else '')


def _difference(values: dict[str, float], reference: dict[str, float], digits: int) -> str:
    """Mean paired difference, with the 95 % interval if there are at least two seeds."""
    return _shown(None if values is reference else paired_difference(values, reference), digits)


def _shown(found: Difference | None, digits: int) -> str:
    if found is None:
        return ''
    interval = '' if found.low is None else f' ({found.low:+.{digits}f} to {found.high:+.{digits}f})'
    return f'{found.mean:+.{digits}f}{interval}'


def _check_alike(*networks: list[Row]) -> None:
    """Refuse trainings of one network, or of two that are compared, that differ in more than network and seed.

    Raises:
        ValueError: two rows of a network with one seed, or rows that differ in a column of ``ALIKE``.
    """
    rows = [row for network in networks for row in network]
    name = ' and '.join(dict.fromkeys(f'{row["model"]} {row.get("options", "")}'.strip() for row in rows))
    for network in networks:
        seeds = [row['seed'] for row in network]
        twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
        if twice is not None:
            raise ValueError(f'{name}: two rows with the seed {twice}')
    for column in ALIKE:
        values = {row.get(column, '') for row in rows}
        if column in ('data', 'global_batch'):
            values.discard('')  # the first rows do not name them
        if len(values) > 1:
            raise ValueError(f'{name}: trainings that differ in {column}: '
                             f'{", ".join(value or repr(value) for value in sorted(values))}')


def _run(row: Row) -> tuple[str, ...]:
    return tuple(row.get(key, '') for key in RUN)


def _losses(table: str) -> dict[tuple[str, ...], float]:
    """Each run's training loss in its last epoch."""
    return {_run(epoch): float(epoch['train_loss']) for epoch in read(f'{Path(table).stem}-curves.csv')}


def training_table(name: str, attn: str | None = None) -> str:
    """Accuracy and training loss of each network over its seeds, and the difference to the plain network's accuracy.

    Short trainings come first, and of each length the plain network. With `attn`, only the networks with this attention
    and the plain ones have rows.
    """
    def compared(model: str, options: str, recipe: str, epochs: str) -> tuple[str, str, str, str]:
        without = ' '.join(part for part in re.split(r' (?=\w+=)', options) if not part.startswith('attn'))
        return plain_name(model) or model, without, recipe, epochs

    losses = _losses(name)
    runs: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in read(name):
        flag = re.search(r"attn='(\S+)'", row['options'])
        own = flag[1] if flag else row['model'].partition('_')[0] if plain_name(row['model']) else None
        if not attn or own in (attn, None):
            runs.setdefault((row['model'], row['options'], row['recipe'], row['epochs']), []).append(row)
    top1 = {key: {row['seed']: 100 * float(row['top1']) for row in rows} for key, rows in runs.items()}
    body = []
    for run in sorted(runs, key=lambda run: (int(run[3]), compared(*run), run != compared(*run))):
        model, options, _, epochs = run
        rows, own, plain = runs[run], top1[run], top1.get(compared(*run), {})
        _check_alike(rows, runs.get(compared(*run), []))
        times = [float(row['time_ratio']) for row in rows if row['time_ratio']]
        loss = [losses[_run(row)] for row in rows if _run(row) in losses]
        body.append([
            f'{model} {options}'.strip(), epochs, str(len(rows)), _spread(list(own.values()), 2),
            _difference(own, plain, 2), _spread(loss, 3) if loss else '',
            f'{int(rows[0]["parameters"]):,}', f'{int(rows[0]["macs"]):,}',
            f'{statistics.median(times):.2f}' if times else ''])
    return markdown(['model', 'epochs', 'seeds', 'top-1 %', 'minus plain (95 % interval)', 'training loss',
                     'parameters', 'MACs', 'step time'], body)


def _attention_runs(table: str, base: str, epochs: int, option: str = '') -> dict[str, list[Row]]:
    """Trainings of one network by attention; only attention with default options, or with this one, counts."""
    named = {f'{base}_plugin': 'none', **{f'{attn}_{base}_plugin': attn for attn in ('se', 'sk')}}
    runs: dict[str, list[Row]] = {}
    for row in read(table):
        flag = re.fullmatch(rf"(?:attn='(\S+)')? ?{option} ?(?:img_size=\d+)?", row['options'])
        if flag and row['epochs'] == str(epochs) and row['model'] in named:
            runs.setdefault(flag[1] or named[row['model']], []).append(row)
    return runs


def _costs(base: str) -> list[Row]:
    return [row for row in read('attentions-cpu.csv') if row['base'] == base]


def attentions_table(table: str, base: str, epochs: int) -> str:
    """Cost and accuracy over the seeds of every attention on one network."""
    runs, costs = _attention_runs(table, base, epochs), _costs(base)
    cost = {(row['mode'], row['variant'].replace('plain', 'none')): row for row in costs}
    losses = _losses(table)
    top1 = {attn: {row['seed']: 100 * float(row['top1']) for row in rows} for attn, rows in runs.items()}
    body = []
    for attn in ('none', *(attn for attn in ATTENTIONS if attn in runs)):
        _check_alike(runs[attn], runs['none'])
        train, inference, first = cost['train', attn], cost['inference', attn], runs[attn][0]
        body.append([
            attn, str(len(runs[attn])), _spread(list(top1[attn].values()), 2),
            _difference(top1[attn], top1['none'], 2), _spread([losses[_run(row)] for row in runs[attn]], 3),
            f'{float(train["ratio"]):.2f}', f'{float(inference["ratio"]):.2f}',
            f'{float(train["saved_bytes_ratio"]):.2f}', f'{int(first["parameters"]):,}',
            f'{int(first["macs"]) / 1e6:.2f}'])
    return markdown(['attention', 'seeds', 'top-1 %', 'minus plain (95 % interval)', 'training loss', 'time, training',
                     'time, inference', 'bytes', 'parameters', 'M MACs'], body) + _note(costs, 'to the plain network.')


def starts_table(table: str, base: str, epochs: int) -> str:
    """Each attention with the papers' start and with the identity start, and the differences between the two."""
    papers = _attention_runs(table, base, epochs)
    body = [[attn, *_changes(table, papers[attn], rows)]
            for attn, rows in _attention_runs(table, base, epochs, "attn_init='identity'").items()]
    return markdown(['attention', 'seeds', "top-1 %, papers' start to identity", 'difference (95 % interval)',
                     "training loss, papers' start to identity", 'difference (95 % interval)'], body)


def last_norms_table(table: str, base: str, epochs: int) -> str:
    """Networks whose last norms start at 0 and at 1, and the differences between the two."""
    body = []
    for attn, start in (('none', ''), ('se', ''), ('se', "attn_init='identity'"), ('sk', '')):
        zero, one = (_attention_runs(table, base, epochs, f'{start}{option}').get(attn, [])
                     for option in ('', ' ?zero_init_last=False'))
        if one:
            body.append([f'{attn} {start}'.strip(), *_changes(table, zero, one)])
    return markdown(['attention', 'seeds', 'top-1 %, from 0 to 1', 'difference (95 % interval)',
                     'training loss, from 0 to 1', 'difference (95 % interval)'], body)


def _changes(table: str, before: list[Row], after: list[Row]) -> list[str]:
    """The seeds, and for accuracy and training loss the values of both networks and the difference."""
    _check_alike(before, after)
    losses, cells = _losses(table), [str(len(after))]
    for factor, digits, value in ((100, 2, lambda row: float(row['top1'])), (1, 3, lambda row: losses[_run(row)])):
        old, new = ({row['seed']: factor * value(row) for row in rows} for rows in (before, after))
        cells += [' to '.join(_spread(list(values.values()), digits) for values in (old, new)),
                  _difference(new, old, digits)]
    return cells


def draw_attentions(path: Path) -> None:
    """Draw the gain in accuracy of every attention against the time of its training step."""
    from matplotlib.figure import Figure

    times = {row['variant']: float(row['ratio']) for row in _costs('resnet18') if row['mode'] == 'train'}
    runs = _attention_runs('flowers-64.csv', 'resnet18', 15)
    _check_alike(*runs.values())
    top1 = {attn: {row['seed']: 100 * float(row['top1']) for row in rows} for attn, rows in runs.items()}
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    axes.axhline(0, color='black', linewidth=1)
    seeds: set[int] = set()
    for i, attn in enumerate(sorted(set(top1) & set(times), key=times.__getitem__)):
        found = paired_difference(top1[attn], top1['none'])
        if found is None or found.low is None or found.high is None:
            continue
        seeds.add(found.seeds)
        axes.errorbar([times[attn]], [found.mean], yerr=[[found.mean - found.low], [found.high - found.mean]],
                      fmt='o', color=f'C{i % 10}', capsize=2, linewidth=1)
        is_above, is_right = i % 2 == 0, i % 4 >= 2  # so that the names of neighbours lie apart
        axes.annotate(attn, (times[attn], found.high if is_above else found.low), xytext=(0, 2 if is_above else -2),
                      textcoords='offset points', ha='left' if is_right else 'right',
                      va='bottom' if is_above else 'top', color=f'C{i % 10}', fontsize=8)
    averaged = f': mean of {_ends(seeds)} seeds and 95 % interval' if seeds else ''
    axes.margins(x=0.1)
    axes.set(xlabel='time of a training step, as a ratio to the plain network',
             ylabel='points of top-1 accuracy above the plain network',
             title=f'ResNet-18 on flowers of 64 pixels{averaged}')
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_curves(path: Path) -> None:
    """Draw training loss and top-1 error of the longest trainings on CIFAR-10, epoch by epoch."""
    from matplotlib.figure import Figure

    curves: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for epoch in read('cifar10-curves.csv'):
        if int(epoch['epochs']) >= 45:
            network = f'{epoch["model"].removesuffix("_cifar_plugin")} {epoch["options"]}'.strip()
            curves.setdefault((network, epoch['epochs']), {}).setdefault(epoch['seed'], []).append(epoch)
    figure = Figure(figsize=(9, 4.6), layout='constrained')
    loss, error = figure.subplots(1, 2)
    runs = sorted(curves.items(), key=lambda item: (int(item[0][1]), item[0][0]))
    for i, ((network, length), seeds) in enumerate(runs):
        name: str | None = f'{network}, {length} epochs, {len(seeds)} seed{"s" if len(seeds) > 1 else ""}'
        for epochs in seeds.values():
            x = [int(epoch['epoch']) + 1 for epoch in epochs]
            for axes, y in ((loss, [float(epoch['train_loss']) for epoch in epochs]),
                            (error, [100 - 100 * float(epoch['val_top1']) for epoch in epochs])):
                axes.plot(x, y, linewidth=1, color=f'C{i}', label=name)
            name = None  # once in the legend
    for axes, label, ticks in (
            (loss, 'training loss', (0.02, 0.05, 0.1, 0.2, 0.5, 1)),
            (error, 'top-1 error %, validation', (10, 12, 15, 20, 30, 50))):
        axes.set(xlabel='epoch', ylabel=label, yscale='log')
        axes.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*loss.get_legend_handles_labels(), loc='outside lower center', ncols=2)  # one for both
    figure.suptitle('ResNet-20 on CIFAR-10, longer trainings of the recipe cifar10-short')
    figure.savefig(path, dpi=110)


def bccd_table() -> str:
    """Detectors on BCCD's validation set over their seeds, and the difference to the plain detector."""
    runs: dict[tuple[str, str, str], list[Row]] = {}
    best: dict[tuple[str, ...], float] = {}
    for row in read('bccd.csv'):
        runs.setdefault((row['model'], row.get('options', ''), row['epochs']), []).append(row)
    for epoch in read('bccd-curves.csv'):
        run = epoch['model'], epoch.get('options', ''), epoch['seed']
        best[run] = max(float(epoch['map_50']), best.get(run, 0))
    body = []
    for (model, options, epochs), rows in runs.items():
        compared = runs.get(('faster-rcnn_r18_fpn_bccd', '', epochs), [])
        _check_alike(rows, compared)
        own, plain = ({row['seed']: float(row['map']) for row in some} for some in (rows, compared))
        shown = re.sub(r'model\.backbone\.(model_name=\S+ )?', '', options)
        body.append([
            f'{model} {shown}'.strip(), epochs, str(len(rows)),
            _spread(list(own.values()), 3), '' if rows is compared else _difference(own, plain, 3),
            *(_spread([float(row[key]) for row in rows], 3) for key in ('map_50', 'map_75')),
            _spread([best[model, options, row['seed']] for row in rows], 3)])
    return markdown(['detector', 'epochs', 'seeds', 'mAP', 'minus plain (95 % interval)', 'mAP50', 'mAP75',
                     'best mAP50 of an epoch'], body)


def detector_cost_table() -> str:
    """The cost of each detector, relative to the same detector without attention."""
    body = [[row['config'], row['options'].replace('model.backbone.', '') or '-',
             f'{row["batch"]}x{row["height"]}x{row["width"]}', *(f'{float(row[key]):.3f}' for key in (
                 'step_ratio', 'saved_bytes_ratio', 'backbone_saved_bytes_ratio'))]
            for row in read('detector-cost.csv') if row['model'] == 'attention']
    return markdown(['detector', 'options', 'pictures', 'time of a training step', 'bytes kept for the backward pass',
                     "of the backbone's"], body)


def complexity_table() -> str:
    """Parameters and MACs beside the published numbers."""
    def compared(counted: float, paper: str, digits: int) -> list[str]:
        return [f'{counted:.{digits}f}', paper, f'{counted - float(paper):+.{digits}f}' if paper else '']
    body = [[row['network'], row['source'], row['model'] + (' without attention' if row['attn'] == 'none' else ''),
             *compared(int(row['parameters']) / 1e6, row['paper_parameters_millions'], 2),
             *compared(int(row['macs']) / 1e9, row['paper_gmacs'], 3)] for row in read('complexity.csv')]
    return markdown(['network', 'paper', 'model', 'M parameters', 'published', 'difference', 'G MACs', 'published',
                     'difference'], body)


def ablation_table() -> str:
    """Each row of each study beside the paper's numbers."""
    body = [[line['study'], line['row'], str(len(line['errors'])), _spread(list(line['errors'].values()), 2),
             _shown(line['difference'], 2), _spread(line['losses'], 3) if line['losses'] else '', line['paper'],
             f'{line["parameters"]:,}', line['paper_parameters'],
             f'{line["model"]}, {line["recipe"]}, {line["epochs"]} epochs {line["settings"]}'.strip()]
            for line in sorted(summary(read('ablations.csv')), key=lambda line: (line['study'], line['settings']))]
    return markdown(['study', 'row', 'seeds', 'top-1 error %', "minus the paper's choice (95 % interval)",
                     'training loss', "paper's error %, ImageNet", 'parameters', "paper's M parameters", 'training'],
                    body)


def gates_table() -> str:
    """The gates of each trained network: the range of its attentions' numbers, each a mean over the seeds."""
    runs: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in read('gates.csv'):
        gate = row['layer'].rpartition('.')[2]  # several in CBAM and scSE
        name = f'{row["model"]} {row["options"]}'.strip() + ('' if gate == 'se' else f': {gate}')
        branch = f'{row["layer"]} {row["branch"]}'  # several in SK
        runs.setdefault((name, row['recipe'], row['epochs']), {}).setdefault(branch, []).append(row)
    body = []
    for key, layers in runs.items():
        _check_alike(next(iter(layers.values())))
        ranges = []
        for column, digits in (('mean', 2), ('channel_std', 3), ('std', 3), ('specificity', 2)):
            means = [statistics.mean(float(row[column]) for row in rows) for rows in layers.values()]
            ranges.append(f'{min(means):.{digits}f} to {max(means):.{digits}f}')
        body.append([*key, str(len(next(iter(layers.values())))), *ranges])
    return markdown(['model', 'recipe', 'epochs', 'seeds', 'mean gate', 'between channels', 'between images',
                     'class dependence'], body)


def scale_table() -> str:
    """Mean weight of the largest kernel in each Selective Kernel unit, and what enlarged images change in it."""
    units: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    for row in read('gates-scale.csv'):
        key = f'{row["model"]} {row["options"]}'.strip(), row['recipe'], row['epochs'], row['unit']
        # The branches of a unit follow one another from the smallest kernel to the largest, whose weight stays.
        units.setdefault(key, {}).setdefault(row['scale'], {})[row['seed']] = float(row['mean'])
    body = []
    for name, scales in units.items():
        whole = scales['1.0']
        body.append([*name, str(len(whole)), _spread(list(whole.values()), 3),
                     *(_difference(scales[scale], whole, 3) for scale in ('1.5', '2.0'))])
    return markdown(['model', 'recipe', 'epochs', 'unit', 'seeds', 'weight of the largest kernel',
                     'change at 1.5x (95 % interval)', 'change at 2x'], body)


def pruning_table() -> str:
    """Accuracy against MACs of pruned networks, by the share that was removed and by what chose the channels."""
    groups: dict[tuple[str, float, str, str], dict[str, dict[str, Row]]] = {}
    for row in read('pruning.csv'):
        network = ' '.join(filter(None, (row['model'], row.get('checkpoint_options'))))
        rows = groups.setdefault((network, float(row['share']), row['epochs'], row['lr']), {}).setdefault(
            row['criterion'], {})
        if row['checkpoint_seed'] in rows:
            raise ValueError(f'{network}: two rows with the seed {row["checkpoint_seed"]}, {row["criterion"]}, '
                             f'{row["share"]}')
        rows[row['checkpoint_seed']] = row
    body = []
    for (network, share, epochs, _), criteria in sorted(groups.items()):
        whole = next(iter(groups[network, 0.0, '0', '0']['whole'].values()))
        for criterion, rows in sorted(criteria.items()):
            one, cells = next(iter(rows.values())), []
            for name in ('top1_pruned', 'top1'):
                values, random = ({seed: 100 * float(row[name]) for seed, row in of.items()}
                                  for of in (rows, criteria.get('random', {})))
                cells += [_spread(list(values.values()), 2),
                          '' if criterion == 'random' else _difference(values, random, 2)]
            body.append([network, f'{100 * share:g} %', criterion, str(len(rows)), epochs,
                         f'{int(one["parameters"]):,}', f'{int(one["macs"]) / int(whole["macs"]):.3f}', *cells])
    return markdown(['model', 'share', 'channels leave by', 'seeds', 'epochs of fine-tuning', 'parameters', 'MACs',
                     'top-1 %, pruned', 'minus random (95 % interval)', 'fine-tuned', 'minus random (95 % interval)'],
                    body)


def int8_table() -> str:
    """Accuracy of exported classifiers in float32 and in 8-bit integers."""
    body = [[row['model'], row['pictures'], f'{100 * float(row["top1_float"]):.2f}',
             f'{100 * float(row["top1_int8"]):.2f}', f'{100 * float(row["same"]):.2f}',
             f'{int(row["bytes_float"]) / 1e6:.2f}', f'{int(row["bytes_int8"]) / 1e6:.2f}'] for row in read('int8.csv')]
    return markdown(['model', 'pictures', 'top-1 %, float32', 'int8', 'same best class %', 'MB, float32', 'int8'], body)


# The cases of speed-cpu.csv in the README's table of facts.
_FACTS = (
    'SE-resnet50: train, 8x224x224, channels last', 'SE-resnet50: inference, 8x224x224, channels last',
    'SE-resnet50: inference, 1x224x224, nchw', 'SE-resnet50: inference, 1x480x640, channels last',
    'SK-resnext50_32x4d: train, 8x224x224, channels last')


def facts_table() -> str:
    """The README's table: some rows of the other tables."""
    speed, body, compared = _cases(read('speed-cpu.csv')), [], ('plain', 'timm', 'plain fused', 'fused')
    for case in _FACTS:
        body.append([f'time, {case}', *(f'{float(speed[case][variant]["ratio"]):.2f}' for variant in compared)])
    body.append([f'memory kept for the backward pass, {_FACTS[0]}',
                 *(f'{float(speed[_FACTS[0]][variant]["saved_bytes_ratio"]):.3f}' for variant in compared)])
    cifar = [row for row in read('cifar10.csv') if not row['options'] and row['epochs'] == '15']
    bccd = [row for row in read('bccd.csv') if not row.get('options') and row['epochs'] == '8']
    for what, rows, key, names, factor, digits in (
            ('top-1 %, ResNet-20 on CIFAR-10, 15 epochs', cifar, 'top1', '{}resnet20_cifar_plugin', 100, 2),
            ('mAP, Faster R-CNN with ResNet-18 on BCCD, 8 epochs', bccd, 'map',
             'faster-rcnn_{}r18_fpn_bccd', 1, 3)):
        networks = [[row for row in rows if row['model'] == names.format(se)] for se in (
            '', 'se-' if 'rcnn' in names else 'se_')]
        _check_alike(*networks)
        found = [[factor * float(row[key]) for row in network] for network in networks]
        seeds = ' and '.join(sorted({str(len(values)) for values in found}))
        body.append([f'{what} ({seeds} {"seed" if seeds == "1" else "seeds"} each)',
                     '', '', *(f'{statistics.mean(values):.{digits}f}' for values in found)])
    return markdown(['', "timm's, plain", "timm's, with attention", 'ours, plain', 'ours, with attention'], body)


def runtimes_table() -> str:
    """Ratios to the plain network in the same runtime for images of 224x224 pixels, batch by batch."""
    order = [*NETWORKS, *RUNTIMES]
    rows = [row for row in read('runtimes-cpu.csv') if row['size'] == '224']
    rows.sort(key=lambda row: (order.index(row['network']), order.index(row['runtime'])))
    found: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        cells = found.setdefault((row['network'], row['runtime']), {})
        cells[row['batch'], row['variant']] = f"{float(row['ratio']):.2f}"
    columns = [(batch, variant) for batch in ('1', '8') for variant in ('timm', 'ours', 'timm, folded', 'ours, folded')]
    return markdown(
        ['network', 'runtime', *(f'{variant}, batch {batch}' for batch, variant in columns)],
        [[*key, *(values.get(column, '') for column in columns)] for key, values in found.items()]) + _note(
            rows, 'to the plain network in the same runtime, and in the columns "folded" to the plain network with '
                  'BatchNorm folded.')


TABLES: dict[str, Callable[[], str]] = {
    'facts': facts_table,
    'speed-cpu': lambda: speed_table('cpu'),
    'speed-cpu-avx2': lambda: speed_table('cpu-avx2'),
    'runtimes-cpu': runtimes_table,
    'speed-cuda': lambda: speed_table('cuda'),
    'attentions-flowers': lambda: attentions_table('flowers-64.csv', 'resnet18', 15),
    'attentions-cifar10': lambda: attentions_table('cifar10.csv', 'resnet20_cifar', 15),
    'starts': lambda: starts_table('flowers-64.csv', 'resnet18', 15),
    'last-norms': lambda: last_norms_table('flowers-64.csv', 'resnet18', 15),
    'cifar10': lambda: training_table('cifar10.csv'),
    'flowers': lambda: training_table('flowers.csv'),
    'flowers-64': lambda: training_table('flowers-64.csv', 'se'),
    'cifar10-finetune': lambda: training_table('cifar10-finetune.csv'),
    'bccd': bccd_table,
    'detector-cost': detector_cost_table,
    'complexity': complexity_table,
    'ablations': ablation_table,
    'gates': gates_table,
    'gates-scale': scale_table,
    'pruning': pruning_table,
    'int8': int8_table,
}


def filled(text: str) -> str:
    """The text with every marked table replaced by that of its CSV file.

    Raises:
        ValueError: a table has no end; the text up to the end of the next one would be lost.
    """
    def table(match: re.Match[str]) -> str:
        return f'{match[1]}\n{TABLES[match[2]]()}\n{match[3]}'
    marks = re.findall(r'<!-- (?:table: (\S+)|end) -->', text)
    for name, following in pairwise([*marks, 'the end of the page']):
        if name and following:
            raise ValueError(f'the table {name} has no <!-- end --> before {following}')
    return re.sub(r'(<!-- table: (\S+) -->)\n.*?(<!-- end -->)', table, text, flags=re.DOTALL)


def main() -> int:
    """Write the tables and plots, or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, and exit with 1 if a table is stale')
    args = parser.parse_args()
    stale = []
    for path in (ROOT / 'README.md', ROOT / 'results' / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))):
        old = path.read_text(encoding='utf-8')
        new = filled(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(new, encoding='utf-8')
    if args.check:
        print(f'stale: {", ".join(stale)}; run `make tables`' if stale else 'tables are up to date')
        return int(bool(stale))
    draw_speed('cpu', ROOT / 'results' / 'speed-cpu.png')
    draw_attentions(ROOT / 'docs' / 'images' / 'attentions.png')
    draw_curves(ROOT / 'docs' / 'images' / 'cifar10-curves.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
