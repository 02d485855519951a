"""The functions on operators: exact where linear_operator turns to iterative methods, refusals, broadcasting."""

import pytest
import torch
from linear_operator.operators import (
    ConstantMulLinearOperator,
    DenseLinearOperator,
    DiagLinearOperator,
    KroneckerProductLinearOperator,
    RootLinearOperator,
    ToeplitzLinearOperator,
)

from bayeskit.core import operators
from bayeskit.core.operators import chunking


@pytest.fixture
def large(generator):
    """A covariance of 900 rows with condition number near 1e6, dense and by its parts."""
    root = torch.randn(900, 30, generator=generator, dtype=torch.float64)
    diagonal = torch.logspace(-3, 0, 900, dtype=torch.float64)
    return root @ root.mT + torch.diag(diagonal), RootLinearOperator(root) + DiagLinearOperator(diagonal)


def test_solve_logdet_and_quadratic_are_exact_at_900_rows(large, generator):
    matrix, op = large
    v = torch.randn(900, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, v)
    for form in (DenseLinearOperator(matrix), op):
        torch.testing.assert_close(operators.solve(form, v), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(operators.logdet(form), torch.logdet(matrix), rtol=1e-10, atol=0)
        torch.testing.assert_close(operators.quadratic(form, v), v @ expected, rtol=1e-9, atol=0)


def test_quadratic_takes_many_vectors_at_once(generator):
    root, diagonal = torch.randn(5, 2, generator=generator).double(), torch.linspace(1, 2, 5).double()
    op = operators.low_rank_plus_diagonal(root, diagonal)
    v = torch.randn(3, 4, 5, generator=generator).double()
    expected = torch.einsum("...i,ij,...j->...", v, torch.linalg.inv(op.to_dense()), v)
    torch.testing.assert_close(operators.quadratic(op, v), expected, rtol=1e-10, atol=1e-10)


def test_types_without_a_closed_form_fall_back_on_the_matrix(generator):
    op = ToeplitzLinearOperator(torch.tensor([2.0, 0.5, 0.1, 0.0], dtype=torch.float64))
    matrix, rhs = op.to_dense(), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(operators.solve(op, rhs), torch.linalg.inv(matrix), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(operators.logdet(op), torch.logdet(matrix), rtol=1e-10, atol=1e-10)
    half = operators.half_product(op, rhs)
    torch.testing.assert_close(half.mT @ half, matrix, rtol=1e-10, atol=1e-10)
    assert operators.draw(op, 3, generator=generator).shape == (3, 4)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_blocks_of_an_operator_too_large_to_form(batch, generator, monkeypatch):
    row = torch.tensor([2.0, 0.5, 0.1, 0.2, 0.0, 0.3], dtype=torch.float64).expand(*batch, 6)
    op = ToeplitzLinearOperator(row)
    expected = operators.block_diagonal(op, 3)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 20)
    torch.testing.assert_close(operators.block_diagonal(op, 3), expected, rtol=1e-12, atol=1e-12)
    assert expected.shape == (*batch, 2, 3, 3)


def test_blocks_must_divide_the_size():
    with pytest.raises(ValueError, match="`k` must divide the size of the operator, 5; got 2"):
        operators.block_diagonal(DiagLinearOperator(torch.ones(5)), 2)


def test_blocks_that_straddle_the_factors_of_a_product(generator):
    factors = [torch.randn(n, n, generator=generator) for n in (3, 2, 2)]
    op = KroneckerProductLinearOperator(*(DenseLinearOperator(f @ f.mT) for f in factors))
    expected = torch.stack([op.to_dense()[i : i + 4, i : i + 4] for i in range(0, 12, 4)])
    torch.testing.assert_close(operators.block_diagonal(op, 4), expected)
    expected = torch.stack([op.to_dense()[i : i + 2, i : i + 2] for i in range(0, 12, 2)])
    torch.testing.assert_close(operators.block_diagonal(op, 2), expected)


def test_singular_operators_have_no_inverse():
    singular = {
        "entries that are not positive": operators.masked_diagonal(torch.ones(1), torch.tensor([0]), 3),
        "rank at most 2 has no inverse; add a diagonal": operators.from_samples(torch.eye(3)[:2]),
    }
    for message, op in singular.items():
        with pytest.raises(operators.LinAlgError, match=message):
            operators.solve(op, torch.ones(3, 1))
        with pytest.raises(operators.LinAlgError, match=message):
            operators.logdet(op)


def test_a_negative_variance_cannot_be_drawn_from(generator):
    with pytest.raises(operators.LinAlgError, match="must not have negative or NaN entries; got 1"):
        operators.draw(DiagLinearOperator(torch.tensor([1.0, -1.0])), 2, generator=generator)


@pytest.mark.monte_carlo
def test_a_difference_is_drawn_from_its_sum_and_not_term_by_term(generator):
    # posterior covariances are differences: prior minus what the data explain
    explained = RootLinearOperator(torch.tensor([[1.0], [1.0]], dtype=torch.float64))
    op = DiagLinearOperator(torch.tensor([2.0, 2.0], dtype=torch.float64)) + ConstantMulLinearOperator(
        explained, torch.tensor(-1.0, dtype=torch.float64)
    )
    draws = operators.draw(op, 4000, generator=generator)
    sample = draws.mT @ draws / 4000
    assert (sample - torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).abs().max() < 5 * (2 / 4000) ** 0.5
    torch.testing.assert_close(draws[:, 0], -draws[:, 1], rtol=0, atol=1e-6)  # the matrix is singular


def test_zero_diagonal_on_a_root_is_solved_without_woodbury():
    root = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    op = operators.low_rank_plus_diagonal(root, torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = torch.linalg.inv(op.to_dense())
    torch.testing.assert_close(operators.solve(op, torch.eye(2, dtype=torch.float64)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(operators.logdet(op), torch.logdet(op.to_dense()), rtol=1e-9, atol=1e-9)
