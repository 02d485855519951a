"""Expectations of log-likelihoods that are far narrower, or far wider, than the latent's spread."""

import math

import numpy as np
import pytest
import torch
from torch import distributions as td

from bayeskit.core.likelihood import Bernoulli, Likelihood, Poisson, StudentT


class Noise(Likelihood):
    """Noise of one of torch's families, as a user writes it."""

    def __init__(self, family, scale):
        super().__init__()
        self.family, self.scale = family, scale

    def extra_repr(self):
        return f"{self.family.__name__}, {self.scale}"

    def distribution(self, f):
        return td.Independent(self.family(f, self.scale), 1)


class PerNumber(Noise):
    """The same without an output axis."""

    def distribution(self, f):
        return self.family(f.squeeze(-1), self.scale)


WIDTHS = (0.01, 0.1, 1.0)
LIKELIHOODS = [
    *(Noise(family, scale) for family in (td.Laplace, td.Cauchy) for scale in WIDTHS),
    *(PerNumber(td.Laplace, scale) for scale in WIDTHS),
    *(StudentT(df, scale) for df in (1.0, 4.0, 100.0) for scale in WIDTHS),
    Bernoulli(),
    Bernoulli("probit"),
    Poisson(),
]
TARGETS = {"continuous": (0.0, 1.0, 5.0), "count": (0, 3), "binary": (0, 1)}


def by_panels(likelihood, mean, variance, y):
    """E[l], E[l'] and -E[l''] by 60 Gauss-Legendre points on panels that halve towards the places where l bends."""
    std = math.sqrt(variance)
    ladder = [0.0, *(2.0**k for k in range(-14, 5))]
    bends = [(place - mean) / std for place in (float(y), 0.0)]
    cuts = {min(max(c + sign * r, -12.0), 12.0) for c in bends for r in ladder for sign in (-1, 1)} | {-12.0, 0.0, 12.0}
    edges = np.array(sorted(cuts))
    x, w = np.polynomial.legendre.leggauss(60)
    half = np.diff(edges)[:, None] / 2
    u = (((edges[1:] + edges[:-1]) / 2)[:, None] + half * x).ravel()
    weights = (half * w).ravel() * np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    binary = likelihood.target == "binary"
    targets = torch.full((len(u),), y) if binary else torch.full((len(u), 1), float(y), dtype=torch.float64)
    values = likelihood.log_prob(torch.tensor(mean + std * u)[:, None], targets).detach().numpy()
    return weights @ values, weights @ (values * u) / std, -weights @ (values * (u**2 - 1)) / variance


@pytest.mark.parametrize(
    ("likelihood", "variance"),
    [
        (likelihood, variance)
        for likelihood in LIKELIHOODS
        for variance in (0.01, 1.0, 25.0, 400.0)
        if likelihood.target != "count" or variance <= 1  # E exp(f) has no use beyond
    ],
    ids=repr,
)
def test_expectations_and_site_gradients_are_the_integrals(likelihood, variance):
    """To 1e-3 in relative terms, by a quadrature of another kind."""
    for mean in (0.0, 0.7):
        for y in TARGETS[likelihood.target]:
            expected = by_panels(likelihood, mean, variance, y)
            at = [torch.tensor([[value]], dtype=torch.float64) for value in (mean, variance)]
            target = torch.tensor([y]) if likelihood.target == "binary" else torch.tensor([[float(y)]]).double()
            found = [likelihood.expected_log_prob(*at, target), *likelihood.site_gradients(*at, target)]
            for value, right in zip(found, (*expected[:2], max(expected[2], 2e-8)), strict=True):
                assert value.item() == pytest.approx(right, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("likelihood", [Noise(td.Laplace, 0.01), StudentT(4.0, 0.01, learn=True)], ids=["user", "t"])
def test_training_follows_the_integral(likelihood):
    """Gradients of the expectation in mean, variance and scale, in both precisions, are its differences."""
    y = torch.tensor([[0.3], [1.0]])
    for dtype in (torch.float64, torch.float32):
        mean, variance = (torch.tensor(v, dtype=dtype).reshape(2, 1).requires_grad_() for v in ((0.0, 0.9), (1.0, 0.2)))
        likelihood.expected_log_prob(mean, variance, y.to(dtype)).sum().backward()
        alpha, beta = likelihood.site_gradients(mean, variance, y.to(dtype))
        assert torch.allclose(mean.grad, alpha, rtol=1e-3, atol=1e-3)
        assert torch.allclose(-2 * variance.grad, beta, rtol=1e-3, atol=1e-3)
    if isinstance(likelihood, StudentT):
        slope = likelihood.raw_scale.grad.item()
        assert math.isfinite(slope) and slope != 0
