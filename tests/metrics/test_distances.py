"""Wasserstein distance of Gaussians and total variation."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from bayeskit import metrics

RNG = np.random.default_rng(0)


def covariance(size, rank=None):
    root = RNG.normal(size=(size, rank or size))
    return root @ root.T


def test_wasserstein_is_the_bures_formula():
    m1, m2, c1, c2 = RNG.normal(size=6), RNG.normal(size=6), covariance(6), covariance(6)
    half = sqrtm(c1)
    bures = np.trace(c1 + c2 - 2 * sqrtm(half @ c2 @ half)).real
    expected = np.sqrt(((m1 - m2) ** 2).sum() + bures)
    assert metrics.wasserstein2(m1, c1, m2, c2) == pytest.approx(expected, abs=1e-8)


def test_commuting_covariances_compare_standard_deviations():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.0])
    assert metrics.wasserstein2(np.zeros(3), np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(
        np.linalg.norm(np.sqrt(a) - np.sqrt(b)), abs=1e-12
    )


def test_equal_gaussians_are_at_zero_to_rounding_even_when_singular():
    c, m = covariance(30, rank=3), RNG.normal(size=30)
    assert metrics.wasserstein2(m, c, m, c) < 1e-12 * np.trace(c)


def test_distance_from_a_point_is_the_root_of_the_trace():
    c = covariance(5)
    assert metrics.wasserstein2(np.zeros(5), np.zeros((5, 5)), np.zeros(5), c) == pytest.approx(
        np.sqrt(np.trace(c)), abs=1e-10
    )


def test_it_is_a_metric():
    gaussians = [(RNG.normal(size=4), covariance(4, rank)) for rank in (1, 3, 4)]
    d = np.array([[metrics.wasserstein2(*a, *b) for b in gaussians] for a in gaussians])
    np.testing.assert_allclose(d, d.T, atol=1e-9)
    assert all(d[i, j] <= d[i, k] + d[k, j] + 1e-9 for i in range(3) for j in range(3) for k in range(3))


def test_matrices_that_are_no_covariance_are_refused():
    with pytest.raises(ValueError, match="positive semi-definite"):
        metrics.wasserstein2(np.zeros(2), np.diag([1.0, -1.0]), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="symmetric"):
        metrics.wasserstein2(np.zeros(2), np.array([[1.0, 1.0], [0.0, 1.0]]), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        metrics.wasserstein2(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))


def test_total_variation_is_the_largest_difference_over_events():
    p, q = RNG.dirichlet(np.ones(4), 10), RNG.dirichlet(np.ones(4), 10)
    events = np.array([[bits >> j & 1 for j in range(4)] for bits in range(16)])
    largest = np.abs((p - q) @ events.T).max(1)
    np.testing.assert_allclose(metrics.total_variation(p, q), largest, atol=1e-12)


def test_pointwise_distances_are_those_of_gaussians_on_the_line():
    m1, m2, v1, v2 = RNG.normal(size=4), RNG.normal(size=4), RNG.uniform(size=4), RNG.uniform(size=4)
    one_by_one = [metrics.wasserstein2([a], [[b]], [c], [[d]]) for a, b, c, d in zip(m1, v1, m2, v2, strict=True)]
    assert metrics.pointwise_wasserstein2(m1, v1, m2, v2) == pytest.approx(one_by_one, abs=1e-12)


def test_pointwise_squares_add_up_to_the_joint_distance_of_independent_gaussians():
    m1, m2, v1, v2 = RNG.normal(size=4), RNG.normal(size=4), RNG.uniform(size=4), RNG.uniform(size=4)
    joint = metrics.wasserstein2(m1, np.diag(v1), m2, np.diag(v2))
    assert np.linalg.norm(metrics.pointwise_wasserstein2(m1, v1, m2, v2)) == pytest.approx(joint, abs=1e-12)


def test_pointwise_distances_refuse_negative_variances():
    with pytest.raises(ValueError, match="`variance2` must not be negative; its smallest value is -1"):
        metrics.pointwise_wasserstein2([0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, -1.0])
    with pytest.raises(ValueError, match="variance1"):
        metrics.pointwise_wasserstein2([0.0, 0.0], [1.0], [0.0, 0.0], [1.0, 1.0])
