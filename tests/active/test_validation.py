"""What a caller hands in: taken as it is meant, or refused in one sentence."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError

from bayeskit import GPRegressor, active

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
NUMBERS = np.sin(X[:, 0]) + X[:, 1]
MODEL = GPRegressor(random_state=0).fit(X, NUMBERS)
TABLE = pd.DataFrame(X, columns=["a", "b"])
OF_TABLE = GPRegressor(random_state=0).fit(TABLE, NUMBERS)


def test_a_mask_is_not_taken_for_positions():
    with pytest.raises(ValueError, match=r"`exclude` must hold positions.*bool.*np\.flatnonzero"):
        active.query(MODEL, X, exclude=np.arange(40) < 30)


@pytest.mark.parametrize("exclude", [[40], [-1], [0.5], [[0, 1]]])
def test_what_is_no_position_is_not_passed_over(exclude):
    with pytest.raises(ValueError, match="`exclude` must hold positions between 0 and 39"):
        active.query(MODEL, X, exclude=exclude)


def test_targets_may_be_a_table_with_its_columns_in_any_order():
    plain = active.query(OF_TABLE, TABLE, acquisition="epig", targets=TABLE.iloc[:5], batch_size=3, random_state=0)
    turned = active.query(
        OF_TABLE, TABLE, acquisition="epig", targets=TABLE.iloc[:5][["b", "a"]], batch_size=3, random_state=0
    )
    array = active.query(OF_TABLE, TABLE, acquisition="epig", targets=X[:5], batch_size=3, random_state=0)
    assert plain.indices.tolist() == turned.indices.tolist() == array.indices.tolist()


@pytest.mark.parametrize(
    ("pool", "targets", "words"),
    [
        (TABLE, TABLE.rename(columns={"a": "z"}), r"columns of `X`; \['a'\] are not among \['z', 'b'\]"),
        (X, X[:5, :1], r"like the rows of `X`, \('m', 2\) with m of at least 1; got shape \(5, 1\)"),
        (X, X[0], r"like the rows of `X`.*got shape \(2,\)"),
        (X, X[:0], r"like the rows of `X`.*got shape \(0, 2\)"),
        (X.tolist(), 3.0, r"like the rows of `X`.*got shape \(\)"),
    ],
)
def test_targets_unlike_the_pool_are_refused_by_name(pool, targets, words):
    model = OF_TABLE if pool is TABLE else MODEL
    with pytest.raises(ValueError, match="`targets` must .*" + words):
        active.query(model, pool, acquisition="epig", targets=targets)


@pytest.mark.parametrize("made", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.float])
def test_scores_of_ones_own_may_be_any_numbers(made):
    found = active.query(MODEL, X, acquisition=lambda values, likelihood: made(values.mean[:, 0]), batch_size=3)
    assert found.indices.tolist() == MODEL.predict(X).argsort()[::-1][:3].tolist()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda mean: mean * torch.nan, r"shape \(40,\) of torch.float64 for 40 inputs, with 40 NaN"),
        (lambda mean: mean[:3], r"got shape \(3,\)"),
        (lambda mean: mean.sum(), r"got shape \(\)"),
        (lambda mean: mean.to(torch.complex128), r"of torch\.complex128"),
        (lambda mean: None, "got None"),
    ],
)
def test_scores_that_are_none_are_refused(made, words):
    with pytest.raises(ValueError, match="one number for each input, none of them NaN; .*" + words):
        active.query(MODEL, X, acquisition=lambda values, likelihood: made(values.mean[:, 0]))


@pytest.mark.parametrize("name", ["epig", "batch_bald"])
def test_functions_that_need_more_are_known_by_name(name):
    with pytest.raises(ValueError, match=f"must be the name '{name}'"):
        active.query(MODEL, X, acquisition=getattr(active, name))


def test_an_estimator_is_fitted_first():
    with pytest.raises(NotFittedError, match="GPRegressor instance is not fitted yet"):
        active.query(GPRegressor(), X)


def test_a_row_that_is_not_known_in_full_is_said_not_scored():
    pool = X.copy()
    pool[7, 0] = np.nan
    for acquisition in ("bald", "batch_bald", "epig"):
        with pytest.raises(ValueError, match="contains NaN"):
            active.query(MODEL, pool, acquisition=acquisition)


@pytest.mark.parametrize("acquisition", ["bald", "batch_bald", "epig", "random"])
def test_float32_asks_for_the_same_rows(acquisition):
    wide = active.query(MODEL, X, acquisition=acquisition, batch_size=4, random_state=0)
    narrow = active.query(MODEL, X.astype(np.float32), acquisition=acquisition, batch_size=4, random_state=0)
    assert wide.indices.tolist() == narrow.indices.tolist()


def test_of_equal_rows_a_batch_takes_one_before_it_takes_a_second():
    pool = np.repeat(3 + np.arange(4.0)[:, None] * [1, -1], 10, axis=0)  # four places, ten rows in each
    batch = active.query(MODEL, pool, acquisition="batch_bald", batch_size=4, random_state=0)
    assert sorted(batch.indices // 10) == [0, 1, 2, 3]
