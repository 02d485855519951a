"""The invariants in the docstrings of `FunctionValues`, for Gaussian and for sampled values."""

import pickle

import pytest
import torch
from linear_operator.operators import DenseLinearOperator, IdentityLinearOperator, KroneckerProductLinearOperator

from bayeskit.core import operators
from bayeskit.core.posterior import FunctionValues, GaussianValues, MixtureValues, Posterior, SampledValues


def gaussian(batch=(), *, n=3, k=2):
    generator = torch.Generator().manual_seed(5)
    root = torch.randn((*batch, n * k, n * k), generator=generator, dtype=torch.float64)
    mean = torch.randn((*batch, n, k), generator=generator, dtype=torch.float64)
    return GaussianValues(mean, DenseLinearOperator(root @ root.mT))


def low_rank():
    root = torch.randn(6, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return GaussianValues(torch.zeros(3, 2, dtype=torch.float64), operators.from_samples(root.mT))


def independent():
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.7]], dtype=torch.float64)
    joint = KroneckerProductLinearOperator(DenseLinearOperator(matrix), IdentityLinearOperator(2, dtype=torch.float64))
    return GaussianValues(torch.ones(3, 2, dtype=torch.float64), joint)


def sampled(batch=()):
    draws = torch.randn((5, *batch, 3, 2), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return SampledValues(draws)


def mixture(batch=()):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    shifted = gaussian(batch).affine(torch.ones(2, dtype=torch.float64), 2 * torch.ones(2, dtype=torch.float64))
    return MixtureValues((gaussian(batch), sampled(batch), shifted), weights)


VALUES = {
    "dense": gaussian(),
    "dense, batch": gaussian((2,)),
    "low rank": low_rank(),
    "independent outputs": independent(),
    "draws": sampled(),
    "draws, batch": sampled((2,)),
    "mixture": mixture(),
    "mixture, batch": mixture((2,)),
}
every_kind = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


@every_kind
def test_variance_is_the_diagonal_of_the_covariance(values):
    diagonal = values.covariance.diagonal(dim1=-1, dim2=-2).reshape(values.mean.shape)
    torch.testing.assert_close(values.variance, diagonal, rtol=1e-12, atol=1e-12)
    assert (values.variance >= 0).all()


@every_kind
def test_output_covariances_are_the_diagonal_blocks(values):
    matrix = values.covariance.to_dense()
    blocks = torch.stack([matrix[..., i : i + 2, i : i + 2] for i in (0, 2, 4)], -3)
    torch.testing.assert_close(values.output_covariance(), blocks, rtol=1e-12, atol=1e-12)


@every_kind
def test_covariance_is_symmetric_and_positive_semidefinite(values):
    matrix = values.covariance.to_dense()
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


@pytest.mark.monte_carlo
@every_kind
def test_moments_of_samples_tend_to_mean_and_covariance(values):
    s = 4000
    draws = values.sample(s, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (s, *values.mean.shape)
    matrix, flat = values.covariance.to_dense(), (draws - values.mean).flatten(-2)
    variance = matrix.diagonal(dim1=-1, dim2=-2)
    # var(x y) <= E[x^2 y^2] <= 3.25 var(x) var(y) for a uniform distribution over five draws, and 3 for a normal
    error = (3.25 * variance.unsqueeze(-1) * variance.unsqueeze(-2) / s).sqrt()
    assert (flat.mean(0).abs() <= 5 * (variance / s).sqrt() + 1e-9).all()
    assert ((torch.einsum("s...i,s...j->...ij", flat, flat) / s - matrix).abs() <= 5 * error + 1e-9).all()


@every_kind
def test_sampling_follows_the_generator_alone(values):
    state = torch.get_rng_state()
    first, second = (values.sample(4, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())


@every_kind
def test_a_change_of_units(values):
    shift, scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([3.0, 0.5]).double()
    moved = values.affine(shift, scale)
    factor = scale.repeat(3)
    torch.testing.assert_close(moved.mean, shift + scale * values.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved.variance, scale**2 * values.variance, rtol=1e-12, atol=1e-12)
    expected = factor[:, None] * values.covariance.to_dense() * factor
    torch.testing.assert_close(moved.covariance.to_dense(), expected, rtol=1e-12, atol=1e-12)
    blocks = scale[:, None] * values.output_covariance() * scale
    torch.testing.assert_close(moved.output_covariance(), blocks, rtol=1e-12, atol=1e-12)
    draws = moved.sample(4, generator=torch.Generator().manual_seed(1))
    same = values.sample(4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draws, shift + scale * same, rtol=1e-12, atol=1e-12)


@every_kind
def test_values_survive_pickling(values):
    copy = pickle.loads(pickle.dumps(values))
    assert torch.equal(copy.mean, values.mean)
    assert torch.equal(copy.covariance.to_dense(), values.covariance.to_dense())


def test_samples_are_whole_stored_draws():
    values = sampled()
    for draw in values.sample(10, generator=torch.Generator().manual_seed(0)):
        assert any(torch.equal(draw, stored) for stored in values.draws)


def test_covariance_of_one_draw_is_zero():
    values = SampledValues(torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0)))
    assert float(values.covariance.to_dense().abs().max()) == 0 and float(values.variance.max()) == 0


@pytest.mark.parametrize("base", [FunctionValues, Posterior])
def test_the_bases_are_abstract(base):
    with pytest.raises(TypeError, match="abstract"):
        base()
