from dataclasses import replace

import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.base.log_density import value_and_gradient

from ..gaussian import PRECISIONS, ends, standard_errors

CASES = [(1.0, 0.3, 0.8, 0.0, 0.0), (0.3, 0.3, 0.5, 0.0, 0.0), (2.5, 0.1, 0.8, 9.0, 0.0), (1.0, 0.1, 0.7, 4.0, 4.0)]


@pytest.mark.monte_carlo
@pytest.mark.parametrize("temperature, lr, momentum, noise, known", CASES)
def test_stationary_moments_on_a_gaussian(generator, temperature, lr, momentum, noise, known):
    # At lr l up to 3, of 4: exact in the position all the same. 400 steps forget the start (l = 0.1 relaxes at a rate
    # of h l / friction >= 0.02 a step).
    left = noise / (4 - lr * PRECISIONS) - known / 4
    extra = left * lr * (1 + momentum) / (PRECISIONS * (1 - momentum))
    kernel = mcmc.BAOAB(lr=lr, momentum=momentum, temperature=temperature, gradient_noise=known)
    state = ends(kernel, temperature / PRECISIONS + extra, noise, generator, 400)
    assert (standard_errors(state.position["x"], temperature / PRECISIONS + extra).abs() < 5).all()
    if noise:
        return
    x, p = state.position["x"], state.momentum["x"]
    covariance = lr**0.5 * temperature / 2
    spread = (temperature**2 / PRECISIONS + covariance**2).sqrt() / len(x) ** 0.5  # of a product of normals
    assert (standard_errors(p, torch.full_like(PRECISIONS, temperature)).abs() < 5).all()
    assert (((x * p).mean(0) - covariance).abs() < 5 * spread).all()


def well(position):
    """Not harmonic, so that the order shows."""
    return -(position["x"].square() / 2 + position["x"] ** 4 / 4).sum(-1)


def frictionless(lr):
    return mcmc.BAOAB(lr=lr, momentum=1 - 1e-16, temperature=0.0)  # the closest number below 1


def travel(lr, steps, position, momentum):
    """Position and momentum after some steps, the momentum at the same time as the position."""
    kernel, g = frictionless(lr), torch.Generator()
    state = replace(kernel.begin({"x": position}, lr, generator=g), momentum={"x": momentum})
    for _ in range(steps):
        state, _ = kernel.step(state, well, generator=g)
    slope = value_and_gradient(well, state.position)[1]["x"]
    return state.position["x"], state.momentum["x"] + lr**0.5 / 2 * slope


def test_without_friction_and_noise_it_is_reversible(generator):
    x, p = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    there = travel(0.01, 100, x, p)
    back = travel(0.01, 100, there[0], -there[1])
    assert (there[0] - x).abs().max() > 0.5
    assert torch.allclose(back[0], x, atol=1e-11, rtol=0) and torch.allclose(back[1], -p, atol=1e-11, rtol=0)


def test_the_energy_error_is_of_second_order(generator):
    x, p = torch.randn(2, 50, 8, generator=generator, dtype=torch.float64)

    def error(steps):
        q, v = travel((2.0 / steps) ** 2, steps, x, p)
        return (v.square() / 2 + q.square() / 2 + q**4 / 4 - p.square() / 2 - x.square() / 2 - x**4 / 4).abs().mean()

    # Halving h: 1/4 of the error, to the next order, h^2 l, which is below 0.01 here.
    assert error(80) / error(160) == pytest.approx(4, rel=0.03)


def test_without_friction_volume_is_kept(generator):
    x, p = torch.randn(2, 1, 2, generator=generator, dtype=torch.float64)

    def move(z):
        q, v = z[:2], z[2:]
        h = 0.3
        for step in range(5):
            v = v - (h if step else h / 2) * (q + q**3)
            q = q + h * v
        return torch.cat([q, v])

    kernel = frictionless(0.09)
    g = torch.Generator()
    state = replace(kernel.begin({"x": x}, 0.09, generator=g), momentum={"x": p})
    for _ in range(5):
        state, _ = kernel.step(state, well, generator=g)
    z = torch.cat([x[0], p[0]])
    assert torch.allclose(torch.cat([state.position["x"][0], state.momentum["x"][0]]), move(z), rtol=1e-12)
    jacobian = torch.autograd.functional.jacobian(move, z)
    assert torch.linalg.det(jacobian).item() == pytest.approx(1, abs=1e-12)
