"""Selective prediction: the risk-coverage curve and the area under it."""

from typing import Any

import numpy as np

from bayeskit.metrics import arrays


def risk_coverage(losses: Any, uncertainty: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss over the fraction of points with the lowest uncertainty (coverage), for every fraction.

    With the points in order of increasing uncertainty, risk_k = (1 / k) sum_{i <= k} loss_i at coverage k / n. Points
    of equal uncertainty are in random order; the expected curve over those orders is returned, so the result does not
    depend on the order of the points.

    Args:
        losses: Loss of each point (n,): 0 or 1 for wrong classes, a squared error for numbers.
        uncertainty: Uncertainty of each point (n,), larger where less certain.

    Returns:
        Coverage (n,), from 1 / n to 1, and risk (n,).

    Raises:
        ValueError: Different numbers of losses and uncertainties, or several for a point.

    References:
        Geifman and El-Yaniv (2017), Selective classification for deep neural networks, section 2.

    >>> coverage, risk = risk_coverage([0.0, 1.0, 0.0, 1.0], [0.1, 0.9, 0.2, 0.8])
    >>> risk.round(2).tolist()
    [0.0, 0.0, 0.33, 0.5]
    """
    losses, uncertainty = arrays.paired(losses, uncertainty, names=("losses", "uncertainty"))
    if losses.size != len(losses):
        raise ValueError(f"`losses` must have one number for each point, (n,); got shape {losses.shape}")
    losses, uncertainty = losses.ravel(), uncertainty.ravel()
    order = np.argsort(uncertainty, kind="stable")
    _, block = np.unique(uncertainty[order], return_inverse=True)
    ranked = losses[order]
    ranked = (np.bincount(block, ranked) / np.bincount(block))[block]  # within ties, any order on average
    rank = np.arange(1, len(ranked) + 1)
    return rank / len(ranked), np.cumsum(ranked) / rank


def aurc(losses: Any, uncertainty: Any) -> float:
    """Area under the risk-coverage curve: (1 / n) sum_k risk_k. Lower is better.

    A method whose uncertainty is unrelated to its errors has an area equal to its mean loss.

    Args:
        losses: Loss of each point (n,).
        uncertainty: Uncertainty of each point (n,), larger where less certain.

    References:
        Geifman, Uziel and El-Yaniv (2019), Bias-reduced uncertainty estimation for deep neural classifiers, section 3.

    >>> aurc([0.0, 0.0, 0.0, 1.0], [0.1, 0.2, 0.3, 0.4])
    0.0625
    """
    return float(risk_coverage(losses, uncertainty)[1].mean())
