import subprocess
import sys

import pytest
import torch

from bayeskit import mcmc

# Mean summer temperatures at Kilpisjarvi, Finland, 1952 to 2013, from posteriordb (BSD-3, Stan developers).
TEMPERATURES = [
    8.3,
    10.9,
    9.4,
    8.1,
    8.1,
    7.7,
    8.6,
    9.1,
    11,
    10.1,
    7.6,
    8.8,
    8.3,
    7.2,
    9.3,
    8.8,
    7.6,
    10.5,
    11,
    8.9,
    11.3,
    10,
    10.1,
    6.4,
    8.2,
    8.4,
    9.5,
    9.9,
    10.6,
    7.6,
    7.7,
    8.1,
    8.4,
    9.7,
    9.5,
    7.3,
    10.3,
    9.6,
    10.3,
    9.8,
    9,
    9.1,
    9.5,
    8.7,
    9.9,
    10.5,
    9.4,
    9,
    9,
    9.7,
    11.4,
    10.7,
    10.1,
    10.8,
    10.4,
    10.3,
    8.8,
    9.8,
    8.8,
    10.8,
    8.6,
    11.1,
]


@pytest.mark.monte_carlo
def test_correlated_gaussian(generator):
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    precision, mean = torch.linalg.inv(covariance), torch.tensor([1.0, -2.0], dtype=torch.float64)

    def log_density(position):
        d = position["x"] - mean
        return -0.5 * torch.einsum("ci,ij,cj->c", d, precision, d)

    start = {"x": torch.zeros(2, 2, dtype=torch.float64)}
    chain = mcmc.run(mcmc.NUTS(), log_density, start, num_samples=250, burn_in=150, generator=generator)
    x = chain.samples["x"]
    # Four half-chains of 125: R-hat^2 - 1 is about tau (chi2_3 / 3 - 1) / 125, at tau = 2 above 0.12 once in 100,000.
    assert (mcmc.rhat(x) < 1.06).all() and (chain.info["divergent"] == 0).all()
    assert 0.6 < chain.info["acceptance"].mean() <= 1
    size = mcmc.ess(x).clamp(max=500)
    assert ((x.mean((0, 1)) - mean).abs() < 5 / size.sqrt()).all()
    squares = (x - mean).square()
    spread = mcmc.ess(squares).clamp(max=500)
    assert ((squares.mean((0, 1)) - 1).abs() < 5 * (2 / spread).sqrt()).all()
    product = (x[..., 0] - mean[0]) * (x[..., 1] - mean[1])  # its variance is 1 + 0.9^2
    assert abs(product.mean() - 0.9) < 5 * (1.81 / mcmc.ess(product).clamp(max=500)).sqrt()
    assert torch.allclose(chain.info["log_density"], log_density({"x": x.flatten(0, 1)}).reshape(2, 250))


@pytest.mark.monte_carlo
def test_posteriordb_kilpisjarvi(generator):
    # y ~ N(alpha + beta x, sigma), alpha ~ N(9.313, 100), beta ~ N(0, 0.0333), flat sigma. Sampled as the value at the
    # middle year, the slope and log sigma, with the Jacobians 1 and sigma.
    y = torch.tensor(TEMPERATURES, dtype=torch.float64)
    x = torch.arange(3952.0, 4014.0, dtype=torch.float64)  # the data set's years are 2,000 too many
    middle = x.mean()

    def parameters(q):
        return q[..., 0] - q[..., 1] * middle, q[..., 1], q[..., 2].exp()

    def log_density(position):
        alpha, beta, sigma = parameters(position["q"])
        residuals = y - alpha[:, None] - beta[:, None] * x
        fit = -0.5 * (residuals / sigma[:, None]).square().sum(-1) - len(y) * sigma.log()
        prior = -0.5 * ((alpha - 9.31290322580645) / 100) ** 2 - 0.5 * (beta / 0.0333333333333333) ** 2
        return fit + prior + sigma.log()

    start = {"q": torch.tensor([[9.0, 0.0, 0.3], [9.5, 0.01, 0.0]], dtype=torch.float64)}
    chain = mcmc.run(mcmc.NUTS(), log_density, start, num_samples=250, burn_in=150, generator=generator)
    draws = torch.stack(parameters(chain.samples["q"]), dim=-1)
    # Moments of the 10,000 reference draws, and 5 standard errors of both sides.
    mean = torch.tensor([-60.712281, 0.017583626, 1.1316669], dtype=torch.float64)
    sd = torch.tensor([29.9647, 0.00752421, 0.107819], dtype=torch.float64)
    size = mcmc.ess(draws).clamp(max=500)
    assert (mcmc.rhat(draws) < 1.06).all() and size.min() > 60  # 295 of 500 over 20 seeds, at least 144
    assert ((draws.mean((0, 1)) - mean).abs() < 5 * sd * (1 / size + 1e-4).sqrt()).all()
    assert ((draws.flatten(0, 1).std(0) / sd - 1).abs() < 5 * (0.5 / size + 0.5e-4).sqrt()).all()


@pytest.mark.monte_carlo
def test_dense_mass_learns_the_correlation(generator):
    root = torch.tensor([[1.0, 0.0], [3.0, 0.1]], dtype=torch.float64)
    precision = torch.linalg.inv(root @ root.mT)
    start = {"a": torch.zeros(1, dtype=torch.float64), "b": torch.zeros(1, 1, dtype=torch.float64)}

    def log_density(position):
        x = torch.cat([position["a"][:, None], position["b"]], dim=-1)
        return -0.5 * torch.einsum("ci,ij,cj->c", x, precision, x)

    kernel = mcmc.NUTS(dense_mass=True, max_tree_depth=7)
    tuned, _ = mcmc.adapt(kernel, start, log_density, num_steps=120, generator=generator)
    assert tuned.inverse_mass.shape == (1, 2, 2) and tuned.step_size > 0.2
    a, b, c = tuned.inverse_mass[0, 0, 0], tuned.inverse_mass[0, 0, 1], tuned.inverse_mass[0, 1, 1]
    assert b / (a * c).sqrt() > 0.99


def test_tree_depth_bounds_the_gradients(generator):
    calls = 0

    def log_density(position):
        nonlocal calls
        calls += 1
        return -0.5 * position["x"].square().sum(-1)

    kernel = mcmc.NUTS(step_size=1e-3, max_tree_depth=3)
    start = {"x": torch.ones(1, 2)}
    state = kernel.init(start, log_density, generator=generator)
    state, info = kernel.step(state, log_density, generator=generator)
    assert calls <= 7 + 2  # and one where the chain stands, and one to report where it ends
    assert info["acceptance"].shape == (1,) and state.position["x"].dtype == torch.float32


def test_divergences_are_reported(generator):
    kernel = mcmc.NUTS(step_size=100.0)
    density = lambda q: -0.5 * (1e3 * q["x"]).square().sum(-1)  # noqa: E731
    start = {"x": torch.full((2, 1), 1e-3, dtype=torch.float64)}
    _, info = kernel.step(kernel.init(start, density, generator=generator), density, generator=generator)
    assert (info["divergent"] == 1).all()


def test_it_draws_from_its_generator_alone(generator):
    def draw():
        density = lambda q: -0.5 * q["x"].square().sum(-1)  # noqa: E731
        g = torch.Generator().manual_seed(5)
        return mcmc.run(mcmc.NUTS(), density, {"x": torch.zeros(1, 2)}, num_samples=5, burn_in=5, generator=g).samples[
            "x"
        ]

    torch.manual_seed(1)
    first, state = draw(), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, draw())
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_mini_batches_are_refused(generator):
    with pytest.raises(ValueError, match="NUTS needs the full log density"):
        mcmc.run(mcmc.NUTS(), [lambda q: q["x"]], {"x": torch.zeros(1)}, num_samples=1, burn_in=1, generator=generator)


def test_an_untuned_kernel_says_what_to_do(generator):
    density = lambda q: -q["x"].square()  # noqa: E731
    state = mcmc.NUTS().init({"x": torch.zeros(1)}, density, generator=generator)
    with pytest.raises(ValueError, match=r"mcmc.adapt"):
        mcmc.NUTS().step(state, density, generator=generator)


def test_pyro_comes_at_first_use_and_without_its_warnings():
    code = """
import sys, torch
from bayeskit import mcmc
assert "pyro" not in sys.modules
g = torch.Generator().manual_seed(0)
mcmc.run(mcmc.NUTS(), lambda q: -q["x"].square(), {"x": torch.zeros(1)}, num_samples=2, burn_in=2, generator=g)
assert "pyro" in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == done.stdout == "", done.stderr
