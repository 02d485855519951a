"""Likelihoods of a user's own, and small cases for every likelihood, shared by the tests of likelihoods."""

import itertools

import torch
from linear_operator import to_linear_operator
from scipy import integrate, stats
from torch import distributions as td
from torch import nn

from bayeskit.core.likelihood import (
    Likelihood,
)
from bayeskit.core.posterior import GaussianValues

DOUBLE = torch.float64


class LaplaceNoise(Likelihood):
    def __init__(self, scale=0.3):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale, dtype=DOUBLE).log())

    def distribution(self, f):
        return td.Independent(td.Laplace(f, self.log_scale.exp().to(f)), 1)


class Waiting(Likelihood):
    """A distribution without event axis: one exponential waiting time per input."""

    def distribution(self, f):
        return td.Exponential(torch.exp(-f.squeeze(-1)))


class Ordinal(Likelihood):
    """Three ordered classes on one latent."""

    target = "classes"

    def distribution(self, f):
        cuts = torch.sigmoid(torch.tensor([-1.0, 1.0], dtype=f.dtype) - f)
        cuts = torch.cat([torch.zeros_like(f), cuts, torch.ones_like(f)], -1)
        return td.Categorical(probs=cuts.diff(dim=-1).clamp(min=1e-300))


class Softmax(Likelihood):
    """Categorical again, by the generic path."""

    target = "classes"

    def num_latents(self, y):
        return 3

    def distribution(self, f):
        return td.Categorical(logits=f)


def draw_case(likelihood, n=5, seed=0, dtype=DOUBLE):
    """Latent means, variances (n, k) and targets for a likelihood."""
    g = torch.Generator().manual_seed(seed)
    y = {
        "continuous": torch.randn(n, 2, generator=g, dtype=dtype),
        "count": torch.randint(0, 6, (n, 2), generator=g).to(dtype),
        "binary": torch.randint(0, 2, (n,), generator=g),
        "classes": torch.randint(0, 3, (n,), generator=g),
    }[likelihood.target]
    if isinstance(likelihood, Waiting):
        y = y[:, 0].abs() + 0.1
    k = likelihood.num_latents(y)
    return torch.randn(n, k, generator=g, dtype=dtype), torch.rand(n, k, generator=g, dtype=dtype) + 0.1, y


def values(mean, variance):
    return GaussianValues(mean, to_linear_operator(torch.diag(variance.reshape(-1))))


def brute_force(function, mean, variance, cuts=()):
    """E[function(f)] for scalar f ~ N(mean, variance) by scipy's adaptive quadrature."""
    std = variance**0.5
    points = sorted({mean, *(c for c in cuts if abs(c - mean) < 12 * std)})
    edges = [mean - 12 * std, *points, mean + 12 * std]
    weight = stats.norm(mean, std).pdf
    return sum(
        integrate.quad(lambda f: function(f) * weight(f), a, b, epsabs=1e-12, epsrel=1e-10, limit=500)[0]
        for a, b in itertools.pairwise(edges)
    )
