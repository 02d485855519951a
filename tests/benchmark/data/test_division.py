"""Rows divided by groups, by time, in folds; and splits that leak are said to."""

import numpy as np
import pandas as pd
import pytest

from bayeskit.benchmark.data.datasets import Dataset
from bayeskit.benchmark.data.requested_division import divided
from bayeskit.benchmark.run.problem import problems

RNG = np.random.default_rng(0)
N = 90
DAYS = pd.date_range("2024-01-01", periods=N)


def table(task="regression", **columns):
    X = pd.DataFrame(
        {"a": RNG.normal(size=N), "b": RNG.normal(size=N), "site": np.arange(N) // 6, "day": DAYS, **columns}
    )
    y = X["a"].to_numpy() + RNG.normal(size=N)
    return Dataset("table", X, (y > 0).astype(int) if task == "classification" else y, task, ("n", "y"))


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("folds", [None, 2, 5])
@pytest.mark.parametrize("form", ["column", "values", "text"])
def test_groups_are_never_on_both_sides(task, folds, form):
    names = np.array([f"site {i}" for i in np.arange(N) // 6])
    data = table(task) if form != "text" else table(task, site=names)
    sites = np.arange(N) // 6
    data = divided(data, "site" if form != "values" else sites, None, folds)
    tests = []
    for seed in range(folds or 3):
        train, test = data.split(seed)
        assert set(sites[train]).isdisjoint(sites[test]) and len(train) + len(test) == N
        assert len(test) / N == pytest.approx(1 / (folds or 5), abs=0.1)
        tests += test.tolist()
    assert folds is None or sorted(tests) == list(range(N))  # each row is held out once
    assert ("site" in data.X.columns) == (form == "values")
    assert "groups" in data.division.sentence(3) and ("one of" in data.division.sentence(3)) == (folds is not None)


@pytest.mark.parametrize("kind", ["days", "numbers", "ties", "shuffled", "zone"])
@pytest.mark.parametrize("folds", [None, 2, 5])
def test_test_rows_are_later(kind, folds):
    times = {
        "days": DAYS,
        "numbers": np.linspace(0, 1, N) ** 3,
        "ties": np.arange(N) // 7,
        "shuffled": RNG.permutation(N),
        "zone": DAYS.tz_localize("Europe/Vienna"),
    }[kind]
    data = divided(table(day=times), None, "day", folds)
    rank = pd.Series(times).rank().to_numpy()
    for seed in range(folds or 2):
        train, test = data.split(seed)
        assert len(train) and len(test) and rank[train].max() < rank[test].min()
    sizes = [len(data.split(seed)[1]) for seed in range(folds or 1)]
    assert sum(sizes) / N == pytest.approx(0.2 if folds is None else folds / (folds + 1), abs=0.08)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_folds_hold_out_every_row_once_and_are_drawn_anew(task):
    data = divided(table(task), None, None, 5)
    tests = [data.split(seed)[1] for seed in range(10)]
    assert sorted(np.concatenate(tests[:5])) == sorted(np.concatenate(tests[5:])) == list(range(N))
    assert set(tests[0]) != set(tests[5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": "sites"}, r"`groups` must be a column .*\(a, b, site, day\); got 'sites'; did you mean 'site'"),
        ({"time": "dya"}, "`time` must be a column .* did you mean 'day'"),
        ({"groups": "site", "time": "day"}, "`groups` and `time` must not both be given"),
        ({"folds": 1}, "`folds` must be at least 2"),
        ({"folds": 91}, "`folds` must be at least 2 and at most the 90 rows"),
        ({"folds": 2.5}, "`folds` must be a positive integer"),
        ({"groups": np.ones(N)}, "`groups` must have at least 2 groups"),
        ({"groups": "site", "folds": 16}, "`groups` must have at least 16 groups to divide; site has 15"),
        ({"groups": np.ones(5)}, "`groups` must have one value for each of 90 rows; got 5"),
        ({"groups": np.r_[np.nan, np.ones(N - 1)]}, "`groups` must have a value in every row; .* has 1 missing"),
        ({"time": np.array(["x"] * N)}, "`time` must be a column of numbers or dates"),
        ({"time": np.ones(N)}, "`time` must have at least 2 different values"),
    ],
)
def test_what_cannot_be_divided_is_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        divided(table(), **{"groups": None, "time": None, "folds": None, **settings})


def warnings(data):
    return [note for note in problems(data, None, 1)[1] if note.startswith("Warning")]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_ordinary_data_have_no_warning(task):
    assert warnings(table(task, count=RNG.integers(0, 30, N), name=[f"n{i % 9}" for i in range(N)])) == []


@pytest.mark.parametrize("noise", [0.0, 1e-9])
@pytest.mark.parametrize("as_array", [False, True])
def test_copies_on_both_sides_are_said(noise, as_array):
    data = table()
    X, y = data.X[["a", "b"]], np.r_[data.y, data.y]
    X = pd.concat([X, X * (1 + noise)], ignore_index=True)
    data = Dataset("twice", X.to_numpy() if as_array else X, y, "regression")
    (sentence,) = warnings(data)
    assert "test points have the inputs of a training point" in sentence
    assert warnings(divided(data, np.arange(2 * N) % N, None, None)) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("k", np.arange(N)),
        ("k", N - np.arange(N, dtype=float)),
        ("k", RNG.permutation(N) + 1000),
        ("id", np.sort(RNG.integers(0, 10**6, N))),
        ("Unnamed: 0", np.arange(N)),
    ],
)
def test_a_row_index_is_said(name, values):
    (sentence,) = warnings(table(**{name: values}))
    assert sentence.startswith(f"Warning: {name} looks like a row index")
    assert warnings(divided(table(**{name: values}), None, name, None)) == []


@pytest.mark.parametrize("leak", [lambda y: y, lambda y: -3 * y + 1, np.exp, lambda y: y + 0.03 * RNG.normal(size=N)])
def test_a_column_that_is_the_target_is_said(leak):
    data = table()
    data.X["copy"] = leak(data.y)
    (sentence,) = warnings(data)
    assert sentence.startswith("Warning: copy alone predicts ") and "variance" in sentence


@pytest.mark.parametrize(
    "codes", [lambda y: y, lambda y: np.where(y == 1, "yes", "no"), lambda y: y + 0.1 * RNG.normal(size=N)]
)
def test_a_column_that_is_the_label_is_said(codes):
    data = table("classification")
    data.X["copy"] = codes(data.y)
    (sentence,) = warnings(data)
    assert sentence.startswith("Warning: copy alone predicts ") and "labels" in sentence
