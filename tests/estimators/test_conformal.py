"""Conformal prediction: the rank argument as an identity, binomial coverage, and the formulas."""

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from bayeskit import BNNClassifier, BNNRegressor, Calibrated, Conformal, GPRegressor, load, registry, save
from bayeskit.core.likelihood import Poisson
from bayeskit.estimators.conformal import conformal_quantile, conformal_rank

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.5 * RNG.normal(size=300)
LABELS = np.array(["a", "b", "c"])[np.digitize(Y, [-1.0, 1.0])]


# -- the rank argument -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 19, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95])
def test_of_n_plus_one_scores_exactly_the_rank_are_covered_by_the_others(n, confidence):
    """For any n + 1 numbers without ties: the guarantee, without an expectation."""
    rank = math.ceil(round((n + 1) * confidence, 9))
    if rank > n:
        with pytest.raises(ValueError, match="calibration rows and there are"):
            conformal_quantile(torch.arange(float(n)), confidence)
        return
    scores = torch.as_tensor(RNG.permutation(np.exp(RNG.normal(size=n + 1))))
    held = [scores[i] <= conformal_quantile(torch.cat([scores[:i], scores[i + 1 :]]), confidence) for i in range(n + 1)]
    assert sum(map(bool, held)) == rank


def test_every_order_of_few_scores():
    """All 120 orders of 5 distinct scores are equally likely: the last is covered in exactly 4 of 5."""
    orders = torch.tensor(list(itertools.permutations(range(5)))).double()
    held = [row[4] <= conformal_quantile(row[:4], 0.8) for row in orders]
    assert sum(map(bool, held)) == 120 * 4 // 5


def test_ties_only_add():
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0])
    held = [scores[i] <= conformal_quantile(torch.cat([scores[:i], scores[i + 1 :]]), 0.6) for i in range(5)]
    assert sum(map(bool, held)) >= conformal_rank(4, 0.6) == 3


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_the_number_of_rows_named_is_the_smallest_that_will_do(confidence):
    with pytest.raises(ValueError) as error:
        conformal_quantile(torch.empty(0), confidence)
    needed = int(str(error.value).split("at least ")[1].split()[0])
    assert conformal_rank(needed, confidence) <= needed and conformal_rank(needed - 1, confidence) > needed - 1


# -- coverage ----------------------------------------------------------------------------------------------------------


class Wrong(BayesianRidge):
    """Bayesian linear regression on the first column alone, ten times too sure."""

    def fit(self, X, y, sample_weight=None):
        return super().fit(X[:, :1], y)

    def predict(self, X, return_std=False):
        mean, std = super().predict(X[:, :1], return_std=True)
        return (mean, std / 10) if return_std else mean


def inside(n, confidence, repeats):
    """Central 99.9 % region of the number covered, of `repeats` rows each with its own calibration rows."""
    return binom.interval(0.999, repeats, math.ceil(round((n + 1) * confidence, 9)) / (n + 1))


@pytest.mark.monte_carlo
@pytest.mark.parametrize("method", ["split", "cqr"])
def test_intervals_of_a_wrong_model_hold_as_often_as_said(method):
    """400 times 39 calibration rows and one new one: a binomial number is covered."""
    model, n, repeats = Wrong().fit(X, Y), 39, 400
    x = RNG.normal(size=(repeats, n + 1, 3))
    y = x @ [1.0, -2.0, 0.5] + RNG.standard_t(3, size=(repeats, n + 1))
    covered = 0
    for rows, targets in zip(x, y, strict=True):
        around = Conformal(FrozenEstimator(model), method, confidence=0.9).fit(rows[:n], targets[:n])
        low, high = around.predict_interval(rows[n:])
        covered += bool(low[0] <= targets[n] <= high[0])
    least, most = inside(n, 0.9, repeats)
    assert least <= covered <= most


@pytest.mark.monte_carlo
def test_given_the_calibration_rows_coverage_has_the_beta_distribution():
    """Coverage of many new rows given n: Beta(rank, n + 1 - rank)."""
    model, n, rank = Wrong().fit(X, Y), 99, 90
    x = RNG.normal(size=(20_000, 3))
    y = x @ [1.0, -2.0, 0.5] + RNG.normal(size=20_000)
    around = Conformal(FrozenEstimator(model), confidence=0.9).fit(x[:n], y[:n])
    low, high = around.predict_interval(x[n:])
    share = ((low <= y[n:]) & (y[n:] <= high)).mean()
    assert 1e-5 < beta.cdf(share, rank, n + 1 - rank) < 1 - 1e-5


@pytest.mark.monte_carlo
@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_of_a_model_that_is_too_sure_hold_at_least_as_often_as_said(method):
    x, y = make_classification(9_000, n_classes=4, n_informative=6, flip_y=0.2, random_state=2)
    model = LogisticRegression(C=1e4, max_iter=500).fit(x[:100], y[:100])  # overfitted
    around = Conformal(FrozenEstimator(model), method, confidence=0.9).fit(x[100:2_099], y[100:2_099])
    held = around.predict_set(x[2_099:])[np.arange(6_901), y[2_099:]].mean()
    # coverage given 1,999 rows has standard deviation sqrt(0.09 / 2000) = 0.0067, its estimate sqrt(0.09 / 6901)
    margin = 5 * math.hypot(0.0067, 0.0036)
    assert held > 0.9 - margin and (method == "aps" or held < 0.9 + margin)


# -- formulas ----------------------------------------------------------------------------------------------------------


def test_split_is_the_mean_and_a_multiple_of_the_spread():
    model = BayesianRidge().fit(X[:100], Y[:100])
    around = Conformal(FrozenEstimator(model), confidence=0.8).fit(X[100:], Y[100:])
    mean, std = model.predict(X, return_std=True)
    q = np.sort(np.abs(Y[100:] - mean[100:]) / std[100:])[math.ceil(201 * 0.8) - 1]
    low, high = around.predict_interval(X)
    assert np.allclose(low, mean - q * std, rtol=1e-12) and np.allclose(high, mean + q * std, rtol=1e-12)
    assert around.quantile_ == pytest.approx(q) and around.num_calibration_ == 200


def test_cqr_moves_both_quantiles_by_one_amount():
    model = GPRegressor(inference=registry.quick("exact"), random_state=0).fit(X[:60], Y[:60])
    around = Conformal(FrozenEstimator(model), "cqr", confidence=0.8).fit(X[60:200], Y[60:200])
    low, high = around.predict_interval(X)
    below, above = (end.numpy() for end in model.predictive(X).interval(0.8))
    assert np.allclose(below - low, around.quantile_) and np.allclose(high - above, around.quantile_)


def test_cqr_intervals_that_would_cross_are_a_point():
    wide = BayesianRidge(alpha_init=1e-8, max_iter=1).fit(X[:20], 100 * RNG.normal(size=20))
    around = Conformal(FrozenEstimator(wide), "cqr", confidence=0.5).fit(X, wide.predict(X))
    low, high = around.predict_interval(X)
    assert (low <= high).all() and around.quantile_ < 0
    assert np.allclose((low + high) / 2, wide.predict(X))


def test_lac_and_aps_by_hand():
    class Given(LogisticRegression):
        def predict_proba(self, X):
            return np.asarray(X)

    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
    y = np.array([0, 2, 2, 1])
    model = Given().fit(p, y % 3 if len(set(y)) == 3 else y)
    lac = Conformal(FrozenEstimator(model), "lac", confidence=0.6).fit(p, y)
    # scores 0.4, 0.7, 0.3, 0.6; the third of four is 0.6: labels of probability 0.4 or more
    assert lac.quantile_ == pytest.approx(0.6)
    assert (lac.predict_set(p) == (p >= 0.4 - 1e-12)).all()
    aps = Conformal(FrozenEstimator(model), "aps", confidence=0.6).fit(p, y)
    # totals before the label 0, 0.5, 0, 0.5; the third is 0.5
    assert aps.quantile_ == pytest.approx(0.5)
    assert aps.predict_set(p).tolist() == [
        [True, False, False],  # 0, 0.6, 0.9
        [False, True, True],  # 0, 0.5, 0.8
        [False, False, True],  # 0, 0.7, 0.9
        [True, True, False],  # 0, 0.5, 0.9
    ]


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_an_aps_set_always_holds_the_most_probable_label(confidence, spread):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(200, 3)) * spread, rng.integers(0, 3, 200)
    model = LogisticRegression(C=1e6).fit(x[:100], x[:100].argmax(1))
    for labels in (x.argmax(1), y):  # a model that is nearly always right, and one that is not
        sets = Conformal(FrozenEstimator(model), "aps", confidence=confidence).fit(x, labels).predict_set(x)
        assert sets[np.arange(200), model.predict_proba(x).argmax(1)].all()


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("names", [[0, 10, 30], ["a", "k", "t"]])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_label_that_the_classifier_does_not_know_is_named(method, names, place):
    unknown = {int: [-5, 20, 99], str: ["A", "m", "z"]}[type(names[0])][place]  # before, between and after
    y = np.array(names)[np.digitize(Y, [-1.0, 1.0])]
    model = LogisticRegression().fit(X[:150], y[:150])
    wrong = y[150:].copy()
    wrong[:5] = unknown
    with pytest.raises(ValueError, match=rf"`y` must only have labels among .* got \['?{unknown}'?\]"):
        Conformal(FrozenEstimator(model), method).fit(X[150:], wrong)


def test_the_predictive_is_unchanged():
    model = BNNRegressor(inference=registry.quick("laplace"), random_state=0).fit(X[:60], Y[:60])
    around = Conformal(FrozenEstimator(model)).fit(X[60:], Y[60:])
    assert torch.equal(around.predictive(X).log_prob(Y), model.predictive(X).log_prob(Y))
    assert (around.predict(X) == model.predict(X)).all()
    assert torch.equal(around.latent(X).mean, model.latent(X).mean)


def test_each_output_has_an_interval_of_its_own():
    targets = np.column_stack([Y, 10 * RNG.normal(size=300)])
    targets[100:150, 1] = np.nan
    model = GPRegressor(inference=registry.quick("exact"), random_state=0).fit(X[:60], targets[:60])
    around = Conformal(FrozenEstimator(model), confidence=0.9).fit(X[60:], targets[60:])
    low, high = around.predict_interval(X)
    assert low.shape == high.shape == (300, 2) and around.num_calibration_.tolist() == [240, 190]
    alone = np.sort(np.abs(Y[60:] - model.predict(X[60:])[:, 0]) / model.predict(X[60:], return_std=True)[1][:, 0])
    assert around.quantile_[0] == pytest.approx(alone[math.ceil(241 * 0.9) - 1])


def test_counts():
    model = GPRegressor(likelihood=Poisson(), inference=registry.quick("svgp"), random_state=0)
    low, high = (
        Conformal(model, "cqr", confidence=0.8, random_state=0).fit(X[:80], RNG.poisson(3.0, 80)).predict_interval(X)
    )
    assert (low <= high).all()


# -- habits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "y"), [("split", Y), ("cqr", Y), ("lac", LABELS), ("aps", LABELS)])
def test_round_trips(method, y, tmp_path):
    cls = BNNRegressor if y is Y else BNNClassifier
    model = Conformal(cls(inference=registry.quick("map"), random_state=0), method, confidence=0.8, random_state=0)
    model.fit(X[:80], y[:80])
    ask = "predict_interval" if y is Y else "predict_set"
    save(model, tmp_path / "model.bayeskit")
    for again in (
        load(tmp_path / "model.bayeskit"),
        pickle.loads(pickle.dumps(model)),
        clone(model).fit(X[:80], y[:80]),
    ):
        assert np.array_equal(getattr(again, ask)(X), getattr(model, ask)(X))
        assert again.quantile_ == model.quantile_ and again.method_ == method


def test_around_a_calibrated_estimator():
    calibrated = Calibrated(LogisticRegression(C=1e3), random_state=0)
    model = Conformal(calibrated, confidence=0.9, random_state=0).fit(X, LABELS)
    assert model.method_ == "lac" and model.predict_set(X).shape == (300, 3)
    assert model.estimator_.calibration_.temperature > 0


def test_numbers_have_intervals_and_labels_have_sets():
    assert not hasattr(Conformal(BayesianRidge()), "predict_set")
    assert not hasattr(Conformal(LogisticRegression()), "predict_interval")


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (Conformal(BayesianRidge(), calibration_size=0.05), Y, "needs at least 19 calibration rows and there are 15"),
        (Conformal(BayesianRidge(), "lac"), Y, "`method` must be one of"),
        (Conformal(LogisticRegression(), "cqr"), LABELS, "`method` must be one of"),
        (Conformal(BayesianRidge(), confidence=95), Y, "`confidence` must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_are_one_sentence(model, y, message):
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [BNNClassifier, BNNRegressor])
def test_scikit_learn_checks(cls):
    model = Conformal(cls(inference=registry.quick("map"), random_state=0), confidence=0.5, random_state=0)
    weights = "check_sample_weight_equivalence_on_dense_data"
    exempt = {weights: "which rows are held out depends on how many there are"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(model, expected_failed_checks=exempt, on_skip=None, on_fail=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []
