from dataclasses import replace

import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.sgmcmc.psgld import PSGLDState

from ..gaussian import CHAINS, PRECISIONS, log_density, standard_errors


def test_with_a_given_preconditioner_it_is_sgld_bit_for_bit(generator):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    scale = {"x": PRECISIONS.pow(-0.25)}
    kernels = (
        mcmc.PSGLD(lr=0.1, temperature=2.0, preconditioner=scale),
        mcmc.SGLD(lr=0.1, temperature=2.0, preconditioner=scale),
    )
    chains = [
        mcmc.run(k, log_density, start, num_samples=5, burn_in=3, generator=torch.Generator().manual_seed(0))
        for k in kernels
    ]
    assert torch.equal(chains[0].samples["x"], chains[1].samples["x"])


@pytest.mark.monte_carlo
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_after_the_burn_in_it_is_preconditioned_sgld(generator, temperature):
    # The preconditioned precisions are G l, and the stationary distribution is that of SGLD.
    start = {"x": torch.randn(CHAINS, 8, generator=generator, dtype=torch.float64) * PRECISIONS.rsqrt()}
    kernel = mcmc.PSGLD(lr=0.05, temperature=temperature)
    chain = mcmc.run(kernel, log_density, start, num_samples=1, burn_in=200, thin=400, generator=generator)
    square = chain.kernel.preconditioner["x"].square()  # G, (1, 8)
    expected = temperature / (PRECISIONS * (1 - 0.05 * square * PRECISIONS / 2))
    ratio = chain.samples["x"][:, 0] / expected.sqrt()
    assert (standard_errors(ratio, torch.ones(8, dtype=torch.float64)).abs() < 5).all()
    # E g^2 = l T: G undoes the square root of the precisions
    assert torch.allclose(square[0], (PRECISIONS * temperature).rsqrt(), rtol=0.3)


def test_the_squares_are_a_moving_average(generator):
    kernel = mcmc.PSGLD(lr=0.1, decay=0.4, temperature=0.0)
    x = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    state = kernel.init({"x": x}, log_density, generator=generator)
    first = (PRECISIONS * x).square().mean(-1, keepdim=True).expand(2, 8)
    assert torch.allclose(state.square["x"], first, rtol=1e-14)
    expected = 0.4 * first + 0.6 * (PRECISIONS * x).square()
    after, _ = kernel.step(state, log_density, generator=generator)
    assert torch.allclose(after.square["x"], expected, rtol=1e-14)
    moved = x - 0.1 * PRECISIONS * x / (kernel.damping + expected.sqrt())
    assert torch.allclose(after.position["x"], moved, rtol=1e-12)


def test_the_correction_is_the_derivative_of_the_preconditioner(generator):
    # C by central differences of G = 1 / (d + sqrt(V)), V = b V0 + (1 - b) g(q)^2; a diagonal Hessian has its
    # diagonal found by one probe.
    kernel = mcmc.PSGLD(lr=0.1, decay=0.8, damping=0.1, temperature=0.5, correction="hutchinson")
    x = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    before = {"x": torch.rand(3, 8, generator=generator, dtype=torch.float64) + 0.5}
    state = PSGLDState({"x": x}, before, 0.1, count=100)

    def preconditioner(q):
        return 1 / (0.1 + (0.8 * before["x"] + 0.2 * (PRECISIONS * q).square()).sqrt())

    slope = (preconditioner(x + 1e-5) - preconditioner(x - 1e-5)) / 2e-5
    with_it, _ = kernel.step(state, log_density, generator=torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(1)
    torch.randn(3, 8, generator=draws, dtype=torch.float64)  # the probe's signs
    without, _ = replace(kernel, correction="drop").step(state, log_density, generator=draws)
    difference = with_it.position["x"] - without.position["x"]
    assert torch.allclose(difference, 0.1 * 0.5 * slope, rtol=1e-5, atol=1e-9)


@pytest.mark.monte_carlo
def test_a_preconditioner_that_keeps_learning_biases_the_draws(generator):
    # Which is why it is fixed: 4,000 standard normals, at a small step, come out a third too wide.
    kernel = mcmc.PSGLD(lr=0.01, damping=0.1)
    normal = lambda q: -0.5 * q["x"].square().sum(-1)  # noqa: E731
    start = {"x": torch.randn(2000, 1, generator=generator, dtype=torch.float64)}
    state = kernel.init(start, normal, generator=generator)
    for _ in range(1500):
        state, _ = kernel.step(state, normal, generator=generator)
    assert standard_errors(state.position["x"], torch.ones(1)) > 4


@pytest.mark.monte_carlo
def test_badly_scaled_directions_mix_equally_fast(generator):
    precisions = torch.logspace(0, 3, 4, dtype=torch.float64)
    density = lambda q: -0.5 * (precisions * q["x"].square()).sum(-1)  # noqa: E731
    start = {"x": torch.randn(50, 4, generator=generator, dtype=torch.float64) * precisions.rsqrt()}
    budget = {"num_samples": 100, "thin": 10, "burn_in": 300, "generator": generator}
    slowest = [
        mcmc.ess(mcmc.run(kernel, density, start, **budget).samples["x"]).min()
        for kernel in (mcmc.SGLD(), mcmc.PSGLD())
    ]
    # Precisions of 1 to 1,000 became 1 to 32. The 50 chains start in equilibrium, so SGLD has about 55 independent
    # draws and PSGLD about 150, with standard errors of some 12 %.
    assert slowest[1] > 1.5 * slowest[0]


@pytest.mark.parametrize("setting", [{"decay": 1.5}, {"damping": 0.0}, {"correction": "exact"}])
def test_settings_are_checked(generator, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
        mcmc.PSGLD(lr=0.1, **setting).init({"x": torch.zeros(1, 8)}, log_density, generator=generator)
