from itertools import pairwise

import pytest
import torch
from gpytorch.kernels import MaternKernel
from gpytorch.means import ZeroMean

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data
from bayeskit.gp import SGPR, Exact, GaussianProcess, default_prior
from bayeskit.gp.methods.sgpr import default_num_inducing
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.variational.collapsed_bound import collapsed

from ..problems import close, constant, generator, noise, process, regression, same_gp, test_inputs


def fit(data, prior=None, likelihood=None, method=None):
    method = method or SGPR(learn=False, learn_inducing=False)
    return method.infer(prior or process(k=data.y.shape[-1]), likelihood or noise(), data, generator=generator())


def exact(data, prior=None, likelihood=None):
    return fit(data, prior, likelihood, Exact(learn=False))


def bound(data, z, prior=None, likelihood=None):
    model = learnable(prior or process(k=data.y.shape[-1]), likelihood or noise(), learn=True)
    return collapsed(model, z, training_set(process(k=data.y.shape[-1]), noise(), data)).bound, model


@pytest.mark.parametrize("k", [1, 3])
def test_with_all_inputs_it_is_exact(k):
    data, x = regression(k=k), test_inputs()
    levels = [0.05, 0.1, 0.3][:k]
    prior = process(k=k, mean=constant([0.1, -0.2, 0.3][:k], k))
    sparse, full = fit(data, prior, noise(levels)), exact(data, prior, noise(levels))
    assert abs(float(sparse.log_evidence) - float(full.log_evidence)) < 1e-8
    same_gp(sparse.posterior, full.posterior, x)
    assert sparse.diagnostics["jitter of K_zz"] == 0


def test_with_kernels_of_their_own_it_is_exact():
    data, x = regression(k=2), test_inputs(2)
    kernel = MaternKernel(batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.5]], [[1.5]]], dtype=torch.float64)
    prior = GaussianProcess(ZeroMean(), kernel, 2)
    sparse, full = fit(data, prior), exact(data, prior)
    assert abs(float(sparse.log_evidence) - float(full.log_evidence)) < 1e-8
    same_gp(sparse.posterior, full.posterior, x)


@pytest.mark.monte_carlo
def test_bound_is_below_the_evidence_and_grows_with_every_point():
    data = regression(40)
    evidence = float(exact(data).log_evidence)
    values = [bound(data, data.x[:m])[0].item() for m in range(1, 41, 3)]
    assert all(low <= high + 1e-9 for low, high in pairwise(values))
    assert values[0] < values[-1] - 1
    assert values[-1] <= evidence + 1e-9


@pytest.mark.parametrize("levels", [0.05, [0.05, 0.2]])
@pytest.mark.parametrize("weighted", [False, True])
def test_bound_and_gradients_equal_the_textbook(levels, weighted):
    data = regression(k=2)
    if weighted:
        data = Data(data.x, data.y, 0.5 + torch.rand(len(data), dtype=torch.float64, generator=generator()))
    rows = training_set(process(k=2), noise(), data)
    z = test_inputs(6).requires_grad_(True)
    value, model = bound(data, z, process(mean=constant(0.2, 2), k=2), Gaussian(levels))
    eye = torch.eye(len(rows), dtype=torch.float64)
    cross = model.kernel(z, rows.x).to_dense()
    low_rank = cross.mT @ torch.linalg.solve(model.kernel(z).to_dense(), cross)
    weights = torch.ones(len(rows), dtype=torch.float64) if rows.weights is None else rows.weights
    expected = 0.0
    for j in range(2):
        level = model.likelihood.noise.expand(2)[j]
        marginal = torch.distributions.MultivariateNormal(model.mean(rows.x)[j], low_rank + eye * level / weights)
        lost = model.kernel(rows.x, diag=True) - low_rank.diagonal()
        expected = expected + marginal.log_prob(rows.y[:, j]) - 0.5 * (weights * lost).sum() / level
        expected = expected - 0.5 * ((weights - 1) * (2 * torch.pi * level).log() + weights.log()).sum()
    close(value, expected)
    leaves = [*model.parameters, z]
    for one, two in zip(*(torch.autograd.grad(v, leaves) for v in (value, expected)), strict=True):
        close(one, two, 1e-7)


def test_blocks_and_recomputation_change_nothing(monkeypatch):
    data, z = regression(50), test_inputs(7)
    results = []
    for block, kept in ((2**19, 2**28), (7 * 8, 2**28), (7 * 8, 0)):
        monkeypatch.setattr("bayeskit.gp.variational.collapsed_bound.BLOCK_ELEMENTS", block)
        monkeypatch.setattr("bayeskit.gp.variational.collapsed_bound.KEPT_ELEMENTS", kept)
        where = z.clone().requires_grad_(True)
        value, model = bound(data, where)
        results.append((value, *torch.autograd.grad(value, [*model.parameters, where])))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            close(one, two, 1e-10)


def test_fold_over_three_tasks_keeps_every_conditioning():
    """With all inputs of each task as inducing points, the fold is the exact batch."""
    data, x = regression(36), test_inputs()
    posterior = process()
    for start in (0, 12, 24):
        posterior = fit(data.rows(slice(start, start + 12)), posterior).posterior
    same_gp(posterior, exact(data).posterior, x)


def test_sparse_prior_is_conditioned_without_loss():
    """A sparse posterior as prior of an exact fit: equal to conditioning its joint distribution by hand."""
    data, x = regression(40), test_inputs()
    first = SGPR(num_inducing=6, learn=False, learn_inducing=False)
    prior = fit(data, method=first).posterior
    more = regression(9, seed=5)
    folded = exact(more, prior).posterior
    joint = prior(torch.cat([x, more.x]))
    covariance, mean = joint.covariance.to_dense(), joint.mean
    n = len(x)
    gain = torch.linalg.solve(covariance[n:, n:] + 0.05 * torch.eye(9, dtype=torch.float64), covariance[n:, :n]).mT
    close(folded(x).mean, mean[:n] + gain @ (more.y - mean[n:]))
    close(folded(x).covariance.to_dense(), covariance[:n, :n] - gain @ covariance[n:, :n])


def test_integer_weights_are_repeated_rows():
    data, x = regression(24), test_inputs()
    weights = torch.arange(24, dtype=torch.float64) % 4
    repeated = data.rows(torch.arange(24).repeat_interleave(weights.long()))
    method = SGPR(num_inducing=8, learn=False, learn_inducing=False)
    one, two = fit(Data(data.x, data.y, weights), method=method), fit(repeated, method=method)
    same_gp(one.posterior, two.posterior, x)
    assert abs(float(one.log_evidence) - float(two.log_evidence)) < 1e-8


@pytest.mark.parametrize("start", ["greedy", "kmeans"])
def test_order_of_rows_changes_nothing(start):
    data, x = regression(50), test_inputs()
    shuffled = data.rows(torch.randperm(len(data), generator=generator()))
    method = SGPR(num_inducing=8, max_iter=5, start=start)
    one, two = (fit(d, default_prior(d.x), Gaussian(), method) for d in (data, shuffled))
    same_gp(one.posterior, two.posterior, x, 1e-9)


def test_no_data_returns_the_prior():
    prior = process(mean=constant(0.3))
    same_gp(fit(regression().rows(slice(0, 0)), prior).posterior, prior, test_inputs(), 0)


@pytest.mark.monte_carlo
def test_few_points_suffice_for_a_smooth_function():
    data, x = regression(200, d=1), torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
    sparse = fit(data, default_prior(data.x), Gaussian(), SGPR(num_inducing=12))
    full = fit(data, default_prior(data.x), Gaussian(), Exact())
    assert float(sparse.log_evidence) > float(full.log_evidence) - 0.5
    close(sparse.posterior(x).mean, full.posterior(x).mean, 2e-2)


@pytest.mark.monte_carlo
def test_low_noise_keeps_its_coverage():
    """Noise of variance 4e-6 under a smooth function: the predictive neither collapses nor inflates."""
    g = generator(3)
    x = torch.rand(1500, 2, dtype=torch.float64, generator=g) * 4
    truth = (x[:, :1]).sin() * (0.7 * x[:, 1:]).cos()
    y = truth + 2e-3 * torch.randn(1500, 1, dtype=torch.float64, generator=g)
    method = SGPR(num_inducing=100, max_iter=200, learning_rows=400)
    result = fit(Data(x[:1200], y[:1200]), default_prior(x), Gaussian(), method)
    values = result.posterior(x[1200:])
    std = (values.variance + result.likelihood.noise).sqrt()
    covered = ((values.mean - y[1200:]).abs() < 1.96 * std).double().mean()
    assert 0.887 < float(covered) < 1  # 300 points at 0.95: five standard errors of 0.0126
    assert float(std.median()) < 4e-3


@pytest.mark.monte_carlo
def test_few_distinct_inputs_and_constant_columns():
    x = torch.tensor([[0.0, 2.0], [1.0, 2.0], [2.0, 2.0]], dtype=torch.float64).repeat(10, 1)
    data = Data(x, x[:, :1].sin())
    result = fit(data, default_prior(x), Gaussian(), SGPR())
    assert result.diagnostics["inducing points"] == 3
    assert float((result.posterior(x).mean - data.y).abs().max()) < 0.05


def test_without_settings_there_are_as_many_points_as_the_rows_deserve():
    data = regression(300)
    result = fit(data, default_prior(data.x), Gaussian(), SGPR(max_iter=5))
    assert result.diagnostics["inducing points"] == default_num_inducing(300) == 260
    assert default_num_inducing(1_000_000) ** 2 * 1e6 <= 4.01e11


@pytest.mark.monte_carlo
@pytest.mark.parametrize("learning", ["bound", "subset"])
def test_both_ways_of_learning_find_the_function(learning):
    """Many rows, few points: lengthscales from 100 rows, and either the bound or rows left out for the rest."""
    data, x = regression(600, d=1), torch.linspace(-1.5, 1.5, 20, dtype=torch.float64).unsqueeze(-1)
    method = SGPR(num_inducing=25, learning=learning, learning_rows=100, max_iter=30)
    result = fit(data, default_prior(data.x), Gaussian(), method)
    close(result.posterior(x).mean, x.sin(), 0.06)
    assert 0.006 < float(result.likelihood.noise) < 0.018  # 0.01 in truth, and 120 rows are left out
    assert result.diagnostics["rows used to learn hyperparameters"] == 100
    again = fit(data, default_prior(data.x), Gaussian(), method)
    assert torch.equal(again.posterior(x).mean, result.posterior(x).mean)


def test_a_bound_learnt_from_a_subset_is_below_the_evidence():
    data = regression(200, d=1)
    result = fit(data, default_prior(data.x), Gaussian(), SGPR(num_inducing=15, learning="subset", learning_rows=80))
    kernel = result.posterior.kernel.base
    full = Exact(learn=False).infer(
        GaussianProcess(result.posterior.mean.base_mean, kernel), result.likelihood, data, generator=generator()
    )
    assert float(result.log_evidence) <= float(full.log_evidence) + 1e-9


def test_order_of_rows_changes_nothing_when_some_are_left_out():
    data, x = regression(150), test_inputs()
    shuffled = data.rows(torch.randperm(len(data), generator=generator()))
    method = SGPR(num_inducing=20, max_iter=5, learning="subset", learning_rows=60, restarts=1)
    one, two = (fit(d, default_prior(d.x), Gaussian(), method) for d in (data, shuffled))
    same_gp(one.posterior, two.posterior, x, 1e-9)


def test_settings_are_checked():
    data = regression(5)
    with pytest.raises(ValueError, match="did you mean 'subset'"):
        fit(data, method=SGPR(learning="subste"))
    with pytest.raises(ValueError, match="learning_rows"):
        fit(data, method=SGPR(learning_rows=0))


@pytest.mark.parametrize("n", [1, 2, 6])
def test_few_rows_are_enough(n):
    data = regression(n)
    result = fit(data, default_prior(data.x), Gaussian(), SGPR(num_inducing=1, learning="subset", max_iter=3))
    assert bool((result.posterior(data.x).variance >= 0).all())
