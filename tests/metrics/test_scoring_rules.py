"""Scores against closed forms, scikit-learn and independent integrals."""

import math

import numpy as np
import pytest
import torch
from linear_operator import to_linear_operator
from scipy import integrate, stats
from sklearn.metrics import brier_score_loss, log_loss

from bayeskit import metrics
from bayeskit.core.posterior import GaussianValues
from bayeskit.core.predictive import GaussianPredictive, MixturePredictive, StudentTPredictive

RNG = np.random.default_rng(0)


def gaussian(mean, std):
    mean, std = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64)
    values = GaussianValues(mean[:, None], to_linear_operator(torch.diag(std**2 / 2)))
    return GaussianPredictive(values, (std**2 / 2)[:, None]).squeeze()


def normal_mixture(means, stds):
    to = [torch.as_tensor(np.asarray(v, dtype=float)).reshape(len(means), 1, 1) for v in (means, stds)]
    return MixturePredictive(torch.distributions.Normal(*to)).squeeze()


def crps_integral(cdf, y, low=-60.0, high=60.0):
    below = integrate.quad(lambda x: cdf(x) ** 2, low, y, limit=500, points=[-1.0] if y > -1 else None)[0]
    return below + integrate.quad(lambda x: (1 - cdf(x)) ** 2, y, high, limit=500, points=[1.0] if y < 1 else None)[0]


def test_negative_log_likelihood_of_probabilities_is_log_loss():
    p, y = RNG.dirichlet(np.ones(4), 50), np.arange(50) % 4
    assert metrics.negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p), abs=1e-12)


def test_negative_log_likelihood_of_a_predictive_is_its_marginal_density():
    mean, std, y = RNG.normal(size=20), RNG.uniform(0.5, 2, 20), RNG.normal(size=20)
    expected = -stats.norm.logpdf(y, mean, std).mean()
    assert metrics.negative_log_likelihood(gaussian(mean, std), y) == pytest.approx(expected, abs=1e-12)


def test_a_mixture_is_scored_as_a_mixture():
    predictive = normal_mixture([-3.0, 3.0], [0.1, 0.1])
    density = 0.5 * stats.norm.pdf(3.0, 3.0, 0.1) + 0.5 * stats.norm.pdf(3.0, -3.0, 0.1)
    assert metrics.negative_log_likelihood(predictive, [3.0]) == pytest.approx(-math.log(density), abs=1e-12)


def test_certain_and_wrong_costs_infinity():
    assert metrics.negative_log_likelihood([[1.0, 0.0]], [1]) == math.inf


def test_brier_for_two_classes_is_twice_the_one_column_version():
    p, y = RNG.uniform(size=30), RNG.integers(0, 2, 30)
    assert metrics.brier(p, y) == pytest.approx(2 * brier_score_loss(y, p), abs=1e-12)


def test_crps_of_a_gaussian_is_its_integral():
    for mean, std, y in ((0.0, 1.0, 0.3), (2.0, 0.1, 2.5), (-1.0, 3.0, -9.0)):
        expected = crps_integral(lambda x, m=mean, s=std: stats.norm.cdf(x, m, s), y)
        assert metrics.crps(gaussian([mean], [std]), [y]) == pytest.approx(expected, abs=1e-7)  # quad's own tolerance


def test_crps_of_a_gaussian_is_gneiting_and_raftery_equation_21():
    mean, std, y = RNG.normal(size=40), RNG.uniform(0.1, 2, 40), RNG.normal(size=40)
    z = (y - mean) / std
    expected = std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    assert metrics.crps(gaussian(mean, std), y) == pytest.approx(expected.mean(), abs=1e-12)


def test_crps_of_a_normal_mixture_is_its_integral():
    means, stds = [-1.0, 1.0, 1.2], [0.5, 0.02, 2.0]
    for y in (-2.0, 0.99, 4.0):
        expected = crps_integral(lambda x: stats.norm.cdf(x, means, stds).mean(), y)
        assert metrics.crps(normal_mixture(means, stds), [y]) == pytest.approx(expected, abs=1e-6)


def test_crps_by_quadrature_agrees_with_the_closed_form(monkeypatch):
    predictive, y = normal_mixture([-1.0, 1.0, 1.2], [0.5, 0.02, 2.0]), [0.99]
    exact = metrics.crps(predictive, y)
    monkeypatch.setattr("bayeskit.metrics.scoring_rules._MAX_COMPONENTS", 0)
    assert metrics.crps(predictive, y) == pytest.approx(exact, abs=1e-5)  # the tails outside hold 2e-6


def test_crps_of_student_t_by_quadrature():
    loc, scale, df = (torch.tensor([[v]], dtype=torch.float64) for v in (0.5, 2.0, 5.0))
    predictive = StudentTPredictive(loc, scale, df)
    expected = crps_integral(lambda x: stats.t.cdf(x, 5.0, 0.5, 2.0), 1.7, -5000, 5000)
    assert metrics.crps(predictive, [1.7]) == pytest.approx(expected, abs=1e-4)


def test_crps_scales_with_the_units():
    predictive, y = normal_mixture([-1.0, 1.0], [0.5, 0.2]), torch.tensor([0.3], dtype=torch.float64)
    assert metrics.crps(predictive.affine(5.0, 10.0), 5 + 10 * y) == pytest.approx(
        10 * metrics.crps(predictive, y), abs=1e-12
    )


@pytest.mark.monte_carlo
def test_interval_score_is_minimized_at_the_true_quantiles():
    y = np.random.default_rng(1).normal(size=20_000)
    q = stats.norm.ppf(0.95)

    def score(width):
        return metrics.interval_score(np.full(len(y), -width), np.full(len(y), width), y, level=0.9)

    assert score(q) < min(score(q - 0.3), score(q + 0.3))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="rows that sum to 1"):
        metrics.brier([[0.5, 0.1]], [0])
    with pytest.raises(ValueError, match="integers from 0 to 1"):
        metrics.accuracy([[0.5, 0.5]], [2])
    with pytest.raises(TypeError, match="searchsorted"):
        metrics.accuracy([[0.5, 0.5]], ["a"])
    with pytest.raises(ValueError, match="same shape"):
        metrics.rmse([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="swap"):
        metrics.interval_score([1.0], [0.0], [0.0])
    with pytest.raises(ValueError, match="finite"):
        metrics.rmse([float("nan")], [1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 10, 300])
@pytest.mark.parametrize("metric", [metrics.brier, metrics.negative_log_likelihood, metrics.accuracy])
def test_probabilities_of_lower_precision_give_the_value_to_that_precision(metric, num_classes, dtype):
    logits = 3 * torch.randn(200, num_classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, p = torch.arange(200) % num_classes, logits.softmax(-1)
    low = p.to(dtype)
    usable = [low] if dtype == torch.bfloat16 else [low, low.numpy()]  # NumPy has no bfloat16
    for given in usable:
        keep = low.gather(1, label[:, None])[:, 0] > 1e-3  # below, float16 has no relative precision left
        told = metric(given[keep if isinstance(given, torch.Tensor) else keep.numpy()], label[keep])
        eps = torch.finfo(dtype).eps
        assert told == pytest.approx(metric(p[keep], label[keep]), rel=8 * eps, abs=8 * eps + 1e-12)


def test_rows_that_do_not_sum_to_one_are_refused_in_every_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        with pytest.raises(ValueError, match="rows that sum to 1"):
            metrics.brier(torch.full((3, 2), 0.4, dtype=dtype), [0, 1, 1])
