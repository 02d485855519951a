"""Recalibration: closed forms, scikit-learn's own where it has one, and the habits of an estimator."""

import math
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import BayesianRidge, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn
from torch.utils.data import TensorDataset

from bayeskit import BNNClassifier, BNNRegressor, Calibrated, GPRegressor, load, metrics, registry, save
from bayeskit.core.likelihood import Poisson
from bayeskit.core.predictive import GaussianPredictive
from bayeskit.estimators.recalibration import Quantiles

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.5 * RNG.normal(size=400)
LABELS = np.array(["a", "b", "c"])[np.digitize(Y, [-1.0, 1.0])]
METHODS = ("temperature", "isotonic")


class Narrow(RegressorMixin, BaseEstimator):
    """Bayesian linear regression whose standard deviations are `width` times what they should be, an output each."""

    def __init__(self, width=0.5):
        self.width = width

    def fit(self, X, y, sample_weight=None):
        self.models_ = [BayesianRidge().fit(X, column) for column in np.reshape(y, (len(y), -1)).T]
        self.squeeze_ = np.ndim(y) == 1
        return self

    def predict(self, X, return_std=False):
        means, stds = zip(*(model.predict(X, return_std=True) for model in self.models_), strict=True)
        mean, std = np.stack(means, -1), np.stack(stds, -1) * self.width
        mean, std = (mean[:, 0], std[:, 0]) if self.squeeze_ else (mean, std)
        return (mean, std) if return_std else mean


class Sure(ClassifierMixin, BaseEstimator):
    """Logistic regression whose logits are multiplied by `factor`."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def fit(self, X, y, sample_weight=None):
        self.model_ = LogisticRegression().fit(X, y, sample_weight=sample_weight)
        self.classes_, self.n_features_in_ = self.model_.classes_, self.model_.n_features_in_
        return self

    def predict_proba(self, X):
        log_probs = torch.as_tensor(self.model_.predict_log_proba(X)) * self.factor
        return log_probs.softmax(-1).numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(1)]


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.monte_carlo
@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_temperature_undoes_a_factor_on_the_logits(factor):
    rows = slice(200, None)
    plain, scaled = (Sure(f).fit(X[:200], LABELS[:200]) for f in (1.0, factor))
    one, other = (Calibrated(FrozenEstimator(m)).fit(X[rows], LABELS[rows]) for m in (plain, scaled))
    # the factor is a shift of log T, so up to the weak prior both find the same probabilities
    assert other.calibration_.temperature == pytest.approx(factor * one.calibration_.temperature, rel=0.1)
    assert np.allclose(one.predict_proba(X), other.predict_proba(X), atol=0.02)
    assert (other.predict(X) == scaled.predict(X)).all()


@pytest.mark.monte_carlo
def test_temperature_is_that_of_scikit_learn_up_to_the_prior():
    x, y = make_classification(4_000, n_classes=3, n_informative=6, flip_y=0.1, random_state=0)
    model = Sure(4.0).fit(x[:500], y[:500])
    ours = Calibrated(FrozenEstimator(model)).fit(x[500:], y[500:])
    rows = np.arange(3_500)
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature", cv=[(rows, rows)])
    theirs.fit(x[500:], y[500:])
    t = 1 / theirs.calibrated_classifiers_[0].calibrators[0].beta_
    # The prior moves log T by -log T / curvature; 3,500 rows have a curvature of some hundreds. Over 24 data sets the
    # relative change has standard deviation 0.0016, and the largest change of a probability is 0.003 with 0.0018.
    assert ours.calibration_.temperature == pytest.approx(t, rel=0.01)
    assert np.allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=0.012)


@pytest.mark.monte_carlo
def test_temperature_stays_finite_where_every_held_out_row_is_right():
    x = np.r_[RNG.normal(-3, 0.5, 40), RNG.normal(3, 0.5, 40)][:, None]
    y = np.repeat([0, 1], 40)
    model = Calibrated(Sure(), random_state=0).fit(x, y)
    assert 0.05 < model.calibration_.temperature < 1
    assert model.predictive([[-1.0], [1.0]]).log_prob([0, 1]).isfinite().all()


@pytest.mark.parametrize("labels", [LABELS, LABELS == "b"], ids=["three", "two"])
def test_isotonic_is_that_of_scikit_learn_but_for_one_row_spread_over_the_classes(labels):
    model = GaussianNB().fit(X[:150], labels[:150])
    rows = np.arange(250)
    ours = Calibrated(FrozenEstimator(model), "isotonic").fit(X[150:], labels[150:])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="isotonic", cv=[(rows, rows)])
    expected = theirs.fit(X[150:], labels[150:]).predict_proba(X)
    c = expected.shape[1]
    assert np.allclose(ours.predict_proba(X), (250 * expected + 1 / c) / 251, atol=1e-12)
    assert ours.predictive(X).log_prob(labels).isfinite().all() and expected.min() == 0


@pytest.mark.monte_carlo
@pytest.mark.parametrize("method", METHODS)
def test_probabilities_that_are_too_sure_come_true(method):
    errors = []
    for seed in range(8):
        x, y = make_classification(6_000, n_informative=5, flip_y=0.2, random_state=seed)
        plain = Sure(6.0).fit(x[:2_000], y[:2_000])
        model = Calibrated(FrozenEstimator(plain), method).fit(x[2_000:4_000], y[2_000:4_000])
        test = x[4_000:], y[4_000:]
        errors.append([metrics.expected_calibration_error(m.predict_proba(test[0]), test[1]) for m in (plain, model)])
    before, after = np.mean(errors, 0)
    # Over 24 data sets the means and standard deviations are 0.19 and 0.034 before, and at most 0.048 and 0.018 after:
    # of a mean of eight, 0.012 and 0.006.
    assert before > 0.13 and after < 0.08
    predictive = model.predictive(x[4_000:])
    assert (
        torch.allclose(predictive.total, predictive.aleatoric + predictive.epistemic)
        and predictive.epistemic.abs().max() < 1e-9
    )


def test_the_parts_of_uncertainty_keep_their_proportion():
    model = BNNClassifier(inference=registry.quick("laplace"), random_state=0).fit(X[:100], LABELS[:100])
    predictive = Calibrated(FrozenEstimator(model)).fit(X[100:130], LABELS[100:130]).predictive(X[200:220])
    inside = model.predictive(X[200:220])
    assert torch.allclose(predictive.epistemic / predictive.total, inside.epistemic / inside.total, atol=1e-9)
    assert predictive.rule.startswith(inside.rule) and "temperature" in predictive.rule


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.monte_carlo
def test_temperature_of_a_gaussian_is_its_mean_square_residual():
    model = Narrow().fit(X[:200], Y[:200])
    weights = RNG.uniform(0, 3, 200)
    t = Calibrated(FrozenEstimator(model)).fit(X[200:], Y[200:], weights).calibration_.temperature.item()
    mean, std = model.predict(X[200:], return_std=True)
    square = (weights * ((Y[200:] - mean) / std) ** 2).sum()
    # stationary in log T: log T + W / 2 - square / (2 T) = 0
    assert math.log(t) + weights.sum() / 2 - square / (2 * t) == pytest.approx(0, abs=1e-4)
    assert t == pytest.approx(4, rel=0.5)  # the variance of a mean of 200 squares is 2 / 200: five standard errors


def test_a_scaled_distribution_keeps_its_mean():
    model = Narrow().fit(X[:200], Y[:200])
    wrapped = Calibrated(FrozenEstimator(model)).fit(X[200:], Y[200:])
    predictive, (mean, std) = wrapped.predictive(X), model.predict(X, return_std=True)
    scale = wrapped.calibration_.temperature.sqrt().item()
    assert np.allclose(predictive.mean, mean) and np.allclose(predictive.std, scale * std)
    assert np.allclose(wrapped.predict(X), mean) and wrapped.score(X, Y) == pytest.approx(model.score(X, Y))
    assert torch.allclose(predictive.cdf(predictive.quantile(0.3)), torch.full((400,), 0.3, dtype=torch.float64))
    expected = torch.distributions.Normal(torch.as_tensor(mean), scale * torch.as_tensor(std))
    assert torch.allclose(predictive.log_prob(Y), expected.log_prob(torch.as_tensor(Y)))
    assert metrics.crps(predictive, Y) == pytest.approx(metrics.crps(predictive.affine(5.0, 2.0), 5 + 2 * Y) / 2)


@pytest.mark.monte_carlo
def test_several_outputs_have_a_temperature_each():
    targets = np.column_stack([Y, -Y, Y + RNG.normal(size=400)])
    widths, rest = np.array([0.5, 2.0, 1.0]), np.delete(np.arange(200, 400), 7)
    model = Narrow(widths).fit(X[:200], targets[:200])
    targets[207, 1] = np.nan  # a partly observed row is left out
    wrapped = Calibrated(FrozenEstimator(model)).fit(X[200:], targets[200:])
    assert wrapped.predict(X).shape == wrapped.predictive(X).std.shape == (400, 3)
    assert wrapped.predictive(X[:5]).log_prob(targets[:5]).shape == (5,)
    for j, width in enumerate(widths):  # independent outputs: the same as by themselves
        alone = Calibrated(FrozenEstimator(Narrow(width).fit(X[:200], targets[:200, j]))).fit(X[rest], targets[rest, j])
        t = alone.calibration_.temperature.item()
        assert wrapped.calibration_.temperature[j].item() == pytest.approx(t, rel=1e-4)
        assert t == pytest.approx(width**-2, rel=0.5)  # five standard errors of a mean of 199 squares


@pytest.mark.monte_carlo
def test_correlated_outputs_are_stretched_together():
    targets = np.column_stack([Y, Y + 0.1 * RNG.normal(size=400)])
    model = GPRegressor(num_latents=1, inference=registry.quick("exact"), random_state=0).fit(X[:40], targets[:40])
    wrapped = Calibrated(FrozenEstimator(model)).fit(X[40:100], targets[40:100])
    before, after = (m.predictive(X[100:]).log_prob(targets[100:]).mean() for m in (model, wrapped))
    assert wrapped.calibration_.temperature.shape == (2,) and after > before - 0.2


@pytest.mark.monte_carlo
def test_isotonic_of_numbers_makes_the_pit_uniform_at_the_knots():
    model = Narrow().fit(X[:100], Y[:100])
    wrapped = Calibrated(FrozenEstimator(model), "isotonic").fit(X[100:], Y[100:])
    u = np.sort(metrics.pit(wrapped.predictive(X[100:]), Y[100:]))
    observed = wrapped.calibration_.observed.numpy()
    assert len(observed) == math.ceil(300 ** (1 / 3)) + 1
    # the share of the calibration rows at or below a knot is its level, to the rank of one row
    shares = [(u <= level + 1e-9).mean() for level in observed]
    assert np.abs(np.array(shares) - observed).max() <= 1.5 / 300
    assert (np.diff(wrapped.calibration_.stated) > 0).all() and (np.diff(observed) > 0).all()


@pytest.mark.monte_carlo
def test_isotonic_weights_are_repetitions():
    model = FrozenEstimator(Narrow().fit(X[:100], Y[:100]))
    times = RNG.integers(1, 4, 300)
    weighted = Calibrated(model, "isotonic").fit(X[100:], Y[100:], times)
    repeated = Calibrated(model, "isotonic").fit(np.repeat(X[100:], times, 0), np.repeat(Y[100:], times))
    # the knots lie at the same quantiles, up to the fewer rows that unequal weights are worth
    at = np.linspace(-3, 3, 7)
    predictive, other = (m.predictive(np.zeros((7, 3))).cdf(at) for m in (weighted, repeated))
    assert (predictive - other).abs().max() < 0.05


@pytest.mark.monte_carlo
def test_isotonic_mends_a_shape_that_no_temperature_can():
    x = RNG.uniform(-1, 1, (6_000, 1))
    y = x[:, 0] + RNG.exponential(1.0, 6_000)
    model = Narrow(1.0).fit(x[:2_000], y[:2_000])
    held_out, test = slice(2_000, 4_000), slice(4_000, None)
    nll = {}
    for method in METHODS:
        wrapped = Calibrated(FrozenEstimator(model), method).fit(x[held_out], y[held_out])
        nll[method] = metrics.negative_log_likelihood(wrapped.predictive(x[test]), y[test])
    # a Gaussian of the right variance is log(2 pi e) / 2 - 1 = 0.42 nats above the exponential's entropy of 1; the 13
    # pieces of R get half of that back: over 24 seeds the standard deviations of the two are 0.023 and 0.016
    assert nll["temperature"] == pytest.approx(1.42, abs=0.12) and nll["temperature"] - nll["isotonic"] > 0.1


def test_tied_and_extreme_transforms_make_a_map_all_the_same():
    from bayeskit.estimators.post_hoc import HeldOut
    from bayeskit.estimators.posterior_predictive import posterior_predictive

    said = posterior_predictive(Narrow(1e-6).fit(X, Y), X)  # every transform is 0 or 1
    learnt = Quantiles.learn([HeldOut(said, torch.as_tensor(Y), torch.ones(400, dtype=torch.float64))])
    assert (learnt.stated.diff() > 0).all() and (learnt.observed.diff() > 0).all()
    assert learnt(said).log_prob(Y).isfinite().all()


def test_where_isotonic_cannot_go_the_remedy_is_named():
    targets = np.column_stack([Y, -Y])
    with pytest.raises(ValueError, match="MultiOutputRegressor"):
        Calibrated(Narrow(), "isotonic").fit(X, targets)
    remedy = MultiOutputRegressor(Calibrated(Narrow(), "isotonic", random_state=0)).fit(X, targets)
    assert remedy.predict(X).shape == (400, 2)


def test_counts_are_sent_to_conformal():
    model = GPRegressor(likelihood=Poisson(), inference=registry.quick("svgp"), random_state=0)
    with pytest.raises(ValueError, match="Conformal"):
        Calibrated(model).fit(X[:60], RNG.poisson(3.0, 60))


# -- habits ------------------------------------------------------------------------------------------------------------


def quick(cls, name="map", **settings):
    return cls(inference=registry.quick(name), random_state=0, **settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("cls", "y"), [(BNNClassifier, LABELS), (BNNRegressor, Y)], ids=["classes", "numbers"])
def test_round_trips(cls, y, method, tmp_path):
    model = Calibrated(quick(cls), method, random_state=0).fit(X[:80], y[:80])
    save(model, tmp_path / "model.bayeskit")
    for again in (
        load(tmp_path / "model.bayeskit"),
        pickle.loads(pickle.dumps(model)),
        clone(model).fit(X[:80], y[:80]),
    ):
        assert (again.predict(X) == model.predict(X)).all()
        assert torch.equal(again.predictive(X).log_prob(y), model.predictive(X).log_prob(y))
        assert again.get_params().keys() == model.get_params().keys()


class OwnNetwork(nn.Sequential):
    def __init__(self, in_features, out_features):
        super().__init__(nn.Linear(in_features, 8), nn.Tanh(), nn.Linear(8, out_features))


@pytest.mark.parametrize("network", [OwnNetwork, OwnNetwork(3, 1)], ids=["callable", "module"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "fitted inside"])
def test_an_own_network_inside_comes_back_through_its_factory(network, frozen, tmp_path):
    inside = quick(BNNRegressor, network=network)
    inside = FrozenEstimator(inside.fit(X[:60], Y[:60])) if frozen else inside
    model = Calibrated(Calibrated(inside, random_state=0), "isotonic", random_state=0).fit(X[60:140], Y[60:140])
    save(model, tmp_path / "model.bayeskit")
    again = load(tmp_path / "model.bayeskit", network=OwnNetwork)
    assert (again.predict(X) == model.predict(X)).all()


def test_a_frozen_estimator_is_saved_once(tmp_path):
    inside = quick(BNNRegressor).fit(X[:60], Y[:60])
    model = Calibrated(FrozenEstimator(inside)).fit(X[60:], Y[60:])
    assert model.estimator_ is model.estimator
    save(model, tmp_path / "model.bayeskit")
    again = load(tmp_path / "model.bayeskit")
    assert again.estimator_ is again.estimator and (again.predict(X) == model.predict(X)).all()


def test_it_is_what_is_inside():
    assert is_classifier(Calibrated(BNNClassifier())) and is_regressor(Calibrated(GPRegressor()))
    assert not hasattr(Calibrated(GPRegressor()), "predict_proba")
    model = Calibrated(quick(BNNClassifier), random_state=0).fit(pd.DataFrame(X[:60], columns=list("xyz")), LABELS[:60])
    assert model.n_features_in_ == 3 and list(model.feature_names_in_) == ["x", "y", "z"]
    assert model.classes_.tolist() == ["a", "b", "c"]


@pytest.mark.monte_carlo
def test_pipelines_and_searches_both_ways():
    outside = make_pipeline(StandardScaler(), Calibrated(Narrow(), random_state=0)).fit(X, Y)
    inside = Calibrated(make_pipeline(StandardScaler(), Narrow()), random_state=0).fit(X, Y)
    assert np.allclose(outside.predict(X), inside.predict(X), atol=1e-2)
    search = GridSearchCV(Calibrated(Sure()), {"method": METHODS, "estimator__factor": [1.0, 2.0]}, cv=2).fit(X, LABELS)
    assert search.best_score_ > 0.7
    assert Calibrated(GridSearchCV(Sure(), {"factor": [1.0, 2.0]}, cv=2)).fit(X, LABELS).score(X, LABELS) > 0.7
    assert cross_val_score(Calibrated(Narrow()), X, Y, cv=3).min() > 0.8


def test_folds_judge_every_row_and_all_rows_are_fitted():
    y, folds = LABELS == "b", KFold(4)
    model = Calibrated(Sure(), "isotonic", cv=folds).fit(X, y)
    theirs = CalibratedClassifierCV(Sure(), method="isotonic", cv=folds, ensemble=False).fit(X, y)
    assert np.allclose(model.predict_proba(X), (400 * theirs.predict_proba(X) + 0.5) / 401, atol=1e-12)


def test_folds_of_numbers():
    t = Calibrated(Narrow(), cv=KFold(4)).fit(X, Y).calibration_.temperature.item()
    square = 0.0
    for train, rest in KFold(4).split(X):
        mean, std = Narrow().fit(X[train], Y[train]).predict(X[rest], return_std=True)
        square += (((Y[rest] - mean) / std) ** 2).sum()
    assert math.log(t) + 200 - square / (2 * t) == pytest.approx(0, abs=1e-4)  # stationary in log T, as above


def test_the_rows_held_out_are_a_matter_of_the_seed():
    def temperature(seed):
        return Calibrated(Narrow(), random_state=seed).fit(X, Y).calibration_.temperature.item()

    assert temperature(0) == temperature(0) != temperature(1)


def test_classes_are_held_out_in_proportion_and_a_class_of_one_row_is_fitted():
    labels = np.array(["rare"] + ["a"] * 30 + ["b"] * 20)
    train, rest = Calibrated(Sure())._split(labels)
    assert sorted([*train, *rest]) == list(range(51))
    assert (labels[rest] == "a").sum() == 6 and (labels[rest] == "b").sum() == 4 and 0 in train
    assert Calibrated(Sure(), random_state=0).fit(X[:51], labels).predict_proba(X).shape == (400, 3)


def test_tensors_and_datasets_reach_the_network():
    images, targets = torch.as_tensor(X[:60]).float().reshape(60, 1, 3), torch.as_tensor((Y[:60] > 0).astype(int))
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    model = Calibrated(quick(BNNClassifier, network=network), random_state=0)
    p = model.fit(images, targets.numpy()).predict_proba(images)
    assert np.allclose(model.fit(TensorDataset(images, targets)).predict_proba(images), p)


def test_any_regressor_that_states_a_spread():
    model = Calibrated(GaussianProcessRegressor(alpha=0.25), random_state=0).fit(X[:60], Y[:60])
    assert isinstance(model.predictive(X).base.base, GaussianPredictive)
    with pytest.raises(TypeError, match="has no predictive distribution"):
        Calibrated(Ridge()).fit(X, Y)


@pytest.mark.parametrize("cv", [None, [(np.arange(0, 400, 2), np.arange(1, 400, 2))]], ids=["held out", "folds"])
def test_weights_of_zero_are_rows_that_are_not_there(cv):
    weights = np.r_[np.ones(100), np.zeros(300)]
    one = Calibrated(Sure(), cv=cv, random_state=0).fit(X, LABELS, weights)
    cv = None if cv is None else [tuple(rows[:50] for rows in cv[0])]
    other = Calibrated(Sure(), cv=cv, random_state=0).fit(X[:100], LABELS[:100])
    assert np.allclose(one.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize(
    ("settings", "y", "message"),
    [
        ({"method": "platt"}, Y, "`method` must be one of"),
        ({"calibration_size": 1.5}, Y, "`calibration_size` must lie strictly between 0 and 1"),
        ({"calibration_size": 0.001}, Y, "leaves no row to calibrate on"),
        ({}, None, "requires y to be passed"),
        ({}, Y[:-1], "inconsistent numbers of samples"),
        ({}, np.where(np.arange(400) == 3, np.nan, Y), "NaN"),
    ],
)
def test_wrong_arguments_are_one_sentence(settings, y, message):
    with pytest.raises(ValueError, match=message):
        Calibrated(Narrow(), random_state=0).set_params(**settings).fit(X, y)
    with pytest.raises(ValueError, match="at least one non-zero"):
        Calibrated(Narrow()).fit(X, Y, np.zeros(400))


@pytest.mark.slow
@pytest.mark.parametrize("inside", [quick(BNNClassifier), quick(BNNRegressor)], ids=["classes", "numbers"])
def test_scikit_learn_checks(inside):
    weights = "check_sample_weight_equivalence_on_dense_data"
    exempt = {weights: "which rows are held out depends on how many there are"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            Calibrated(inside, random_state=0), expected_failed_checks=exempt, on_skip=None, on_fail=None
        )
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []
