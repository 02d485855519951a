"""Methods with post-hoc calibration: "map+temperature", "map+conformal"."""

import numpy as np
import pytest

from bayeskit import Calibrated, Conformal, compare, metrics, registry
from bayeskit.benchmark.data import datasets
from bayeskit.estimators import make


@pytest.fixture
def quick(tmp_path):
    def call(methods, data="diabetes", **settings):
        return compare(data, methods=methods, **{"out": tmp_path / "out", "n_jobs": 1, "seeds": 1} | settings)

    return call


def test_names_are_read_from_the_inside_out():
    model = make("map+temperature+conformal", "classification", random_state=3)
    assert isinstance(model, Conformal) and isinstance(model.estimator, Calibrated)
    assert model.confidence == 0.9 and model.estimator.method == "temperature"
    seeds = {key: value for key, value in model.get_params().items() if key.endswith("random_state")}
    assert seeds == dict.fromkeys(("random_state", "estimator__random_state", "estimator__estimator__random_state"), 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("map+temprature", "`methods after a plus` must be one of .* did you mean 'temperature'"),
        ("mapp+temperature", "`methods` must be one of .* did you mean 'map'"),
        ("exact+temperature", "'exact' does not do classification"),
        ("map+", "`methods after a plus` must be one of"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(ValueError, match=message):
        compare("digits-0-4", methods=[name])


@pytest.mark.monte_carlo
def test_a_conformal_method_has_the_scores_of_its_predictive_and_its_own_intervals(quick, ridge):
    result = quick({"plain": ridge(width=0.3), "conformal": Conformal(ridge(width=0.3), confidence=0.9)})
    row, data = result.rows[1], datasets.load("diabetes")
    train, test = data.split(0)
    model = Conformal(ridge(width=0.3), confidence=0.9, random_state=0).fit(data.X[train], data.y[train])
    predictive, (low, high) = model.predictive(data.X[test]), model.predict_interval(data.X[test])
    y = data.y[test]
    assert row["nll"] == pytest.approx(metrics.negative_log_likelihood(predictive, y), abs=1e-9)
    assert row["coverage_90"] == ((low <= y) & (y <= high)).mean()
    assert row["interval_score_90"] == pytest.approx(metrics.interval_score(low, high, y, level=0.9))
    # Over 20 seeds .35 with a standard deviation of .05, and .90 with .05.
    assert result.rows[0]["coverage_90"] < 0.6 and row["coverage_90"] > 0.65
    assert row["interval_score_90"] < result.rows[0]["interval_score_90"]
    assert "distance_reason" not in row


@pytest.mark.monte_carlo
def test_prediction_sets_with_and_without_conformal_calibration(quick, logistic):
    methods = {"under_confident": logistic(C=1e-3), "conformal": Conformal(logistic(C=1e-3), confidence=0.9)}
    under_confident, conformal = quick(methods, "digits-0-4").rows
    # probabilities near 1/5 put nearly all classes into a set; the held-out calibration data correct that
    assert under_confident["set_size_90"] > 2 * conformal["set_size_90"]
    assert under_confident["set_coverage_90"] > 0.99
    assert conformal["set_coverage_90"] > 0.8


def test_a_conformal_level_other_than_that_of_the_table_is_refused(quick, ridge):
    result = quick({"other": Conformal(ridge(), confidence=0.95)})
    assert "`confidence` of a Conformal must be 0.9" in result.failures[0]["reason"]


def test_seeds_reach_every_nested_estimator(ridge, tmp_path):
    from bayeskit.benchmark.run import runner
    from bayeskit.benchmark.run.store import Store

    trials = runner.pending({"mine": Conformal(ridge())}, "regression", 8, Store(tmp_path, {}), None)
    assert trials[7].make.random_state == trials[7].make.estimator.random_state == 7


def test_prediction_sets_of_a_predictive():
    from torch import tensor

    from bayeskit.benchmark.run.trial import LEVEL
    from bayeskit.core.predictive import CategoricalPredictive

    p = tensor([[0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.05, 0.92, 0.03]], dtype=float)
    predictive = CategoricalPredictive(p.log(), tensor([0.0, 0.0, 0.0]))
    assert predictive.prediction_set(0.85).tolist() == [[True, True, False], [True, True, True], [False, True, False]]
    # every set reaches the level
    sets = predictive.prediction_set(LEVEL)
    assert np.allclose((p * sets).sum(1) >= LEVEL, True)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["diabetes", "digits-0-4"])
@pytest.mark.parametrize("post_hoc", registry.POST_HOC)
def test_registered_names_run(quick, data, post_hoc):
    assert quick([f"map+{post_hoc}"], data).rows[0]["status"] == "ok"
