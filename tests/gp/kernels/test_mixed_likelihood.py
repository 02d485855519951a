"""Correlated outputs f = W g: their prior, and expectations under it."""

import pytest
import torch
from gpytorch.kernels import MultitaskKernel
from gpytorch.means import ConstantMean, ZeroMean
from torch import nn

from bayeskit.core import operators
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic, Poisson, StudentT
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SVGP, GaussianProcess, coregionalized, default_prior
from bayeskit.gp.kernels import mixed_likelihood as mixings
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import optimal_q

from ..mixtures import EXACT, SPARSE, W, covariances, mixed, own_kernels, posterior
from ..problems import close, constant, generator, matern, noise, rbf, regression, same_gp, test_inputs


@pytest.mark.parametrize("kernel", [own_kernels(), rbf()], ids=["LMC", "ICM"])
def test_prior_is_the_sum_of_kronecker_products(kernel):
    x = test_inputs()
    prior = mixed(kernel, mean=constant([0.5, -1.0], 2))
    values = prior(x)
    dense = covariances(prior, x)
    close(values.covariance.to_dense(), dense, 1e-12)
    close(values.variance.flatten(), dense.diagonal(), 1e-12)
    close(values.output_covariance(), operators.block_diagonal(values.covariance, 3), 1e-12)
    close(values.mean, (W @ torch.tensor([0.5, -1.0], dtype=torch.float64)).expand(len(x), 3), 1e-12)


@pytest.mark.parametrize("kernel", [own_kernels(), rbf()], ids=["LMC", "ICM"])
@pytest.mark.parametrize("method", [None, SPARSE], ids=["prior", "SVGP"])
def test_the_identity_mixes_nothing(kernel, method):
    plain = GaussianProcess(ZeroMean(), kernel, 2)
    same = mixed(kernel, torch.eye(2, dtype=torch.float64))
    data, x = regression(k=2), test_inputs()
    if method is not None:
        fits = [method.infer(p, noise([0.05, 0.3]), data, generator=generator()) for p in (plain, same)]
        assert fits[0].log_evidence.value == pytest.approx(fits[1].log_evidence.value, abs=1e-7)
        plain, same = (fit.posterior for fit in fits)
    same_gp(same, plain, x)


def test_a_diagonal_mixing_scales_the_outputs():
    scale = torch.tensor([2.0, 0.5], dtype=torch.float64)
    plain, same = GaussianProcess(ZeroMean(), own_kernels(), 2), mixed(mixing=scale.diag())
    data = regression(k=2)
    one = posterior(plain, SPARSE, noise([0.05, 0.3]), Data(data.x, data.y / scale))
    other = posterior(same, SPARSE, noise((torch.tensor([0.05, 0.3]).double() * scale**2).tolist()), data)
    values, expected = other(test_inputs()), one(test_inputs()).affine(torch.zeros_like(scale), scale)
    close(values.mean, expected.mean, 1e-7)
    close(values.covariance.to_dense(), expected.covariance.to_dense(), 1e-7)


def test_gpytorch_gives_the_same_prior_for_one_kernel():
    x = test_inputs()
    base = rbf()
    theirs = MultitaskKernel(base, num_tasks=3, rank=2).double()
    theirs.task_covar_module.covar_factor.data.copy_(W)
    theirs.task_covar_module.raw_var.data.fill_(-800.0)  # no variance of its own: softplus(-800) = 0
    close(mixed(base)(x).covariance.to_dense(), theirs(x).to_dense(), 1e-10)


@pytest.mark.monte_carlo
def test_the_bound_is_below_the_evidence_and_close_at_all_inputs():
    data = regression(k=3)
    values = {}
    for name, method in {
        "exact": EXACT,
        "few": SPARSE,
        "all": SVGP(num_inducing=30, learn=False, learn_inducing=False),
    }.items():
        values[name] = method.infer(mixed(), noise(0.05), data, generator=generator()).log_evidence.value
    assert values["few"] < values["all"] < values["exact"]


def test_exact_where_the_latents_stay_independent():
    """Orthonormal columns and equal noise leave the latents independent given the data: the bound is the evidence."""
    mixing = torch.linalg.qr(W).Q
    data = regression(k=3)
    complete = SVGP(num_inducing=30, learn=False, learn_inducing=False)
    fits = [m.infer(mixed(mixing=mixing), noise(0.05), data, generator=generator()) for m in (EXACT, complete)]
    assert fits[0].log_evidence.value == pytest.approx(fits[1].log_evidence.value, abs=1e-6)
    one, other = (fit.posterior(test_inputs()) for fit in fits)
    close(one.mean, other.mean, 1e-6)
    close(one.covariance.to_dense(), other.covariance.to_dense(), 1e-6)


LIKELIHOODS = {
    "gaussian": (Gaussian([0.1, 0.2, 0.3]), lambda f: f),
    "student_t": (StudentT(), lambda f: f),
    "poisson": (Poisson(), lambda f: f.abs().round()),
    "categorical": (Categorical(3), lambda f: f.argmax(-1)),
    "heteroscedastic": (Heteroscedastic(), lambda f: f[:, :1]),
    "bernoulli": (Bernoulli(), lambda f: (f[:, 0] > 0).long()),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sites_are_the_derivatives_of_the_expectation(name):
    likelihood, observe = LIKELIHOODS[name]
    g = generator()
    k = {"heteroscedastic": 2, "bernoulli": 1}.get(name, 3)
    mean = 0.5 * torch.randn(5, 2, dtype=torch.float64, generator=g)
    variance = 0.2 + torch.rand(5, 2, dtype=torch.float64, generator=g)
    y = observe(mean @ W.mT)
    mean.requires_grad_(), variance.requires_grad_()
    value = mixings.expected_log_prob(likelihood, W[:k], mean, variance, y)
    slope, spread = torch.autograd.grad(value.sum(), [mean, variance])
    alpha, beta = mixings.site_gradients(likelihood, W[:k], mean.detach(), variance.detach(), y)
    # Fixed draws estimate the derivative in the variance in two ways, and clamped sites are not derivatives.
    tolerance = 1e-8 if name == "gaussian" else 0.05
    close(alpha, slope, 1e-8 if name != "categorical" else tolerance)
    kept = beta > 1e-7
    close(beta[kept], (-2 * spread)[kept], tolerance)


@pytest.mark.monte_carlo
def test_targets_of_several_outputs_are_expected_over_the_latents():
    """E log softmax(W g) by brute force; independent marginals of W g would give another number."""
    mean, variance = torch.tensor([[0.3, -0.2]]).double(), torch.tensor([[1.0, 2.0]]).double()
    draws = mean + variance.sqrt() * torch.randn(400_000, 2, dtype=torch.float64, generator=generator())
    brute = (draws @ (2 * W).mT).log_softmax(-1)[:, 1].mean()
    value = mixings.expected_log_prob(Categorical(3), 2 * W, mean, variance, torch.tensor([1]))
    apart = Categorical(3).expected_log_prob(2 * mean @ W.mT, 4 * variance @ W.square().mT, torch.tensor([1]))
    assert value.item() == pytest.approx(brute.item(), abs=0.02)
    assert abs(apart.item() - brute.item()) > 0.1


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_couplings_have_the_sites_on_their_diagonal(name):
    likelihood, observe = LIKELIHOODS[name]
    k = {"heteroscedastic": 2, "bernoulli": 1}.get(name, 3)
    mean = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
    y = observe(mean @ W.mT)
    arguments = (likelihood, W[:k], mean, torch.ones_like(mean), y)
    matrices = mixings.couplings(*arguments)
    close(matrices.diagonal(dim1=-2, dim2=-1), mixings.site_gradients(*arguments)[1], 1e-12)
    assert bool((torch.linalg.eigvalsh(matrices) > -1e-10).all())


@pytest.mark.parametrize("levels", [0.05, 1e-3])
def test_latents_that_are_nearly_alike_settle_in_a_few_steps(levels):
    """Columns of W at an angle of 6 degrees: steps for each latent by itself took thousands."""
    data = regression(200, k=3)
    mixing = torch.tensor([[1.0, 0.9], [1.0, 1.1], [1.0, 1.0]], dtype=torch.float64)
    model = learnable(mixed(mixing=mixing), noise(levels), learn=False)
    z = data.x[:40]
    start = WhitenedGaussian.prior(2, z)
    with torch.no_grad():
        _, value = optimal_q(model, z, start, data, max_steps=3)
        _, longer = optimal_q(model, z, start, data, max_steps=500, tolerance=0.0)
    assert value == pytest.approx(longer, rel=1e-7)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_any_likelihood(name):
    likelihood, observe = LIKELIHOODS[name]
    k = {"heteroscedastic": 2, "bernoulli": 1}.get(name, 3)
    x = regression().x
    data = Data(x, observe(torch.stack([x.sum(-1), x[:, 0], x[:, 1]], -1)))
    method = SVGP(num_inducing=10, training=Training(lr=0.05, max_epochs=20, batch_size=16))
    fit = method.infer(default_prior(x, k, num_latents=2), likelihood, data, generator=generator())
    values = fit.posterior(test_inputs())
    assert values.mean.shape == (17, k) and bool((values.variance > 0).all())
    assert fit.log_evidence.kind == "lower bound"


def test_constants_start_at_the_averages():
    data = regression(k=2)
    model = learnable(default_prior(data.x, 2, num_latents=2), noise(), learn=True)
    model.center(data.y + 3, None)
    close((model.process()(data.x).mean[0]), (data.y + 3).mean(0), 1e-10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mixing": torch.ones(3)}, "finite matrix"),
        ({"mixing": torch.full((3, 2), torch.nan)}, "finite matrix"),
        ({"mixing": W, "num_outputs": 2}, "rows"),
        ({"mixing": W[:, :1]}, "columns of `mixing`"),
    ],
)
def test_wrong_mixings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        GaussianProcess(ZeroMean(), own_kernels(), **arguments)


def test_default_priors_of_correlated_outputs():
    x = test_inputs()
    prior = default_prior(x, 3, num_latents=2)
    assert prior.kernel.batch_shape == (2,) and prior.num_latents == 2 and prior.num_outputs == 3
    close(prior(x).variance, torch.ones(17, 3, dtype=torch.float64), 1e-10)
    one = coregionalized(GaussianProcess(ConstantMean(), matern(), 2), 3)
    assert isinstance(one.mixing, nn.Parameter) and not one.kernel.batch_shape
    with pytest.raises(ValueError, match="already"):
        coregionalized(one, 4)
