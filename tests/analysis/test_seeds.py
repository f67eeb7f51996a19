import pytest

pytest.importorskip('scipy', reason='needs the [train] extra')

from timm_se_plugin.analysis.seeds import paired_difference


def test_three_pairs_give_students_interval():
    # Differences 0.1, -0.22, 0.5: mean 0.12667, standard deviation 0.36074, t(0.975, 2 degrees) = 4.30265.
    found = paired_difference({'0': 85.7, '1': 85.35, '2': 85.52}, {'0': 85.6, '1': 85.57, '2': 85.02, '3': 1.0})
    assert found.seeds == 3
    assert found.mean == pytest.approx(0.126667, abs=1e-5)
    half = 4.302653 * 0.360739 / 3 ** 0.5
    assert (found.low, found.high) == (
        pytest.approx(0.126667 - half, abs=1e-4), pytest.approx(0.126667 + half, abs=1e-4))
    wide = paired_difference({'0': 1.0, '1': 3.0}, {'0': 0.0, '1': 0.0}, level=0.99)  # t(0.995, 1 degree) = 63.6567
    assert (wide.low, wide.high) == (pytest.approx(2 - 63.6567, abs=1e-3), pytest.approx(2 + 63.6567, abs=1e-3))


def test_one_pair_has_no_interval_and_none_no_difference():
    one = paired_difference({'0': 2.0, '1': 5.0}, {'0': 1.5})
    assert (one.mean, one.low, one.high, one.seeds) == (0.5, None, None, 1)
    assert paired_difference({'1': 2.0}, {'0': 1.5}) is None


def test_equal_differences_have_an_interval_of_no_width():
    assert paired_difference({'0': 2.0, '1': 3.0}, {'0': 1.0, '1': 2.0}).high == 1.0
