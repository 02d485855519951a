import pytest
import torch

from bayeskit import mcmc

from ..gaussian import CHAINS, PRECISIONS, log_density, noisy, standard_errors


def test_with_a_given_preconditioner_it_is_sghmc_bit_for_bit(generator):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    settings = {"lr": 0.1, "momentum": 0.8, "temperature": 2.0, "preconditioner": {"x": PRECISIONS.pow(-0.25)}}
    chains = [
        mcmc.run(k, log_density, start, num_samples=5, burn_in=3, generator=torch.Generator().manual_seed(0))
        for k in (mcmc.AdaptiveSGHMC(**settings), mcmc.SGHMC(**settings))
    ]
    assert torch.equal(chains[0].samples["x"], chains[1].samples["x"])


@pytest.mark.monte_carlo
def test_after_the_burn_in_it_is_preconditioned_sghmc(generator):
    start = {"x": torch.randn(CHAINS, 8, generator=generator, dtype=torch.float64) * PRECISIONS.rsqrt()}
    kernel = mcmc.AdaptiveSGHMC(lr=0.05, momentum=0.8)
    chain = mcmc.run(kernel, log_density, start, num_samples=1, burn_in=200, thin=300, generator=generator)
    stiffness = chain.kernel.preconditioner["x"].square() * PRECISIONS  # (1, 8)
    expected = 1 / (PRECISIONS * (1 - 0.05 * stiffness / 3.6))
    ratio = chain.samples["x"][:, 0] / expected.sqrt()
    assert (standard_errors(ratio, torch.ones(8, dtype=torch.float64)).abs() < 5).all()
    assert torch.allclose(chain.kernel.preconditioner["x"].pow(-4)[0], PRECISIONS, rtol=0.2)  # V averages g^2: l T


@pytest.mark.monte_carlo
def test_windows_grow_on_noise_and_stay_short_on_a_slope(generator):
    kernel = mcmc.AdaptiveSGHMC(lr=1e-12, temperature=0.0)  # the chains hardly move: what is learnt is the gradients
    start = {"x": torch.zeros(20, 8, dtype=torch.float64)}
    slope = lambda q: 3 * q["x"].sum(-1)  # noqa: E731
    states = []
    for densities in (noisy(4.0, generator, chains=20), iter(lambda: slope, None)):
        state = kernel.init(start, slope, generator=generator)
        for _ in range(400):
            state, _ = kernel.step(state, next(densities), generator=generator)
        states.append(state)
    noise, steady = states
    assert noise.window["x"].median() > 100 and steady.window["x"].max() == 50
    assert torch.allclose(steady.square["x"], torch.full((), 9.0, dtype=torch.float64))
    assert noise.square["x"].mean().item() == pytest.approx(4, rel=0.1)


def test_the_scale_of_the_log_density_does_not_matter(generator):
    # Free of scale: a density n times as steep is sampled in steps of the same length in its own spread.
    start = {"x": torch.randn(20, 8, generator=generator, dtype=torch.float64)}
    chains = []
    for n in (1.0, 1e6):
        steep = lambda q, n=n: n * log_density(q)  # noqa: E731
        here = {"x": start["x"] / n**0.5}
        g = torch.Generator().manual_seed(0)
        chains.append(mcmc.run(mcmc.AdaptiveSGHMC(), steep, here, num_samples=3, burn_in=40, generator=g))
    assert torch.allclose(chains[0].samples["x"], chains[1].samples["x"] * 1e3, rtol=1e-3, atol=1e-3)
