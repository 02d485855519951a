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
    if "never moved" in kind:
        places = [0.1] * 4 if "one" in kind else [0.1, 0.2] if "two" in kind else [0.1, 0.2, 0.3, 0.4]
        return torch.tensor(places, dtype=torch.float64)[:, None].expand(-1, 250)
    if kind == "one chain stuck":
        return torch.cat([z[:3], torch.full((1, 250), 3.0)])
    if kind == "three of four at one place":
        return torch.tensor([0.1, 0.1, 0.1, 5.0], dtype=torch.float64)[:, None].expand(-1, 250)
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
    "never moved, four places",
    "never moved, two places",
    "never moved, one place",
    "one chain stuck",
    "three of four at one place",
]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_arviz(kind, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    x = chains(kind, generator)
    with np.errstate(all="ignore"):
        expected = float(arviz.rhat(x.numpy(), method="rank"))
    expected = np.inf if expected > 1e10 else expected  # within a chain that never moves ArviZ finds rounding errors
    assert mcmc.rhat(x).item() == pytest.approx(expected, rel=1e-8, nan_ok=True)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("length", [4, 5, 400])
@pytest.mark.parametrize("chains", [2, 3, 16])
def test_chains_stuck_apart_never_agree(chains, length, dtype, generator):
    places = torch.arange(chains)[:, None].to(dtype)
    places = places if dtype is torch.int64 else places / 10 + 1
    stuck = places.expand(chains, length)
    assert mcmc.rhat(stuck) == torch.inf and mcmc.nested_rhat(stuck, superchains=chains) == torch.inf
    assert mcmc.agreement(stuck)["R-hat"] == torch.inf and mcmc.agreement(stuck)["ESS"] <= chains
    moved = torch.stack([stuck.double(), torch.randn(chains, length, generator=generator).double()], -1)
    assert mcmc.rhat(moved)[0] == torch.inf and mcmc.agreement(moved)["R-hat"] == torch.inf


def test_scale_does_not_make_a_constant(generator):
    x = chains("independent", generator)
    for statistic in (mcmc.rhat, mcmc.ess, mcmc.tail_ess):
        assert statistic(1e-200 * x).item() == pytest.approx(statistic(x).item(), rel=1e-12)
    assert mcmc.mcse(1e-30 * x).item() == pytest.approx(1e-30 * mcmc.mcse(x).item(), rel=1e-8)


def test_agreement_of_several_quantities(generator):
    x = torch.stack([chains("independent", generator), chains("slow", generator)], -1)
    numbers = mcmc.agreement(x)
    assert numbers == {"R-hat": mcmc.rhat(x).max().item(), "ESS": mcmc.ess(x).min().item()}
    constant = torch.cat([x, torch.full_like(x, 0.1)], -1)  # the function at an input that no weight reaches
    assert mcmc.agreement(constant) == numbers
    for worthless in (torch.full((3, 8), 0.1), torch.full((3, 8, 2), torch.nan)):  # never moved; not finite
        assert mcmc.agreement(worthless) == {"R-hat": torch.inf, "ESS": 0.0}
    for value in (torch.nan, torch.inf):
        broken = x.clone()
        broken[1, 7, 0] = value
        assert mcmc.rhat(broken).isnan().tolist() == [True, False]
        assert mcmc.agreement(broken) == {"R-hat": torch.inf, "ESS": 0.0}


def test_nested_rhat_by_its_definition(generator):
    x = torch.randn(12, 7, 2, generator=generator, dtype=torch.float64) + torch.arange(12.0)[:, None, None] / 5
    groups = x.reshape(4, 3, 7, 2)
    means = groups.mean(2)
    within = means.var(1) + groups.var(2).mean(1)
    expected = (1 + means.mean(1).var(0) / within.mean(0)).sqrt()
    assert torch.allclose(mcmc.nested_rhat(x, superchains=4), expected, rtol=1e-12)
    single = x[:, :1]  # a draw of each chain: nothing varies within chains
    expected = (1 + single.reshape(4, 3, 2).mean(1).var(0) / single.reshape(4, 3, 2).var(1).mean(0)).sqrt()
    assert torch.allclose(mcmc.nested_rhat(single, superchains=4), expected, rtol=1e-12)
    assert mcmc.nested_rhat(torch.ones(4, 3), superchains=2).isnan()
    for count in (1, 3, 5):
        with pytest.raises(ValueError, match="`superchains` must be at least 2 and divide the 4 chains"):
            mcmc.nested_rhat(torch.ones(4, 3), superchains=count)


@pytest.mark.monte_carlo
def test_nested_rhat_of_many_short_chains(generator):
    """Superchains at their starts disagree; after ten steps of an autoregression of 0.5 they agree, `rhat` cannot say.

    The variance of a mean of 128 draws is 1 / 128 of that of a draw, so nested R-hat is 1 + (chi2_3 / 3) / 256, above
    1.04 once in 50,000.
    """
    x = 2 * torch.arange(4.0).repeat_interleave(128).double()
    first = torch.zeros(512, 2, dtype=torch.float64)
    for t in range(12):
        x = 0.5 * x + 0.75**0.5 * torch.randn(512, generator=generator, dtype=torch.float64)
        if t < 2:
            first[:, t] = x
    assert mcmc.nested_rhat(first, superchains=4) > 1.2
    assert mcmc.nested_rhat(x[:, None], superchains=4) < 1.04


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
