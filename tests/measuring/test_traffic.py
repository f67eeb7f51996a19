"""The count of bytes against the figures that were worked out by hand."""

import pytest

from timm_se_plugin.measuring.traffic import PATHS, block_units, count, middle, tail


@pytest.mark.parametrize(('path', 'layout', 'forward', 'backward'), [
    ('plain', 'channels_last', 8, 8), ('timm', 'channels_last', 11, 16.5), ('operators', 'channels_last', 9, 16),
    ('operators', 'nchw', 9, 13), ('kernels', 'channels_last', 4, 7), ('plain by kernels', 'nchw', 4, 7)])
def test_a_tail_moves_what_its_operators_read_and_write(path, layout, forward, backward):
    assert tail(path, layout).totals == (forward, backward)


def test_the_middle_of_a_block_takes_13_units_and_8_by_kernels():
    assert middle('plain').totals == middle('timm').totals == (5, 8)
    assert middle('kernels').totals == (3, 5)
    assert middle('plain', relu=False).totals == (3, 5)


@pytest.mark.parametrize(('path', 'units'), [
    ('plain', 34.5), ('timm', 46), ('operators', 43.5), ('tail by kernels', 29.5), ('kernels', 27)])
def test_a_whole_bottleneck(path, units):
    assert block_units(path) == units


def test_a_network_is_its_blocks_and_what_surrounds_them():
    rows = {(row['layout'], row['dtype'], row['path']): row for row in count('resnet50', batch=32)}
    assert len(rows) == 6 * len(PATHS)
    of = {path: rows['channels_last', 'float32', path] for path in PATHS}
    assert of['plain']['ratio'] == 1
    # The stem, the downsamples and the strides move the ratios of a bottleneck by a few per cent.
    for path in PATHS:
        assert of[path]['ratio'] == pytest.approx(block_units(path) / block_units('plain'), abs=0.08), path
    half = rows['channels_last', 'float16', 'timm']
    assert half['forward_gb'] == pytest.approx(of['timm']['forward_gb'] / 2, abs=1e-3)
    # The last norms of the 16 blocks: 3 maps of 256 channels, 4 of 512, 6 of 1024, 3 of 2048, from 56 to 7 pixels.
    values = 32 * (3 * 256 * 56**2 + 4 * 512 * 28**2 + 6 * 1024 * 14**2 + 3 * 2048 * 7**2)
    total = of['plain']['forward_gb'] + of['plain']['backward_gb']
    assert of['plain']['tail_share'] == pytest.approx(16 * 4 * values / 1e9 / total, abs=1e-3)


def test_a_network_of_other_blocks_is_refused():
    with pytest.raises(ValueError, match='mobilenetv3_small_100 has none of'):
        count('mobilenetv3_small_100')
