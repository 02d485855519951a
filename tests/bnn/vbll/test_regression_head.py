"""The regression layer against Bayesian linear regression, output by output."""

import math

import pytest
import torch
from torch import distributions as td

from bayeskit import bnn
from bayeskit.bnn.vbll.row_gaussians import precision_of
from tests.bnn.vbll.heads import COVARIANCES, disturbed, problem, regression

EXACT = ("dense", "dense_precision")


def log_evidence(features, y, noise):
    """log N(y_o; 0, Phi Phi' / d + s_o I), summed over outputs."""
    n, d = features.shape
    gram, eye = features @ features.mT / d, torch.eye(n, dtype=features.dtype)
    marginals = [td.MultivariateNormal(torch.zeros(n, dtype=gram.dtype), gram + s * eye) for s in noise]
    return sum(q.log_prob(column) for q, column in zip(marginals, y.unbind(1), strict=True))


@pytest.mark.parametrize("covariance", EXACT)
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_loss_at_the_optimum_is_minus_the_log_evidence_per_data_point_and_flat(covariance, outputs):
    features, y = problem(k=outputs)
    layer = regression(features, y, covariance=covariance)
    evidence = log_evidence(features, y, layer.likelihood.noise)
    assert layer.fit(features, y) == pytest.approx(float(evidence), abs=1e-10)
    loss = layer.loss(features, y)
    assert -len(y) * loss.item() == pytest.approx(float(evidence), abs=1e-10)
    loss.backward()
    assert all(value.grad.abs().max() < 1e-12 for value in layer.rows.parameters())


@pytest.mark.monte_carlo
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_no_member_of_the_family_exceeds_the_log_evidence(covariance):
    features, y = problem()
    layer = disturbed(regression(features, y, covariance=covariance))
    with torch.no_grad():
        assert -len(y) * layer.loss(features, y) < log_evidence(features, y, layer.likelihood.noise)


@pytest.mark.monte_carlo
def test_the_diagonal_optimum_falls_short_by_the_known_gap():
    """Mean and precisions are those of the posterior; the gap is (log det diag(1 / P_dd) - log det P^-1) / 2."""
    features, y = problem()
    layer = regression(features, y, covariance="diagonal")
    noise = layer.likelihood.noise.detach()
    precision = layer.prior.matrices() + (features.mT @ features) / noise[:, None, None]
    gap = 0.5 * (torch.logdet(precision) - precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)).sum()
    reached = layer.fit(features, y)
    assert gap < -0.1
    assert reached == pytest.approx(float(log_evidence(features, y, noise) + gap), abs=1e-10)
    loss = layer.loss(features, y)
    loss.backward()
    assert all(value.grad.abs().max() < 1e-12 for value in layer.rows.parameters())


@pytest.mark.monte_carlo
def test_low_rank_lies_between_diagonal_and_dense_and_is_dense_at_full_rank():
    features, y = problem()
    bounds = {c: regression(features, y, covariance=c).fit(features, y) for c in COVARIANCES}
    assert bounds["diagonal"] < bounds["low_rank"] < bounds["dense"]
    full = regression(*problem(d=2), covariance="low_rank")  # rank 2 of 2
    dense = regression(*problem(d=2))
    assert full.fit(*problem(d=2)) == pytest.approx(dense.fit(*problem(d=2)), abs=1e-6)  # found by L-BFGS


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_operator_is_the_dense_covariance_point_major(covariance):
    features, y = problem()
    layer = disturbed(regression(features, y, covariance=covariance))
    values = layer.values(features[:4])
    weights = layer.rows.operator().to_dense().detach()  # (k, d, d)
    dense = torch.zeros(4, 3, 4, 3, dtype=torch.float64)
    for o in range(3):
        dense[:, o, :, o] = features[:4] @ weights[o] @ features[:4].mT
    assert torch.allclose(values.covariance.to_dense(), dense.reshape(12, 12), rtol=1e-12)
    assert torch.allclose(values.mean, features[:4] @ layer.rows.mean.mT, rtol=1e-12)
    assert torch.allclose(values.variance, layer.rows.variance(features[:4]), rtol=1e-12)
    noise = layer.likelihood.noise
    assert torch.allclose(layer.predictive(features[:4]).variance, values.variance + noise, rtol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_trace_log_determinant_and_divergence(covariance):
    features, y = problem()
    layer = disturbed(regression(features, y, covariance=covariance))
    rows, prior = layer.rows, layer.prior
    weights = rows.operator().to_dense().detach()
    full = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    full = full @ full.mT
    assert torch.allclose(rows.trace(full), (full * weights).sum((-2, -1)), rtol=1e-12)
    assert torch.allclose(rows.logdet(), torch.logdet(weights), rtol=1e-10)
    assert torch.allclose(precision_of(rows.operator()) @ weights, torch.eye(5, dtype=torch.float64), atol=1e-10)
    for precision in (prior.precision, full):
        p = bnn.vbll.RowPrior(torch.ones(3, 5, dtype=torch.float64), precision)
        exact = td.kl_divergence(
            td.MultivariateNormal(rows.mean.detach(), weights),
            td.MultivariateNormal(p.mean, precision_matrix=p.matrices()),
        )
        assert torch.allclose(p.divergence(rows), exact, rtol=1e-10)


@pytest.mark.parametrize("covariance", EXACT)
def test_one_data_point_after_the_other_is_all_at_once(covariance):
    features, y = problem(n=20)
    batch, stream = regression(features, y, covariance=covariance), regression(features, y, covariance=covariance)
    evidence = batch.fit(features, y)
    parts = [stream.fit(features[:1], y[:1])]
    parts += [stream.partial_fit(features[i : i + 1], y[i : i + 1]) for i in range(1, 20)]
    assert sum(parts) == pytest.approx(evidence, abs=1e-8)
    assert torch.allclose(stream.rows.mean, batch.rows.mean, rtol=1e-8, atol=1e-8)
    both = [layer.rows.operator().to_dense() for layer in (stream, batch)]
    assert torch.allclose(*both, rtol=1e-8, atol=1e-10)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("outputs", [1, 2])
def test_learnt_noise_is_that_of_the_largest_evidence(outputs):
    features, y = problem(n=40, k=outputs)
    layer = regression(features, y, learn_noise=True)
    layer.fit(features, y)
    best = layer.likelihood.noise.detach()
    reached = log_evidence(features, y, best)
    for factor in (0.99, 1.01):  # a maximum of each output's own
        for o in range(outputs):
            other = best.clone()
            other[o] *= factor
            assert log_evidence(features, y, other) < reached


def test_missing_targets_of_an_output_are_as_if_it_had_fewer_data():
    features, y = problem()
    gaps = y.clone()
    gaps[10:, 1] = math.nan
    layer, whole, short = (regression(features, y) for _ in range(3))
    layer.fit(features, gaps)
    whole.fit(features, y)
    short.fit(features[:10], y[:10])
    for o, like in ((0, whole), (1, short), (2, whole)):
        assert torch.allclose(layer.rows.mean[o], like.rows.mean[o], rtol=1e-9)


def test_the_prior_of_the_noise_enters_the_loss():
    features, y = problem()
    prior = bnn.InverseWishart(dof=2.0, scale=0.5)
    plain, with_prior = regression(features, y), regression(features, y, noise_prior=prior)
    s = plain.likelihood.noise.detach()
    density = -(2 + 3 + 1) / 2 * s.log().sum() - 0.25 * (1 / s).sum()
    gap = with_prior.loss(features, y) - plain.loss(features, y)
    assert gap.item() == pytest.approx(float(-density) / 30, rel=1e-10)


def test_kl_weight_and_num_data_scale_the_divergence_alone():
    features, y = problem()
    one, other = regression(features, y), regression(features, y, kl_weight=0.5)
    gap = one.loss(features, y) - other.loss(features, y)
    assert gap.item() == pytest.approx(0.5 * one.divergence().item() / 30, rel=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gradients_by_finite_differences(covariance):
    features, y = problem(n=6, d=3, k=2)
    layer = disturbed(regression(features, y, covariance=covariance, learn_noise=True))
    names, values = zip(*layer.named_parameters(), strict=True)

    def loss(phi, *parameters):
        parts = torch.func.functional_call(
            _Loss(layer, y), {f"layer.{n}": p for n, p in zip(names, parameters, strict=True)}, (phi,)
        )
        return parts

    inputs = [features.clone().requires_grad_(), *(v.detach().clone().requires_grad_() for v in values)]
    assert torch.autograd.gradcheck(loss, inputs)


class _Loss(torch.nn.Module):
    def __init__(self, layer, y):
        super().__init__()
        self.layer, self.y = layer, y

    def forward(self, features):
        return self.layer.loss(features, self.y)


def test_an_unknown_covariance_is_refused():
    with pytest.raises(ValueError, match="did you mean 'dense'"):
        bnn.VBLLRegression(3, 1, num_data=10, covariance="dens")
