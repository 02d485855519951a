import pytest
import torch

from bayeskit.core import operators


def positive_definite(*shape, generator, dtype=torch.float64):
    root = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (root @ root.mT + torch.eye(shape[-1], dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_factor_solves_and_has_the_log_determinant(batch, generator):
    matrix = positive_definite(*batch, 5, generator=generator)
    rhs = torch.randn(*batch, 5, 2, generator=generator, dtype=torch.float64)
    factor = operators.factorize(matrix, name="K")
    assert factor.jitter == 0
    torch.testing.assert_close(factor.tril @ factor.tril.mT, matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factor.solve(rhs), torch.linalg.solve(matrix, rhs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(factor.tril @ factor.half_solve(rhs), rhs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(factor.logdet(), torch.logdet(matrix), rtol=1e-10, atol=1e-10)


def test_a_vector_is_solved_for_like_one_column(generator):
    factor = operators.factorize(positive_definite(4, generator=generator), name="K")
    rhs = torch.randn(4, generator=generator, dtype=torch.float64)
    assert torch.equal(factor.solve(rhs), factor.solve(rhs[:, None])[:, 0])
    assert torch.equal(factor.half_solve(rhs), factor.half_solve(rhs[:, None])[:, 0])


def test_float32_is_factorized_in_float64(generator):
    matrix = positive_definite(5, generator=generator, dtype=torch.float32)
    factor = operators.factorize(matrix, name="K")
    assert factor.tril.dtype == torch.float64
    torch.testing.assert_close(factor.tril @ factor.tril.mT, matrix.double(), rtol=1e-12, atol=1e-12)


def test_gradient_of_the_log_determinant_is_the_inverse(generator):
    matrix = positive_definite(4, generator=generator).requires_grad_()
    operators.factorize(matrix, name="K").logdet().backward()
    torch.testing.assert_close(matrix.grad, torch.linalg.inv(matrix.detach()), rtol=1e-10, atol=1e-10)


def test_jitter_is_the_least_that_succeeds_and_is_noted():
    singular = torch.ones(6, 6, dtype=torch.float64) * 50
    with operators.recording() as notes:
        factor = operators.factorize(singular, name="K_zz")
    assert 1e-10 <= factor.jitter <= 1e-8
    assert notes == {"jitter of K_zz": factor.jitter}
    added = factor.tril @ factor.tril.mT - singular  # jitter is a multiple of the mean diagonal, 50
    torch.testing.assert_close(added.diagonal(), torch.full((6,), 50 * factor.jitter).double(), rtol=1e-3, atol=1e-12)


def test_only_the_matrices_that_need_jitter_get_it(generator):
    good = positive_definite(4, generator=generator)
    factor = operators.factorize(torch.stack([good, torch.ones(4, 4, dtype=torch.float64)]), name="K")
    assert factor.jitter > 0
    assert torch.equal(factor.tril[0], operators.factorize(good, name="K").tril)


def test_failure_says_which_matrix_its_size_the_jitter_and_what_to_do():
    with pytest.raises(operators.LinAlgError, match=r"Cholesky of K_zz \(2 x 2\) failed at jitter 0.0001 .* Increase"):
        operators.factorize(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), name="K_zz")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("take", [operators.factorize, operators.semidefinite_root])
def test_entries_that_are_not_finite_are_named(bad, take):
    with pytest.raises(operators.LinAlgError, match=r"K_zz \(2 x 2\) has NaN or infinite entries"):
        take(torch.tensor([[1.0, bad], [bad, 1.0]]), name="K_zz")


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_a_matrix_must_be_square(shape):
    with pytest.raises(ValueError, match="K must be a square matrix"):
        operators.factorize(torch.ones(shape), name="K")


def test_an_empty_matrix_has_log_determinant_zero():
    assert float(operators.factorize(torch.zeros(0, 0), name="K").logdet()) == 0
    assert operators.semidefinite_root(torch.zeros(0, 0), name="K").shape == (0, 0)


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_root_of_a_matrix_of_any_rank(rank, generator):
    half = torch.randn(2, 5, rank, generator=generator, dtype=torch.float64)
    matrix = half @ half.mT
    root = operators.semidefinite_root(matrix, name="K")
    torch.testing.assert_close(root @ root.mT, matrix, rtol=1e-12, atol=1e-12)


def test_negative_eigenvalues_at_rounding_level_are_floored_and_noted():
    matrix = torch.diag(torch.tensor([1.0, 1.0, -1e-9], dtype=torch.float64))
    with operators.recording() as notes:
        root = operators.semidefinite_root(matrix, name="K")
    torch.testing.assert_close(root @ root.mT, matrix.clamp_min(0), rtol=0, atol=1e-15)
    assert notes["negative eigenvalues of K floored"] == pytest.approx(1e-9)


def test_a_matrix_that_is_no_covariance_is_refused():
    with pytest.raises(operators.LinAlgError, match="K .2 x 2. is not a covariance: its smallest eigenvalue is -1"):
        operators.semidefinite_root(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), name="K")


def test_rounding_may_be_given_where_the_diagonal_does_not_tell_it():
    matrix = torch.diag(torch.tensor([1e-9, -1e-11], dtype=torch.float64))
    with pytest.raises(operators.LinAlgError, match="not a covariance"):
        operators.semidefinite_root(matrix, name="K", rounding=1e-12)
    root = operators.semidefinite_root(matrix, name="K", rounding=1e-10)
    torch.testing.assert_close(root @ root.mT, matrix.clamp_min(0), rtol=0, atol=1e-20)
