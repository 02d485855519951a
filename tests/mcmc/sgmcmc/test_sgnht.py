import math

import pytest
import torch

from bayeskit import mcmc

D, CHAINS = 200, 100


def isotropic(position):
    return -0.5 * position["x"].square().sum(-1)


def noisy(variance, generator):
    while True:
        noise = torch.randn(CHAINS, D, generator=generator, dtype=torch.float64) * variance**0.5
        yield lambda position, noise=noise: isotropic(position) + (noise * position["x"]).sum(-1)


def settled(lr, a, temperature, noise):
    """The share lost in a step that leaves momenta the variance T in many dimensions, by bisection.

    With that share constant, the discrete Lyapunov equation gives their variance for l = 1.
    """
    low, high = 1e-6, 0.99
    for _ in range(100):
        lost = (low + high) / 2
        heat = 2 * (2 * temperature * a + lr * noise) / (lost * (4 - 2 * lost - lr))
        low, high = (lost, high) if heat > temperature else (low, lost)
    return lost


@pytest.mark.monte_carlo
@pytest.mark.parametrize("temperature, noise", [(1.0, 0.0), (1.0, 20.0), (0.3, 6.0), (2.5, 60.0)])
@pytest.mark.parametrize("thermostat", [1.0, None])
def test_friction_absorbs_gradient_noise(generator, temperature, noise, thermostat):
    lr, a = 0.0025, 0.05
    kernel = mcmc.SGNHT(lr=lr, momentum=1 - a, temperature=temperature, thermostat=thermostat)
    lost = settled(lr, a, temperature, noise)
    friction = -math.log(1 - lost) / lr**0.5
    start = {"x": torch.randn(CHAINS, D, generator=generator, dtype=torch.float64) * temperature**0.5}
    density = noisy(noise, generator) if noise else isotropic
    state = kernel.init(start, isotropic, generator=generator)
    state = mcmc.sgmcmc.sgnht.SGNHTState(start, state.momentum, torch.full_like(state.friction, friction), lr)
    frictions, variances = [], []
    densities = iter(density) if noise else iter(lambda: isotropic, None)
    for step in range(900):
        state, _ = kernel.step(state, next(densities), generator=generator)
        if step >= 300 and step % 10 == 0:
            frictions.append(state.friction)
            variances.append(state.position["x"].square().mean(-1))
    # Chains are independent: standard errors from the spread between them. Finite d leaves a bias of order 1 / d, the
    # relative variance of the friction, T / (r d f^2): 2 % of it is allowed for.
    for values, claim in ((frictions, friction), (variances, temperature * (1 - lost / 2))):
        means = torch.stack(values).mean(0)  # (c,)
        error = means.std() / CHAINS**0.5
        assert abs(means.mean() - claim) < 5 * error + 0.02 * claim
    assert friction == pytest.approx(a / lr**0.5 + lr**0.5 * noise / (2 * temperature), rel=0.15)  # to leading order


@pytest.mark.monte_carlo
def test_the_thermostat_is_what_absorbs_it(generator):
    # The same chain at constant friction is hot by lr V / (2 a T) = 50 %, which the tolerance above would not let pass.
    kernel = mcmc.SGHMC(lr=0.0025, momentum=0.95)
    start = {"x": torch.randn(CHAINS, D, generator=generator, dtype=torch.float64)}
    state = mcmc.run(kernel, noisy(20.0, generator), start, num_samples=1, burn_in=600, generator=generator).state
    assert state.position["x"].square().mean() > 1.3
