"""Entropy-MCMC against its joint distribution: the exact recursion on a Gaussian, and the mixture of two wells."""

import math

import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.sgmcmc.entropy_sgld import pair_noise, pull

CHAINS = 2000
PRECISIONS = torch.logspace(-0.5, 1, 8, dtype=torch.float64)


def gaussian(position):
    return -0.5 * (PRECISIONS * position["x"].square()).sum(-1)


def noisy(variance, generator):
    """Unbiased estimates of `gaussian` whose gradients have the given variance."""
    while True:
        noise = torch.randn(CHAINS, 8, generator=generator, dtype=torch.float64) * variance**0.5
        yield lambda position, noise=noise: gaussian(position) + (noise * position["x"]).sum(-1)


def stationary(precision, h, eta, temperature, gradient_noise):
    """Covariance of (q, a) under the recursion: S = M S M' + Q, with the linear pair by the matrix exponential.

    The noise of the pair is the integral of exp(-C s) 2 T exp(-C s)' over a step, by Van Loan's block exponential, so
    nothing here repeats the closed forms of the kernel.
    """
    coupling = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64) / eta
    flow = torch.matrix_exp(-h * coupling)
    block = torch.zeros(4, 4, dtype=torch.float64)
    block[:2, :2], block[:2, 2:], block[2:, 2:] = coupling, 2 * temperature * torch.eye(2), -coupling.mT
    noise = flow @ torch.matrix_exp(h * block)[:2, 2:]
    kick = torch.eye(2, dtype=torch.float64)
    kick[0, 0] -= h * precision
    jolt = torch.zeros(2, 2, dtype=torch.float64)
    jolt[0, 0] = h**2 * gradient_noise
    m, q = flow @ kick, flow @ jolt @ flow.mT + noise
    vec = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - torch.kron(m, m), q.reshape(-1))
    return vec.reshape(2, 2)


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    "eta, temperature, noise", [(0.5, 1, 0), (0.5, 0.3, 0), (0.5, 2.5, 9), (0.02, 1, 0), (5.0, 1, 4)]
)
def test_stationary_covariance_on_a_gaussian(generator, eta, temperature, noise):
    # Chains start in the claimed distribution; after 400 steps even the slowest direction has forgotten it (to 1e-3):
    # what is left is where the recursion itself leads. eta = 0.02 is five times stiffer than explicit steps bear.
    h = 0.1
    covariances = torch.stack([stationary(float(p), h, eta, temperature, noise) for p in PRECISIONS])  # (8, 2, 2)
    density = noisy(noise, generator) if noise else gaussian
    kernel = mcmc.EntropySGLD(lr=h, eta=eta, temperature=temperature)
    start = torch.einsum(
        "pij,cpj->cpi",
        torch.linalg.cholesky(covariances),
        torch.randn(CHAINS, 8, 2, generator=generator, dtype=torch.float64),
    )
    state = mcmc.sgmcmc.entropy_sgld.EntropyState({"x": start[..., 0]}, {"x": start[..., 1]}, h)
    densities = density if noise else iter(lambda: gaussian, None)
    for _ in range(400):
        state, _ = kernel.step(state, next(densities), generator=generator)
    q, a = state.position["x"], state.position["x.anchor"]
    var_q, var_a, cov = covariances[:, 0, 0], covariances[:, 1, 1], covariances[:, 0, 1]
    # Standard errors of moments of a Gaussian pair with known mean zero.
    assert ((q.square().mean(0) - var_q).abs() < 5 * var_q * (2 / CHAINS) ** 0.5).all()
    assert ((a.square().mean(0) - var_a).abs() < 5 * var_a * (2 / CHAINS) ** 0.5).all()
    assert (((q * a).mean(0) - cov).abs() < 5 * ((var_q * var_a + cov**2) / CHAINS).sqrt()).all()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("eta, temperature", [(0.5, 1.0), (2.0, 0.3)])
def test_small_steps_have_the_joint_distribution(eta, temperature):
    # Of the energy p q^2 / 2 + (q - a)^2 / (2 eta) at T: Var q = T / p, Var a = T / p + eta T, Cov = T / p.
    for p in (0.3, 2.0):
        expected = torch.full((2, 2), temperature / p, dtype=torch.float64)
        expected[1, 1] += eta * temperature
        gaps = [(stationary(p, h, eta, temperature, 0) - expected).abs().max() for h in (1e-3, 1e-4)]
        assert gaps[0] < 2e-3 and gaps[1] < gaps[0] / 9  # of first order in h


def test_the_pair_without_coupling_and_with_an_infinite_one():
    assert pull(0.1, math.inf) == 0 and pull(0.1, 1e-12) == 0.5
    l11, l21, l22 = pair_noise(0.1, 1e-12, 1.0)  # one variable: half the noise each, and the same
    assert l11**2 == pytest.approx(0.1) and l21 == pytest.approx(l11) and l22 < 1e-5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_coupling_it_is_sgld_bit_for_bit(generator, temperature):
    # One step: the noise of the position is drawn before that of the anchor.
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    settings = {"num_samples": 1, "burn_in": 0}
    base = mcmc.run(mcmc.SGLD(lr=0.05, temperature=temperature), gaussian, start, generator=g(), **settings)
    free = mcmc.EntropySGLD(lr=0.05, eta=math.inf, temperature=temperature)
    chain = mcmc.run(free, gaussian, start, generator=g(), **settings)
    assert torch.equal(chain.samples["x"], base.samples["x"])


def g():
    return torch.Generator().manual_seed(5)


def test_temperature_zero_draws_nothing_and_finds_the_mode(generator):
    before = generator.get_state()
    start = {"x": torch.ones(2, 8, dtype=torch.float64)}
    kernel = mcmc.EntropySGLD(lr=0.1, eta=0.5, temperature=0.0)
    chain = mcmc.run(kernel, gaussian, start, num_samples=1, burn_in=700, generator=generator)
    assert torch.equal(before, generator.get_state())
    # The slowest mode of the pair decays as exp(-h k t), k = 0.15 the lower eigenvalue of [[p + 2, -2], [-2, 2]] at
    # p = 0.32: by 2e-5.
    assert max(chain.samples[name].abs().max() for name in chain.samples) < 1e-4


@pytest.mark.monte_carlo
def test_the_anchor_prefers_the_flat_one_of_two_wells(generator):
    """Two wells of equal mass: the position keeps that, by quadrature; anchors are spread by N(0, eta) about it."""
    flat, sharp, eta = 0.8, 0.2, 0.25

    def density(position):
        x = position["x"]
        wells = [-0.5 * ((x - m) / s) ** 2 - math.log(s) for m, s in ((1.2, flat), (-1.2, sharp))]
        return torch.logsumexp(torch.stack(wells), 0)

    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    weights = density({"x": grid}).softmax(0)
    smoothed = torch.special.ndtr(grid / eta**0.5)  # P(q + N(0, eta) > 0)
    start = torch.cat([torch.full((1000,), m, dtype=torch.float64) for m in (1.2, -1.2)])
    kernel = mcmc.EntropySGLD(lr=4e-3, eta=eta)
    chain = mcmc.run(kernel, density, {"x": start}, num_samples=1, burn_in=800, generator=generator)
    q, a = chain.samples["x"], chain.samples["x.anchor"]
    for draws, expected in ((q, (weights * (grid > 0)).sum()), (a, (weights * smoothed).sum())):
        # Half a percent beside the standard error: the bias of the steps, h / (4 s^2) of the sharp well's width.
        assert abs((draws > 0).double().mean() - expected) < 5 * 0.5 / CHAINS**0.5 + 0.005
    spread = (weights * grid.square()).sum() - (weights * grid).sum() ** 2
    assert abs(q.var() / spread - 1) < 5 * (2 / CHAINS) ** 0.5 + 0.02
    assert abs((a.var() - q.var()) / eta - 1) < 0.32  # 5 standard errors of the difference of the two variances


def test_a_stiff_coupling_is_stable_where_explicit_steps_are_not(generator):
    start = {"x": torch.zeros(5, 8, dtype=torch.float64)}
    chain = mcmc.run(
        mcmc.EntropySGLD(lr=0.1, eta=1e-6), gaussian, start, num_samples=1, burn_in=300, generator=generator
    )
    assert (chain.samples["x"] - chain.samples["x.anchor"]).abs().max() < 0.01
    joint = lambda q: gaussian(q) - (q["x"] - q["x.anchor"]).square().sum(-1) / 2e-6  # noqa: E731
    with pytest.raises(FloatingPointError):
        pair = start | {"x.anchor": start["x"]}
        mcmc.run(
            mcmc.SGLD(lr=0.1, gradient_clip=math.inf), joint, pair, num_samples=1, burn_in=300, generator=generator
        )


def test_the_default_step_is_that_of_sgld(generator):
    start = {"x": torch.zeros(2, 8, dtype=torch.float64)}
    states = [kernel.init(start, gaussian, generator=g()) for kernel in (mcmc.SGLD(), mcmc.EntropySGLD())]
    assert states[0].lr == states[1].lr


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, generator):
    def run(path, number):
        start = {"x": torch.zeros(2, 8)}
        kernel = mcmc.EntropySGLD(lr=0.1, schedule=mcmc.polynomial_decay(5.0))
        return mcmc.run(kernel, gaussian, start, num_samples=number, burn_in=2, generator=g(), checkpoint=path).samples

    run(tmp_path / "run", 5)
    whole, resumed = run(None, 9), run(tmp_path / "run", 9)
    assert whole.keys() == {"x", "x.anchor"} and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["x"].dtype == torch.float32


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"eta": math.nan}, {"temperature": -1.0}, {"lr": 0.0}])
def test_settings_are_checked(settings, generator):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        start = {"x": torch.zeros(1, 8, dtype=torch.float64)}
        mcmc.run(
            mcmc.EntropySGLD(**{"lr": 0.1} | settings), gaussian, start, num_samples=1, burn_in=0, generator=generator
        )
