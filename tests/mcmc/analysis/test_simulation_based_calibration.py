"""Simulation-based calibration of the samplers on a conjugate model, one data set a chain."""

import pytest
import torch

from bayeskit import mcmc

CHAINS, DRAWS = 1_000, 19
X = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [0.0, 1.5], [-1.0, 0.5]], dtype=torch.float64)
"""Rows for which the posterior has precisions of 16 to 20."""

LEVEL = 1e-5
"""The probability that a test of ranks rejects a correct sampler."""


def simulated(generator):
    """Weights (c, 2) ~ N(0, I), and y ~ N(X w, 0.5^2) with the same rows X for all chains, as a log density."""
    w = torch.randn(CHAINS, 2, generator=generator, dtype=torch.float64)
    y = w @ X.mT + 0.5 * torch.randn(CHAINS, len(X), generator=generator, dtype=torch.float64)

    def log_density(position):
        residuals = (y - position["w"] @ X.mT) / 0.5
        return -0.5 * residuals.square().sum(-1) - 0.5 * position["w"].square().sum(-1)

    return w, log_density


def p_values(generator, kernel, *, thin, burn_in):
    truth, log_density = simulated(generator)
    start = {"w": torch.zeros(CHAINS, 2, dtype=torch.float64)}
    settings = {"num_samples": DRAWS, "burn_in": burn_in, "thin": thin, "generator": generator}
    draws = mcmc.run(kernel, log_density, start, **settings).samples["w"]
    return mcmc.calibration_test(mcmc.calibration_ranks(draws, truth), DRAWS)


@pytest.mark.monte_carlo
def test_hmc_is_calibrated(generator):
    assert (p_values(generator, mcmc.HMC(), thin=2, burn_in=60) > LEVEL).all()


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    "kernel, thin",
    [(mcmc.BAOAB(lr=0.02), 30), (mcmc.SGLD(lr=0.003), 80), (mcmc.SGHMC(lr=2e-3, momentum=0.8), 40)],
)
def test_others_are_where_their_steps_are_short(generator, kernel, thin):
    assert (p_values(generator, kernel, thin=thin, burn_in=4 * thin) > LEVEL).all()


def test_noise_that_is_off_by_the_root_of_two_is_found(generator):
    # N(0, h) in place of N(0, 2 h), as in published code: the posterior at temperature 1/2.
    wrong = mcmc.SGLD(lr=0.003, temperature=0.5)
    assert (p_values(generator, wrong, thin=80, burn_in=320) < 1e-9).all()


@pytest.mark.monte_carlo
def test_steps_that_are_too_long_are_found(generator):
    # A step of 0.08 makes variances three to five times too large.
    assert p_values(generator, mcmc.SGLD(lr=0.08), thin=10, burn_in=50).min() < LEVEL


@pytest.mark.monte_carlo
def test_ranks_of_exact_draws_are_uniform_whatever_the_bins(generator):
    truth, draws = torch.randn(3_000, generator=generator), torch.randn(3_000, 10, generator=generator)
    ranks = mcmc.calibration_ranks(draws, truth)
    assert ranks.min() == 0 and ranks.max() == 10
    for bins in (2, 4, 11, 50):
        assert LEVEL < mcmc.calibration_test(ranks, 10, num_bins=bins) < 1 - LEVEL
    for wrong in (draws + 0.2, 1.2 * draws, 0.8 * draws):
        assert mcmc.calibration_test(mcmc.calibration_ranks(wrong, truth), 10) < 1e-4


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="`draws` must have shape"):
        mcmc.calibration_ranks(torch.zeros(3, 4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="`ranks` must be integers of 0 to `num_draws`, 3"):
        mcmc.calibration_test(torch.tensor([4]), 3)
