"""A Gaussian target with known stationary distributions under each kernel, shared by the tests of kernels."""

import torch

from bayeskit import mcmc

PRECISIONS = torch.logspace(-1, 1, 8, dtype=torch.float64)
CHAINS = 4000


def log_density(position):
    return -0.5 * (PRECISIONS * position["x"].square()).sum(-1)


def noisy(variance, generator, chains=CHAINS):
    """Unbiased estimates of `log_density` whose gradients have the given variance."""
    while True:
        noise = torch.randn(chains, 8, generator=generator, dtype=torch.float64) * variance**0.5
        yield lambda position, noise=noise: log_density(position) + (noise * position["x"]).sum(-1)


def ends(kernel, expected, noise, generator, steps):
    """The last state of 4,000 chains that start at a claimed distribution, after `steps` steps on noisy gradients."""
    start = {"x": torch.randn(CHAINS, 8, generator=generator, dtype=torch.float64) * expected.sqrt()}
    density = noisy(noise, generator) if noise else log_density
    return mcmc.run(kernel, density, start, num_samples=1, burn_in=steps - 1, generator=generator).state


def standard_errors(draws, variance):
    """By how many standard errors the variances of independent draws (s, d) of mean zero differ from a claim, (d,).

    One of them is beyond 5 once in two million: with some ten numbers a test, one false alarm in 100,000 tests.
    """
    return (draws.square().mean(0) - variance) / (variance * (2 / len(draws)) ** 0.5)
