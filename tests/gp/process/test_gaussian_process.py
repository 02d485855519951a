import copy
import pickle

import pytest
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    LinearKernel,
    MaternKernel,
    MultitaskKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from gpytorch.means import ZeroMean

from bayeskit.core import operators
from bayeskit.core.operators import chunking
from bayeskit.core.types import Data
from bayeskit.gp import SGPR, SVGP, Conditioned, ConditionedMean, Exact, GaussianProcess, default_prior
from bayeskit.gp.kernels.evaluate import gram_diagonal
from bayeskit.gp.process import random_features

from ..problems import close, constant, generator, noise, process, rbf, regression, same_gp, scaled, test_inputs

EXACT, SPARSE = Exact(learn=False), SGPR(num_inducing=8, learn=False, learn_inducing=False)


def posterior(method=EXACT, k=1, levels=0.05, prior=None):
    data = regression(k=k)
    return method.infer(prior or process(k=k), noise(levels), data, generator=generator()).posterior


def own_kernels():
    kernel = RBFKernel(batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.5]], [[1.5]]], dtype=torch.float64)
    return GaussianProcess(ZeroMean(), kernel, 2)


def mixed(kernel=None):
    mixing = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 1.1]], dtype=torch.float64)
    return GaussianProcess(ZeroMean(), kernel or own_kernels().kernel, mixing=mixing)


PROCESSES = {
    "prior": lambda: process(k=2, mean=constant([0.2, 0.5], 2)),
    "prior_of_own_kernels": own_kernels,
    "exact": posterior,
    "exact_shared_noise": lambda: posterior(k=2),
    "exact_own_noise": lambda: posterior(k=2, levels=[0.05, 0.3]),
    "exact_own_kernels": lambda: posterior(k=2, prior=own_kernels()),
    "sparse": lambda: posterior(SPARSE),
    "sparse_own_noise": lambda: posterior(SPARSE, k=2, levels=[0.05, 0.3]),
    "mixed_prior": mixed,
    "mixed_prior_of_one_kernel": lambda: mixed(rbf()),
    "mixed_exact": lambda: posterior(k=3, prior=mixed()),
    "mixed_sparse": lambda: posterior(SVGP(num_inducing=8, learn=False), k=3, prior=mixed(rbf())),
    "folded": lambda: (
        EXACT.infer(
            posterior(SPARSE, k=2, levels=[0.05, 0.3]), noise(0.1), regression(9, k=2, seed=7), generator=generator()
        ).posterior
    ),
}


@pytest.fixture(params=PROCESSES)
def gp(request):
    return PROCESSES[request.param]()


def test_values_are_consistent(gp):
    x = test_inputs()
    values = gp(x)
    n, k = values.mean.shape
    dense = values.covariance.to_dense()
    assert dense.shape == (n * k, n * k)
    assert dense.dtype == values.mean.dtype == torch.float64
    close(dense, dense.mT, 1e-12)
    assert float(torch.linalg.eigvalsh(dense).min()) > -1e-10
    close(values.variance.reshape(-1), dense.diagonal(), 1e-12)
    blocks = dense.reshape(n, k, n, k).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    close(values.output_covariance(), blocks, 1e-12)
    assert not values.mean.requires_grad and not values.variance.requires_grad


@pytest.mark.parametrize("size", [1, 2, 5])
def test_values_do_not_depend_on_batches(gp, size):
    x = test_inputs()
    whole = gp(x)
    parts = [gp(part) for part in x.split(size)]
    close(torch.cat([p.mean for p in parts]), whole.mean, 1e-12)
    close(torch.cat([p.variance for p in parts]), whole.variance, 1e-12)


def test_chunks_change_nothing(gp, monkeypatch):
    x = test_inputs()
    whole = gp(x)
    mean, variance = whole.mean, whole.variance
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 64)
    monkeypatch.setattr(chunking, "CACHE_ELEMENTS", 64)
    close(gp(x).mean, mean, 1e-12)
    close(gp(x).variance, variance, 1e-12)


@pytest.mark.monte_carlo
def test_draws_of_values_have_the_right_moments(gp):
    values = gp(test_inputs(4))
    draws = values.sample(4000, generator=generator())
    agree(draws, values)


@pytest.mark.monte_carlo
def test_fixed_functions_agree_between_calls_and_have_the_right_moments(gp, monkeypatch):
    monkeypatch.setattr(random_features, "NUM_WAVES", 8)  # the first two moments are exact however few waves
    x = test_inputs(6)
    functions = gp.sample_functions(3, generator=generator())
    whole = functions(x)
    assert whole.shape == (3, 6, gp.num_outputs)
    close(functions(x[3:]), whole[:, 3:], 1e-10)
    close(functions(x.flip(0)).flip(1), whole, 1e-10)
    close(gp.sample_functions(3, generator=generator())(x), whole, 1e-10)
    agree(gp.sample_functions(2000, generator=generator(1))(x[:3]), gp(x[:3]))


def agree(draws, values):
    """Mean and covariance within 4 standard errors of those stated; draws (s, n, k)."""
    flat = (draws - values.mean).flatten(1)
    covariance = values.covariance.to_dense()
    error = (covariance.diagonal() / len(flat)).sqrt()
    assert bool((flat.mean(0).abs() <= 5 * error + 1e-9).all())
    products = flat.unsqueeze(-1) * flat.unsqueeze(-2)  # (s, nk, nk): their average estimates the covariance
    error = products.std(0) / len(flat) ** 0.5
    assert bool(((products.mean(0) - covariance).abs() <= 6 * error + 1e-9).all())


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    "kernel",
    [
        ScaleKernel(MaternKernel(nu=0.5)),
        MaternKernel(nu=1.5, ard_num_dims=2),
        AdditiveKernel(ScaleKernel(RBFKernel(active_dims=[0])), MaternKernel(nu=2.5)),
        ProductKernel(ScaleKernel(RBFKernel(active_dims=[1])), RQKernel(active_dims=[1, 0], ard_num_dims=2)),
        LinearKernel(ard_num_dims=2),
        ScaleKernel(PeriodicKernel()),
    ],
    ids=["matern12", "matern32", "sum", "product", "linear", "periodic"],
)
def test_random_features_match_the_kernel(kernel, monkeypatch):
    monkeypatch.setattr(random_features, "NUM_WAVES", 8)
    gp = process(kernel)
    x = test_inputs(3)
    agree(gp.sample_functions(3000, generator=generator())(x), gp(x))


def test_pickle_and_copy_keep_every_bit(gp):
    x = test_inputs()
    for again in (pickle.loads(pickle.dumps(gp)), copy.deepcopy(gp)):
        assert torch.equal(again(x).mean, gp(x).mean)
        assert torch.equal(again(x).variance, gp(x).variance)


def test_nested_and_folded_conditioning_agree():
    """A conditioned kernel as base of another, and the two merged into one, are the same covariance."""
    first = posterior(SPARSE)
    data, x = regression(9, seed=7), test_inputs()
    folded = EXACT.infer(first, noise(), data, generator=generator()).posterior
    assert len(folded.kernel.blocks) == 2 and not isinstance(folded.kernel.base, Conditioned)
    gram = first(data.x).covariance.to_dense() + 0.05 * torch.eye(9, dtype=torch.float64)
    tril = torch.linalg.cholesky(gram)
    nested = Conditioned(first.kernel, data.x, tril)
    weights = torch.cholesky_solve(data.y - first(data.x).mean, tril).mT
    mean = ConditionedMean(first.mean, first.kernel, data.x, weights)
    same_gp(GaussianProcess(mean, nested), folded, x)


def test_covariance_of_pairs():
    kernel, x = posterior(SPARSE).kernel, test_inputs(5)
    pairs = kernel(x, x.flip(0), diag=True)
    close(pairs, kernel(x, x.flip(0)).to_dense().diagonal(), 1e-12)


def test_variance_at_rounding_is_floored_and_noted():
    """Without noise the variance at the data is zero; rounding leaves it nowhere below."""
    data = regression(25)
    result = EXACT.infer(process(rbf(2.0)), noise(1e-9), data, generator=generator())
    with operators.recording() as notes:
        variance = result.posterior(data.x).variance
    assert (variance > 0).all()
    kernel = result.posterior.kernel
    assert (
        float(variance.min()) >= 64 * torch.finfo(torch.float64).eps * gram_diagonal(kernel.base, data.x).min() * 0.99
    )
    assert all("rounding" in key for key in notes)


def test_uncertainty_grows_away_from_the_data():
    gp = posterior()
    far = gp(torch.full((1, 2), 50.0)).variance
    assert float(far) > float(gp(regression().x).variance.max())
    close(far, torch.tensor([[1.7]], dtype=torch.float64), 1e-6)


def test_kernel_of_a_wrong_batch_shape_is_refused():
    with pytest.raises(ValueError, match="batch shape"):
        GaussianProcess(ZeroMean(), RBFKernel(batch_shape=torch.Size([3])), 2)


def test_default_prior_starts_from_the_inputs():
    x = torch.cat([regression(50).x * torch.tensor([1e6, 1e-6]), torch.full((50, 1), 7.0, dtype=torch.float64)], -1)
    lengthscale = default_prior(x).kernel.base_kernel.lengthscale.detach()[0]
    close(lengthscale[:2] / x.std(0, correction=0)[:2], torch.full((2,), 3**0.5, dtype=torch.float64))
    assert lengthscale[2] == pytest.approx(3**0.5)


def test_gradients_reach_the_inputs():
    """Acquisition functions climb the posterior by its gradient in x."""
    gp, x = posterior(SPARSE), test_inputs(3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(gp(x).mean.sum() + gp(x).variance.sum(), x)
    step = 1e-6
    moved = x.detach().clone()
    moved[0, 0] += step
    values = [gp(at).mean.sum() + gp(at).variance.sum() for at in (x.detach(), moved)]
    close(gradient[0, 0], (values[1] - values[0]) / step, 1e-5)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("method", [EXACT, SGPR(learn=False), SVGP(learn=False)], ids=["exact", "sgpr", "svgp"])
def test_values_can_be_drawn_where_the_data_leave_no_variance(method, k):
    """Rounding of k - A'A is in proportion to the variance before the data, 1e8 times that after them."""
    x = torch.linspace(0, 1, 100, dtype=torch.float64).unsqueeze(-1)
    dense = torch.linspace(0, 1, 300, dtype=torch.float64).unsqueeze(-1)
    prior = process(scaled(MaternKernel(nu=2.5), 3.0, 5000.0), k)
    gp = method.infer(prior, noise(1e-8), Data(x, (6 * x).sin().repeat(1, k)), generator=generator()).posterior(dense)
    smallest = torch.linalg.eigvalsh(gp.covariance.to_dense())[0]
    assert smallest < -1e-4 * gp.variance.mean()  # what the diagonal alone would not excuse
    draws = gp.sample(200, generator=generator())
    # the mean of 200 squares has a relative standard error of sqrt(2 / 200) = 0.1; the 600 values are correlated
    assert 0.5 < float((draws - gp.mean).square().mean() / gp.variance.mean()) < 2


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    "kernel",
    [
        ScaleKernel(RBFKernel(active_dims=[0])),
        ScaleKernel(RBFKernel(), active_dims=[0]),
        ScaleKernel(ScaleKernel(RBFKernel(active_dims=[0]))),
    ],
    ids=["base", "outer", "nested"],
)
def test_functions_of_some_columns_keep_their_variance_everywhere(kernel):
    gp = process(kernel)
    x = torch.tensor([[6.0, 0.0], [-6.0, 3.0], [6.0, 9.0]], dtype=torch.float64)
    values = gp.sample_functions(2000, generator=generator())(x).squeeze(-1)
    expected = gp(x).variance.squeeze(-1)
    assert (values.square().mean(0) / expected - 1).abs().max() < 5 * (2 / 2000) ** 0.5  # five standard errors
    close(values[:, 0], values[:, 2], 1e-9)


def test_a_kernel_over_outputs_is_refused_by_name():
    with pytest.raises(ValueError, match=r"MultitaskKernel gives a matrix over outputs.*batch shape"):
        GaussianProcess(ZeroMean(), MultitaskKernel(RBFKernel(), num_tasks=2, rank=1), 2)
