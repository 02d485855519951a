"""Tests of whether two methods' losses differ, and the correction for testing several."""

from collections.abc import Mapping

import numpy as np

LEVEL = 0.05
"""Level of a test. That of a whole table is kept by test point; by split it is exceeded with many methods
(docs/decisions/significance.md)."""

ROUNDING = 1e-12
"""Relative spread of differences that is the rounding of equal numbers: nothing is known about chance there."""


def by_split(first: np.ndarray, second: np.ndarray, ratio: float) -> float:
    """The p-value of a difference in losses paired by split: the corrected resampled t-test.

    With d the differences over J splits, t = mean(d) / sqrt((1 / J + ratio) var(d)) on J - 1 degrees of freedom. The
    ratio of test to training points accounts for training sets that overlap.

    Args:
        first: Losses (J,).
        second: Losses (J,), of the same splits.
        ratio: Number of test points over number of training points.

    Returns:
        1 for fewer than two splits and where the differences do not vary; 0 where one loss alone is infinite.

    References:
        Nadeau and Bengio (2003), Inference for the generalization error, section 4.

    Examples:
        >>> round(by_split(np.array([0.1, 0.11, 0.1]), np.array([0.5, 0.52, 0.49]), 0.25), 4)
        0.0004
        >>> by_split(np.array([0.1, 0.2]), np.array([0.5, 0.6]), 0.25)
        1.0
    """
    return _p_value(first, second, 1 / max(len(first), 1) + ratio)


def by_point(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value of a difference in losses paired by test point: the paired t-test, for methods fitted once.

    Args:
        first: Losses (n,).
        second: Losses (n,), of the same points.

    Examples:
        >>> losses = np.arange(20.0)
        >>> by_point(losses, losses + 1 + 0.1 * np.sin(losses)) < 1e-6
        True
    """
    return _p_value(first, second, 1 / max(len(first), 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: at most `LEVEL` is the probability that any of the equal ones falls below it.

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.

    Examples:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = highest
    return adjusted


def smallest_detectable(first: np.ndarray, second: np.ndarray, factor: float, count: float) -> float:
    """The smallest mean difference that would be significant, given how the differences vary.

    Args:
        first: Losses (J,).
        second: Losses (J,).
        factor: 1 / J, with the ratio of test to training points added where splits are resampled.
        count: Number of tests that share the level; each has `LEVEL` / count.

    Examples:
        >>> round(smallest_detectable(np.array([0.1, 0.11, 0.1]), np.array([0.5, 0.52, 0.49]), 1 / 3, 1), 3)
        0.025
    """
    from scipy.stats import t

    spread = np.sqrt(factor * (first - second).var(ddof=1))
    return float(spread * t.ppf(1 - LEVEL / (2 * count), len(first) - 1))


def _p_value(first: np.ndarray, second: np.ndarray, factor: float) -> float:
    from scipy.stats import t

    if len(first) != len(second) or len(first) < 2:
        return 1.0
    with np.errstate(invalid="ignore"):
        difference = first - second
        size, spread = abs(difference.mean()), np.sqrt(factor * difference.var(ddof=1))
    if not np.isfinite(spread):
        return 0.0 if np.isinf(size) else 1.0
    if spread <= ROUNDING * (size + np.abs(first).mean()):
        return 1.0
    return float(2 * t.sf(size / spread, len(difference) - 1))
