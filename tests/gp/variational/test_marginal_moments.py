import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import VariationalELBO
from gpytorch.models import ApproximateGP
from gpytorch.settings import cholesky_jitter, variational_cholesky_jitter
from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.variational.marginal_moments import marginals, marginals_of_grams
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound, data_term

from ..problems import close, generator, matern, test_inputs


def inputs_of_marginals(k, *, batched, n=7, m=5):
    """(K_zz, K_zx, k(x, x), q, R) as leaves."""
    g = generator(2)
    z, x = test_inputs(m), test_inputs(n, seed=3)
    kernels = [matern((0.9 + j, 1.4)) for j in range(k if batched else 1)]
    square = torch.stack([gram(kernel, z, z).detach() for kernel in kernels])
    cross = torch.stack([gram(kernel, z, x).detach() for kernel in kernels])
    if not batched:
        square, cross = square[0], cross[0]
    before = torch.full((k, n) if batched else (n,), 1.7, dtype=torch.float64)
    root = torch.eye(m, dtype=torch.float64) / 2 + 0.1 * torch.randn(k, m, m, dtype=torch.float64, generator=g).triu()
    mean = torch.randn(k, m, dtype=torch.float64, generator=g)
    return [t.clone().requires_grad_(True) for t in (square, cross, before, mean, root)]


def by_the_equations(square, cross, before, mean, root):
    a = torch.linalg.solve_triangular(torch.linalg.cholesky(square), cross, upper=False)
    shift = mean @ a if a.dim() == 2 else (mean.unsqueeze(-2) @ a).squeeze(-2)
    return shift, before - a.square().sum(-2) + (root.mT @ a).square().sum(-2)


def gradients(values, leaves):
    weights = [torch.randn(v.shape, dtype=torch.float64, generator=generator(j)) for j, v in enumerate(values)]
    return torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, values, strict=True)), leaves)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_values_and_derivatives_are_those_of_the_equations(k, batched):
    leaves = inputs_of_marginals(k, batched=batched)
    expected = by_the_equations(*leaves)
    target = gradients(expected, leaves)
    symmetric = (target[0] + target[0].mT) / 2
    tril = factorize(leaves[0], name="K").tril
    found = {
        "factor": marginals(tril, *leaves[1:]),
        "root": marginals_of_grams(*leaves, form="root"),
        "triangular": marginals_of_grams(*leaves, form="triangular"),
    }
    for name, values in found.items():
        for one, two in zip(values, expected, strict=True):
            close(one, two, 1e-12)
        slopes = gradients(values, leaves)
        close((slopes[0] + slopes[0].mT) / 2, symmetric, 1e-9)
        for one, two in zip(slopes[1:4], target[1:4], strict=True):
            close(one, two, 1e-9)
        close(slopes[4], target[4].triu() if name == "triangular" else target[4], 1e-9)


def test_a_root_may_have_few_columns():
    leaves = inputs_of_marginals(2, batched=False)
    leaves[4] = leaves[4].detach()[..., :2].clone().requires_grad_(True)
    tril = factorize(leaves[0], name="K").tril
    values, expected = marginals(tril, *leaves[1:]), by_the_equations(*leaves)
    for one, two in zip(values, expected, strict=True):
        close(one, two, 1e-12)
    close(gradients(values, leaves)[4], gradients(expected, leaves)[4], 1e-9)


def test_the_sites_are_those_of_the_covariance_and_proper():
    """Where the loss rises with every variance, the derivative in S; without the inputs where it falls otherwise."""
    square, cross, before, mean, root = inputs_of_marginals(1, batched=False)
    covariance = (root @ root.mT).detach().requires_grad_(True)
    _, variance = marginals_of_grams(square, cross, before, mean, covariance, form="sites")
    a = torch.linalg.solve_triangular(torch.linalg.cholesky(square), cross, upper=False).detach()
    for slope in (torch.ones(7).double(), torch.tensor([1.0, -1, 2, -3, 0, 1, 1]).double()):
        (found,) = torch.autograd.grad((slope * variance).sum(), covariance, retain_graph=True)
        close(found[0], (a * slope.clamp(min=0)) @ a.mT, 1e-12)


def test_single_precision_errs_by_rounding():
    leaves = inputs_of_marginals(1, batched=False)
    single = [leaves[0], *(t.detach().float().requires_grad_(True) for t in leaves[1:])]
    values, expected = marginals_of_grams(*single, form="triangular"), by_the_equations(*leaves)
    assert all(v.dtype == torch.float32 for v in values)
    for one, two in zip(values, expected, strict=True):
        close(one.double(), two, 1e-4)
    for one, two in zip(gradients(values, single), gradients(expected, leaves), strict=True):
        if one.shape != leaves[4].shape and one.shape != leaves[0].shape:
            close(one.double(), two, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicated_inducing_points_leave_variances_positive(dtype):
    z = test_inputs(6).repeat(3, 1)
    kernel = matern((50.0, 80.0))
    square, cross = gram(kernel, z, z), gram(kernel, z, z, dtype=dtype)
    root = 1e-4 * torch.eye(18, dtype=dtype).unsqueeze(0)
    before = torch.full((18,), 1.7, dtype=torch.float64)
    _, variance = marginals_of_grams(square, cross, before, root.new_zeros(1, 18), root, form="triangular")
    assert bool((variance > 0).all())


class Peer(ApproximateGP):
    """The same model in gpytorch."""

    def __init__(self, z):
        q = CholeskyVariationalDistribution(len(z))
        super().__init__(VariationalStrategy(self, z, q, learn_inducing_locations=True))
        self.mean_module, self.covar_module = ConstantMean(), ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2))

    def forward(self, x):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_bound_gradients_and_predictions_are_those_of_gpytorch():
    m, n, total, g = 12, 30, 1000, generator()
    z, x = test_inputs(m), test_inputs(n, seed=4)
    y = x.sum(-1).sin()
    peer, noise = Peer(z).double(), GaussianLikelihood().double()
    q = peer.variational_strategy._variational_distribution
    q.variational_mean.data = torch.randn(m, dtype=torch.float64, generator=g)
    q.chol_variational_covar.data = torch.eye(m).double() / 2 + 0.1 * torch.randn(m, m, generator=g).double().tril()
    peer.variational_strategy.variational_params_initialized.fill_(1)
    leaves = [*peer.covar_module.parameters(), peer.mean_module.raw_constant]
    leaves += [
        peer.variational_strategy.inducing_points,
        q.variational_mean,
        q.chol_variational_covar,
    ]
    with variational_cholesky_jitter(double_value=1e-12), cholesky_jitter(None, 0.0):
        value = VariationalELBO(noise, peer, num_data=total)(peer(x), y)
        expected = torch.autograd.grad(value, leaves)
        peer.eval()
        predicted = peer(x)
    model = Model(peer.mean_module, peer.covar_module, Gaussian(noise.noise.detach()), 1)
    where, mean, root = (leaf.detach().clone().requires_grad_(True) for leaf in leaves[-3:])
    data = Data(x, y.unsqueeze(-1), scale=total / n)
    # A lower-triangular root serves as well as an upper-triangular one; the divergence is that of the latter.
    upper = torch.linalg.cholesky((root @ root.mT).flip(0, 1)).flip(0, 1).detach().unsqueeze(0)
    close(bound(model, where, WhitenedGaussian(mean.unsqueeze(0), upper), data) / total, value, 1e-8)
    logdet = 2 * root.diagonal().abs().log().sum()
    divergence = 0.5 * (root.square().sum() + mean.square().sum() - m - logdet)
    ours = data_term(model, where, mean.unsqueeze(0), root.unsqueeze(0), data, form="root") - divergence
    found = torch.autograd.grad(ours / total, [*leaves[:-3], where, mean, root])
    for one, two in zip((*found[:-1], found[-1].tril()), expected, strict=True):
        close(one, two, 1e-6)
    values = WhitenedGaussian(mean.detach().unsqueeze(0), upper).posterior(model, z)(x)
    close(values.mean[:, 0], predicted.mean, 1e-6)
    close(values.variance[:, 0], predicted.variance, 1e-6)
