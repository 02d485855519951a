"""Sparse within sparse: equal to SVGP where every point is a neighbor, local where few are."""

import math

import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean

from bayeskit import gp
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic, Poisson, StudentT
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.methods import swsgp
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.process.nearest_neighbor_kernel import Nearest, NearestMean, neighborhoods
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound as svgp_bound

TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}
TOTAL = 60.0  # data points, each of weight one


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n=60, outputs=1):
    x = torch.randn(n, 2, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(n, outputs, generator=generator(2), dtype=torch.float64)
    return Data(x, torch.sin(2 * x[:, :1]) + torch.arange(outputs) * x[:, 1:] + 0.1 * noise)


def model_of(outputs=1, batched=False, likelihood=None):
    shape = torch.Size([outputs]) if batched else torch.Size()
    kernel = ScaleKernel(RBFKernel(ard_num_dims=2, batch_shape=shape), batch_shape=shape).double()
    if batched:
        kernel.outputscale = torch.linspace(0.5, 2.0, outputs, dtype=torch.float64)
    process = gp.GaussianProcess(ConstantMean(batch_shape=torch.Size([outputs])).double(), kernel, outputs)
    return learnable(process, likelihood or Gaussian(noise=0.2, learn=False), learn=False)


def some_q(outputs, m):
    mean = torch.randn(outputs, m, generator=generator(5), dtype=torch.float64)
    return mean, torch.rand(outputs, m, generator=generator(6), dtype=torch.float64) + 0.1


@pytest.mark.parametrize("batched", [False, True])
def test_with_every_point_a_neighbor_bound_and_predictions_are_those_of_svgp(batched):
    model, data, z = model_of(2, batched), rows(outputs=2), rows(9).x
    mean, variance = some_q(2, 9)
    tril = torch.linalg.cholesky(gram(model.kernel, z, z))
    whitened = torch.linalg.solve_triangular(tril, mean.unsqueeze(-1), upper=False).squeeze(-1)
    covariance = torch.linalg.solve_triangular(tril, torch.diag_embed(variance.sqrt()), upper=False)
    root = torch.linalg.qr(covariance.mT).R.mT  # lower triangular
    flipped = torch.linalg.cholesky((root @ root.mT).flip(-1, -2)).flip(-1, -2)  # upper triangular, the same q
    variational = WhitenedGaussian(whitened, flipped)
    near = neighborhoods(model.kernel, z, data.x, 9)
    ours = swsgp.bound(model, near, mean, variance, data, total_weight=TOTAL)
    assert float(ours) == pytest.approx(float(svgp_bound(model, z, variational, data)), rel=1e-8)
    theirs = variational.posterior(model, z)(data.x)
    values = swsgp._posterior(model, z, mean, variance, 9)(data.x)
    assert torch.allclose(values.mean, theirs.mean, **TOLERANCE)
    assert torch.allclose(values.variance, theirs.variance, **TOLERANCE)


def test_the_bound_over_all_data_is_the_mean_over_mini_batches():
    model, data, z = model_of(2), rows(outputs=2), rows(20).x
    mean, variance = some_q(2, 20)
    sums = swsgp._Sums.build(model, z, data, 5)
    near = neighborhoods(model.kernel, z, data.x, 5)
    whole = float(swsgp.bound(model, near, mean, variance, data, total_weight=TOTAL))
    assert sums.bound(mean, variance) == pytest.approx(whole, rel=1e-10)
    parts = [
        float(swsgp.bound(model, neighborhoods(model.kernel, z, part.x, 5), mean, variance, part, total_weight=TOTAL))
        for part in data.batches(20)
    ]
    assert sum(parts) / len(parts) == pytest.approx(whole, rel=1e-10)


def test_mini_batches_of_weighted_data_estimate_the_bound_without_bias():
    model, z = model_of(), rows(20).x
    data = Data(*(getattr(rows(), name) for name in ("x", "y")), torch.linspace(0.1, 9.0, 60, dtype=torch.float64))
    mean, variance = some_q(1, 20)
    total = float(data.weights.sum())
    parts = [
        float(swsgp.bound(model, neighborhoods(model.kernel, z, part.x, 5), mean, variance, part, total_weight=total))
        for part in data.batches(6)
    ]
    assert sum(parts) / len(parts) == pytest.approx(
        swsgp._Sums.build(model, z, data, 5).bound(mean, variance), rel=1e-10
    )


def test_one_neighbor_is_a_kernel_smoother():
    model, z = model_of(), rows(8).x
    mean, _ = some_q(1, 8)
    x = rows(5).x + 0.1
    near = neighborhoods(model.kernel, z, x, 1)
    closest = torch.cdist(x / model.kernel.base_kernel.lengthscale, z / model.kernel.base_kernel.lengthscale).argmin(-1)
    assert torch.equal(near.index[:, 0], closest)
    ratio = gram(model.kernel, x, z)[torch.arange(5), closest] / model.kernel.outputscale
    assert torch.allclose(near.mean(mean)[:, 0], ratio * mean[0, closest], **TOLERANCE)


def test_permuted_and_far_points_do_not_change_predictions():
    model, data, z = model_of(), rows(), rows(20).x
    mean, variance = some_q(1, 20)
    order = torch.randperm(20, generator=generator(3))
    far = torch.cat([z, torch.full((1, 2), 50.0, dtype=torch.float64)])
    far_mean, far_variance = torch.cat([mean, mean[:, :1]], 1), torch.cat([variance, variance[:, :1]], 1)
    values = swsgp._posterior(model, z, mean, variance, 6)(data.x)
    for points, mu, s in ((z[order], mean[:, order], variance[:, order]), (far, far_mean, far_variance)):
        other = swsgp._posterior(model, points, mu, s, 6)(data.x)
        assert torch.allclose(values.mean, other.mean, **TOLERANCE)
        assert torch.allclose(values.covariance.to_dense(), other.covariance.to_dense(), **TOLERANCE)


@pytest.mark.parametrize("likelihood", [Gaussian(noise=0.2, learn=False), StudentT(scale=0.3)])
def test_the_ascent_ends_where_no_gradient_is_left(likelihood):
    model, data, z = model_of(likelihood=likelihood), rows(), rows(15).x
    mean, variance, value = swsgp.optimal_q(model, z, data, 5, max_steps=200, tolerance=1e-14)
    mean, log_variance = mean.clone().requires_grad_(), variance.log().clone().requires_grad_()
    objective = swsgp.bound(
        model, neighborhoods(model.kernel, z, data.x, 5), mean, log_variance.exp(), data, total_weight=TOTAL
    )
    assert float(objective.detach()) == pytest.approx(value, rel=1e-10)
    gradients = torch.autograd.grad(objective, [mean, log_variance])
    # The curvature is of the order of the 60 terms; steps stop at a gain of 1e-14 of the bound, its square root here.
    tolerance = 1e-6 if isinstance(likelihood, Gaussian) else 1e-4
    assert all(g.abs().max() < tolerance * 60 for g in gradients)


@pytest.mark.monte_carlo
def test_draws_of_functions_have_the_moments_of_the_joint_law():
    model, z = model_of(2), rows(12).x
    mean, variance = some_q(2, 12)
    process = swsgp._posterior(model, z, mean, variance, 4)
    x, s = rows(6).x + 0.05, 4000
    draws = process.sample_functions(s, generator=generator())(x).flatten(1)
    values = process(x)
    dense = values.covariance.to_dense()
    std = dense.diagonal().sqrt()
    assert ((draws.mean(0) - values.mean.reshape(-1)).abs() <= 5 * std / math.sqrt(s)).all()
    assert ((torch.cov(draws.mT) - dense).abs() <= 5 * math.sqrt(2 / s) * std[:, None] * std).all()


def test_kernel_of_pairs_is_the_diagonal_of_the_matrix():
    model, z = model_of(3, batched=True), rows(12).x
    _, variance = some_q(3, 12)
    kernel = Nearest(model.kernel.requires_grad_(False), z, variance, num_neighbors=4)
    a, b = rows(5).x, rows(5).x.flip(0) + 0.1
    matrix = gram(kernel, a, b)
    assert matrix.shape == (3, 5, 5)
    expanded = kernel(a.expand(3, 5, 2), b.expand(3, 5, 2), diag=True)
    assert torch.allclose(expanded, matrix.diagonal(dim1=-2, dim2=-1), **TOLERANCE)
    each = torch.stack([a, a + 0.3, b])  # inputs of their own for every kernel
    separate = torch.stack([gram(kernel, each[j], z)[j] for j in range(3)])
    assert torch.allclose(kernel(each, z).to_dense(), separate, **TOLERANCE)


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (Bernoulli(), lambda f: (f > 0).long()),
        (Categorical(3), lambda f: (f > 0).long() + (f > 0.7).long()),
        (Poisson(), lambda f: f.exp().round().unsqueeze(-1)),
        (StudentT(), lambda f: f.unsqueeze(-1)),
        (Heteroscedastic(), lambda f: f.unsqueeze(-1)),
    ],
    ids=lambda v: type(v).__name__ if not callable(v) or hasattr(v, "distribution") else "",
)
def test_any_likelihood(likelihood, targets):
    x = rows(80).x
    data = Data(x, targets(torch.sin(2 * x[:, 0])))
    prior = gp.default_prior(x, num_outputs=likelihood.num_latents(data.y))
    fit = gp.SWSGP.quickly().infer(prior, likelihood, data, generator=generator())
    before = gp.SWSGP(num_inducing=40, num_neighbors=10, learn=False, learn_inducing=False)
    start = before.infer(prior, likelihood, data, generator=generator())
    assert float(fit.log_evidence) > float(start.log_evidence)
    assert torch.isfinite(fit.likelihood.predictive(fit.posterior(x)).log_prob(data.y)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_small_and_repeated_data(n, dtype):
    x = torch.ones(n, 3, dtype=dtype)
    fit = gp.SWSGP.quickly().infer(gp.default_prior(x), Gaussian(), Data(x, x[:, :1]), generator=generator())
    values = fit.posterior(x)
    assert torch.isfinite(values.mean).all()
    assert (values.variance >= 0).all()


def test_too_many_points_are_refused():
    data = rows()
    with pytest.raises(ValueError, match="at most 10000"):
        gp.SWSGP(num_inducing=10_001).infer(gp.default_prior(data.x), Gaussian(), data, generator=generator())


def test_far_from_the_data_the_mean_is_the_prior_mean():
    model, z = model_of(), rows(12).x
    mean, _ = some_q(1, 12)
    far = torch.full((1, 2), 60.0, dtype=torch.float64)
    value = NearestMean(model.mean, model.kernel, z, mean, num_neighbors=3)(far)
    assert torch.allclose(value, model.mean(far).reshape(1, 1), **TOLERANCE)
