"""Reliability, PIT and coverage."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.calibration import calibration_curve

from bayeskit import metrics
from bayeskit.core.predictive import MixturePredictive

RNG = np.random.default_rng(0)


def standard_normal(n):
    zeros = torch.zeros(1, n, 1, dtype=torch.float64)
    return MixturePredictive(torch.distributions.Normal(zeros, 1 + zeros)).squeeze()


def test_reliability_matches_scikit_learns_curve():
    # With two classes and the confidence read as p(class 1) > 1/2, the bins are those of calibration_curve.
    p = RNG.uniform(0.5, 1.0, 500)
    labels = (RNG.uniform(size=500) < p).astype(int)
    r = metrics.reliability(p, labels, num_bins=10)
    accuracy, confidence = calibration_curve(labels, p, n_bins=10)
    full = r.counts > 0
    np.testing.assert_allclose(r.accuracy[full], accuracy, atol=1e-12)
    np.testing.assert_allclose(r.confidence[full], confidence, atol=1e-12)
    assert r.counts.sum() == 500
    assert r.occupancy.sum() == pytest.approx(1)


def test_expected_calibration_error_by_hand():
    p = np.array([[0.95, 0.05]] * 4 + [[0.65, 0.35]] * 6)
    labels = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 1])
    by_hand = 0.4 * abs(0.75 - 0.95) + 0.6 * abs(5 / 6 - 0.65)
    assert metrics.expected_calibration_error(p, labels) == pytest.approx(by_hand, abs=1e-12)
    assert metrics.expected_calibration_error(p, labels, binning="mass") == pytest.approx(by_hand, abs=1e-12)


def test_equal_mass_bins_hold_equal_numbers():
    p = RNG.uniform(0.9, 1.0, 300)  # all in one of the bins of equal width
    labels = np.ones(300, int)
    assert metrics.reliability(p, labels, binning="width", num_bins=5).counts.tolist() == [0, 0, 0, 0, 300]
    assert metrics.reliability(p, labels, binning="mass", num_bins=5).counts.tolist() == [60] * 5


@pytest.mark.monte_carlo
def test_calibrated_probabilities_have_small_error_and_overconfident_ones_a_sign():
    p = RNG.dirichlet(np.ones(3), 20_000)
    labels = (RNG.uniform(size=20_000)[:, None] > p.cumsum(1)).sum(1)
    # With 15 bins of calibrated points the error is about sum_b sqrt(n_b p q) / n = sqrt(15 / n) * 0.4 * 0.8.
    assert metrics.expected_calibration_error(p, labels) < 0.02
    sharp = p**3 / (p**3).sum(1, keepdims=True)
    assert metrics.reliability(sharp, labels).overconfidence > 0.1


def test_one_bin_and_equal_confidences():
    r = metrics.reliability([[0.8, 0.2]] * 5, [0, 0, 0, 0, 1], num_bins=7, binning="mass")
    assert r.counts.tolist() == [5]
    assert r.error == pytest.approx(0, abs=1e-12)


@pytest.mark.monte_carlo
def test_pit_is_the_cdf_and_uniform_under_calibration():
    y = np.random.default_rng(3).normal(size=500)
    u = metrics.pit(standard_normal(500), y)
    np.testing.assert_allclose(u, stats.norm.cdf(y), atol=1e-12)
    assert stats.kstest(u, "uniform").pvalue > 1e-5


def test_coverage_counts_the_central_interval():
    y = np.random.default_rng(4).normal(size=1000)
    predictive = standard_normal(1000)
    for level in (0.5, 0.9):
        low, high = predictive.interval(level)
        inside = ((torch.as_tensor(y) >= low) & (torch.as_tensor(y) <= high)).double().mean()
        assert metrics.coverage(predictive, y, level) == pytest.approx(float(inside), abs=1e-12)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"`y` must have shape \(3,\)"):
        metrics.pit(standard_normal(3), [0.0, 1.0])
    with pytest.raises(ValueError, match="`binning` must be one of"):
        metrics.reliability([[1.0, 0.0]], [0], binning="widht")


@pytest.mark.monte_carlo
@pytest.mark.parametrize("view", ["plain", "squeezed", "affine"])
def test_counts_use_the_middle_of_the_step_and_the_interval_itself(view):
    n, rate = 20_000, 2.5
    y = np.random.default_rng(5).poisson(rate, n)
    predictive = MixturePredictive(
        torch.distributions.Poisson(torch.full((1, n, 1), rate, dtype=torch.float64)), discrete=True
    )
    if view == "squeezed":
        predictive = predictive.squeeze()
    if view == "affine":
        predictive, y = predictive.affine(1.0, 3.0), 1 + 3 * y
    u = metrics.pit(predictive, y).ravel()
    counts = (y - 1) // 3 if view == "affine" else y
    by_hand = stats.poisson.cdf(counts, rate) - stats.poisson.pmf(counts, rate) / 2
    np.testing.assert_allclose(u, by_hand, atol=1e-12)
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5  # the variance of a mid-PIT is below that of a uniform
    low, high = stats.poisson.ppf([0.05, 0.95], rate)
    inside = stats.poisson.cdf(high, rate) - stats.poisson.cdf(low - 1, rate)
    error = (inside * (1 - inside) / n) ** 0.5
    assert inside >= 0.9
    assert abs(metrics.coverage(predictive, y, 0.9) - inside) < 5 * error
