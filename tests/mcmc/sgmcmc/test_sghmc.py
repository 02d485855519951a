import pytest
import torch

from bayeskit import mcmc

from ..gaussian import PRECISIONS, ends, log_density, noisy, standard_errors

START = {"x": torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(3, 8)}


def stationary_variances(temperature, lr, momentum, noise):
    """Stationary variances of position and momentum under symplectic Euler, by the discrete Lyapunov equation."""
    h = lr**0.5
    c = (1 - momentum) / h
    heat, rest = 2 * temperature * c + h * noise, 4 - 2 * c * h - lr * PRECISIONS
    return heat * (2 - c * h) / (c * PRECISIONS * rest), 2 * heat / (c * rest)


CASES = [(1.0, 0.04, 0.8, 0.0, 0.0), (0.3, 0.2, 0.5, 0.0, 0.0), (2.5, 0.04, 0.8, 9.0, 0.0), (1.0, 0.04, 0.8, 5.0, 5.0)]


@pytest.mark.monte_carlo
@pytest.mark.parametrize("temperature, lr, momentum, noise, known", CASES)
def test_stationary_variances_on_a_gaussian(generator, temperature, lr, momentum, noise, known):
    # 400 steps: the slowest direction, l = 0.1, relaxes as (1 - h l / c)^n with h l / c = 0.02 in the first case, which
    # leaves (0.98^800 =) 1e-7 of what the variance was off at the start.
    position, speed = stationary_variances(temperature, lr, momentum, noise - known)
    kernel = mcmc.SGHMC(lr=lr, momentum=momentum, temperature=temperature, gradient_noise=known)
    state = ends(kernel, position, noise, generator, 400)
    assert (standard_errors(state.position["x"], position).abs() < 5).all()
    assert (standard_errors(state.momentum["x"], speed).abs() < 5).all()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("wrong", ["half the temperature", "noise of the learning rate's size", "explicit Euler"])
def test_a_wrong_scaling_is_seen(generator, wrong):
    # The mistakes that published codes made, by the same statistic and tolerance as above.
    class Broken(mcmc.SGHMC):
        def update(self, state, slopes, *, generator):
            if wrong == "explicit Euler":
                new = super().update(state, slopes, generator=generator)
                by = self.lr**0.5 * state.momentum["x"]
                return mcmc.sgmcmc.momentum.MomentumState({"x": state.position["x"] + by}, new.momentum, state.lr)
            temperature = 0.5 if wrong == "half the temperature" else self.lr
            return mcmc.SGHMC(self.lr, self.momentum, temperature).update(state, slopes, generator=generator)

    position, _ = stationary_variances(1.0, 0.04, 0.8, 0.0)
    state = ends(Broken(lr=0.04, momentum=0.8), position, 0.0, generator, 400)
    assert standard_errors(state.position["x"], position).abs().max() > 10


def test_without_momentum_it_is_sgld(generator):
    kernels = mcmc.SGHMC(lr=0.25, momentum=0.0, temperature=2.0), mcmc.SGLD(lr=0.25, temperature=2.0)
    states = [kernel.init(START, log_density, generator=generator) for kernel in kernels]
    for seed in range(5):
        for i, kernel in enumerate(kernels):
            states[i], _ = kernel.step(states[i], log_density, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(*(state.position["x"] for state in states), rtol=1e-13, atol=0)


def test_temperature_zero_is_gradient_descent_with_momentum(generator):
    kernel = mcmc.SGHMC(lr=0.05, momentum=0.7, temperature=0.0)
    chain = mcmc.run(kernel, log_density, START, num_samples=20, burn_in=0, generator=generator)
    x = START["x"].clone().requires_grad_()
    ascent = torch.optim.SGD([x], lr=0.05, momentum=0.7, maximize=True)
    for draw in range(20):
        ascent.zero_grad()
        log_density({"x": x}).sum().backward()
        ascent.step()
        assert torch.allclose(chain.samples["x"][:, draw], x, rtol=1e-12, atol=1e-12)


def test_a_schedule_shortens_time_and_keeps_friction(generator):
    # Durations halve, so friction over one of them does too: the chain is that of a fourth of the step size.
    quarter = mcmc.SGHMC(lr=0.04, momentum=0.8, schedule=lambda count: 0.25)
    same = mcmc.SGHMC(lr=0.01, momentum=0.9)
    ends = [
        mcmc.run(k, log_density, START, num_samples=1, burn_in=9, generator=torch.Generator().manual_seed(0)).state
        for k in (quarter, same)
    ]
    assert torch.allclose(ends[0].position["x"], ends[1].position["x"], rtol=1e-12, atol=1e-14)


def test_gradient_noise_beyond_the_temperature_is_refused(generator):
    kernel = mcmc.SGHMC(lr=0.04, momentum=0.99, gradient_noise=1.0)
    density = noisy(1.0, generator, chains=3)
    with pytest.raises(ValueError, match="lower `lr` or `gradient_noise`"):
        mcmc.run(kernel, density, START, num_samples=1, burn_in=0, generator=generator)
