"""`compare` from data to report: complete, resumable, every failure recorded."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest

from bayeskit import compare, registry
from bayeskit.benchmark.run import runner
from bayeskit.benchmark.run.problem import Problem


@pytest.fixture
def quick(tmp_path):
    """`compare` in this process, on diabetes unless told otherwise, into a folder of the test."""

    def call(methods, data="diabetes", **settings):
        return compare(data, methods=methods, **{"out": tmp_path / "out", "n_jobs": 1, "seeds": 2} | settings)

    return call


def test_every_trial_has_its_row_and_files(quick, ridge, tmp_path):
    result = quick({"right": ridge(), "wide": ridge(width=5.0)})
    assert [(row["method"], row["seed"], row["status"]) for row in result.rows] == [
        (method, seed, "ok") for method in ("right", "wide") for seed in (0, 1)
    ]
    row = result.rows[0]
    assert {
        "nll",
        "rmse",
        "crps",
        "coverage_90",
        "aurc",
        "fit_seconds",
        "predict_seconds",
        "peak_memory_mb",
    } <= row.keys()
    assert (row["log_evidence"], row["evidence_kind"]) == (-353.0, "exact")
    assert result.report == tmp_path / "out" / "report.html"
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"results.jsonl", "table.md", "report.html", "pit.png", "coverage.png", "risk_coverage.png"} <= names
    assert not [name for name in names if name.endswith(".partial")]
    assert list(result.summary) == ["right", "wide"]
    assert result.summary["right"]["nll"].best
    assert isinstance(result.frame, pd.DataFrame)


def test_numbers_are_those_of_the_metrics(quick, ridge):
    from bayeskit import metrics
    from bayeskit.benchmark.data import datasets

    result = quick({"right": ridge()}, seeds=1)
    data = datasets.load("diabetes")
    train, test = data.split(0)
    predictive = ridge().fit(data.X[train], data.y[train]).predictive(data.X[test])
    row = result.rows[0]
    assert row["nll"] == pytest.approx(metrics.negative_log_likelihood(predictive, data.y[test]), abs=1e-9)
    assert row["crps"] == pytest.approx(metrics.crps(predictive, data.y[test]), abs=1e-9)
    assert row["coverage_90"] == metrics.coverage(predictive, data.y[test], 0.9)


def test_distances_are_standardized_wasserstein(quick, ridge):
    result = quick({"right": ridge(), "wide": ridge(width=3.0)}, seeds=1)
    arrays = result.store.arrays(("right", 0))
    # Same mean, standard deviations three times as large: W = 2 sqrt(tr C), per value.
    expected = 2 * np.sqrt(np.trace(arrays["latent_covariance"]) / len(arrays["latent_mean"]))
    assert result.distances.loc["right", "wide"] == pytest.approx(expected, abs=1e-6)
    assert result.distances.loc["right", "right"] == 0


def test_classification_with_ood_inputs(quick, logistic):
    result = quick({"plain": logistic(), "under_confident": logistic(C=1e-3)}, "digits-0-4", ood="digits-5-9")
    row = result.rows[0]
    assert {"accuracy", "brier", "ece", "ece_mass", "ood_auroc", "ood_aupr", "ood_fpr95"} <= row.keys()
    assert row["ood_auroc"] > 0.8
    assert 0 < result.distances.loc["plain", "under_confident"] < 1
    assert (result.report.parent / "figures" / "ood.png").exists()


def test_a_failing_method_leaves_its_reason(quick, ridge):
    result = quick({"right": ridge(), "broken": ridge(error=RuntimeError("no\n convergence"))})
    assert [row["reason"] for row in result.failures] == ["RuntimeError: no convergence"] * 2
    assert result.complete == ["right"]
    assert "broken, seed 1: error: RuntimeError: no convergence" in result.to_markdown()


def test_predictions_that_are_not_numbers_are_an_error(quick, ridge):
    result = quick({"right": ridge(), "lost": ridge(width=float("nan"))}, seeds=1)
    assert "log-likelihood is NaN at 89 of 89 test points" in result.failures[0]["reason"]


def test_a_slow_method_leaves_a_time_limit_row_that_more_time_retries(quick, ridge):
    result = quick({"slow": ridge(seconds=0.5)}, seeds=1, time_limit=0.1)
    assert result.failures[0]["status"] == "time limit"
    assert quick({"slow": ridge(seconds=0.5)}, seeds=1, time_limit=0.05).failures
    assert ridge.fits == 1
    assert not quick({"slow": ridge(seconds=0.5)}, seeds=1, time_limit=30).failures


def test_a_second_run_continues_where_a_killed_one_stopped(quick, ridge, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quick({"right": ridge(), "killer": ridge(error=KeyboardInterrupt())})
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in lines] == ["right"]
    ridge.fits = 0
    result = quick({"right": ridge(), "killer": ridge(width=2.0)}, seeds=2)
    assert ridge.fits == 3  # seed 0 of the first method was there already
    assert result.complete == ["right", "killer"]
    ridge.fits = 0
    quick({"right": ridge(), "killer": ridge(width=2.0)}, seeds=3)
    assert ridge.fits == 2  # one more seed


def test_changed_settings_of_a_method_are_run_again(quick, ridge):
    before = quick({"mine": ridge()}, seeds=1).rows[0]["nll"]
    assert quick({"mine": ridge(width=4.0)}, seeds=1).rows[0]["nll"] > before


def test_a_trial_that_ended_in_an_error_is_run_again(quick, ridge):
    quick({"right": ridge(error=RuntimeError())}, seeds=1)
    ridge.fits = 0
    quick({"right": ridge(error=RuntimeError())}, seeds=1)
    assert ridge.fits == 1


def test_another_data_set_in_the_same_folder_is_refused(quick, ridge, logistic):
    quick({"right": ridge()}, seeds=1)
    with pytest.raises(ValueError, match="give another `out`"):
        quick({"plain": logistic()}, "iris")


def test_categorical_missing_and_constant_columns_of_a_file(quick, ridge, tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"size": rng.gamma(2, 50, 200), "city": rng.choice(["n", "s"], 200), "const": 1})
    table["price"] = table["size"] + 20 * (table.city == "n") + rng.normal(size=200)
    table.loc[:10, "size"] = np.nan
    table.to_csv(tmp_path / "houses.csv", index=False)
    result = quick({"right": ridge()}, str(tmp_path / "houses.csv"), target="price")
    page = result.report.read_text()
    for said in ("const", "one-hot encoded: city", "missing values", "holds real numbers"):
        assert said in page


def test_several_targets(quick, ridge):
    from sklearn.base import BaseEstimator

    from bayeskit.core.predictive import MixturePredictive

    class Constant(BaseEstimator):
        def fit(self, X, y):
            self.mean_, self.std_ = y.mean(0), y.std(0)
            return self

        def predictive(self, X):
            import torch

            mean, std = (torch.as_tensor(v).expand(1, len(X), 3) for v in (self.mean_, self.std_))
            return MixturePredictive(torch.distributions.Normal(mean, std))

        def latent(self, X):
            raise NotImplementedError("no joint posterior")

    result = quick({"constant": Constant()}, "linnerud", seeds=1)
    assert result.rows[0]["status"] == "ok"
    assert result.rows[0]["distance_reason"] == "NotImplementedError: no joint posterior"
    assert result.distances.empty


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["exakt"]}, "did you mean 'exact'"),
        ({"methods": ["exact"], "data": "iris"}, "does not do classification"),
        ({"methods": []}, "at least one method"),
        ({"methods": "fast", "seeds": 0}, "`seeds` must be a positive integer"),
        ({"methods": "fast", "time_limit": -1}, "`time_limit` must be a positive number"),
        ({"methods": "fast", "ood": "iris"}, "10 columns"),
    ],
)
def test_messages_for_invalid_arguments(quick, settings, message):
    with pytest.raises(ValueError, match=message):
        quick(**settings)


def test_groups_of_methods():
    every, stable, fast = (set(runner.select(group, "regression")) for group in ("all", "stable", "fast"))
    assert fast < stable < every == set(registry.names("regression"))
    assert {"exact", "laplace", "deep_ensemble"} <= fast
    assert not {"nuts", "hmc", "sgld"} & fast
    assert every - stable == set(registry.names("regression", status="experimental"))


def test_registered_methods_in_worker_processes(tmp_path):
    result = compare("linnerud", methods=["exact"], seeds=2, out=tmp_path, n_jobs=2)
    assert [row["status"] for row in result.rows] == ["ok", "ok"]


def test_a_worker_that_dies_loses_only_its_own_trial(ridge):
    X, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20.0)
    problem = Problem("regression", X[:15], y[:15], X[15:], y[15:])
    trials = [runner.Trial(("dies", 0), "", partial(os._exit, 3)), runner.Trial(("errs", 0), "", partial(int, "one"))]
    rows = {r.row["method"]: r.row for r in runner.run(trials, lambda seed: problem, None, 2)}
    assert "process died" in rows["dies"]["reason"]
    assert rows["errs"]["reason"].startswith("ValueError")


def test_a_comparison_ends_inside_a_joblib_context(tmp_path):
    code = (
        "import joblib, sys, bayeskit\n"
        "with joblib.parallel_config(n_jobs=2):\n"
        "    result = bayeskit.compare('linnerud', methods=['exact'], seeds=2, out=sys.argv[1], n_jobs=2)\n"
        "print([row['status'] for row in result.rows])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "['ok', 'ok']" in done.stdout, done.stderr
