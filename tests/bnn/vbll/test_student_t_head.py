"""The Student-t layer against the evidence of the normal-gamma model."""

import pytest
import torch
from scipy.stats import multivariate_t

from bayeskit import bnn
from tests.bnn.vbll.heads import COVARIANCES, disturbed, problem, seeded

SHAPE, RATE = 2.5, 0.7


def student(features, y, covariance="dense"):
    sizes = features.shape[1], y.shape[1]
    options = {"num_data": len(y), "covariance": covariance, "shape": SHAPE, "rate": RATE, "rank": 2}
    return seeded(bnn.VBLLStudentT, *sizes, **options)


def log_evidence(features, y):
    """y_o ~ t_{2a}(0, b/a (Phi Phi' / d + I)), summed over outputs."""
    n, d = features.shape
    scale = (features @ features.mT / d + torch.eye(n, dtype=features.dtype)) * RATE / SHAPE
    marginal = multivariate_t(shape=scale.numpy(), df=2 * SHAPE)
    return sum(marginal.logpdf(column.numpy()) for column in y.unbind(1))


@pytest.mark.parametrize("covariance", ["dense", "dense_precision"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_loss_at_the_optimum_is_minus_the_log_evidence_per_data_point_and_flat(covariance, outputs):
    features, y = problem(k=outputs)
    layer = student(features, y, covariance)
    assert layer.fit(features, y) == pytest.approx(log_evidence(features, y), abs=1e-10)
    loss = layer.loss(features, y)
    assert -len(y) * loss.item() == pytest.approx(log_evidence(features, y), abs=1e-10)
    loss.backward()
    assert all(value.grad.abs().max() < 1e-12 for value in layer.parameters())


@pytest.mark.monte_carlo
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_no_member_of_the_family_exceeds_the_log_evidence(covariance):
    features, y = problem()
    layer = disturbed(student(features, y, covariance))
    assert -len(y) * layer.loss(features, y).item() < log_evidence(features, y)


def test_the_diagonal_optimum_is_flat():
    features, y = problem()
    layer = student(features, y, "diagonal")
    layer.fit(features, y)
    layer.loss(features, y).backward()
    assert all(value.grad.abs().max() < 1e-12 for value in layer.parameters())


def test_one_data_point_after_the_other_is_all_at_once():
    features, y = problem(n=20)
    batch, stream = student(features, y), student(features, y)
    evidence = batch.fit(features, y)
    parts = [stream.fit(features[:1], y[:1])]
    parts += [stream.partial_fit(features[i : i + 1], y[i : i + 1]) for i in range(1, 20)]
    assert sum(parts) == pytest.approx(evidence, abs=1e-8)
    assert torch.allclose(stream.log_rate, batch.log_rate, rtol=1e-8)
    assert torch.allclose(stream.rows.mean, batch.rows.mean, rtol=1e-8, atol=1e-8)


def test_the_predictive_is_the_ratio_of_evidences():
    """p(y' | y) = p(y, y') / p(y)."""
    features, y = problem(n=12, k=1)
    layer = student(features[:11], y[:11])
    layer.fit(features[:11], y[:11])
    predictive = layer.predictive(features[11:])
    ratio = log_evidence(features, y) - log_evidence(features[:11], y[:11])
    assert float(predictive.log_prob(y[11:])) == pytest.approx(ratio, abs=1e-10)
    assert torch.allclose(predictive.epistemic, layer.values(features[11:]).variance, rtol=1e-10)
