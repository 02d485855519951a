"""Merging against Bayes on all the data at once."""

import pytest
import torch
from linear_operator.operators import DenseLinearOperator, DiagLinearOperator

from bayeskit import bnn


def gaussian(mean, variance, name="w"):
    return bnn.GaussianWeights({name: mean}, DiagLinearOperator(variance))


def posterior(prior, gram, cross):
    """Of a linear model with orthogonal features and noise one."""
    precision = 1 / prior.covariance.diagonal() + gram
    return gaussian((prior.flat_mean / prior.covariance.diagonal() + cross) / precision, 1 / precision)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_merge_to_the_whole(parts, generator):
    prior = gaussian(torch.randn(4, generator=generator).double(), torch.rand(4, generator=generator).double() + 0.5)
    grams = torch.rand(parts, 4, generator=generator).double()
    crosses = torch.randn(parts, 4, generator=generator).double()
    merged = bnn.merge([posterior(prior, g, c) for g, c in zip(grams, crosses, strict=True)], prior)
    whole = posterior(prior, grams.sum(0), crosses.sum(0))
    assert torch.allclose(merged.flat_mean, whole.flat_mean, rtol=1e-12)
    assert torch.allclose(merged.covariance.diagonal(), whole.covariance.diagonal(), rtol=1e-12)


def test_what_cannot_be_merged_is_refused():
    prior, wide = gaussian(torch.zeros(2), torch.ones(2)), gaussian(torch.zeros(2), torch.full((2,), 4.0))
    with pytest.raises(ValueError, match="2 weights would have no positive precision"):
        bnn.merge([wide, wide], prior)
    with pytest.raises(ValueError, match="over the same weights"):
        bnn.merge([gaussian(torch.zeros(2), torch.ones(2), "v")], prior)
    with pytest.raises(TypeError, match="diagonal covariances; got DenseLinearOperator"):
        bnn.merge([bnn.GaussianWeights({"w": torch.zeros(2)}, DenseLinearOperator(torch.eye(2)))], prior)
