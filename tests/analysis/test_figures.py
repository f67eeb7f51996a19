import csv
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from parity import images, randomised
from PIL import Image

from timm_se_plugin.analysis import enlarged, gate_map, gate_statistics, scale_statistics, unusual_images
from timm_se_plugin.analysis.figures import (
    draw_activations,
    draw_depth,
    draw_deviations,
    draw_gate_maps,
    draw_scale,
    sampled_channels,
    shown_layers,
)
from timm_se_plugin.analysis.options import analysis_parser
from timm_se_plugin.analysis.pictures import gate_maps
from timm_se_plugin.analysis.pipeline import analyze, parse_analysis
from timm_se_plugin.files.tables import read_table
from timm_se_plugin.training import parse_options, train_classifier

matplotlib = pytest.importorskip('matplotlib', reason='figures need the [analysis] extra')


def network(name='se_test_resnet_plugin', **kwargs):
    return randomised(timm.create_model(name, num_classes=2, **kwargs))


def data(count=6):
    return [(images(count, 3, 32, 32, dtype=torch.float32), torch.arange(count) % 2)]


def test_fifty_channels_are_sampled_evenly():
    assert sampled_channels(4) == [0, 1, 2, 3]
    assert sampled_channels(99)[:3] == [0, 2, 4]
    assert len(sampled_channels(2048)) == 50
    assert sampled_channels(2048)[-1] == 2047


def test_the_last_attention_of_each_stage_and_all_of_the_last_stage_are_shown():
    result = gate_statistics(network('se_resnet18_plugin'), data(2), 'ab')
    assert [layer.name for layer in shown_layers(result)] == [
        'layer1.1.se', 'layer2.1.se', 'layer3.1.se', 'layer4.0.se', 'layer4.1.se']


def test_at_most_nine_layers_are_shown_and_the_last_of_each_stage_always():
    result = gate_statistics(network('se_resnet56_cifar_plugin'), data(2), 'ab')
    assert [layer.name for layer in shown_layers(result)] == [
        'layer1.8.se', 'layer2.8.se', *(f'layer3.{i}.se' for i in range(2, 9))]


def test_the_centre_is_enlarged():
    x = torch.zeros(1, 1, 8, 8)
    x[:, :, 2:6, 2:6] = 1  # the half of each side that a scale of 2 keeps
    assert torch.equal(enlarged(x, 2), torch.ones(1, 1, 8, 8))
    assert enlarged(x, 1) is x
    assert enlarged(x, 1.5).shape == x.shape
    with pytest.raises(ValueError, match=r'scale=0\.5 is below 1'):
        enlarged(x, 0.5)


def test_scale_statistics_are_those_of_the_enlarged_images():
    model = network('sk_test_resnet_plugin')
    result = scale_statistics(model, data, 'ab', scales=(1, 2))
    x, y = data()[0]
    layer = gate_statistics(model, [(enlarged(x, 2), y)], 'ab').layers[1]
    torch.testing.assert_close(result.attention(layer.name)[1], layer.mean[-1])
    torch.testing.assert_close(result.difference()[1, 1], (layer.mean[1] - layer.mean[0]).mean())
    assert not torch.allclose(result.difference()[0], result.difference()[1], atol=1e-5)
    assert len(list(result.rows())) == 2 * 4 * 2  # scales, units, branches
    with pytest.raises(ValueError, match='has no Selective Kernel'):
        scale_statistics(network(), data, 'ab')


def test_the_images_that_differ_most_are_found_wherever_they_are():
    model = network()
    x, y = images(12, 3, 32, 32, dtype=torch.float32), torch.arange(12) % 2
    x[7] = 8
    x[3] = -5
    batches = list(zip(x.split(5), y.split(5), strict=True))
    found = unusual_images(model, batches, gate_statistics(model, batches, 'ab'), count=3)
    assert {found[0].index, found[1].index} == {3, 7}
    assert found[0].deviation >= found[1].deviation >= found[2].deviation
    assert torch.equal(found[0].image, x[found[0].index])
    assert found[0].label == found[0].index % 2
    y[7] = -1  # without a label
    statistics = gate_statistics(model, batches, 'ab')
    assert 7 not in {picture.index for picture in unusual_images(model, batches, statistics, count=3)}


def test_unusual_images_need_statistics_of_the_network():
    statistics = gate_statistics(network('se_resnet18_plugin'), data(), 'ab')
    with pytest.raises(ValueError, match=r'the statistics are of another network: they have layer1\.1\.se'):
        unusual_images(network(), data(), statistics)


def test_a_gate_map_is_the_mean_gate_of_every_position():
    model = network(attn_squeeze='none')
    x = data()[0][0]
    seen = []
    handle = model.layer2[0].se.gate.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    torch.testing.assert_close(gate_map(model, 'layer2.0.se', x), seen[0].mean(1))
    said = "no attention called {!r} has a gate for every position, .*; those that have one: {}"
    with pytest.raises(ValueError, match=said.format('layer2.0.se', 'none')):
        gate_map(network(), 'layer2.0.se', x)
    with pytest.raises(ValueError, match=said.format('x', 'layer1.0.se, layer2.0.se, layer3.0.se$')):
        gate_map(model, 'x', x)


def test_all_gate_maps_come_from_one_pass():
    model, calls = network('test_resnet_plugin', attn='scse'), []
    model.register_forward_hook(lambda *args: calls.append(1))
    x = data()[0][0]
    maps = gate_maps(model, x)
    assert len(calls) == 1
    assert list(maps) == [f'layer{i}.0.se.sse' for i in (1, 2, 3)]  # the map of layer4 has one position
    for name, values in maps.items():
        assert torch.equal(values, gate_map(model, name, x))


def test_no_image_is_looked_for_where_none_is_wanted():
    model = network()
    assert unusual_images(model, data(), gate_statistics(model, data(), 'ab'), count=0) == []


def lines(axes, count=None):
    """The y of the first lines of a chart."""
    return torch.stack([torch.as_tensor(line.get_ydata(), dtype=torch.float64) for line in axes.lines[:count]])


@pytest.fixture
def no_pyplot(monkeypatch):
    """Fail where a figure touches the state of the user's matplotlib."""
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    monkeypatch.setattr(matplotlib, 'use', lambda *args, **kwargs: pytest.fail('matplotlib.use was called'))


def assert_saved(figure, path):
    with Image.open(path) as picture:
        assert picture.size == tuple((figure.get_size_inches() * 110).astype(int))


def test_activations_are_the_means_of_the_classes_and_of_all_images(tmp_path, no_pyplot):
    result = gate_statistics(network(), data(), 'ab')
    figure = draw_activations(result, 'ab', tmp_path / 'new' / 'a.png')
    assert_saved(figure, tmp_path / 'new' / 'a.png')
    assert [axes.get_title() for axes in figure.axes] == [layer.name for layer in shown_layers(result)]
    assert [text.get_text() for text in figure.legends[0].texts] == ['a', 'b', 'all']
    for axes, layer in zip(figure.axes, shown_layers(result), strict=True):
        channels = sampled_channels(layer.means.shape[2])
        torch.testing.assert_close(lines(axes), torch.cat([layer.means[:, 0], layer.mean])[:, channels])
        assert axes.get_ylim() == (0, 1)
    with pytest.raises(ValueError, match="no class is called 'z'"):
        draw_activations(result, 'z', tmp_path / 'z.png')
    assert not (tmp_path / 'z.png').exists()


@pytest.mark.parametrize('names', [['$_$', '$10%-$20%'], ['_background', '__']])
def test_the_legend_has_names_of_classes_that_mean_something_to_matplotlib(tmp_path, names):
    figure = draw_activations(gate_statistics(network(), data(), names), names, tmp_path / 'a.png')
    assert [text.get_text().replace(r'\$', '$').strip() for text in figure.legends[0].texts] == [*names, 'all']


def test_the_legend_has_a_name_with_a_byte_that_is_not_utf8(tmp_path):
    names = ['\udce9', 'b']
    figure = draw_activations(gate_statistics(network(), data(), names), names, tmp_path / 'a.png')
    assert [text.get_text() for text in figure.legends[0].texts] == [r'\udce9', 'b', 'all']


def test_each_of_many_classes_has_a_line_of_its_own(tmp_path):
    names = [str(i) for i in range(25)]
    result = gate_statistics(
        network(), [(images(25, 3, 32, 32, dtype=torch.float32), torch.arange(25))], names)
    shown = {(matplotlib.colors.to_hex(line.get_color()), str(line._dash_pattern))
             for line in draw_activations(result, names, tmp_path / 'a.png').axes[0].lines}
    assert len(shown) == 25 + 1  # and that of all images


def test_bands_of_deviations_are_two_standard_deviations_high(tmp_path, no_pyplot):
    result = gate_statistics(network(), data(), 'ab')
    figure = draw_deviations(result, 'ab', tmp_path / 'a.png')
    assert_saved(figure, tmp_path / 'a.png')
    layer, axes = shown_layers(result)[0], figure.axes[0]
    channels = sampled_channels(layer.means.shape[2])
    torch.testing.assert_close(lines(axes), layer.means[:, 0, channels])
    for band, variance in zip(axes.collections, layer.variances[:, 0, channels], strict=True):
        corners = band.get_paths()[0].vertices
        heights = [np.ptp(corners[corners[:, 0] == i, 1]) for i in range(len(channels))]
        torch.testing.assert_close(torch.tensor(heights), 2 * variance.sqrt())


def test_depth_shows_specificity_chance_and_saturation(tmp_path, no_pyplot):
    result = gate_statistics(network(attn_gate='hard_sigmoid'), [(20 * x, y) for x, y in data()], 'ab')
    figure = draw_depth(result, tmp_path / 'a.png')
    assert_saved(figure, tmp_path / 'a.png')
    specificity, saturation = figure.axes
    torch.testing.assert_close(lines(specificity), torch.tensor(
        [[getattr(layer, name) for layer in result.layers] for name in ('specificity', 'chance')], dtype=torch.float64))
    heights = [[bar.get_height() for bar in bars] for bars in saturation.containers]
    assert heights == [[layer.saturation[end] for layer in result.layers] for end in (0, 1)]
    assert max(map(max, heights)) > 0
    assert [label.get_text() for label in saturation.get_xticklabels()] == [layer.name for layer in result.layers]


def test_gates_without_ends_do_not_hide_the_saturation_of_others(tmp_path):
    result = gate_statistics(network('se_test_resnet_plugin'), data(), 'ab')
    first, *others = result.layers
    nothing, half = torch.full_like(first.lows, math.nan), torch.full_like(others[0].highs, 0.5)
    layers = replace(first, lows=nothing, highs=nothing), replace(others[0], highs=half)
    mixed = replace(result, layers=layers)
    assert draw_depth(mixed, tmp_path / 'a.png').axes[1].get_ylim()[1] > 0.5


def test_depth_has_no_empty_chart(tmp_path):
    result = gate_statistics(timm.create_model('se_test_resnet_plugin', num_classes=2), data(), 'ab')
    figure = draw_depth(result, tmp_path / 'a.png')
    assert [axes.get_ylabel() for axes in figure.axes] == ['variance between classes / within']
    assert figure.get_suptitle().endswith('no gate is near an end of its range')
    endless = tuple(replace(layer, **{end: torch.full_like(layer.lows, math.nan) for end in ('lows', 'highs')})
                    for layer in result.layers)
    figure = draw_depth(replace(result, layers=endless), tmp_path / 'a.png')
    assert len(figure.axes) == 1
    assert figure.get_suptitle() == 'gates by depth'


def test_an_axis_of_channels_says_whether_all_are_shown_and_has_whole_numbers(tmp_path):
    result = gate_statistics(timm.create_model('se_resnet20_cifar_plugin', num_classes=2), data(), 'ab')
    figure = draw_activations(result, 'ab', tmp_path / 'a.png')
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == [
        'channel', 'channel', 'channel (sampled evenly)']
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_scale_shows_the_largest_kernels_weight_and_its_difference_to_the_smallests(tmp_path, no_pyplot):
    scales = scale_statistics(network('sk_test_resnet_plugin'), data, 'ab', (1, 2))
    figure = draw_scale(scales, tmp_path / 'a.png')
    assert_saved(figure, tmp_path / 'a.png')
    *units, differences = figure.axes
    assert [axes.get_title() for axes in units] == [f'{name}: weight of 5x5' for name in scales.units]
    for axes, name in zip(units, scales.units, strict=True):
        weights = scales.attention(name)
        C = weights.shape[1]
        groups = [weights[:, i * C // 25:-(-(i + 1) * C // 25)].mean(1) for i in range(25)]
        torch.testing.assert_close(lines(axes), torch.stack(groups, 1))
    torch.testing.assert_close(lines(differences, 2), scales.difference())  # the third line is at 0
    assert (scales.difference() < 0).any()
    assert [text.get_text() for text in figure.legends[0].texts] == ['1x', '2x']
    assert figure.legends[0].get_title().get_text() == 'size of the object'
    figure.draw_without_rendering()
    assert not any(figure.legends[0].get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert {axes.get_ylabel() for axes in units} == {'weight'}
    assert differences.get_ylabel() == 'difference of weights'
    small = scale_statistics(network('sk_resnet20_cifar_plugin'), data, 'ab', (1, 2))
    assert [axes.get_xlabel() for axes in draw_scale(small, tmp_path / 'b.png').axes[:2]] == [
        'channel', 'channels, adjacent ones averaged']
    assert all(tick == int(tick) for axes in units for tick in axes.get_xticks())


def test_gate_maps_share_one_range(tmp_path, no_pyplot):
    maps = torch.stack([torch.full((4, 4), 0.2), torch.full((4, 4), 0.8)])
    figure = draw_gate_maps(torch.rand(2, 3, 8, 8), maps, tmp_path / 'a.png')
    assert_saved(figure, tmp_path / 'a.png')
    shown = [axes.images[0] for axes in figure.axes[1:4:2]]
    assert torch.equal(torch.stack([torch.as_tensor(image.get_array()) for image in shown]), maps)
    assert [image.get_clim() for image in shown] == [(pytest.approx(0.2), pytest.approx(0.8))] * 2


def test_the_tool_writes_table_figures_and_report(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import save_digits
    folder = save_digits(tmp_path / 'digits', train=2, val=30)
    options = parse_analysis([
        '--model', 'sk_test_resnet_plugin', '--num-classes', '10', '--data-dir', str(folder), '--img-size', '32',
        '--workers', '0', '--device', 'cpu', '--output', str(tmp_path / 'out'), '--pictures', '3',
        '--channels-last', '--amp', '--amp-dtype', 'float16'])
    seen = set()

    def see(module, args, output):
        if isinstance(module, torch.nn.Conv2d) and args[0].shape[1] == 3 and not args[0].is_meta:  # meta: of the cost
            x = args[0]
            seen.add((torch.is_autocast_enabled('cpu'), x.is_contiguous(memory_format=torch.channels_last)))

    handle = torch.nn.modules.module.register_module_forward_hook(see)
    result = analyze(options)
    handle.remove()
    assert seen == {(True, True)}
    assert result.images == 30
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'activations.png', 'deviations.png', 'depth.png', 'scale.png', 'scale.csv', 'gates.csv', 'report.html'}
    rows = list(csv.DictReader((tmp_path / 'out' / 'gates.csv').read_text().splitlines()))
    assert len(rows) == sum(layer.means.numel() for layer in result.layers)
    with pytest.raises(ValueError, match='--output is missing'):
        analyze(parse_analysis(['--model', 'se_test_resnet_plugin']))


def test_pictures_with_transparency_are_drawn_beside_their_gate_maps(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import save_digits
    folder = save_digits(tmp_path / 'digits', train=2, val=10)
    analyze(parse_analysis([
        '--model', 'test_resnet_plugin', '--model-kwargs', 'attn=sse', '--num-classes', '10', '--data-dir', str(folder),
        '--input-size', '4', '32', '32', '--workers', '0', '--device', 'cpu', '--output', str(tmp_path / 'out')]))
    assert list((tmp_path / 'out').glob('map-*.png'))
    assert (tmp_path / 'out' / 'report.html').is_file()


def test_the_gates_of_a_run_are_recorded_once_under_its_name(tmp_path, digits):
    from digit_runs import TINY
    train_classifier(parse_options([
        *TINY, '--data-dir', str(digits), '--output', str(tmp_path), '--experiment', 'run', '--seed', '3',
        '--epochs', '1', '--attn-lr-scale', '10', '--model-kwargs', 'attn_rd_ratio=1/4']))
    table = tmp_path / 'table.csv'
    for _ in range(2):
        result = analyze(parse_analysis([
            '--checkpoint', str(tmp_path / 'run' / 'last.pth.tar'), '--output', str(tmp_path / 'analysis'),
            '--pictures', '1', '--record', str(table)]))
    rows = read_table(table)
    assert [row['layer'] for row in rows] == [layer.name for layer in result.layers]
    assert {(row['model'], row['seed'], row['epochs'], row['images']) for row in rows} == {
        ('se_test_resnet_plugin', '3', '1', '50')}
    assert {row['options'] for row in rows} == {
        "attn_rd_ratio='1/4' attn_lr_scale=10.0 crop_pct=1.0 deterministic=True img_size=32 lr=0.05"}
    assert {(row['data'], row['global_batch']) for row in rows} == {(digits.name, '16')}  # as in the run's own row


def test_what_enlarged_images_change_in_selective_kernels_is_recorded_beside_the_gates(tmp_path, digits):
    from digit_runs import TINY
    train_classifier(parse_options([
        *TINY, '--model', 'sk_test_resnet_plugin', '--data-dir', str(digits), '--output', str(tmp_path),
        '--experiment', 'run', '--seed', '3', '--epochs', '1']))
    options = parse_analysis([
        '--checkpoint', str(tmp_path / 'run' / 'last.pth.tar'), '--output', str(tmp_path / 'analysis'),
        '--pictures', '1', '--record', str(tmp_path / 'gates.csv')])
    for _ in range(2):
        analyze(options)
    recorded = read_table(tmp_path / 'gates-scale.csv')
    written = read_table(tmp_path / 'analysis' / 'scale.csv')
    assert [{key: row[key] for key in written[0]} for row in recorded] == written
    assert {(row['model'], row['seed'], row['epochs']) for row in recorded} == {('sk_test_resnet_plugin', '3', '1')}
    (tmp_path / 'gates.csv').unlink()
    (tmp_path / 'gates-scale.csv').write_text('model;seed')
    with pytest.raises(ValueError, match=r"gates-scale\.csv are separated by ';'"):
        analyze(options)
    assert not (tmp_path / 'gates.csv').exists()  # found before the analysis


def test_the_table_is_kept_where_a_class_that_was_to_be_drawn_has_no_images(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import save_digits
    folder = save_digits(tmp_path / 'digits', train=2, val=10)
    (tmp_path / 'classes.txt').write_text('\n'.join([*map(str, range(10)), 'ten']))
    with pytest.raises(ValueError, match="the class 'ten' has no images"):
        analyze(parse_analysis([
            '--model', 'se_test_resnet_plugin', '--num-classes', '11', '--data-dir', str(folder), '--img-size', '32',
            '--class-map', str(tmp_path / 'classes.txt'), '--workers', '0', '--device', 'cpu',
            '--output', str(tmp_path / 'out'), '--classes', '0', 'ten']))
    assert {row['class'] for row in read_table(tmp_path / 'out' / 'gates.csv')} == set(map(str, range(10)))


def test_matplotlib_is_asked_for_before_the_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(ModuleNotFoundError, match='matplotlib'):
        analyze(parse_analysis([
            '--model', 'se_test_resnet_plugin', '--data-dir', str(tmp_path / 'none'), '--output', str(tmp_path)]))


@pytest.mark.parametrize(('given', 'said'), [
    (['--classes', '0', 'zero'], "no class is called 'zero'; the data has 0, 1, 2"),
    (['--table', 'parquet'], 'needs the package pyarrow'),
    (['--model', 'coatnet_pico_rw_224'], 'the network takes no images of 32x32 pixels, but of 224x224'),
    (['--record', 'gates.csv'], 'give --checkpoint a checkpoint of timm-se train, not a network without one')])
def test_mistakes_are_found_before_the_images_are_read(given, said, tmp_path, monkeypatch):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from digit_runs import save_digits
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    folder = save_digits(tmp_path / 'digits', train=2, val=30)
    for path in folder.rglob('*.png'):
        path.write_bytes(b'not a picture')
    with pytest.raises(ValueError, match=said):
        analyze(parse_analysis([
            '--model', 'se_test_resnet_plugin', '--num-classes', '10', '--data-dir', str(folder), '--img-size', '32',
            '--workers', '0', '--device', 'cpu', '--output', str(tmp_path / 'out'), *given]))


def test_the_analysis_offers_no_option_that_it_refuses():
    offered = {option for action in analysis_parser()._actions for option in action.option_strings}
    assert '--classes' in offered
    assert '--real-labels' not in offered
