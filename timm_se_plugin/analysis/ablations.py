"""Ablations: each row with each seed is a training run in a process of its own, which can be resumed."""

import logging
import queue
import re
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import timm

from ..files.tables import check_table, read_table, replace_rows
from ..models.names import keywords_of
from ..placement.record import OPEN_NAMES
from .seeds import paired_difference
from .studies import CHOSEN, STUDIES, Row, study_network, study_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['FailedRunsError', 'draw_ablation', 'open_network', 'run_study', 'study_of', 'summary']

_logger = logging.getLogger(__name__)
# Options of the training that the study sets for each row.
_OWN = {
    '--config', '--model', '--model-kwargs', '--seed', '--device', '--output', '--experiment', '--resume', '--results',
    '--task'}


class FailedRunsError(RuntimeError):
    """Runs of a study failed; the message names the folder of their logs."""


def open_network(model: str) -> str:
    """Name of the network without attention: ``resnet50_plugin`` for ``se_resnet50_plugin``.

    Raises:
        ValueError: `model` is not a network of the plugin.
    """
    if model not in OPEN_NAMES:
        raise ValueError(f'{model!r} is not a network of the plugin; an ablation needs one, such as resnet50_plugin')
    return OPEN_NAMES[model]


def run_study(
        study: str, recipe: str, model: str | None, seeds: Sequence[int], folder: str | Path, table: str | Path,
        devices: Sequence[str] = ('cpu',), arguments: Sequence[str] = (),
        model_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Train and evaluate each row of a study with each seed, and tabulate the results beside the paper's numbers.

    A second call after an interruption repeats no finished run, and resumes the others from their checkpoints. A
    network that several studies have, such as the papers' own, is trained once.

    Args:
        study: a key of :data:`~timm_se_plugin.analysis.studies.STUDIES`.
        recipe: recipe of the training, the name of a packaged one or a YAML file.
        model: a network of the plugin, whose attention each row replaces; the paper's network if None.
        seeds: seeds of the runs.
        folder: folder for those of the runs, ``<network>/<recipe>/<study>/<row>-seed<seed>``.
        table: CSV file that gets a row for each run.
        devices: devices such as ``'cuda:0'`` and ``'cpu'``; one run at a time is trained on each entry.
        arguments: further options of the training, except those that the study sets.
        model_kwargs: arguments of the network that all rows share, such as ``zero_init_last=False``.

    Returns:
        The rows of the table.

    Raises:
        ValueError: an unknown study, a network that is not the plugin's or that no row fits, an option or an argument
            of the network that the study sets, or a finished run in the folder that had other options.
        FailedRunsError: runs failed; the others are finished and tabulated.
        SystemExit: the training does not have one of the options or refuses its value, as the message says.
    """
    from ..training.config import parse_options  # needs the [train] extra
    from ..training.records import RUN

    network = open_network(model or study_network(study))
    taken = sorted(_OWN & {argument.partition('=')[0] for argument in arguments})
    if taken:
        raise ValueError(f'the study sets {", ".join(taken)} for each row; leave out what the study sets')
    shared = _own_arguments(study).intersection(model_kwargs)
    if shared:
        names = ', '.join(sorted(shared))
        raise ValueError(f'the study {study!r} sets {names} of the network; leave out what the study sets')
    with keywords_of(network, model_kwargs):
        rows = [row for row in study_rows(study) if _fits(network, row, model_kwargs)]
    if not rows:
        raise ValueError(f'no row of the study {study!r} fits {network}')
    check_table(table)
    where = Path(folder, network, Path(recipe).stem, study)
    tasks = [(row, seed, _command(row, seed, recipe, network, arguments, model_kwargs))
             for seed in seeds for row in rows]
    for task in tasks:  # what is wrong with the options is said before the first training
        parse_options(task[-1], 'timm-se ablate')
        _finished_run(where, *task)
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def run(task: tuple[Row, int, list[str]]) -> dict[str, Any] | None:
        row, seed, command = task
        device = free.get()
        try:
            folder = _finished_run(where, *task) or _train(where, _run_name(row, seed), command, device)
        finally:
            free.put(device)
        if folder is None:
            return None
        done, = read_table(folder / 'result.csv')
        return {
            'study': study, 'row': row.name, **dict.fromkeys(RUN, ''), **done,
            'train_loss': read_table(folder / 'result-curves.csv')[-1]['train_loss'],
            'paper_top1_error': row.top1_error or '', 'paper_parameters_millions': row.parameters or ''}

    with ThreadPoolExecutor(len(devices)) as pool:
        results = list(pool.map(run, tasks))
    finished = [result for result in results if result]
    if finished:
        replace_rows(table, finished, ('study', 'row', *RUN))
    if len(finished) < len(results):
        raise FailedRunsError(
            f'{len(results) - len(finished)} of {len(results)} runs failed; their logs are in {where}')
    return finished


def _own_arguments(study: str) -> set[str]:
    return {key for row in study_rows(study) for key in row.options}


def _fits(network: str, row: Row, model_kwargs: Mapping[str, Any] = MappingProxyType({})) -> bool:
    try:
        timm.create_model(network, device='meta', **row.options, **model_kwargs)
    except ValueError as error:
        _logger.warning('the row %r is left out: %s', row.name, error)
        return False
    return True


def _run_name(row: Row, seed: int) -> str:
    return f'{re.sub(r"[^0-9a-zA-Z]+", "-", row.name).strip("-")}-seed{seed}'


def _command(
        row: Row, seed: int, recipe: str, network: str, arguments: Sequence[str],
        model_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    keywords = [f'{key}={value!r}' for key, value in {**row.options, **model_kwargs}.items()]
    return ['--config', recipe, *arguments, '--model', network, '--model-kwargs', *keywords, '--seed', str(seed)]


def _finished_run(where: Path, row: Row, seed: int, command: Sequence[str]) -> Path | None:
    """The folder of this row's run if it is finished, or else of the same run in another study; None if neither is.

    Raises:
        ValueError: the row's own run had other options.
    """
    own = where / _run_name(row, seed)
    different = _differences(own, command)
    if different:
        raise ValueError(f'{own} holds the result of a run with other options: {", ".join(different)}')
    same = [where.parent / study / _run_name(other, seed)
            for study, rows in STUDIES.items() for other in rows if other.options == row.options]
    return next((folder for folder in (own, *same) if _differences(folder, command) == []), None)


def _differences(folder: Path, command: Sequence[str]) -> list[str] | None:
    """Options in which the finished run in a folder differs from a command; None if no run is finished there.

    Of an unfinished run, the training itself says which options differ.
    """
    if not (folder / 'result.csv').exists():
        return None
    import yaml  # a requirement of the [train] extra

    from ..training.config import data_name, different_options, options_of, parse_options

    then = options_of({'args': Namespace(**yaml.safe_load((folder / 'args.yaml').read_text(encoding='utf-8')))})
    now = vars(parse_options(command))
    if now['num_classes'] is None:  # the run has taken the number from the data
        now['num_classes'] = then['num_classes']
    # A folder of data may have moved, but not changed its name.
    was, data = (data_name(Namespace(**each)) if each['dataset'] or each['data_dir'] else '' for each in (then, now))
    return [*different_options(then, now), *([f'data={data!r} (was {was!r})'] if data != was else [])]


def _train(where: Path, name: str, command: Sequence[str], device: str) -> Path | None:
    """Train or resume a run, and return its folder; None if it failed."""
    folder, log_file = where / name, where / f'{name}.log'
    folder.mkdir(parents=True, exist_ok=True)
    whole = [
        sys.executable, '-m', 'timm_se_plugin', 'train', *command, '--device', device, '--output', str(where),
        '--experiment', name, '--resume', 'auto', '--results', str(folder / 'result.csv')]
    _logger.info('%s on %s', name, device)
    with log_file.open('a', encoding='utf-8') as log:
        code = subprocess.run(whole, stdout=log, stderr=log, check=False).returncode
    if code or not (folder / 'result.csv').exists():
        _logger.warning('%s failed with exit code %d; its log is %s', name, code, log_file)
        return None
    return folder


def study_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the rows of one study have in common: all that names a run, save its seed and the options of the study.

    Args:
        row: a row of the table that :func:`run_study` writes.
    """
    own = _own_arguments(row['study'])
    parts = re.split(r' (?=\w+=)', row['options'])  # not at the spaces of attn_kernels=(3, 5)
    settings = ' '.join(part for part in parts if part.partition('=')[0] not in own)
    columns = ('study', 'model', 'recipe', 'epochs', 'data', 'global_batch', 'amp', 'torchcompile')
    return (*(str(row.get(column, '')) for column in columns), settings)  # older rows lack the last four


def summary(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Each row of the studies over its seeds.

    Returns:
        For each row of a study the top-1 errors in per cent by seed, their mean, the difference to the papers' own
        network (see :func:`~timm_se_plugin.analysis.seeds.paired_difference`), the training losses of the last epoch,
        and what the rows of the table have in common; ``settings`` are the options that are not the study's.
    """
    together: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        together.setdefault((*study_of(row), row['row']), []).append(row)
    errors = {key: {str(run['seed']): 100 - 100 * float(run['top1']) for run in runs}
              for key, runs in together.items()}
    result = []
    for key, runs in together.items():
        study, model, recipe, epochs, *_, settings, name = key
        chosen = errors.get((*key[:-1], CHOSEN[study]), {})
        result.append({
            'study': study, 'row': name, 'model': model, 'recipe': recipe, 'epochs': epochs, 'settings': settings,
            'errors': errors[key], 'error': statistics.mean(errors[key].values()),
            'difference': None if name == CHOSEN[study] else paired_difference(errors[key], chosen),
            'losses': [float(run['train_loss']) for run in runs if run.get('train_loss')],
            'parameters': int(runs[0]['parameters']), 'macs': int(runs[0]['macs']),
            'paper': runs[0]['paper_top1_error'], 'paper_parameters': runs[0]['paper_parameters_millions']})
    return result


def draw_ablation(rows: Sequence[dict[str, str]], path: str | Path) -> 'Figure':
    """Draw the errors of a study into an image file, and return the figure.

    The upper chart shows mean and range of each row over the seeds, the lower chart the paper's error.
    """
    from matplotlib.figure import Figure

    lines = summary(rows)
    figure = Figure(figsize=(max(5, 1.3 * len(lines)), 6), layout='constrained')
    measured, paper = charts = figure.subplots(2, 1, sharex=True)
    x = range(len(lines))
    mean = [line['error'] for line in lines]
    below = [line['error'] - min(line['errors'].values()) for line in lines]
    above = [max(line['errors'].values()) - line['error'] for line in lines]
    measured.errorbar(x, mean, yerr=[below, above], fmt='o', capsize=4)
    title = '{study}: {model}\n{recipe}, {epochs} epochs {settings}'.format(**lines[0]).strip()
    measured.set(title=title, ylabel='top-1 error %, here')
    paper.plot(x, [float(line['paper'] or 'nan') for line in lines], 's', color='tab:gray')
    paper.set_ylabel('top-1 error %, paper, ImageNet')
    paper.set_xticks(x, [line['row'] for line in lines])
    for axes in charts:
        axes.grid(alpha=0.3)
        axes.margins(x=0.1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return figure
