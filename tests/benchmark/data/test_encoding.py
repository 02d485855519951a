"""Columns of every kind are encoded as numbers, learnt on the training rows alone."""

import numpy as np
import pandas as pd
import pytest

from bayeskit.benchmark.data import encoding

TRAIN = pd.DataFrame(
    {
        "size": [1.0, 2.0, np.nan, 4.0, 9.0, np.inf],
        "city": ["x", "y", None, "x", "z", "x"],
        "fixed": [1] * 6,
        "garden": [True, False] * 3,
        "built": pd.date_range("2020-01-01", periods=6),
        "empty": [np.nan] * 6,
        "key": list("abcdef"),
    }
)


def test_every_kind_of_column():
    encoder = encoding.learn(TRAIN)
    numbers = encoder(TRAIN)
    # size, garden, built, one indicator of size missing; four categories of city (one for missing)
    assert numbers.shape == (6, 8)
    assert np.isfinite(numbers).all()
    assert numbers[2, 0] == numbers[5, 0] == 3.0  # the median of 1, 2, 4, 9
    assert (np.diff(numbers[:, 2]) == 1).all()  # dates in days


def test_every_decision_has_a_sentence():
    text = " ".join(encoding.learn(TRAIN).sentences)
    assert "2 columns without information in the training rows were dropped: fixed, empty." in text
    assert "A text column was dropped, being different in every row: key." in text
    assert "A date column was converted to days since 1970: built." in text
    assert "A categorical column was one-hot encoded: city." in text
    assert (
        "A column had missing values, filled with the training median and marked in a column of its own: size." in text
    )


def test_only_training_rows_are_learnt_from():
    encoder = encoding.learn(TRAIN)
    other = TRAIN.assign(city="new", size=np.nan, fixed=7)
    numbers = encoder(other)
    assert (numbers[:, 0] == 3.0).all()  # still the training median
    assert (numbers[:, 4:] == 0).all()  # an unseen category is zero everywhere


def test_many_categories_are_limited():
    frame = pd.DataFrame({"code": [f"c{i % 40}" for i in range(200)], "x": np.arange(200.0)})
    encoder = encoding.learn(frame)
    assert encoder(frame).shape == (200, 1 + encoding.MAX_CATEGORIES)
    assert any("commonest" in sentence for sentence in encoder.sentences)


def test_plain_arrays_pass_through():
    X = np.random.default_rng(0).normal(size=(20, 3))
    encoder = encoding.learn(X)
    np.testing.assert_array_equal(encoder(X), X)
    assert encoder.sentences == []


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="every column is constant"):
        encoding.learn(np.ones((5, 2)))
