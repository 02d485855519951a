"""Statistics and conclusions of a comparison."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from bayeskit.benchmark import Comparison
from bayeskit.benchmark.report import summary_text
from bayeskit.benchmark.run import baseline
from bayeskit.benchmark.run.significance import by_point, by_split, holm
from bayeskit.benchmark.run.store import Store
from bayeskit.benchmark.run.trial import TrialResult


@pytest.fixture
def made(tmp_path):
    """A comparison with given negative log-likelihoods by method and seed."""

    def build(scores, **more):
        store = Store(tmp_path, {})
        for method, values in scores.items():
            for seed, nll in enumerate(values):
                row = {"method": method, "seed": seed, "status": "ok", "nll": nll, "num_train": 80, "num_test": 20}
                row |= dict.fromkeys(("rmse", "crps", "aurc", "fit_seconds", "predict_seconds"), 1.0)
                store.add(TrialResult({**row, "coverage_90": 0.9, "peak_memory_mb": 400.0, **more.get(method, {})}))
        seeds = range(max(1, *(len(values) for values in scores.values())))
        return Comparison("d", "regression", list(scores), seeds, store)

    return build


def test_mean_and_standard_error(made):
    result = made({"a": [1.0, 2.0, 4.0], "b": [5.0, 5.0, 5.5]})
    assert result.summary["a"]["nll"].mean == pytest.approx(7 / 3)
    assert result.summary["a"]["nll"].error == pytest.approx(stats.sem([1.0, 2.0, 4.0]))
    assert result.summary["a"]["nll"].best
    assert not result.summary["b"]["nll"].best


def test_coverage_is_best_by_its_distance_to_the_target_in_each_seed(made):
    result = made({"swings": [1.0] * 4, "near": [1.0] * 4})
    for method, shares in {"swings": (0.8, 1.0, 0.8, 1.0), "near": (0.92, 0.91, 0.92, 0.91)}.items():
        for row, share in zip(result.done(method), shares, strict=True):
            row["coverage_90"] = share
    near, swings = (result.summary[method]["coverage_90"] for method in ("near", "swings"))
    assert (near.mean, swings.mean) == (pytest.approx(0.915), pytest.approx(0.9))
    assert near.best
    assert not swings.best


def test_the_corrected_test_is_the_paired_t_test_without_overlap():
    rng = np.random.default_rng(0)
    for shift in (0.1, 0.5, 1.0, 2.0):
        a, b = rng.normal(size=5), rng.normal(size=5) + shift
        assert by_split(a, b, 0.0) == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert by_point(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_the_correction_makes_fewer_differences_significant():
    a, b = np.array([0.0, 0.1, 0.2, 0.1]), np.array([0.2, 0.25, 0.45, 0.3])
    assert by_split(a, b, 0.0) < 0.05 < by_split(a, b, 10.0)


def test_differences_that_do_not_vary_say_nothing_of_chance():
    a = np.array([3.0, 3.1, 3.0])
    for shift in (0.0, 1e-9, 1.0):
        assert by_split(a, a + shift, 0.25) == by_point(a, a + shift) == 1.0
    assert by_split(a, np.full(3, np.inf), 0.25) == 0.0
    assert by_split(a[:1], a[:1] + 1, 0.25) == 1.0


@pytest.mark.monte_carlo
@pytest.mark.parametrize("count", [2, 5, 31])
@pytest.mark.parametrize("num_splits", [3, 10])
def test_of_equal_methods_a_table_seldom_marks_one(count, num_splits):
    """At most 5 % of 400 tables, and four standard errors of 1.1 %; .07 for 31 methods, since the best is picked.

    Splits are independent here. Where training sets overlap it is more: see docs/decisions/significance.md.
    """
    rng, false = np.random.default_rng(0), 0
    for losses in rng.normal(size=(400, count, num_splits)):
        best = losses.mean(1).argmin()
        others = {str(i): by_split(losses[best], losses[i], 0.25) for i in range(count) if i != best}
        false += min(holm(others).values()) < 0.05
    assert false / 400 < 0.05 + 0.02 * (count > 5) + 0.045


def one_split(made, tmp_path, shift, count=2, num_points=200):
    """A comparison of which all seeds share a split, with losses by test point; every method but one is shifted."""
    rng = np.random.default_rng(0)
    result = made({f"m{i}": [1.0] * 3 for i in range(count)})
    for i in range(count):
        losses = 1 + 0.3 * rng.normal(size=num_points) + shift * (i > 0)
        for seed in range(3):
            row = {**result.store.rows[f"m{i}", seed], "nll": float(losses.mean()), "num_test": num_points}
            result.store.add(TrialResult(row, {"nll": losses}))
    return dataclasses.replace(result, splits=[0, 0, 0])


def test_seeds_of_one_split_are_tested_by_point(made, tmp_path):
    equal = one_split(made, tmp_path, 0.0, count=31)
    assert equal.paired_by == "test point"
    assert all(s["nll"].best or s["nll"].not_significant for s in equal.summary.values())
    first, *_, significance, _ = summary_text.conclusions(equal)
    assert first.startswith("On d no single method is significantly best")
    assert "paired by test point, over 200 test points of one split" in significance
    assert "cannot show a difference below" in significance
    worse = one_split(made, tmp_path, 0.3, count=5)
    assert [s["nll"].not_significant for s in worse.summary.values()] == [False] * 5
    # Metrics that are no mean over points have no test there: none is told apart.
    assert all(s["rmse"].best or s["rmse"].not_significant for s in worse.summary.values())


def test_a_method_that_did_not_finish_cannot_be_best(made):
    result = made({"a": [3.0, 3.1, 3.0], "b": [4.0, 4.1, 4.2], "lucky": [1.0]})
    assert result.complete == ["a", "b"]
    assert result.summary["a"]["nll"].best
    assert list(result.summary) == ["a", "b", "lucky"]
    assert "| 1 of 3 |" in result.to_markdown()
    assert "lucky" in summary_text.conclusions(result)[-1]


def test_conclusions_name_the_method_the_significance_and_the_cost(made):
    first, significance, cost = summary_text.conclusions(made({"a": [3.0, 3.1, 3.0], "b": [4.0, 4.12, 4.03]}))
    assert first.startswith("On d a is significantly better than every other method")
    assert "90 % intervals cover 90 %" in first
    assert "its difference from every other method is significant" in significance
    assert "the second best, b, is 1.02 nats behind" in significance
    assert cost.startswith("Cost of a: 1.0 s to fit")


def test_methods_not_significantly_different_and_the_fastest_of_them(made):
    scores = {"a": [3.0, 3.1, 3.0], "b": [3.05, 3.0, 3.06], "c": [9.0, 9.1, 9.05]}
    result = made(scores, b={"fit_seconds": 0.1, "coverage_90": 0.7})
    first, chosen, significance, cost = summary_text.conclusions(result)
    assert first == (
        "On d no single method is significantly best: b is not significantly different from a, the best by 0.0033 nats."
    )
    assert chosen.startswith("Recommended among them is a")
    assert "may be due to chance" in significance
    assert "corrected for 3 methods" in significance
    assert "3 splits cannot show a difference below" in significance
    assert "b is the fastest to fit (100 ms); but it is over-confident: its 90 % intervals cover only 70 %" in cost
    assert "3.037 ± 0.019 ≈" in result.to_markdown()


def test_over_confidence_is_part_of_the_conclusions(made):
    result = made({"a": [3.0], "b": [4.0]}, a={"coverage_90": 0.6})
    first, significance, _ = summary_text.conclusions(result)
    assert first.startswith("One seed only: on d a has the lowest negative log-likelihood of 2 methods")
    assert "over-confident: its 90 % intervals cover only 60 %" in first
    assert "one seed permits no test" in significance


def test_evidence_of_different_kinds_is_shown_and_never_ranked(made):
    a, b = ({"log_evidence": v, "evidence_kind": k} for v, k in ((-10.0, "exact"), (-1.0, "Laplace")))
    table = made({"a": [3.0, 3.1], "b": [4.0, 4.0]}, a=a, b=b).to_markdown()
    assert "| -10.0 (exact) |" in table
    assert "| -1.0 (Laplace) |" in table


def test_a_method_no_better_than_ignoring_the_inputs_is_warned_of(made):
    result = made({"a": [3.0, 3.1, 3.0], "b": [4.0, 4.1, 4.0]})
    warned = summary_text.conclusions(dataclasses.replace(result, baseline=[3.5, 3.5, 3.5]))[-1]
    assert warned.startswith(
        "Warning: b scores no better than predicting a Gaussian with the mean and standard deviation"
    )
    assert "no better" not in " ".join(summary_text.conclusions(dataclasses.replace(result, baseline=[5.0, 5.0, 5.0])))


def test_the_baseline_is_the_marginal_distribution_of_the_training_targets():
    rng = np.random.default_rng(0)
    train, test = rng.normal(3.0, 2.0, (50, 2)), rng.normal(size=(20, 2))
    expected = -stats.norm(train.mean(0), train.std(0)).logpdf(test).sum(1).mean()
    assert baseline.nll("regression", train, test) == pytest.approx(expected)
    assert np.isnan(baseline.nll("regression", np.ones(5), np.ones(5)))


def test_nothing_finished(made):
    result = made({"a": [], "b": []})
    assert "nothing to recommend" in summary_text.conclusions(result)[0]
