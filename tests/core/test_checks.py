import numpy as np
import pandas as pd
import pytest
import torch

from bayeskit.core import checks


def test_choice_names_the_argument_the_options_and_the_closest():
    checks.choice("full", name="structure", options=["full", "diagonal"])
    with pytest.raises(ValueError, match=r"`structure` must be one of \['diagonal', 'full'\]; got 'fulll'; did you"):
        checks.choice("fulll", name="structure", options=["full", "diagonal"])
    with pytest.raises(ValueError, match=r"got 3$"):
        checks.choice(3, name="structure", options=["full"])


def test_suggest_is_silent_when_nothing_is_close():
    assert checks.suggest("svpg", ["svgp", "laplace"]) == "; did you mean 'svgp'?"
    assert checks.suggest("xyz", ["svgp", "laplace"]) == ""


@pytest.mark.parametrize("value", [1, 1e-300, np.float32(0.5), np.int64(3)])
def test_positive_numbers_pass(value):
    checks.positive(value, name="lr")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), np.float64("nan")])
def test_numbers_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="`lr` must be a positive number; got"):
        checks.positive(value, name="lr")


@pytest.mark.parametrize("value", ["1", None, True, [1.0]])
def test_what_is_no_number_is_refused_with_its_type(value):
    with pytest.raises(TypeError, match=f"`lr` must be a positive number; got .* of type {type(value).__name__}"):
        checks.positive(value, name="lr")


def test_positive_integers():
    checks.positive(np.int32(2), name="size", integer=True)
    with pytest.raises(TypeError, match="`size` must be a positive integer; got 2.0 of type float"):
        checks.positive(2.0, name="size", integer=True)
    with pytest.raises(ValueError, match="`size` must be a positive integer; got 0"):
        checks.positive(0, name="size", integer=True)


@pytest.mark.parametrize("value", [0, 1, -0.1, float("nan"), "half", None])
def test_fractions_out_of_range_are_refused(value):
    checks.fraction(0.5, name="level")
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1; got"):
        checks.fraction(value, name="level")


def test_lengths():
    checks.same_length([1], torch.zeros(1), names=("X", "y"))
    with pytest.raises(ValueError, match="`X` and `y` must have the same number of rows; got 2 and 3"):
        checks.same_length(np.zeros((2, 1)), [1, 2, 3], names=("X", "y"))


def test_finite_names_the_first_bad_row():
    checks.finite(torch.zeros(0, 3), name="X")
    checks.finite(torch.tensor([1, 2]), name="y")
    values = torch.zeros(4, 2)
    values[2, 1], values[3, 0] = torch.nan, -torch.inf
    with pytest.raises(ValueError, match="`X` must be finite; got 2 NaN or infinite values, the first in row 2"):
        checks.finite(values, name="X")


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        (1.0, 2.0),
        np.array([1, 2], dtype=np.int16),
        pd.Series([1, 2], index=[7, 8]),
        np.arange(1, 5)[::2] // 2 + 1,
    ],
)
def test_tensor_takes_any_array_like(value):
    result = checks.tensor(value, name="y", like=torch.zeros(1))
    assert result.dtype == torch.float32 and result.tolist() == [1.0, 2.0]


def test_tensor_keeps_the_dtype_when_nothing_is_asked():
    assert checks.tensor(pd.DataFrame({"a": [1], "b": [2]}), name="X").dtype == torch.int64
    given = torch.zeros(2, dtype=torch.float64)
    assert checks.tensor(given, name="X") is given


def test_tensor_never_shares_memory_with_the_users_array():
    array = np.zeros(2)
    checks.tensor(array, name="y")[0] = 1.0
    assert array[0] == 0


@pytest.mark.parametrize("value", [["a", "b"], [[1, 2], [3]], object(), [None, 1]])
def test_tensor_refuses_what_is_not_numeric(value):
    with pytest.raises(TypeError, match="`y` must be numeric; got"):
        checks.tensor(value, name="y")


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "u1", "i4", "i8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tensor_reads_views_and_byte_orders_like_a_plain_copy(kind, order):
    plain = np.arange(12, dtype=kind).reshape(4, 3)
    stored = plain.astype(np.dtype(kind).newbyteorder(order))
    stored.flags.writeable = False
    for view in (np.s_[:], np.s_[::-1], np.s_[:, ::-1], np.s_[::-2, ::2]):
        assert checks.tensor(stored[view], name="X").tolist() == plain[view].tolist()
        assert checks.tensor(stored.T[view], name="X").tolist() == plain.T[view].tolist()
