"""The loop: lazy, resumable, nothing asked twice."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from bayeskit import BNNClassifier, GPClassifier, GPRegressor, active, bnn
from bayeskit.core.optimize import Training

RNG = np.random.default_rng(0)
X = RNG.uniform(-3, 3, (60, 1))
Y = np.sin(2 * X[:, 0]) + 0.1 * RNG.normal(size=60)
MODEL = GPRegressor(random_state=0)


def test_rounds_grow_by_a_batch():
    rounds = list(active.run(MODEL, X, Y, initial=5, batch_size=4, rounds=4, random_state=0))
    assert [r.num_labels for r in rounds] == [5, 9, 13, 17]
    assert [r.number for r in rounds] == [0, 1, 2, 3]
    for before, after in pairwise(rounds):
        assert after.labeled.tolist() == before.labeled.tolist() + after.queried.tolist()
        assert len(set(after.labeled.tolist())) == after.num_labels
        assert len(after.scores) == 4 and np.isfinite(after.scores).all() and after.seconds > 0
        assert after.estimator is not before.estimator
    assert np.isnan(rounds[0].scores).all()
    assert not hasattr(MODEL, "posterior_")


def test_a_round_is_the_fit_to_its_labels():
    last = list(active.run(MODEL, X, Y, initial=5, batch_size=2, rounds=2, random_state=0))[-1]
    again = GPRegressor(random_state=0).fit(X[last.labeled], Y[last.labeled])
    assert (again.predict(X) == last.estimator.predict(X)).all()


def test_nothing_is_asked_before_its_round():
    asked = []

    def labels(rows):
        asked.append(rows.tolist())
        return Y[rows]

    loop = active.run(MODEL, X, labels, initial=5, batch_size=3, random_state=0)
    assert asked == []
    next(loop)
    assert [len(rows) for rows in asked] == [5]
    second = next(loop)
    assert asked[1] == second.queried.tolist()


@pytest.mark.parametrize("acquisition", ["batch_bald", "epig", "random"])
def test_a_loop_is_taken_up_where_it_stopped(acquisition):
    settings = {"acquisition": acquisition, "batch_size": 3, "random_state": 7}
    whole = list(active.run(MODEL, X, Y, initial=6, rounds=4, **settings))
    resumed = list(active.run(MODEL, X, Y, initial=whole[1].labeled, rounds=3, **settings))
    for first, second in zip(whole[1:], resumed, strict=True):
        assert first.labeled.tolist() == second.labeled.tolist()
        assert (first.estimator.predict(X) == second.estimator.predict(X)).all()


def test_the_seed_decides():
    def chosen(seed):
        return list(active.run(MODEL, X, Y, initial=4, rounds=2, random_state=seed))[-1].labeled.tolist()

    assert chosen(0) == chosen(0) != chosen(1)


def test_a_pool_ends():
    rounds = list(active.run(MODEL, X[:9], Y[:9], initial=4, batch_size=3, random_state=0))
    assert [r.num_labels for r in rounds] == [4, 7, 9]
    assert sorted(rounds[-1].labeled.tolist()) == list(range(9))


def test_a_pool_of_one():
    (only,) = active.run(MODEL, X[:1], Y[:1], initial=1)
    assert only.num_labels == 1


def test_classes_may_come_later():
    y = np.array(["a", "b", "c"])[np.digitize(X[:, 0], [-1, 2])]
    start = [int((y == name).argmax()) for name in ("a", "b")]
    method = bnn.VBLL(training=Training(lr=1e-2, max_epochs=5))
    loop = active.run(BNNClassifier(inference=method, random_state=0), X, y, initial=start, batch_size=30, rounds=2)
    assert [len(r.estimator.classes_) for r in loop] == [2, 3]


def test_several_outputs():
    y = np.stack([Y, -Y], 1)
    last = list(active.run(MODEL, X, y, acquisition="batch_bald", initial=5, batch_size=2, rounds=2))[-1]
    assert last.estimator.predict(X).shape == (60, 2)


@pytest.mark.monte_carlo
def test_asking_where_little_is_known_beats_chance():
    # A pool of which nearly all lies in one place: chance seldom asks elsewhere.
    x = np.concatenate([RNG.normal(0, 0.1, (200, 1)), RNG.uniform(-3, 3, (20, 1))])
    y, grid = np.sin(2 * x[:, 0]), np.linspace(-3, 3, 50)[:, None]
    errors = {}
    for acquisition in ("bald", "random"):
        last = list(active.run(MODEL, x, y, acquisition=acquisition, initial=3, rounds=12, random_state=0))[-1]
        errors[acquisition] = np.abs(last.estimator.predict(grid) - np.sin(2 * grid[:, 0])).mean()
    assert errors["bald"] < errors["random"] / 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"acquisition": "entropie"}, "`acquisition` must be one of .* did you mean 'entropy'"),
        ({"initial": 61}, "at most the number of rows of the pool, 60; got 61"),
        ({"initial": [1, 1]}, "none twice"),
        ({"initial": [-1]}, "between 0 and 59"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"rounds": 0}, "`rounds` must be a positive integer"),
        ({"initial": [0.0, 1.0]}, "`initial` must hold positions.*float64"),
        ({"initial": [[0, 1]]}, r"`initial` must hold positions.*shape \(1, 2\)"),
        ({"initial": Y > 0}, r"`initial` must hold positions.*np\.flatnonzero"),
        ({"initial": []}, "at least one position"),
        ({"acquisition": "margin"}, "'margin' compares the probabilities of labels"),
        ({"y": Y[:5]}, "same number of rows"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_round(settings, words):
    with pytest.raises(ValueError, match=words):
        active.run(MODEL, X, **{"y": Y, **settings})


def test_an_estimator_without_a_joint_distribution_is_refused_before_the_first_round():
    with pytest.raises(TypeError, match="joint distribution of the function.*got LinearRegression"):
        active.run(LinearRegression(), X, Y)


@pytest.mark.parametrize("acquisition", ["bald", "batch_bald"])
def test_a_loop_that_was_interrupted_goes_on_as_if_it_had_not_been(acquisition):
    settings = {"acquisition": acquisition, "batch_size": 3, "random_state": 3}
    calls = []

    def label(rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Y[rows]

    rounds, loop = [], active.run(MODEL, X, label, initial=5, **settings)
    with pytest.raises(KeyboardInterrupt):
        for r in loop:
            rounds.append(r)
    assert next(loop, None) is None
    resumed = list(active.run(MODEL, X, label, initial=rounds[-1].labeled, rounds=2, **settings))
    whole = list(active.run(MODEL, X, Y, initial=5, rounds=3, **settings))
    assert resumed[-1].labeled.tolist() == whole[-1].labeled.tolist()
    assert calls[2].tolist() == resumed[-1].queried.tolist()  # asked again, since its labels never came


def test_one_class_at_the_start_is_said_with_what_to_do():
    y = np.where(X[:, 0] > 0, "yes", "no")
    loop = active.run(GPClassifier(random_state=0), X, y, initial=np.flatnonzero(y == "no")[:5])
    with pytest.raises(ValueError, match=r"`initial`: the 5 labels at the start are all .*'no'.*two classes"):
        next(loop)


def test_labels_may_be_words_of_any_length():
    def words(rows):
        return ["yes" if X[row, 0] > 0 else "certainly not" for row in rows]

    start = [int((X[:, 0] > 0).argmax()), int((X[:, 0] <= 0).argmax())]
    method = bnn.VBLL(training=Training(lr=1e-2, max_epochs=3))
    last = list(active.run(BNNClassifier(inference=method, random_state=0), X, words, initial=start, rounds=3))[-1]
    assert last.estimator.classes_.tolist() == ["certainly not", "yes"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda rows: None, "a label for each position; got None"),
        (lambda rows: 1.0, r"a label for each position; got 1\.0"),
        (lambda rows: Y[rows] if len(rows) > 1 else Y[rows][:, None], r"of one shape; got \(1, 1\).*\(5,\)"),
    ],
)
def test_an_answer_that_is_not_labels(answer, words):
    with pytest.raises(ValueError, match=words):
        list(active.run(MODEL, X, answer, initial=5, rounds=2))


def test_labels_for_all_that_were_asked():
    with pytest.raises(ValueError, match="a label for each position; got 1 for 5"):
        next(active.run(MODEL, X, lambda rows: Y[rows[:1]], initial=5))
