"""scikit-activeml's strategies on our estimators, by the real library."""

import numpy as np
import pytest
from skactiveml.pool import ExpectedModelVarianceReduction, GreedyBALD, UncertaintySampling
from sklearn.exceptions import NotFittedError

from bayeskit import BNNClassifier, GPClassifier, GPRegressor, bnn, gp
from bayeskit.integrations.skactiveml import BayesianClassifier, BayesianRegressor

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (60, 2))
LABELS = np.where(X[:, 0] > 0, 1.0, 0.0)
PARTLY = np.where(np.arange(60) < 12, LABELS, np.nan)
CLASSIFIERS = [
    GPClassifier(inference=gp.SVGP.quickly(), random_state=0),
    BNNClassifier(inference=bnn.Laplace.quickly(), random_state=0),
    BNNClassifier(inference=bnn.DeepEnsemble.quickly(), random_state=0),
]


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(e.inference).__name__)
def test_strategies_of_classes_choose_rows_without_a_label(estimator):
    model = BayesianClassifier(estimator, classes=[0, 1], random_state=0)
    for strategy, settings in (
        (UncertaintySampling(random_state=0), {"clf": model}),
        (GreedyBALD(sample_predictions_method_name="sample_proba", random_state=0), {"ensemble": model}),
    ):
        chosen = strategy.query(X, PARTLY, batch_size=4, **settings)
        assert len(set(chosen)) == 4 and np.isnan(PARTLY[chosen]).all()


@pytest.mark.monte_carlo
def test_draws_average_to_the_probabilities():
    model = BayesianClassifier(CLASSIFIERS[1], classes=[0, 1], random_state=0).fit(X, PARTLY)
    drawn = model.sample_proba(X, n_samples=4000)
    assert drawn.shape == (4000, 60, 2)
    # The library's probabilities are by quadrature; a mean of 4,000 draws of numbers in [0, 1] is within 4 errors.
    assert np.abs(drawn.mean(0) - model.predict_proba(X)).max() < 5 * 0.5 / 4000**0.5


def test_a_class_without_a_label_has_no_probability():
    model = BayesianClassifier(CLASSIFIERS[1], classes=[0, 1, 2], random_state=0).fit(X, PARTLY)
    drawn = model.sample_proba(X[:5], n_samples=3)
    assert drawn.shape == (3, 5, 3) and (drawn[..., 2] == 0).all()
    np.testing.assert_allclose(drawn.sum(-1), 1, atol=1e-6)


def test_strategies_of_numbers_read_mean_and_deviation():
    y = np.where(np.isnan(PARTLY), np.nan, np.sin(X[:, 0]))
    model = BayesianRegressor(GPRegressor(inference=gp.Exact(), random_state=0)).fit(X, y)
    distribution = model.predict_target_distribution(X)
    mean, std = model.estimator_.predict(X, return_std=True)
    np.testing.assert_allclose(distribution.mean(), mean)
    np.testing.assert_allclose(distribution.std(), std)
    chosen = ExpectedModelVarianceReduction(random_state=0).query(X[:20], y[:20], model, fit_reg=True)
    assert np.isnan(y[chosen]).all()


@pytest.mark.parametrize("unknown", [None, "nan"])
def test_labels_may_be_words(unknown):
    words = np.where(LABELS > 0, "right", "left").astype(object if unknown is None else str)
    known = np.where(np.isnan(PARTLY), unknown, words).astype(words.dtype)
    model = BayesianClassifier(CLASSIFIERS[1], classes=["right", "left"], missing_label=unknown, random_state=0)
    numbers = BayesianClassifier(CLASSIFIERS[1], classes=[0, 1], random_state=0).fit(X, PARTLY)
    model.fit(X, known)
    assert list(model.classes_) == ["left", "right"]
    assert np.array_equal(model.predict(X), np.array(["left", "right"])[numbers.predict(X).astype(int)])
    np.testing.assert_allclose(model.sample_proba(X, 5), numbers.sample_proba(X, 5))
    strategy = GreedyBALD(sample_predictions_method_name="sample_proba", missing_label=unknown, random_state=0)
    chosen = strategy.query(X, known, model, batch_size=4)
    assert np.isnan(PARTLY[chosen]).all()


@pytest.mark.parametrize("first", [0, 3])
def test_before_there_are_two_classes_all_draws_are_alike(first):
    """No label at all, or labels of one class: scikit-activeml goes by its counts, and a strategy can begin."""
    known = np.where(np.arange(60) < first, 1.0, np.nan)
    model = BayesianClassifier(CLASSIFIERS[0], classes=[0, 1], random_state=0)
    with pytest.warns(UserWarning, match="could not be fitted"):
        drawn = model.fit(X, known).sample_proba(X, n_samples=4)
    expected = [0.5, 0.5] if first == 0 else [0.0, 1.0]
    np.testing.assert_array_equal(drawn, np.broadcast_to(expected, (4, 60, 2)))
    with pytest.warns(UserWarning, match="could not be fitted"):
        chosen = GreedyBALD(sample_predictions_method_name="sample_proba", random_state=0).query(X, known, model)
    assert np.isnan(known[chosen]).all()


def test_a_regressor_without_targets_is_scikit_activemls_own_guess():
    with pytest.warns(UserWarning, match="could not be fitted"):
        model = BayesianRegressor(GPRegressor(random_state=0)).fit(X, np.full(60, np.nan))
    with pytest.warns(UserWarning, match="could not be fitted"):
        mean, std = model.predict(X[:2], return_std=True)
    assert (mean == 0).all() and (std == 1).all()


def test_without_a_fit_there_are_no_draws():
    with pytest.raises(NotFittedError):
        BayesianClassifier(CLASSIFIERS[0], classes=[0, 1]).sample_proba(X)
