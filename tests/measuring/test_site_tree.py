"""The tree of attention's places against the counts that the network gives itself."""

import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm

from timm_se_plugin.measuring.complexity import complexity
from timm_se_plugin.measuring.site_tree import _share, draw_sites, site_tree
from timm_se_plugin.placement import attention_modules

TOOL = Path(__file__).parents[2] / 'tools' / 'draw_sites.py'


@pytest.mark.parametrize('name', ['se_test_resnet_plugin', 'se_dpn48b_plugin', 'sk_resnet18_plugin', 'resnet18_plugin'])
def test_parts_add_up_to_the_network(name):
    model = timm.create_model(name, device='meta')
    tree, cost = site_tree(model, (3, 64, 64)), complexity(model, (3, 64, 64))
    assert (tree.params, tree.macs) == (cost.params, cost.macs)
    assert (tree.attention_params, tree.attention_macs) == (cost.attention_params, cost.attention_macs)
    units = list(tree.units())
    assert tree.params == sum(p.numel() for p in model.parameters()) == sum(unit.params for unit in units)
    assert tree.macs == sum(unit.macs for unit in units)
    assert [site for unit in units for site in unit.sites] == list(attention_modules(model))
    assert all(len(unit.sites) < 2 for unit in units)


def test_tree_shows_equal_neighbours_once_and_the_share_of_each():
    lines = str(site_tree(timm.create_model('se_resnet18_plugin', device='meta'), (3, 64, 64))).splitlines()
    assert lines[0].startswith('8 attention layers, image 3x64x64; MACs: one per multiply-add')
    assert [line for line in lines if 'layer1' in line or '0 to 1' in line][1].split() == [
        # 2 * 3 * 3 * 64 * 64 + 4 * 64 weights, and SE's 2 * 64 * 4 + 64 + 4
        '│', '└─', '0', 'to', '1,', 'each:', 'AttentionBasicBlock', '+', 'se', '74,564', '18,874,880', '0.78', '%',
        '0.003', '%']


@pytest.mark.parametrize(('part', 'whole', 'said'), [
    (0, 10, '0 %'), (0, 0, '0 %'), (87_040, 1_814_160_384, '0.005 %'), (89_080, 11_778_592, '0.76 %'),
    (1, 10**9, '0.0000001 %'), (1, 10_000, '0.01 %'), (997, 10**8, '0.001 %'), (10, 10, '100.00 %')])
def test_a_small_share_does_not_look_like_none(part, whole, said):
    assert _share(part, whole) == said


def bars(path, colour):
    """Widths of the bars of a colour in an SVG file, from top to bottom, those of the parameters before the MACs'."""
    clipped = [node.attrib for node in ElementTree.parse(path).iter('{http://www.w3.org/2000/svg}path')
               if 'clip-path' in node.attrib and f'fill: {colour}' in node.attrib.get('style', '')]
    corners = [[float(number) for number in re.findall(r'[\d.]+', attributes['d'])] for attributes in clipped]
    return [x2 - x1 for x1, _, x2, *_ in corners]


def test_tool_prints_the_tree_and_draws_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [
        'draw_sites.py', 'test_resnet_plugin', '--model-kwargs', 'attn=cbam', 'attn_stages=3',
        '--input-size', '3', '64', '64', '--output', str(tmp_path / 'new' / 'sites.svg')])
    runpy.run_path(str(TOOL), run_name='__main__')
    printed = capsys.readouterr().out
    assert 'layer3: Sequential + 0.se' in printed
    assert printed.startswith('1 attention layer, image 3x64x64')
    assert '>test_resnet_plugin  (1 attention layer, ●)<' in re.sub('<!-- (.*?) -->', r'>\1<',
                                                                   (tmp_path / 'new' / 'sites.svg').read_text())


def test_bars_have_the_shares_of_the_parts(tmp_path):
    tree = site_tree(timm.create_model('se_test_resnet_plugin', attn_rd_ratio=1., device='meta'), (3, 64, 64))
    draw_sites(tree, tmp_path / 'sites.svg')
    units = [unit for unit in tree.units() if unit.params or unit.macs or unit.sites]
    attention = bars(tmp_path / 'sites.svg', '#d1495b')
    for i, what in enumerate(('params', 'macs')):
        count, whole = len(units), getattr(tree, what)
        parts = [getattr(unit, f'attention_{what}') / whole for unit in units]
        widths = attention[i * count:(i + 1) * count]
        total = sum(bars(tmp_path / 'sites.svg', '#b9c4cc')[i * count:(i + 1) * count]) + sum(widths)
        assert [width / total for width in widths] == pytest.approx(parts, abs=1e-3)
    assert tree.attention_params / tree.params > 0.1  # so that the bars are seen
