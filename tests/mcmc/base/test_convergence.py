import warnings

import numpy as np
import pytest
import torch

from bayeskit import mcmc


def chains(kind, generator):
    z = torch.randn(4, 250, generator=generator, dtype=torch.float64)
    if kind == "independent":
        return z
    if kind == "odd length":
        return z[:, :101]
    if kind == "two chains of few draws":
        return z[:2, :9]
    if kind == "heavy tails":
        return z / torch.randn(4, 250, generator=generator, dtype=torch.float64)
    if kind == "stuck apart":
        return z + torch.tensor([[0.0], [0.0], [0.0], [2.0]])
    if kind == "another scale":
        return z * torch.tensor([[1.0], [1.0], [1.0], [3.0]])
    if kind == "ties":
        return z.round()
    sign = 0.95 if kind == "slow" else -0.8
    x = z.clone()
    for t in range(1, x.shape[1]):
        x[:, t] = sign * x[:, t - 1] + z[:, t]
    return x


KINDS = [
    "independent",
    "odd length",
    "two chains of few draws",
    "heavy tails",
    "stuck apart",
    "another scale",
    "ties",
    "slow",
    "antithetic",
]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_arviz(kind, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    x = chains(kind, generator)
    assert mcmc.rhat(x).item() == pytest.approx(float(arviz.rhat(x.numpy(), method="rank")), rel=1e-8)
    assert mcmc.ess(x).item() == pytest.approx(float(arviz.ess(x.numpy(), method="bulk")), rel=1e-8)
    assert mcmc.tail_ess(x).item() == pytest.approx(float(arviz.ess(x.numpy(), method="tail")), rel=1e-8)
    assert mcmc.mcse(x).item() == pytest.approx(float(arviz.mcse(x.numpy(), method="mean")), rel=1e-8)


def test_many_quantities_at_once(generator):
    x = torch.stack([chains(kind, generator) for kind in ("independent", "slow", "ties", "stuck apart")], dim=-1)
    x = x.reshape(4, 250, 2, 2)
    for statistic in (mcmc.rhat, mcmc.ess, mcmc.tail_ess, mcmc.mcse):
        together = statistic(x)
        apart = torch.stack([statistic(x[:, :, i, j]) for i in range(2) for j in range(2)]).reshape(2, 2)
        assert together.dtype == torch.float64 and torch.allclose(together, apart, rtol=1e-12)


def test_monotone_changes_change_nothing(generator):
    x = chains("slow", generator)
    assert torch.allclose(mcmc.ess(x), mcmc.ess(x.exp()), rtol=1e-12)


@pytest.mark.monte_carlo
def test_autoregression_of_known_size(generator):
    # tau = (1 + r) / (1 - r) = 39 at r = 0.95 for a Gaussian; ranks change it little. Long chains. The estimate has a
    # relative standard error of sqrt(2 (2 M + 1) / n), some 8 % for a window M of 3 to 6 tau (Madras and Sokal, 1988).
    z = torch.randn(4, 20_000, generator=generator, dtype=torch.float64)
    x = z.clone()
    for t in range(1, x.shape[1]):
        x[:, t] = 0.95 * x[:, t - 1] + (1 - 0.95**2) ** 0.5 * z[:, t]
    assert mcmc.ess(x).item() == pytest.approx(80_000 / 39, rel=0.4)


def test_constants_and_nan():
    x = torch.zeros(2, 10, 3)
    x[0, 0, 1] = torch.nan
    x[:, :, 2] = torch.arange(20.0).reshape(2, 10)
    assert torch.isnan(mcmc.rhat(x)[:2]).all() and torch.isfinite(mcmc.rhat(x)[2])
    for size in (mcmc.ess(x), mcmc.tail_ess(x)):
        assert size[0] == 20 and torch.isnan(size[1])
    assert mcmc.mcse(x)[0] == 0 and torch.isnan(mcmc.mcse(x)[1])


def test_one_chain_is_compared_with_itself(generator):
    drifting = torch.randn(1, 200, generator=generator) + torch.linspace(0, 5, 200)
    assert mcmc.rhat(drifting) > 1.2


def test_arrays_are_welcome_and_short_ones_are_not():
    assert mcmc.rhat(np.random.default_rng(0).normal(size=(2, 20))).shape == ()
    with pytest.raises(ValueError, match="at least 4 draws"):
        mcmc.ess(torch.zeros(2, 3))


@pytest.mark.monte_carlo
def test_the_error_of_the_mean_of_an_autoregression(generator):
    # Of c chains of length n: sd sqrt((1 + r) / (1 - r) / (c n)) for large n.
    x = torch.randn(4, 20_000, generator=generator, dtype=torch.float64)
    for t in range(1, x.shape[1]):
        x[:, t] = 0.9 * x[:, t - 1] + (1 - 0.9**2) ** 0.5 * x[:, t]
    assert mcmc.mcse(x).item() == pytest.approx((19 / 80_000) ** 0.5, rel=0.15)


@pytest.mark.monte_carlo
def test_only_the_tail_size_detects_different_scales(generator):
    x = chains("another scale", generator)
    assert mcmc.tail_ess(x) < 0.2 * mcmc.ess(x)
