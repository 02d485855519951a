import itertools

import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.sgmcmc.svgd import linear, rbf

PRECISION = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def gaussian(position, precision=PRECISION, mean=MEAN):
    x = position["x"] - mean
    return -0.5 * (x @ precision * x).sum(-1)


def particles(generator, n=30):
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


def moved(kernel, x, density=gaussian, steps=1):
    g = torch.Generator().manual_seed(0)
    return mcmc.run(kernel, density, {"x": x}, num_samples=1, burn_in=steps - 1, generator=g).samples["x"][:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("interaction", [rbf(bandwidth=2.0), linear])
def test_a_step_is_the_definition_by_autograd(generator, interaction, temperature):
    x = particles(generator, 6)

    def k(a, b):
        return a @ b + 1 if interaction is linear else (-(a - b).square().sum() / 2.0).exp()

    expected = []
    for i in range(6):
        total = torch.zeros(3, dtype=torch.float64)
        for j in range(6):
            other = x[j].clone().requires_grad_()
            total += k(x[j], x[i]) * -PRECISION @ (x[j] - MEAN)
            total += temperature * torch.autograd.grad(k(other, x[i]), other)[0]
        expected.append(x[i] + 0.1 * total / 6)
    kernel = mcmc.SVGD(lr=0.1, interaction=interaction, temperature=temperature)
    assert torch.allclose(moved(kernel, x), torch.stack(expected), rtol=1e-12)


def test_one_particle_is_gradient_ascent_bit_for_bit(generator):
    x = particles(generator, 1)
    ascent = mcmc.SGLD(lr=0.05, temperature=0.0)
    assert torch.equal(moved(mcmc.SVGD(lr=0.05), x, steps=20), moved(ascent, x, steps=20))


def test_particles_have_no_order(generator):
    x, order = particles(generator), torch.randperm(30, generator=generator)
    assert torch.allclose(moved(mcmc.SVGD(lr=0.1), x[order]), moved(mcmc.SVGD(lr=0.1), x)[order], rtol=1e-12)


def test_shifts_and_rotations_of_the_space_change_nothing(generator):
    x, shift = particles(generator), torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    turn = torch.linalg.qr(particles(generator, 3)).Q

    def elsewhere(position):
        return gaussian({"x": (position["x"] - shift) @ turn})

    there = moved(mcmc.SVGD(lr=0.1), x @ turn.mT + shift, elsewhere, steps=5)
    assert torch.allclose(there, moved(mcmc.SVGD(lr=0.1), x, steps=5) @ turn.mT + shift, rtol=1e-10, atol=1e-12)


def test_the_linear_interaction_matches_a_gaussian_exactly(generator):
    x = moved(mcmc.SVGD(lr=0.05, interaction=linear), particles(generator, 8), steps=1500)
    # What is left of the start after 1,500 steps: it shrinks by a constant factor with each.
    assert torch.allclose(x.mean(0), MEAN, atol=1e-5)
    assert torch.allclose(torch.cov(x.T, correction=0), torch.linalg.inv(PRECISION), atol=1e-5)


@pytest.mark.monte_carlo
def test_a_hundred_particles_on_a_line(generator):
    x = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    target = {"precision": torch.full((1, 1), 4.0, dtype=torch.float64), "mean": 0.5}
    x = moved(mcmc.SVGD(), x, lambda q: gaussian(q, **target), steps=500)
    sd = 0.5  # the mean is exact in the limit; a hundred particles spread too little by some percent
    assert abs(x.mean() - 0.5) < 1e-3 and abs(x.var() / sd**2 - 1) < 0.05
    deciles = torch.distributions.Normal(0.5, sd).icdf(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    found = torch.quantile(x[:, 0], torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    assert (found - deciles).abs().max() < 0.1 * sd  # not only two moments; the gap between neighbors is 0.03 sd


@pytest.mark.monte_carlo
def test_the_stein_discrepancy_falls(generator):
    """KSD^2 with k = (1 + |x - y|^2)^(-1/2), written out for a Gaussian, along the way from a far start."""

    def discrepancy(x):
        score = -(x - MEAN) @ PRECISION
        gap = x[:, None] - x
        base = 1 + gap.square().sum(-1)
        by_y = base ** (-1.5)  # grad_y k = by_y * gap, grad_x k = -by_y * gap
        cross = ((score[:, None] - score) * gap).sum(-1) * by_y
        trace = 3 * by_y - 3 * base ** (-2.5) * gap.square().sum(-1)
        return ((score @ score.T) * base**-0.5 + cross + trace).mean()

    x = particles(generator) + 3
    values = [discrepancy(x)]
    for _ in range(4):
        x = moved(mcmc.SVGD(), x, steps=8)
        values.append(discrepancy(x))
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert 0 <= values[-1] < 0.01 * values[0]  # it ends above zero: thirty particles are no Gaussian


def test_particles_in_one_place_stay_finite():
    x = torch.ones(5, 3, dtype=torch.float64)
    assert torch.isfinite(moved(mcmc.SVGD(), x, steps=5)).all()


def test_steps_bear_the_noise_of_mini_batches(generator):
    x = {"x": particles(generator)}
    top = mcmc.SVGD().prepared(gaussian, x, generator=torch.Generator().manual_seed(0)).largest_curvature
    fifth = mcmc.SVGD().prepared(gaussian, x, share=0.2, generator=torch.Generator().manual_seed(0))
    assert fifth.largest_curvature == pytest.approx(5 * top)
    given = mcmc.SVGD(lr=0.1)
    assert given.prepared(gaussian, x, share=0.2, generator=generator) is given


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"temperature": -1.0}])
def test_settings_are_checked(settings, generator):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        mcmc.SVGD(**settings).init({"x": particles(generator)}, gaussian, generator=generator)
