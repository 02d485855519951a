"""What a comparison concludes."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from bayeskit.benchmark.report import summary_text
from bayeskit.benchmark.run import baseline
from bayeskit.benchmark.run.comparison import Comparison, told_apart
from bayeskit.benchmark.run.store import Store
from bayeskit.benchmark.run.trial import Result


@pytest.fixture
def made(tmp_path):
    """A comparison with given negative log-likelihoods by method and seed."""

    def build(scores, **more):
        store = Store(tmp_path, {})
        for method, values in scores.items():
            for seed, nll in enumerate(values):
                row = {"method": method, "seed": seed, "status": "ok", "nll": nll, "num_train": 80, "num_test": 20}
                row |= dict.fromkeys(("rmse", "crps", "aurc", "fit_seconds", "predict_seconds"), 1.0)
                store.add(Result({**row, "coverage_90": 0.9, "peak_memory_mb": 400.0, **more.get(method, {})}))
        seeds = range(max(1, *(len(values) for values in scores.values())))
        return Comparison("d", "regression", list(scores), seeds, store)

    return build


def test_mean_and_standard_error(made):
    result = made({"a": [1.0, 2.0, 4.0], "b": [5.0, 5.0, 5.5]})
    assert result.summary["a"]["nll"].mean == pytest.approx(7 / 3)
    assert result.summary["a"]["nll"].error == pytest.approx(stats.sem([1.0, 2.0, 4.0]))
    assert result.summary["a"]["nll"].best
    assert not result.summary["b"]["nll"].best


def test_the_corrected_test_is_the_paired_t_test_without_overlap():
    rng = np.random.default_rng(0)
    for shift in (0.1, 0.5, 1.0, 2.0):
        a, b = rng.normal(size=5), rng.normal(size=5) + shift
        assert told_apart(a, b, 0.0) == (stats.ttest_rel(a, b).pvalue < 0.05)


def test_the_correction_makes_it_harder_to_tell_apart():
    a, b = np.array([0.0, 0.1, 0.2, 0.1]), np.array([0.2, 0.25, 0.45, 0.3])
    assert told_apart(a, b, 0.0)
    assert not told_apart(a, b, 10.0)
    assert not told_apart(a, a, 0.25)


def test_a_method_that_did_not_finish_cannot_be_best(made):
    result = made({"a": [3.0, 3.1, 3.0], "b": [4.0, 4.1, 4.2], "lucky": [1.0]})
    assert result.complete == ["a", "b"]
    assert result.summary["a"]["nll"].best
    assert list(result.summary) == ["a", "b", "lucky"]
    assert "| 1 of 3 |" in result.to_markdown()
    assert "lucky" in summary_text.verdict(result)[-1]


def test_the_answer_names_the_method_how_sure_and_what_it_cost(made):
    first, sure, cost = summary_text.verdict(made({"a": [3.0, 3.1, 3.0], "b": [4.0, 4.1, 4.0]}))
    assert first.startswith("On d, trust a")
    assert "held 90 %" in first
    assert "ahead of every other method by more than chance" in sure
    assert "the nearest, b, is 1 nats behind" in sure
    assert cost.startswith("Cost of a: 1.0 s to fit")


def test_ties_are_said_and_the_cheapest_of_them(made):
    scores = {"a": [3.0, 3.1, 3.0], "b": [3.05, 3.0, 3.06], "c": [9.0, 9.1, 9.0]}
    result = made(scores, b={"fit_seconds": 0.1, "coverage_90": 0.7})
    first, chosen, sure, cost = summary_text.verdict(result)
    assert first == "On d no method clearly wins: b cannot be told from a, the best by 0.0033 nats."
    assert chosen.startswith("Recommended among them is a")
    assert "chance may have decided" in sure
    assert "b fits fastest (100 ms); but its intervals are too narrow: those of 90 % held only 70 %" in cost
    assert "3.037 ± 0.019 ≈" in result.to_markdown()


def test_intervals_too_narrow_are_part_of_the_answer(made):
    result = made({"a": [3.0], "b": [4.0]}, a={"coverage_90": 0.6})
    first, sure, _ = summary_text.verdict(result)
    assert first.startswith("One seed only: on d a comes first of 2 methods")
    assert "too narrow: those of 90 % held only 60 %" in first
    assert "one seed says nothing about chance" in sure


def test_evidence_of_different_kinds_is_shown_and_never_ranked(made):
    a, b = ({"log_evidence": v, "evidence_kind": k} for v, k in ((-10.0, "exact"), (-1.0, "Laplace")))
    table = made({"a": [3.0, 3.1], "b": [4.0, 4.0]}, a=a, b=b).to_markdown()
    assert "| -10.0 (exact) |" in table
    assert "| -1.0 (Laplace) |" in table


def test_a_method_no_better_than_ignoring_the_inputs_is_warned_of(made):
    result = made({"a": [3.0, 3.1, 3.0], "b": [4.0, 4.1, 4.0]})
    warned = summary_text.verdict(dataclasses.replace(result, baseline=[3.5, 3.5, 3.5]))[-1]
    assert warned.startswith("Warning: b scores no better than predicting a Gaussian with the mean and spread")
    assert "no better" not in " ".join(summary_text.verdict(dataclasses.replace(result, baseline=[5.0, 5.0, 5.0])))


def test_the_baseline_is_the_law_of_the_training_targets():
    rng = np.random.default_rng(0)
    train, test = rng.normal(3.0, 2.0, (50, 2)), rng.normal(size=(20, 2))
    expected = -stats.norm(train.mean(0), train.std(0)).logpdf(test).sum(1).mean()
    assert baseline.nll("regression", train, test) == pytest.approx(expected)
    assert np.isnan(baseline.nll("regression", np.ones(5), np.ones(5)))


def test_nothing_finished(made):
    result = made({"a": [], "b": []})
    assert "nothing to recommend" in summary_text.verdict(result)[0]
