import argparse
import json
import math
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from digit_runs import TINY

import timm_se_plugin
from timm_se_plugin.commands import COMMANDS, command_parser, main
from timm_se_plugin.commands.command_line import _EXTRAS, parse

PACKAGE = Path(timm_se_plugin.__file__).parent
START = (f"import runpy, sys; start = runpy.run_path({str(PACKAGE / 'commands' / '_launcher.py')!r})['main']\n"
         'try: start()\nexcept SystemExit: pass\n'
         "print('\\nheavy:', [name for name in ('torch', 'timm', 'mmengine', 'matplotlib') if name in sys.modules])")


def started(*words: str) -> str:
    """What the console script prints, and which heavy packages it has imported."""
    return subprocess.run([sys.executable, '-c', START, *words], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize('words', [('--help',), ('--version',), ('train', '--help'), ('detect', 'train', '--help'),
                                   ('analyze', '--help'), ('train', '--epochs', 'many')])
def test_a_command_line_is_read_without_pytorch(words):
    assert 'heavy: []' in started(*words)


def test_a_command_runs_after_the_package_is_imported_as_always():
    out = started('sites', 'se_resnet18_plugin')
    assert '8 attention layers' in out
    assert "heavy: ['torch', 'timm'" in out


def test_a_warning_of_huggingface_hub_is_printed_once():
    code = ("from timm_se_plugin.commands import main; main(['models', 'resnet18_plugin'])\n"
            "from huggingface_hub.utils import logging\n"
            "logging.get_logger('huggingface_hub.utils').warning('Retrying')")
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stderr.count('Retrying') == 1


def test_the_extra_that_an_error_names_brings_the_package():
    brought = {}
    for requirement in metadata.requires('timm-se-plugin'):
        name = re.match(r'[\w.-]+', requirement)[0]
        for extra in re.findall(r"extra == ['\"](\w+)", requirement):
            brought.setdefault(extra, set()).add(name)
    sources = metadata.packages_distributions()
    for extra, packages in _EXTRAS.items():
        for package in packages:
            assert brought[extra] & set(sources[package]), (extra, package)


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as end:
        main(['--version'])
    assert end.value.code == 0
    assert capsys.readouterr().out == f'timm-se {timm_se_plugin.__version__}\n'


@pytest.mark.parametrize('command', COMMANDS)
def test_the_help_says_each_default(command):
    root = command_parser()
    for word in command.split():
        root = next(action for action in root._actions if isinstance(action.choices, dict)).choices[word]
    said = {type(None), bool, list, dict}   # what an option does that is not given: the help of each says it in words
    options = [action for action in root._actions if action.option_strings and type(action.default) not in said]
    assert not [action.dest for action in options
                if argparse.SUPPRESS not in (action.default, action.help) and action.default != ''
                and '(default: ' not in action.help]


def test_an_analysis_offers_no_option_that_it_refuses(capsys):
    offered = {}
    for command in ('analyze', 'evaluate'):
        with pytest.raises(SystemExit, match=r'^0$'):
            main([command, '--help'])
        offered[command] = {line.split()[0] for line in capsys.readouterr().out.splitlines() if '  --' in line}
    assert offered['evaluate'] - offered['analyze'] == {'--real-labels', '--task'}
    assert parse(['analyze', '--task', 'classification']).task == 'classification'  # as commands of before may have


def test_every_module_of_a_command_is_a_command():
    shared = {'__init__', '_launcher', 'command_line', 'detector_options', 'network_options'}
    modules = {path.stem for path in (PACKAGE / 'commands').glob('*.py')} - shared
    assert modules == {command.replace(' ', '_') for command in COMMANDS}


@pytest.mark.parametrize('command', COMMANDS)
def test_help_begins_with_what_the_command_does(command, capsys):
    with pytest.raises(SystemExit) as end:
        main(['--help'], command)
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: timm-se {command} ')
    assert re.search(r'^[A-Z][^.]+\.$', text, re.M | re.S)


@pytest.mark.parametrize('tool', sorted((PACKAGE.parent / 'tools').glob('*.py')), ids=lambda path: path.stem)
def test_a_tool_is_a_command(tool):
    text = tool.read_text()
    found = re.search(r"main\(command='([a-z ]+)", text)
    if found is None:
        assert 'timm_se_plugin.commands' not in text  # a tool of the repository, which is no command of the package
    else:
        assert found[1].strip() in COMMANDS
        assert len(text.splitlines()) < 8


def test_an_unknown_option_names_the_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(['sites', 'resnet18', '--frobnicate'])
    assert end.value.code == 2
    assert 'timm-se sites: error: unrecognized arguments: --frobnicate' in capsys.readouterr().err


def test_an_error_is_a_message_and_with_traceback_an_exception():
    with pytest.raises(SystemExit, match='timm-se: the model se_resnet5_plugin is unknown; did you mean'):
        main(['sites', 'se_resnet5_plugin'])
    with pytest.raises(ValueError, match='se_resnet5_plugin is unknown'):
        main(['--traceback', 'sites', 'se_resnet5_plugin'])


def test_a_name_without_the_ending_of_the_plugin_is_told_the_ending():
    with pytest.raises(SystemExit, match='the model se_resnet18 is unknown; did you mean se_resnet18_plugin, '):
        main(['sites', 'se_resnet18'])
    with pytest.raises(SystemExit, match=r'did you mean se_resnet50_plugin\.a1_in1k, '):
        main(['sites', 'se_resnet50.a1_in1k'])


def test_a_keyword_that_the_network_does_not_take_is_a_message():
    with pytest.raises(SystemExit, match=r"se_resnet18_plugin takes no keyword 'atn'; did you mean 'attn'\?"):
        main(['sites', 'se_resnet18_plugin', '--model-kwargs', 'atn=se'])


def test_a_keyword_without_a_value_is_named(capsys):
    for command, option, form in (('sites', '--model-kwargs', 'KEY=VALUE'), ('convert', '--rename', 'OLD=NEW')):
        with pytest.raises(SystemExit):
            main([command, 'resnet18_plugin', option, 'a=1', 'attn'])
        assert f"argument {option}: 'attn' is not of the form {form}" in capsys.readouterr().err


@pytest.mark.parametrize(('given', 'option'), [
    ('num_classes=7', '--num-classes'), ('drop_path_rate=0.1', '--drop-path')])
def test_a_keyword_that_has_an_option_of_its_own_is_told_the_option(digits, tmp_path, given, option):
    train = ['train', *TINY, '--data-dir', str(digits), '--output', str(tmp_path)]
    with pytest.raises(SystemExit, match=f'is not given by --model-kwargs but by {option}'):
        main([*train, '--model-kwargs', given])
    with pytest.raises(SystemExit, match=r"vgg11 takes no keyword 'drop_path_rate'$"):
        main([*train, '--model', 'vgg11', '--drop-path', '0.1'])


@pytest.mark.parametrize(('module', 'extra'), [('sklearn', 'train'), ('torch_pruning.utils', 'analysis'),
                                               ('mmengine', 'mmdet'), ('onnxruntime', 'export')])
def test_a_forgotten_extra_is_named(module, extra, monkeypatch):
    def fails(args):
        raise ModuleNotFoundError(f'No module named {module!r}', name=module)
    monkeypatch.setattr('timm_se_plugin.commands.sites.run', fails)
    with pytest.raises(SystemExit, match=rf'No module named .{module}.; .*pip install "timm-se-plugin\[{extra}\]"'):
        main(['sites', 'resnet18'])


def test_an_interruption_is_a_line_and_no_traceback(monkeypatch, capsys):
    def fails(args):
        raise KeyboardInterrupt
    monkeypatch.setattr('timm_se_plugin.commands.sites.run', fails)
    with pytest.raises(SystemExit) as end:
        main(['sites', 'resnet18'])
    assert end.value.code == 130
    assert capsys.readouterr().err == 'timm-se: interrupted\n'


def test_no_help_shows_what_is_hidden(capsys):
    with pytest.raises(SystemExit):
        main(['train', '--help'])
    assert 'SUPPRESS' not in capsys.readouterr().out


def test_help_of_the_analysis_names_its_own_files(capsys):
    with pytest.raises(SystemExit):
        main(['analyze', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert '--output DIR folder for gates.csv, the figures and report.html' in text
    assert 'confusion.png' not in text


def test_json_is_all_that_stands_on_the_standard_output(capsys):
    main(['sites', 'se_resnet18_plugin', '--json'])
    out, err = capsys.readouterr()
    assert len(json.loads(out)['sites']) == 8
    assert '8 attention layers' in err


@pytest.mark.parametrize('rank', ['0', '1'])
def test_one_of_several_processes_prints_the_json(monkeypatch, capsys, rank):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')  # as torchrun sets it
    main(['sites', 'se_resnet18_plugin', '--json'])
    assert bool(capsys.readouterr().out) == (rank == '0')


def test_json_has_null_for_numbers_that_json_does_not_have(monkeypatch, capsys):
    found = {'precision': math.nan, 'sizes': (math.inf, 1.5), 'rows': [{'share': -math.inf}], 'names': ['nan']}
    monkeypatch.setattr('timm_se_plugin.commands.sites.run', lambda args: found)
    main(['sites', 'se_resnet18_plugin', '--json'])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        'precision': None, 'sizes': [None, 1.5], 'rows': [{'share': None}], 'names': ['nan']}


def test_completion_knows_the_commands_and_their_options(capsys):
    pytest.importorskip('shtab', reason='the [completion] extra')
    with pytest.raises(SystemExit) as end:
        main(['--completion', 'bash'])
    assert end.value.code == 0
    script = capsys.readouterr().out
    assert '--model-ema-decay' in script
    assert '--auto-scale-lr' in script


def test_commands_offer_the_choices_of_their_functions():
    from timm_se_plugin.analysis.pruning import CRITERIA
    from timm_se_plugin.measuring.benchmark import DTYPES, LAYOUTS
    from timm_se_plugin.weights.convert import PADDINGS

    groups = next(action.choices for action in command_parser()._actions if isinstance(action.choices, dict))
    choices = {(command, action.dest): action.choices for command in ('bench', 'prune', 'convert')
               for action in groups[command]._actions}
    assert choices['bench', 'layout'] == tuple(LAYOUTS)
    assert choices['bench', 'dtype'] == tuple(DTYPES)
    assert choices['prune', 'criteria'] == CRITERIA
    assert parse(['prune', 'last.pth.tar']).criteria == list(CRITERIA)
    assert choices['convert', 'padding'] == PADDINGS


@pytest.mark.parametrize('words', [
    ['bench', '--base', 'resnet18', '--batch', '1', '--height', '32', '--width', '32', '--rounds', '2', '--output'],
    ['prune', 'last.pth.tar', '--results'],
    ['ablate', 'squeeze', '--config', 'cifar10-short', '--model', 'se_resnet20_cifar_plugin', '--results'],
    ['export', 'run', 'a.onnx', '--pictures', 'a.png', '--int8', 'a.png', '--record'],
    pytest.param(['detect', 'train', 'a.py', '--record'], marks=pytest.mark.mmdet),
    pytest.param(['detect', 'cost', 'faster-rcnn_se-r18_fpn_bccd', '--output'], marks=pytest.mark.mmdet)])
def test_a_table_that_takes_no_rows_is_refused_before_the_work(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == 'detect':
        pytest.importorskip('mmdet', reason='needs the [mmdet] or the [onedl] extra')
    with pytest.raises(SystemExit, match='is a folder; give the name of a CSV file'):
        main([*words, str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('words', 'said'), [
    (['cells.onnx'], 'a detector'), (['local-dir:cells'], 'a detector'),
    (['cells.py', 'a.pth'], 'a configuration, a checkpoint')])
def test_a_detector_without_a_picture_is_told_to_need_one(words, said):
    given = re.escape(' '.join(words))
    with pytest.raises(SystemExit, match=f'^timm-se: {given}: without --model, {said} and at least one picture are'):
        main(['detect', 'predict', *words])


@pytest.mark.parametrize('words', [
    ['export', 'absent', '{}.onnx', '--pictures', 'a.png'],
    ['predict', 'a.png', '--model', 'absent', '--output', '{}.csv'],
    ['predict', 'a.png', '--model', 'absent', '--sheet', '{}.png'],
    ['detect', 'compare', 'absent', 'absent.pth', '--output', '{}.png']])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('file').touch()
    with pytest.raises(SystemExit, match=r'file cannot be a folder of results: .*; give another name'):
        main([word.format('file/a') for word in words])
    for ending in ('onnx', 'csv', 'png'):
        Path(f'folder.{ending}').mkdir()
    with pytest.raises(SystemExit, match=r'folder\.\w+ is a folder; give the name of a file'):
        main([word.format('folder') for word in words])


def test_a_folder_in_the_place_of_the_file_in_8_bit_integers_is_refused_before_the_export(tmp_path):
    (tmp_path / 'a-int8.onnx').mkdir()
    with pytest.raises(SystemExit, match=r'a-int8\.onnx is a folder; give the name of a file'):
        main(['export', 'absent', str(tmp_path / 'a.onnx'), '--pictures', 'a.png', '--int8', 'a.png'])


@pytest.mark.parametrize('words', [
    ['analyze', '--model', 'se_test_resnet_plugin'], ['evaluate', '--model', 'test_resnet'], ['prune', 'last.pth.tar'],
    ['detect', 'predict', 'a.png', '--model', 'absent.onnx']])
def test_a_file_in_the_place_of_a_folder_is_refused_before_the_work(words, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match=r'file cannot be a folder of results: .*; give another name'):
        main([*words, '--output', str(tmp_path / 'file')])
