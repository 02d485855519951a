import pytest
import torch

from bayeskit.core.likelihood import Bernoulli, Gaussian, Poisson
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SVGP, Exact, OrthogonalSVGP, default_prior
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound, optimal_q

from ..problems import close, constant, generator, noise, process, rbf, regression, same_gp, test_inputs

SHORT = OrthogonalSVGP(num_inducing=7, num_orthogonal=5, training=Training(lr=0.05, max_epochs=15, batch_size=32))
Z, W = test_inputs(6), test_inputs(4, seed=7)
FROZEN = {"learn": False, "learn_inducing": False}


def fit(data, prior, likelihood, method=SHORT):
    return method.infer(prior, likelihood, data, generator=generator())


def problem(k=1, kernel=None):
    data = regression(40, k=k)
    prior, likelihood = process(kernel, k=k, mean=constant(0.2, k)), noise([0.05, 0.2][:k])
    return learnable(prior, likelihood, learn=False), training_set(prior, likelihood, data)


def some_q(k, m, seed):
    g = generator(seed)
    root = torch.eye(m, dtype=torch.float64) + 0.3 * torch.randn(k, m, m, dtype=torch.float64, generator=g).triu()
    return WhitenedGaussian(torch.randn(k, m, dtype=torch.float64, generator=g), root)


def both(one, two):
    """The independent Gaussian over the values of both."""
    roots = [torch.block_diag(first, second) for first, second in zip(one.root, two.root, strict=True)]
    return WhitenedGaussian(torch.cat([one.mean, two.mean], -1), torch.stack(roots))


def part(w):
    return torch.tensor([0] * len(Z) + [1] * len(w))


def optimum(model, w, rows, k=1, **settings):
    """The best q(a) q(b) at Z and w, from the prior, and its bound."""
    points = torch.cat([Z, w])
    return optimal_q(model, points, WhitenedGaussian.prior(k, points), rows, independent=part(w), **settings)


@pytest.mark.parametrize("k", [1, 2])
def test_the_two_parts_are_independent_gaussians_of_the_process(k):
    """Mean [m_u; T m_u + m_v] and covariance [[C_u, C_u T'], [T C_u, T C_u T' + C_v]], T = K_wz K_zz^-1."""
    model, _ = problem(k)
    one, two = some_q(k, 6, 0), some_q(k, 4, 1)
    K = gram(model.kernel, torch.cat([Z, W]), torch.cat([Z, W]))
    T = torch.linalg.solve(K[:6, :6], K[:6, 6:]).mT
    lower_u, lower_v = torch.linalg.cholesky(K[:6, :6]), torch.linalg.cholesky(K[6:, 6:] - T @ K[:6, 6:])
    m_u, m_v = (one.mean @ lower_u.mT), (two.mean @ lower_v.mT)
    C_u, C_v = (left @ (v.root @ v.root.mT) @ left.mT for left, v in ((lower_u, one), (lower_v, two)))
    covariance = torch.cat([torch.cat([C_u, C_u @ T.mT], -1), torch.cat([T @ C_u, T @ C_u @ T.mT + C_v], -1)], -2)
    at = both(one, two).posterior(model, torch.cat([Z, W]))(torch.cat([Z, W]))
    close(at.mean.mT, 0.2 + torch.cat([m_u, m_u @ T.mT + m_v], -1))
    joint = at.covariance.to_dense().reshape(10, k, 10, k)
    for j in range(k):
        close(joint[:, j, :, j], covariance[j])
    close(both(one, two).divergence(), one.divergence() + two.divergence())


def test_without_orthogonal_points_or_at_their_prior_it_is_svgp():
    model, rows = problem()
    one, x = some_q(1, 6, 0), test_inputs(seed=9)
    at_prior = both(one, WhitenedGaussian.prior(1, W))
    close(bound(model, torch.cat([Z, W]), at_prior, rows), bound(model, Z, one, rows))
    same_gp(at_prior.posterior(model, torch.cat([Z, W])), one.posterior(model, Z), x)
    q, value = optimum(model, W[:0], rows, max_steps=2)
    best, reference = optimal_q(model, Z, WhitenedGaussian.prior(1, Z), rows, max_steps=2)
    close(q.mean, best.mean)
    assert abs(value - reference) < 1e-8


def test_the_method_without_orthogonal_points_is_svgp():
    data = regression(40)
    ours = fit(data, process(), noise(), OrthogonalSVGP(num_inducing=8, num_orthogonal=0, **FROZEN))
    theirs = fit(data, process(), noise(), SVGP(num_inducing=8, **FROZEN))
    assert abs(float(ours.log_evidence) - float(theirs.log_evidence)) < 1e-8
    same_gp(ours.posterior, theirs.posterior, test_inputs())


@pytest.mark.monte_carlo
@pytest.mark.parametrize("k", [1, 2])
def test_one_step_is_the_closed_optimum_for_gaussian_noise(k):
    """Precisions are the diagonal blocks of I + A A' / s, means solve the whole system."""
    model, rows = problem(k)
    q, value = optimum(model, W, rows, k, max_steps=1)
    full = collapsed(model, torch.cat([Z, W]), rows)
    precision = (full.tril_b @ full.tril_b.mT).expand(k, -1, -1)
    within = part(W).unsqueeze(-1) == part(W)
    close(torch.linalg.inv(q.root @ q.root.mT), precision * within)
    close(q.mean, full.whitened, 1e-6)
    assert abs(bound(model, torch.cat([Z, W]), q, rows).item() - value) < 1e-8
    assert collapsed(model, Z, rows).bound.item() <= value <= full.bound.item() + 1e-8


def test_the_end_is_a_stationary_point_of_the_bound():
    model, rows = problem()
    model = learnable(process(), Poisson(), learn=False)
    counts = Data(rows.x, torch.poisson(rows.y.exp(), generator=generator()))
    q, value = optimum(model, W, counts, max_steps=1000, tolerance=1e-14)
    mean, root = q.leaves()
    within = part(W).unsqueeze(-1) == part(W)
    at = bound(model, torch.cat([Z, W]), WhitenedGaussian(mean, root * within), counts)
    assert abs(at.item() - value) < 1e-8
    for gradient in torch.autograd.grad(at, [mean, root]):
        assert float(gradient.abs().max()) < 1e-4
    whole = torch.cat([Z, W])
    assert value <= optimal_q(model, whole, WhitenedGaussian.prior(1, whole), counts, max_steps=100)[1] + 1e-8
    assert value >= optimal_q(model, Z, WhitenedGaussian.prior(1, Z), counts, max_steps=100)[1] - 1e-6


def test_no_step_lowers_the_bound():
    model, rows = problem()
    labels = Data(rows.x, (rows.y[:, 0] > 0).long())
    model = learnable(process(), Bernoulli(), learn=False)
    values = [optimum(model, W, labels, max_steps=i, tolerance=0.0)[1] for i in range(8)]
    assert values == sorted(values)


@pytest.mark.monte_carlo
def test_repeated_and_crowded_points_do_not_fail():
    model, rows = problem(kernel=rbf())
    for w in (Z.clone(), Z[:3] + 1e-9, Z[:1].repeat(5, 1)):
        q, value = optimum(model, w, rows, max_steps=20)
        values = q.posterior(model, torch.cat([Z, w]))(test_inputs())
        assert torch.isfinite(values.mean).all() and (values.variance >= 0).all()
        assert value <= collapsed(model, torch.cat([Z, w]), rows).bound.item() + 1e-3


@pytest.mark.monte_carlo
def test_points_that_are_all_the_inputs_are_nearly_exact():
    """The joint posterior of exact regression is not block-diagonal: the bound stays below, the mean is exact."""
    data = regression(20)
    method = OrthogonalSVGP(num_inducing=10, num_orthogonal=10, **FROZEN)
    ours, exact = fit(data, process(), noise(), method), fit(data, process(), noise(), Exact(learn=False))
    assert float(ours.log_evidence) <= float(exact.log_evidence) + 1e-8
    close(ours.posterior(data.x).mean, exact.posterior(data.x).mean, 1e-2)


@pytest.mark.monte_carlo
def test_learning_improves_the_bound():
    data = regression(60)
    prior = default_prior(data.x)
    fixed = fit(data, prior, Gaussian(), OrthogonalSVGP(num_inducing=7, num_orthogonal=5, **FROZEN))
    assert float(fit(data, prior, Gaussian()).log_evidence) > float(fixed.log_evidence) + 1


def test_float32_and_degenerate_data():
    for data in (regression(1), Data(torch.zeros(20, 2), torch.zeros(20, 1)), regression(20).to(dtype=torch.float32)):
        values = fit(data, default_prior(data.x), Gaussian()).posterior(data.x)
        assert torch.isfinite(values.mean).all() and (values.variance >= 0).all()
