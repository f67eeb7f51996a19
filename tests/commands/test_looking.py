"""Commands that look at networks and at the machine."""

import csv

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from timm_se_plugin.commands import main

SMALL = ('--base', 'test_resnet', '--batch', '1', '--height', '32', '--width', '32', '--rounds', '2')


def test_models_finds_names_by_a_part_and_says_which_have_weights(printed):
    rows = {row['name']: row for row in printed('models', 'seresnet50')}
    assert rows['seresnet50_plugin']['attention'] == 'se'
    assert 'a1_in1k' in rows['seresnet50_plugin']['weights']
    assert not [name for name in rows if not name.endswith('_plugin')]
    assert printed('models', 'resnet20_cifar*') == [
        {'name': 'resnet20_cifar_plugin', 'attention': None, 'weights': []}]
    with pytest.raises(SystemExit, match="no network with weights has a name like 'resnet20_cifar'"):
        main(['models', 'resnet20_cifar', '--pretrained'])
    assert [row['name'] for row in printed('models', 'seresnet50', '--all')
            if not row['name'].endswith('_plugin')]


def test_complexity_counts_what_the_papers_count(printed):
    assert printed('complexity', 'se_resnet50_plugin')['params'] == 28_088_024
    with pytest.raises(SystemExit, match='give the name of one network, or --published'):
        main(['complexity'])
    with pytest.raises(SystemExit, match=r'--output table\.csv is the table of --published; give both or neither'):
        main(['complexity', 'se_resnet50_plugin', '--output', 'table.csv'])
    for words in (['--input-size', '3', '64', '64'], ['--model-kwargs', 'attn=se']):
        with pytest.raises(SystemExit, match=f"{words[0]} is for one network, and --published counts the papers' as"):
            main(['complexity', '--published', *words])


@pytest.mark.slow
def test_complexity_writes_the_table_of_the_papers_networks(tmp_path):
    main(['complexity', '--published', '--output', str(tmp_path / 'table.csv')])
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        assert 'SE-ResNet-50' in {row['network'] for row in csv.DictReader(file)}


def test_bench_measures_one_case(printed, tmp_path):
    rows = printed('bench', '--base', 'resnet18', '--batch', '1', '--height', '32', '--width', '32', '--rounds',
                   '2', '--variants', 'fused', '--output', str(tmp_path / 'speed.csv'))
    assert {row['variant'] for row in rows} >= {'plain', 'fused'}
    assert (tmp_path / 'speed.csv').is_file()


def test_bench_compiles_the_network(printed, tmp_path):
    from torch._dynamo.utils import counters
    compiled = []
    for options in ((), ('--compiled',)):
        torch._dynamo.reset()
        counters.clear()
        with torch.compiler.set_stance('default', force_backend='eager'):  # needs no C++ compiler
            row, = printed('bench', *SMALL, *options, '--variants', 'plain', '--output', tmp_path / 'speed.csv')
        compiled.append((row['compiled'], counters['stats']['unique_graphs']))
    assert compiled == [(False, 0), (True, 1)]


def test_bench_splits_the_input_of_sk(printed, tmp_path):
    measured = []
    for options in ((), ('--split-input',)):
        with FlopCounterMode(display=False) as counter:
            rows = printed('bench', *SMALL, '--attn', 'sk', *options, '--variants', 'fused', '--output',
                           tmp_path / 'speed.csv')
        measured.append((rows[-1]['split_input'], counter.get_total_flops()))
    (is_split, whole), (is_split_then, split) = measured
    assert (is_split, is_split_then) == (False, True)
    assert split < whole        # each branch reads its share of the channels


def test_bench_counts_bytes(printed, tmp_path):
    rows = printed('bench', '--count', 'resnet18', '--output', str(tmp_path / 'traffic.csv'))
    assert {row['base'] for row in rows} == {'resnet18'}
    for words in (['--base', 'resnet18'], ['--dtype', 'float16'], ['--device', 'cuda']):
        with pytest.raises(SystemExit, match=f'--count measures nothing, and does not take {words[0]}'):
            main(['bench', '--count', *words])


def test_doctor_names_versions_extras_and_the_hub(printed, monkeypatch):
    from huggingface_hub import constants

    found = printed('doctor')
    assert found['Versions']['timm'].startswith('1.')
    assert set(found) == {'Versions', 'Extras', 'Processors', 'Attention', 'Hugging Face Hub', 'Caches'}
    assert 'offline mode is on' in found['Hugging Face Hub'][constants.ENDPOINT]
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    assert 'does not answer' in printed('doctor')['Hugging Face Hub']['http://127.0.0.1:9']


def test_doctor_asks_the_hub_unless_offline(printed, hub):
    assert printed('doctor')['Hugging Face Hub'][hub.url].startswith('answers')
    assert hub.requests == ['GET /']
    assert printed('doctor', '--offline')['Hugging Face Hub'][hub.url] == 'not asked'
    assert hub.requests == ['GET /']
