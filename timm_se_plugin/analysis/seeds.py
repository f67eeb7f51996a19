"""The difference between two networks that were trained with several seeds."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ['Difference', 'paired_difference']


@dataclass(frozen=True)
class Difference:
    """Difference between two networks that were trained with the same seeds.

    Args:
        mean: of the differences.
        low: lower end of the confidence interval of the mean; None with one seed.
        high: upper end of the interval; None with one seed.
        seeds: number of seeds that both networks have.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


def paired_difference(
        values: Mapping[str, float], reference: Mapping[str, float], level: float = 0.95) -> Difference | None:
    """Mean difference to a reference, over the seeds that both have, with Student's interval of the pairs.

    The seed sets the order of the images, their augmentation and, where the shapes agree, the first weights. A pair
    shares these, so the differences within pairs vary less than the networks do, if the seed matters at all.

    Args:
        values: results of a network by seed, such as the top-1 accuracy in per cent.
        reference: results of the other network by seed.
        level: probability with which the interval covers the mean, if the differences are normally distributed.

    Returns:
        The difference in the unit of the values; None if no seed is in both.
    """
    from scipy import stats  # comes with scikit-learn, in the [train] extra

    seeds = [seed for seed in values if seed in reference]
    if not seeds:
        return None
    own, other = [values[seed] for seed in seeds], [reference[seed] for seed in seeds]
    mean = sum(own) / len(own) - sum(other) / len(other)
    if len(seeds) == 1:
        return Difference(mean, None, None, 1)
    if len({a - b for a, b in zip(own, other, strict=True)}) == 1:  # scipy has no interval for equal differences
        return Difference(mean, mean, mean, len(seeds))
    low, high = stats.ttest_rel(own, other).confidence_interval(level)
    return Difference(mean, float(low), float(high), len(seeds))
