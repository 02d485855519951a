"""The distribution with cdf R(F(y)): its invariants, and the base where R is the identity."""

import numpy as np
import pytest
import torch
from torch import distributions as td

from bayeskit.core.predictive import MixturePredictive, RecalibratedPredictive

KNOTS = torch.tensor([0.0, 0.1, 0.6, 1.0], dtype=torch.float64)
SHARES = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
MEAN = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
STD = torch.tensor([[1.0], [0.3]], dtype=torch.float64)


def normal():
    return MixturePredictive(td.Normal(MEAN[None], STD[None]))


def recalibrated_normal(stated=KNOTS, observed=SHARES):
    return RecalibratedPredictive(normal(), stated, observed)


def test_the_identity_changes_nothing():
    y = torch.tensor([[0.4], [1.0]], dtype=torch.float64)
    same, base = recalibrated_normal(KNOTS, KNOTS), normal()
    assert torch.allclose(same.log_prob(y), base.log_prob(y), atol=1e-12)
    assert torch.allclose(same.cdf(y), base.cdf(y), atol=1e-15)
    # 32 Gauss nodes a piece integrate a polynomial times a Gaussian to 1e-10
    assert torch.allclose(same.mean, base.mean, atol=1e-9) and torch.allclose(same.total, base.total, rtol=1e-9)


def test_quantile_inverts_the_cdf():
    q = torch.tensor([1e-6, 0.2, 0.3, 0.42, 0.7, 1 - 1e-6], dtype=torch.float64)
    again = torch.stack([recalibrated_normal().cdf(y) for y in recalibrated_normal().quantile(q)])
    assert torch.allclose(again, q[:, None, None].expand(again.shape), atol=1e-12)


def test_the_density_is_the_slope_of_the_cdf_and_has_mass_one():
    y = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    grid = y[:, None, None].expand(-1, 2, 1)
    density, steps = (
        recalibrated_normal().log_prob(grid).exp(),
        recalibrated_normal().cdf(grid).squeeze(-1).diff(dim=0) / y.diff()[:, None],
    )  # (g, 2)
    # the trapezoidal rule on steps of 6e-4, off only in the steps where R bends
    middle = (density[1:] + density[:-1]) / 2
    bends = ((middle - steps).abs() > 1e-4).sum(0)
    assert (bends <= 2).all()
    assert torch.allclose(torch.trapezoid(density, y, dim=0), torch.ones(2, dtype=torch.float64), atol=1e-3)


@pytest.mark.monte_carlo
def test_moments_are_those_of_draws_and_the_parts_add_up():
    recalibrated = recalibrated_normal()
    draws = recalibrated.sample(40_000)
    error = recalibrated.std / 200  # standard errors of a mean of 40,000
    assert ((draws.mean(0) - recalibrated.mean).abs() < 5 * error).all()
    fourth = ((draws - draws.mean(0)) ** 4).mean(0)
    error = ((fourth - recalibrated.total**2) / 40_000).sqrt()
    assert ((draws.var(0) - recalibrated.total).abs() < 5 * error).all()
    assert torch.allclose(recalibrated.aleatoric + recalibrated.epistemic, recalibrated.total)
    # Piece by piece: mean of the recalibrated normal = sum of slopes times phi(a) - phi(b)
    phi = torch.exp(-(torch.special.ndtri(KNOTS) ** 2) / 2) / (2 * np.pi) ** 0.5
    mean = (SHARES.diff() / KNOTS.diff() * -phi.diff()).sum()
    assert torch.allclose(recalibrated.mean, MEAN + mean * STD, atol=1e-9)


def test_knots_far_in_the_tails_keep_their_mass():
    far = torch.tensor([0.0, 1e-12, 0.5, 1.0], dtype=torch.float64)
    heavy = recalibrated_normal(far, SHARES)
    # three tenths of the mass lie beyond 7.034 standard deviations, at phi / Phi = 7.172 on average
    half = (2 / np.pi) ** 0.5
    assert float(heavy.mean[0]) == pytest.approx(-0.3 * 7.172 - 0.2 * half + 0.5 * half, abs=1e-3)
    assert float(heavy.cdf([[-7.0345], [2.0]])[0]) == pytest.approx(0.3, abs=1e-3)


def test_without_its_output_axis():
    squeezed = recalibrated_normal().squeeze()
    assert squeezed.mean.shape == squeezed.log_prob([0.0, 2.0]).shape == (2,)
    low, high = squeezed.interval(0.9)
    assert (low < squeezed.mean).all() and (squeezed.mean < high).all()
