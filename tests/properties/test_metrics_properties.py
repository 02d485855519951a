"""Metrics of any predictions and observations: a number in its range, or a sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayeskit import metrics

from .containers import CONTAINERS, NAMES, numbers, rows_of, seeds
from .outcomes import answer

pytestmark = pytest.mark.properties


@st.composite
def predictions(draw):
    """Probabilities (n, c) or (n,), sure ones and invalid ones among them, with labels that fit or do not."""
    rng = np.random.default_rng(draw(seeds))
    n, c = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    p = rng.dirichlet(np.full(c, 10.0 ** draw(st.integers(-3, 2))), size=n)
    kind = draw(st.sampled_from(["valid"] * 6 + ["vector", "not normalized", "negative", "nan", "three axes"]))
    if kind == "vector":
        p = p[:, 0]
    elif kind == "not normalized":
        p = 2 * p
    elif kind == "negative":
        p = p - 0.1
    elif kind == "nan" and p.size:
        p.flat[0] = np.nan
    elif kind == "three axes":
        p = p[None]
    codes = rng.integers(0, draw(st.sampled_from([c, c, c, c + 1])), size=n)
    containers = draw(st.sampled_from([name for name in CONTAINERS if name != "tensor with gradient"]))
    return CONTAINERS[containers](p), NAMES[draw(st.sampled_from(list(NAMES)))](codes)


@pytest.mark.parametrize(
    ("metric", "high"),
    [
        (metrics.accuracy, 1),
        (metrics.brier, 2),
        (metrics.expected_calibration_error, 1),
        (metrics.negative_log_likelihood, np.inf),
    ],
)
@given(case=predictions())
def test_scores_of_probabilities(metric, high, case):
    p, codes = case
    score = answer(lambda: metric(p, codes), "p", "labels", "y")
    assert score is None or 0 <= score <= high + 1e-3  # probabilities in half precision are rounded at 5e-4


@given(case=predictions(), other=predictions())
def test_total_variation(case, other):
    distance = answer(lambda: metrics.total_variation(case[0], other[0]), "p", "q")
    assert distance is None or ((distance >= 0) & (distance <= 1 + 1e-3)).all()


@given(data=st.data(), rows=st.integers(0, 6))
def test_rmse(data, rows):
    mean, y = data.draw(numbers(rows=rows)), data.draw(numbers(rows=rows))
    score = answer(lambda: metrics.rmse(mean, y), "mean", "y")
    assert score is None or 0 <= score < np.inf


@given(data=st.data(), rows=st.integers(0, 6), level=st.floats(-0.5, 1.5))
def test_interval_score(data, rows, level):
    low, high, y = (data.draw(numbers(rows=rows)) for _ in range(3))
    score = answer(lambda: metrics.interval_score(low, high, y, level=level), "low", "high", "y", "level")
    assert score is None or 0 <= score < np.inf


@pytest.mark.parametrize("metric", [metrics.ood_auroc, metrics.ood_aupr, metrics.ood_fpr95])
@given(data=st.data(), inside=st.integers(0, 6), outside=st.integers(0, 6))
def test_ood_scores(metric, data, inside, outside):
    first, second = data.draw(numbers(rows=inside)), data.draw(numbers(rows=outside))
    score = answer(lambda: metric(first, second), "in_scores", "out_scores")
    assert score is None or 0 <= score <= 1


@given(data=st.data(), rows=st.integers(0, 6))
def test_selective_prediction(data, rows):
    losses, uncertainty = data.draw(numbers(rows=rows)), data.draw(numbers(rows=rows))
    area = answer(lambda: metrics.aurc(losses, uncertainty), "losses", "uncertainty")
    assert area is None or np.isfinite(area)
    curve = answer(lambda: metrics.risk_coverage(losses, uncertainty), "losses", "uncertainty")
    assert curve is None or all(len(part) == rows_of(losses) for part in curve)


@given(data=st.data(), rows=st.integers(0, 4))
def test_gaussian_distances(data, rows):
    mean, variance = data.draw(numbers(rows=rows)), data.draw(numbers(rows=rows))
    distance = answer(lambda: metrics.pointwise_wasserstein2(mean, variance, mean, variance), "mean1", "variance1")
    assert distance is None or np.allclose(distance, 0)


@given(data=st.data(), rows=st.integers(0, 4))
def test_accuracy_matrices(data, rows):
    R = data.draw(numbers(rows=rows))
    for metric in (metrics.average_accuracy, metrics.backward_transfer, metrics.forgetting):
        score = answer(lambda metric=metric: metric(R), "R")
        assert score is None or np.isfinite(score)
