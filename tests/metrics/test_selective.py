"""Risk-coverage curves."""

import itertools

import numpy as np
import pytest

from bayeskit import metrics

RNG = np.random.default_rng(0)


def test_ties_give_the_average_over_all_orders():
    losses, uncertainty = np.array([1.0, 0.0, 2.0, 5.0]), np.array([0.3, 0.3, 0.3, 0.1])
    curves = []
    for order in itertools.permutations(range(3)):
        ranked = np.array([5.0, *losses[list(order)]])
        curves.append(ranked.cumsum() / np.arange(1, 5))
    np.testing.assert_allclose(metrics.risk_coverage(losses, uncertainty)[1], np.mean(curves, 0), atol=1e-12)


def test_uninformative_uncertainty_has_the_mean_loss_everywhere():
    losses = RNG.uniform(size=50)
    assert metrics.aurc(losses, np.ones(50)) == pytest.approx(losses.mean(), abs=1e-12)


def test_row_order_does_not_matter_and_the_end_is_the_mean_loss():
    losses, uncertainty = RNG.uniform(size=40), RNG.integers(0, 5, 40)
    shuffle = RNG.permutation(40)
    assert metrics.aurc(losses, uncertainty) == pytest.approx(
        metrics.aurc(losses[shuffle], uncertainty[shuffle]), abs=1e-12
    )
    coverage, risk = metrics.risk_coverage(losses, uncertainty)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(losses.mean(), abs=1e-12)


def test_the_oracle_is_best():
    losses = RNG.uniform(size=60)
    assert metrics.aurc(losses, losses) < metrics.aurc(losses, RNG.uniform(size=60)) < metrics.aurc(losses, -losses)
