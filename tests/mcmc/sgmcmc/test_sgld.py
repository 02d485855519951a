import itertools

import pytest
import torch

from bayeskit import mcmc

from ..gaussian import PRECISIONS, ends, log_density, standard_errors

H = 0.1


@pytest.mark.monte_carlo
@pytest.mark.parametrize("temperature, noise, known", [(1, 0, 0), (0.3, 0, 0), (1, 4, 0), (2.5, 9, 0), (1, 4, 4)])
def test_stationary_variance_on_a_gaussian(generator, temperature, noise, known):
    # 4,000 independent chains start in the claimed distribution; in 600 steps even the slowest direction forgets it
    # (0.99^600 = 0.002): what is left is where the recursion itself leads.
    expected = (temperature + H * (noise - known) / 2) / (PRECISIONS * (1 - H * PRECISIONS / 2))
    kernel = mcmc.SGLD(lr=H, temperature=temperature, gradient_noise=known)
    x = ends(kernel, expected, noise, generator, 600).position["x"]
    assert (standard_errors(x, expected).abs() < 5).all()
    assert (x.mean(0).abs() < 5 * (expected / len(x)).sqrt()).all()


def test_temperature_zero_is_gradient_ascent_bit_for_bit(generator):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    before = generator.get_state()
    chain = mcmc.run(
        mcmc.SGLD(lr=0.05, temperature=0.0), log_density, start, num_samples=20, burn_in=0, generator=generator
    )
    x = start["x"].clone().requires_grad_()
    ascent = torch.optim.SGD([x], lr=0.05, maximize=True)
    for draw in range(20):
        ascent.zero_grad()
        log_density({"x": x}).sum().backward()
        ascent.step()
        assert torch.equal(chain.samples["x"][:, draw], x)
    assert torch.equal(before, generator.get_state())


def test_mini_batches_are_gone_through_in_turn(generator):
    used = []

    def density(number):
        def log_density(position):
            used.append(number)
            return -position["x"].square()

        return log_density

    kernel = mcmc.SGLD(lr=0.1)
    densities = [density(i) for i in range(3)]
    mcmc.run(kernel, densities, {"x": torch.zeros(2)}, num_samples=3, burn_in=4, generator=generator)
    assert used == list(itertools.islice(itertools.cycle([0, 1, 2]), 1, 8))  # the first one started the chains
