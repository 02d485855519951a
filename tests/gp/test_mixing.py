"""Correlated outputs f = W g: what holds exactly, then what it is for."""

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch.kernels import MultitaskKernel, RBFKernel
from gpytorch.means import ConstantMean, ZeroMean
from torch import nn

from bayeskit.core import operators
from bayeskit.core.inference import Evidence
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic, Poisson, StudentT
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SGPR, SVGP, Exact, GaussianProcess, StackedProcess, coregionalized, default_prior
from bayeskit.gp import mixing as mixings
from bayeskit.gp.gram import gram
from bayeskit.gp.hyperparameters import learnable
from bayeskit.gp.variational import Variational, ascend

from .problems import close, constant, generator, matern, noise, rbf, regression, same_law, test_inputs

W = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 1.1]], dtype=torch.float64)
EXACT, SPARSE = Exact(learn=False), SVGP(num_inducing=8, learn=False, learn_inducing=False)


def own_kernels(q=2):
    kernel = RBFKernel(batch_shape=torch.Size([q])).double()
    kernel.lengthscale = torch.linspace(0.5, 1.5, q, dtype=torch.float64).reshape(q, 1, 1)
    return kernel.requires_grad_(False)


def mixed(kernel=None, mixing=W, mean=None):
    return GaussianProcess(mean or ZeroMean(), kernel or own_kernels(mixing.shape[-1]), mixing=mixing)


def posterior(prior, method=EXACT, likelihood=None, data=None):
    data = data or regression(k=prior.num_outputs)
    return method.infer(prior, likelihood or noise(), data, generator=generator()).posterior


def covariances(prior, x1, x2=None):
    """sum_p K_p (x) W_p W_p', point-major, (n1*k, n2*k)."""
    q = prior.mixing.shape[-1]
    matrices = gram(prior.kernel, x1, x1 if x2 is None else x2).expand(q, -1, -1)
    return torch.einsum("jp,pnm,lp->njml", prior.mixing, matrices, prior.mixing).flatten(2).flatten(0, 1)


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
    same_law(same, plain, x)


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


@pytest.mark.parametrize("kernel", [own_kernels(), rbf()], ids=["LMC", "ICM"])
def test_exact_posterior_is_the_dense_closed_form(kernel):
    data, x = regression(k=3), test_inputs()
    prior = mixed(kernel, mean=constant([0.2, 0.5], 2))
    fit = EXACT.infer(prior, noise(0.05), data, generator=generator())
    shift = prior(data.x).mean
    total = covariances(prior, data.x) + 0.05 * torch.eye(90, dtype=torch.float64)
    cross = covariances(prior, x, data.x)
    law = torch.distributions.MultivariateNormal(shift.flatten(), total)
    assert fit.log_evidence.value == pytest.approx(law.log_prob(data.y.flatten()).item(), abs=1e-8)
    values = fit.posterior(x)
    mean = prior(x).mean.flatten() + cross @ torch.linalg.solve(total, (data.y - shift).flatten())
    close(values.mean.flatten(), mean, 1e-8)
    expected = covariances(prior, x) - cross @ torch.linalg.solve(total, cross.mT)
    close(values.covariance.to_dense(), expected, 1e-8)
    close(values.output_covariance(), expected.reshape(17, 3, 17, 3).diagonal(dim1=0, dim2=2).movedim(-1, 0), 1e-8)


def test_exact_posterior_is_that_of_gpytorch():
    data, x = regression(k=3), test_inputs()

    class Multitask(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(data.x, data.y, likelihood)
            self.mean_module = gpytorch.means.MultitaskMean(ZeroMean(), num_tasks=3)
            self.covar_module = MultitaskKernel(rbf(), num_tasks=3, rank=2)
            self.covar_module.task_covar_module.covar_factor.data = W.clone()
            self.covar_module.task_covar_module.raw_var.data.fill_(-800.0)

        def forward(self, x):
            return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))

    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=3, has_task_noise=False).double()
    likelihood.noise = torch.tensor(0.05, dtype=torch.float64)
    model = Multitask(likelihood).double().eval()
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10_000):
        theirs = model(x)
        ours = posterior(mixed(rbf()))(x)
        close(ours.mean, theirs.mean, 1e-6)
        close(ours.covariance.to_dense(), theirs.covariance_matrix, 1e-6)


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
    start = Variational.prior(2, z)
    with torch.no_grad():
        _, value = ascend(model, z, start, data, max_steps=3)
        _, longer = ascend(model, z, start, data, max_steps=500, tolerance=0.0)
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


@pytest.mark.parametrize("method", [EXACT, SVGP(num_inducing=10, learn=False, learn_inducing=False)])
def test_a_fold_of_tasks(method):
    """Two halves one after the other: for the exact method what all the data give at once."""
    data = regression(k=3)
    first = posterior(mixed(), method, data=data.rows(slice(0, 15)))
    second = posterior(first, method, data=data.rows(slice(15, 30)))
    x = test_inputs()
    if method is EXACT:
        assert isinstance(second, StackedProcess)
        same_law(second, posterior(mixed(), method, data=data), x)
    else:
        close(second.mixing, W, 0)
        assert bool((second(x).variance < first(x).variance + 1e-10).all())


def test_exact_goes_on_from_a_sparse_posterior():
    first = posterior(mixed(), SPARSE)
    x = test_inputs()
    second = posterior(first, EXACT, data=regression(9, k=3, seed=7))
    assert bool((second(x).variance < first(x).variance + 1e-10).all())
    assert second.sample_functions(2, generator=generator())(x).shape == (2, 17, 3)


def test_missing_targets_are_rows_that_are_not_there():
    data = regression(k=3)
    y = data.y.clone()
    y[:20, 1], y[5:, 2] = torch.nan, torch.nan
    prior = mixed()
    seen = ~y.flatten().isnan()
    total = (covariances(prior, data.x) + 0.05 * torch.eye(90, dtype=torch.float64))[seen][:, seen]
    cross = covariances(prior, test_inputs(), data.x)[:, seen]
    values = posterior(prior, data=Data(data.x, y))(test_inputs())
    close(values.mean.flatten(), cross @ torch.linalg.solve(total, y.flatten()[seen]), 1e-8)


@pytest.mark.parametrize("kernel", [None, "one"])
def test_a_sparse_output_learns_from_its_neighbor(kernel):
    """Two outputs that are nearly multiples; the second is seen at 6 of 60 inputs."""
    g = generator()
    x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
    truth = torch.cat([(2 * x).sin(), -0.8 * (2 * x).sin() + 0.1 * x.cos()], -1)
    y = truth + 0.05 * torch.randn(60, 2, dtype=torch.float64, generator=g)
    y[torch.arange(60) % 10 != 5, 1] = torch.nan
    prior = default_prior(x, 2, num_latents=2) if kernel is None else coregionalized(default_prior(x, 2), 2)
    fit = Exact().infer(prior, Gaussian(), Data(x, y), generator=g)
    seen = ~y[:, 1].isnan()
    alone = Exact().infer(default_prior(x), Gaussian(), Data(x[seen], y[seen, 1:]), generator=g)
    error = (fit.posterior(x).mean[:, 1] - truth[:, 1]).square().mean().sqrt()
    assert error < 0.3 * (alone.posterior(x).mean[:, 0] - truth[:, 1]).square().mean().sqrt()
    covariance = fit.posterior.process.kernel.base.mixing @ fit.posterior.process.kernel.base.mixing.mT
    assert covariance[0, 1] < 0  # the outputs move in opposite directions


def test_learning_the_mixing():
    data = regression(60, k=3)
    prior = default_prior(data.x, 3, num_latents=2)
    before = prior.mixing.detach().clone()
    for method in (Exact(max_iter=20), SVGP(num_inducing=15, training=Training(lr=0.05, max_epochs=30))):
        fit = method.infer(prior, Gaussian(), data, generator=generator())
        frozen = type(method)(learn=False).infer(prior, Gaussian(), data, generator=generator())
        assert fit.log_evidence.value > frozen.log_evidence.value
        assert torch.equal(prior.mixing, before) and prior.mixing.requires_grad
        if isinstance(fit.posterior, GaussianProcess):
            assert not fit.posterior.mixing.requires_grad and not torch.equal(fit.posterior.mixing, before)
    kept = GaussianProcess(prior.mean, prior.kernel, mixing=before)  # needs no gradient, so it stays
    assert torch.equal(posterior(kept, SVGP.quickly(), Gaussian(), data).mixing, before)


def test_mean_and_kernel_share_what_is_learnt():
    data = regression(k=3)
    prior = default_prior(data.x, 3, num_latents=2)
    process = Exact(max_iter=5).infer(prior, Gaussian(), data, generator=generator()).posterior.process
    assert torch.equal(process.kernel.base.mixing, process.mean.base_mean.mixing)


def test_constants_start_at_the_averages():
    data = regression(k=2)
    model = learnable(default_prior(data.x, 2, num_latents=2), noise(), learn=True)
    model.center(data.y + 3, None)
    close((model.process()(data.x).mean[0]), (data.y + 3).mean(0), 1e-10)


@pytest.mark.parametrize("make", [posterior, lambda p: posterior(p, SPARSE), lambda p: p])
def test_copies_and_pickles(make):
    law, x = make(mixed()), test_inputs()
    for again in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        close(again(x).mean, law(x).mean, 0)
        close(again(x).variance, law(x).variance, 0)


@pytest.mark.parametrize(("rows", "copies"), [(1, 1), (1, 4), (12, 3)])
@pytest.mark.parametrize("method", [Exact(max_iter=10), SVGP.quickly()], ids=["exact", "SVGP"])
def test_few_and_repeated_rows_in_single_precision(rows, copies, method):
    data = regression(rows, k=3)
    data = Data(data.x.float().repeat(copies, 1), data.y.float().repeat(copies, 1))
    fit = method.infer(default_prior(data.x, 3, num_latents=2), Gaussian(), data, generator=generator())
    assert bool((fit.posterior(data.x).variance >= 0).all())


def test_methods_that_cannot_mix_say_so():
    data = regression(k=3)
    with pytest.raises(ValueError, match=r"mixing.*gp.SVGP"):
        SGPR().infer(mixed(), noise(), data, generator=generator())
    with pytest.raises(ValueError, match="one noise variance"):
        EXACT.infer(mixed(), noise([0.1, 0.2, 0.3]), data, generator=generator())
    with pytest.raises(TypeError, match="StackedProcess"):
        SPARSE.infer(posterior(mixed()), noise(), data, generator=generator())
    with pytest.raises(ValueError, match="num_outputs=3"):
        EXACT.infer(mixed(), noise(), regression(k=2), generator=generator())
    with pytest.raises(ValueError, match="num_outputs=3"):
        SPARSE.infer(mixed(), noise(), regression(k=2), generator=generator())


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


def test_no_data_returns_the_prior():
    prior = mixed()
    for method in (EXACT, SPARSE):
        fit = method.infer(prior, noise(), regression(0, k=3), generator=generator())
        assert fit.log_evidence == Evidence(0.0, "exact")
        same_law(fit.posterior, prior, test_inputs())


def test_weights_count_copies():
    data, x = regression(k=3), test_inputs()
    weighted = Data(data.x, data.y, torch.arange(30) % 3 + 1.0)
    repeated = Data(*(t.repeat_interleave(torch.arange(30) % 3 + 1, 0) for t in (data.x, data.y)))
    for method in (EXACT, SPARSE):
        one, other = (method.infer(mixed(), noise(), rows, generator=generator()) for rows in (weighted, repeated))
        assert one.log_evidence.value == pytest.approx(other.log_evidence.value, abs=1e-7)
        same_law(one.posterior, other.posterior, x)


def test_default_priors_of_correlated_outputs():
    x = test_inputs()
    prior = default_prior(x, 3, num_latents=2)
    assert prior.kernel.batch_shape == (2,) and prior.num_latents == 2 and prior.num_outputs == 3
    close(prior(x).variance, torch.ones(17, 3, dtype=torch.float64), 1e-10)
    one = coregionalized(GaussianProcess(ConstantMean(), matern(), 2), 3)
    assert isinstance(one.mixing, nn.Parameter) and not one.kernel.batch_shape
    with pytest.raises(ValueError, match="already"):
        coregionalized(one, 4)
