"""The tree of attention's places against the counts that the network gives itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

from timm_se_plugin.measuring.complexity import complexity
from timm_se_plugin.measuring.site_tree import draw_sites, site_tree
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
        '0.00', '%']


def test_tool_prints_the_tree_and_draws_it(tmp_path):
    run = subprocess.run(
        [sys.executable, TOOL, 'test_resnet_plugin', '--model-kwargs', 'attn=cbam', 'attn_stages=3',
         '--input-size', '3', '64', '64', '--output', tmp_path / 'sites.png'],
        capture_output=True, text=True, check=True)
    assert 'layer3: Sequential + 0.se' in run.stdout
    assert run.stdout.startswith('1 attention layers, image 3x64x64')
    with Image.open(tmp_path / 'sites.png') as image:
        assert len(image.convert('RGB').getcolors(1 << 20)) > 10


def test_picture_has_a_bar_for_each_part(tmp_path):
    tree = site_tree(timm.create_model('se_vgg11_bn_plugin', device='meta'), (3, 64, 64))
    draw_sites(tree, tmp_path / 'sites.svg', 'VGG')
    assert (tmp_path / 'sites.svg').read_text().count('<path') > 2 * 8
