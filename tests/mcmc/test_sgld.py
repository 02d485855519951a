import itertools

import pytest
import torch

from bayeskit import mcmc

PRECISIONS = torch.logspace(-1, 1, 8, dtype=torch.float64)


def gaussian(position):
    return -0.5 * (PRECISIONS * position["x"].square()).sum(-1)


def noisy(variance, generator):
    """Unbiased estimates of `gaussian` whose gradients have the given variance."""
    while True:
        noise = torch.randn(CHAINS, 8, generator=generator, dtype=torch.float64) * variance**0.5
        yield lambda position, noise=noise: gaussian(position) + (noise * position["x"]).sum(-1)


CHAINS = 4000


@pytest.mark.parametrize("temperature, noise, known", [(1, 0, 0), (0.3, 0, 0), (1, 4, 0), (2.5, 9, 0), (1, 4, 4)])
def test_stationary_variance_on_a_gaussian(generator, temperature, noise, known):
    # 4,000 independent chains start at the claimed law, and 600 steps later even the slowest direction has forgotten
    # that (0.99^600 = 0.002): what is left is where the recursion itself leads.
    h = 0.1
    expected = (temperature + h * (noise - known) / 2) / (PRECISIONS * (1 - h * PRECISIONS / 2))
    start = {"x": torch.randn(CHAINS, 8, generator=generator, dtype=torch.float64) * expected.sqrt()}
    density = noisy(noise, generator) if noise else gaussian
    kernel = mcmc.SGLD(lr=h, temperature=temperature, gradient_noise=known)
    chain = mcmc.run(kernel, density, start, num_samples=1, burn_in=600, generator=generator)
    x = chain.samples["x"][:, 0]
    error = x.square().mean(0) - expected  # the mean is known: zero
    assert (error.abs() < 4 * expected * (2 / CHAINS) ** 0.5).all()
    assert (x.mean(0).abs() < 4 * (expected / CHAINS).sqrt()).all()


def test_temperature_zero_is_gradient_ascent_bit_for_bit(generator):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    before = generator.get_state()
    chain = mcmc.run(
        mcmc.SGLD(lr=0.05, temperature=0.0), gaussian, start, num_samples=20, burn_in=0, generator=generator
    )
    x = start["x"].clone().requires_grad_()
    ascent = torch.optim.SGD([x], lr=0.05, maximize=True)
    for draw in range(20):
        ascent.zero_grad()
        gaussian({"x": x}).sum().backward()
        ascent.step()
        assert torch.equal(chain.samples["x"][:, draw], x)
    assert torch.equal(before, generator.get_state())


def test_the_default_step_is_a_quarter_of_the_inverse_curvature(generator):
    state = mcmc.SGLD().init({"x": torch.zeros(2, 8, dtype=torch.float64)}, gaussian, generator=generator)
    assert state.lr == pytest.approx(0.25 / 10, rel=0.05)  # the top precision is 10; the power iteration has not ended


def test_chains_do_not_see_each_other(generator):
    start = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    slow = mcmc.SGLD(lr=0.01)
    together = mcmc.run(slow, gaussian, {"x": start}, num_samples=1, burn_in=0, generator=torch.Generator())
    changed = torch.cat([start[:1], start[1:] + 5])
    again = mcmc.run(slow, gaussian, {"x": changed}, num_samples=1, burn_in=0, generator=torch.Generator())
    assert torch.equal(together.samples["x"][0], again.samples["x"][0])


def test_a_schedule_scales_the_steps(generator):
    kernel = mcmc.SGLD(lr=0.1, schedule=mcmc.polynomial_decay(delay=2.0, power=1.0))
    start = {"x": torch.zeros(1, 8, dtype=torch.float64)}
    chain = mcmc.run(kernel, gaussian, start, num_samples=4, burn_in=2, generator=generator)
    expected = torch.tensor([[0.1 / (1 + t / 2) for t in range(2, 6)]], dtype=torch.float64)
    assert torch.allclose(chain.info["step_size"], expected)


def test_float32_positions_stay_float32(generator):
    density = lambda q: -0.5 * q["x"].square().sum(-1)  # noqa: E731
    chain = mcmc.run(mcmc.SGLD(), density, {"x": torch.ones(2, 3)}, num_samples=3, burn_in=1, generator=generator)
    assert chain.samples["x"].dtype == torch.float32


@pytest.mark.parametrize("kernel", [mcmc.SGLD(temperature=-1.0), mcmc.SGLD(lr=0.0), mcmc.SGLD(gradient_noise=-1.0)])
def test_settings_are_checked(kernel, generator):
    with pytest.raises(ValueError, match="`(temperature|lr|gradient_noise)`"):
        mcmc.run(kernel, gaussian, {"x": torch.zeros(1, 8)}, num_samples=1, burn_in=0, generator=generator)


def test_a_flat_start_asks_for_a_step(generator):
    with pytest.raises(ValueError, match="give `lr`"):
        flat = lambda q: 0 * q["x"].sum(-1)  # noqa: E731
        mcmc.run(mcmc.SGLD(), flat, {"x": torch.zeros(1, 2)}, num_samples=1, burn_in=0, generator=generator)


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
