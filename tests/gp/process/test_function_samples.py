"""Sampled functions are fixed functions whose values have the moments of the posterior, whatever the kernel."""

import pickle

import gpytorch.kernels as K
import pytest
import torch
from torch import nn

from bayeskit.core import operators
from bayeskit.core.operators import chunking
from bayeskit.core.types import Data
from bayeskit.estimators import GPRegressor
from bayeskit.gp import SGPR, SVGP, SWSGP, DeepKernel, Exact, GaussianProcess
from bayeskit.gp.process import remembered_draws

from ..problems import close, generator, noise, process

NUM_SAMPLES = 2000
TOLERANCE = 5 * (2 / NUM_SAMPLES) ** 0.5  # five standard errors of the variance of normal samples, relative to it


class OwnStationary(K.Kernel):
    """exp(-|x - x'|), from `forward` alone."""

    def forward(self, x1, x2, **_):
        return torch.exp(-torch.cdist(x1, x2))


class OwnNonStationary(K.Kernel):
    """(1 + x^2) (1 + x'^2) exp(-(x - x')^2): a variance that grows away from zero."""

    def forward(self, x1, x2, diag=False, **_):
        a, b = 1 + x1.square().sum(-1), 1 + x2.square().sum(-1)
        if diag:
            return a * b * torch.exp(-(x1 - x2).square().sum(-1))
        return a.unsqueeze(-1) * b.unsqueeze(-2) * torch.exp(-torch.cdist(x1, x2).square())


def periodic(period=1.5, lengthscale=0.7):
    kernel = K.PeriodicKernel()
    kernel.period_length, kernel.lengthscale = period, lengthscale
    return kernel


def cosine(period=1.5):
    kernel = K.CosineKernel()
    kernel.period_length = period
    return kernel


def scaled(base, outputscale):
    kernel = K.ScaleKernel(base)
    kernel.outputscale = outputscale
    return kernel


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2)).requires_grad_(False)


KERNELS = {
    "rbf": K.RBFKernel,
    "matern12": lambda: K.MaternKernel(nu=0.5),
    "matern32": lambda: K.MaternKernel(nu=1.5),
    "matern52": lambda: K.MaternKernel(nu=2.5),
    "rational quadratic": K.RQKernel,
    "periodic": periodic,
    "cosine": cosine,
    "linear": K.LinearKernel,
    "polynomial": lambda: K.PolynomialKernel(power=2),
    "constant": K.ConstantKernel,
    "spectral mixture": lambda: K.SpectralMixtureKernel(num_mixtures=2),
    "sum": lambda: scaled(K.RBFKernel(), 0.5) + K.LinearKernel() + K.ConstantKernel(),
    "product": lambda: scaled(periodic(), 2.0) * K.RBFKernel() * K.RQKernel(),
    "product with a linear kernel": lambda: K.LinearKernel() * K.RBFKernel(),
    "scaled": lambda: scaled(K.MaternKernel(nu=1.5) + periodic(), 3.0),
    "own stationary": OwnStationary,
    "own non-stationary": OwnNonStationary,
    "sum with an own kernel": lambda: scaled(OwnStationary(), 0.5) + K.RBFKernel(),
    "deep": lambda: DeepKernel(network(), K.RBFKernel()),
    "deep with an own kernel": lambda: DeepKernel(network(), OwnStationary()),
}
OWN = OwnStationary, OwnNonStationary

NEAR_AND_FAR = torch.tensor([[0.05], [0.9], [1.5], [2.5], [6.0], [-30.0]], dtype=torch.float64)


def data(k=1):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(-1)
    return Data(x, (3 * x).sin().repeat(1, k))


def posterior(kernel, method=None, k=1):
    method = method or Exact(learn=False)
    prior = process(kernel.double().requires_grad_(False), k)
    return method.infer(prior, noise(0.05), data(k), generator=generator()).posterior


def has_moments_of(values, stated):
    """Draws (s, n, k): mean and variance within 4.5 standard errors of those stated."""
    variance = values.var(0)
    assert bool(((values.mean(0) - stated.mean).abs() <= 5 * (stated.variance / len(values)).sqrt() + 1e-9).all())
    share = (variance - stated.variance).abs() / stated.variance
    assert bool((share <= TOLERANCE).all()), share


@pytest.mark.parametrize("name", KERNELS)
def test_samples_have_the_variance_of_the_posterior_near_the_data_and_far_from_them(name):
    fitted = posterior(KERNELS[name]())
    functions = fitted.sample_functions(NUM_SAMPLES, generator=generator(1))
    has_moments_of(functions(NEAR_AND_FAR), fitted(NEAR_AND_FAR))


@pytest.mark.parametrize("name", KERNELS)
def test_samples_are_fixed_functions(name):
    """Between calls, in other batches and orders, and after pickling."""
    functions = posterior(KERNELS[name]()).sample_functions(3, generator=generator(1))
    whole = functions(NEAR_AND_FAR)
    assert whole.shape == (3, 6, 1)
    again = pickle.loads(pickle.dumps(functions))
    more = functions(torch.linspace(-2, 7, 40, dtype=torch.float64).unsqueeze(-1))
    for f in (functions, again):
        close(f(NEAR_AND_FAR), whole, 1e-9)
        close(f(NEAR_AND_FAR[2:4].flip(0)), whole[:, 2:4].flip(1), 1e-9)
        close(f(torch.linspace(-2, 7, 40, dtype=torch.float64).unsqueeze(-1)), more, 1e-9)


@pytest.mark.parametrize("own", OWN)
def test_values_from_several_calls_have_the_joint_distribution(own):
    fitted, x = posterior(own()), NEAR_AND_FAR[:5]
    functions = fitted.sample_functions(NUM_SAMPLES, generator=generator(1))
    values = torch.cat([functions(part) for part in (x[3:], x[:1], x[1:3])], dim=1).squeeze(-1)
    order = torch.tensor([3, 4, 0, 1, 2])
    covariance = fitted(x[order]).covariance.to_dense()
    products = (values - fitted(x[order]).mean.mT).unsqueeze(-1) * (values - fitted(x[order]).mean.mT).unsqueeze(-2)
    error = products.std(0) / NUM_SAMPLES**0.5
    assert bool(((products.mean(0) - covariance).abs() <= 5 * error).all())


@pytest.mark.parametrize(
    "method", [SGPR(num_inducing=8, learn=False), SVGP(num_inducing=8, learn=False), SWSGP(num_inducing=8, learn=False)]
)
def test_own_kernels_under_sparse_methods(method):
    fitted = posterior(OwnStationary(), method)
    has_moments_of(fitted.sample_functions(NUM_SAMPLES, generator=generator(1))(NEAR_AND_FAR), fitted(NEAR_AND_FAR))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_own_kernels_of_several_outputs(batch):
    fitted = posterior(K.PolynomialKernel(power=2, batch_shape=torch.Size(batch)), k=2)
    functions = fitted.sample_functions(NUM_SAMPLES, generator=generator(1))
    has_moments_of(functions(NEAR_AND_FAR), fitted(NEAR_AND_FAR))
    close(functions(NEAR_AND_FAR[1:3]), functions(NEAR_AND_FAR)[:, 1:3], 0)


def test_own_kernels_of_correlated_outputs():
    mixing = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 1.1]], dtype=torch.float64)
    prior = GaussianProcess(process().mean, OwnStationary(), mixing=mixing)
    fitted = Exact(learn=False).infer(prior, noise(0.05), data(3), generator=generator()).posterior
    has_moments_of(fitted.sample_functions(NUM_SAMPLES, generator=generator(1))(NEAR_AND_FAR), fitted(NEAR_AND_FAR))


def test_beyond_the_memory_variances_are_exact_and_the_error_is_stated(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 8**2)
    monkeypatch.setattr(remembered_draws, "BLOCK", 4)
    fitted = posterior(OwnStationary())
    functions = fitted.sample_functions(NUM_SAMPLES, generator=generator(1))
    x = torch.linspace(-1.5, 3, 20, dtype=torch.float64).unsqueeze(-1)
    with operators.recording() as notes:
        values = functions(x)
    has_moments_of(values, fitted(x))
    assert torch.equal(functions(x.flip(0)), values.flip(1))
    assert 0 < notes[remembered_draws.RESIDUAL] < 1
    # what the note bounds: correlations of residuals, in units of the prior's variance of one
    centered = (values - fitted(x).mean).squeeze(-1)
    difference = (centered.mT @ centered / NUM_SAMPLES - fitted(x).covariance.to_dense()).abs().max()
    assert float(difference) <= notes[remembered_draws.RESIDUAL] + 5 * (2 / NUM_SAMPLES) ** 0.5


def test_an_estimator_states_the_error_in_its_diagnostics(monkeypatch):
    rows = data()
    model = GPRegressor(OwnStationary(), inference=Exact(), random_state=0).fit(rows.x, rows.y[:, 0])
    f = model.sample_functions(2)
    f(NEAR_AND_FAR)
    assert remembered_draws.RESIDUAL not in model.diagnostics_
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 0)
    f(NEAR_AND_FAR + 0.5)
    assert 0 < model.diagnostics_[remembered_draws.RESIDUAL] <= 1


def test_within_the_memory_no_error_is_stated():
    with operators.recording() as notes:
        posterior(OwnStationary()).sample_functions(2, generator=generator())(NEAR_AND_FAR)
    assert remembered_draws.RESIDUAL not in notes


def test_a_smooth_sample_is_climbed_by_its_gradient():
    fitted = posterior(K.LinearKernel() * K.RBFKernel())
    f = fitted.sample_functions(1, generator=generator(1))
    f(torch.linspace(-3, 3, 61, dtype=torch.float64).unsqueeze(-1))
    x = torch.tensor([[0.33]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(f(x).sum(), x)
    ahead, behind = (float(f(x.detach() + step)) for step in (1e-3, -1e-3))
    assert float(gradient) == pytest.approx((ahead - behind) / 2e-3, abs=1e-2)
