"""OOD ranking: one sign convention, both directions."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from bayeskit import metrics

RNG = np.random.default_rng(0)
INSIDE, OUTSIDE = RNG.normal(0, 1, 300), RNG.normal(1, 1, 200)


def test_auroc_is_the_mann_whitney_statistic():
    u = mannwhitneyu(OUTSIDE, INSIDE).statistic
    assert metrics.ood_auroc(INSIDE, OUTSIDE) == pytest.approx(u / (300 * 200), abs=1e-12)


def test_larger_scores_mean_out_of_distribution():
    assert metrics.ood_auroc([0.0, 0.1], [0.9, 1.0]) == 1.0
    assert metrics.ood_auroc([0.9, 1.0], [0.0, 0.1]) == 0.0
    assert metrics.ood_auroc([0.5, 0.5], [0.5]) == 0.5


def test_false_positive_rate_by_counting():
    threshold = np.sort(OUTSIDE)[200 - 190]  # the largest threshold that catches 190 of 200
    assert metrics.ood_fpr95(INSIDE, OUTSIDE) == pytest.approx((INSIDE >= threshold).mean(), abs=1e-12)
    threshold = np.sort(INSIDE)[285 - 1]  # accepts 285 of 300 in-distribution inputs
    accepted = (OUTSIDE <= threshold).mean()
    assert metrics.ood_fpr95(INSIDE, OUTSIDE, positive="in") == pytest.approx(accepted, abs=1e-12)


def test_average_precision_by_the_sum():
    order = np.argsort(-np.concatenate([INSIDE, OUTSIDE]))
    hit = np.concatenate([np.zeros(300), np.ones(200)])[order]
    precision = hit.cumsum() / np.arange(1, 501)
    assert metrics.ood_aupr(INSIDE, OUTSIDE) == pytest.approx((precision * hit).sum() / 200, abs=1e-12)
    swapped = metrics.ood_aupr(-OUTSIDE, -INSIDE)  # the other set positive, scores read backwards
    assert metrics.ood_aupr(INSIDE, OUTSIDE, positive="in") == pytest.approx(swapped, abs=1e-12)


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="`positive` must be one of"):
        metrics.ood_aupr(INSIDE, OUTSIDE, positive="ood")
