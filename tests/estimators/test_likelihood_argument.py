"""A likelihood that is none, or that the targets cannot come from, is refused in a sentence."""

import numpy as np
import pytest
import torch
from torch import distributions as td

from bayeskit import BNNClassifier, BNNRegressor, GPClassifier, GPRegressor, registry
from bayeskit.core.likelihood import Bernoulli, Categorical, Dirichlet, Gaussian, Likelihood, Poisson, StudentT
from bayeskit.core.likelihood.support import check_support

X = np.random.default_rng(0).normal(size=(12, 2))
REGRESSORS = [(GPRegressor, "svgp"), (BNNRegressor, "map")]
CLASSIFIERS = [(GPClassifier, "svgp"), (BNNClassifier, "map")]


@pytest.mark.parametrize(("estimator", "inference"), REGRESSORS)
def test_regression(estimator, inference):
    def fit(likelihood, y):
        return estimator(inference=registry.quick(inference), likelihood=likelihood, random_state=0).fit(X, y)

    with pytest.raises(TypeError, match=r"`likelihood` must be an instance .* `Poisson\(\)`.*got 'poisson'"):
        fit("poisson", X[:, 0])
    with pytest.raises(TypeError, match=r"`StudentT\(\.\.\.\)`"):
        fit(StudentT, X[:, 0])
    with pytest.raises(ValueError, match=f"use {estimator.__name__.replace('Regressor', 'Classifier')}"):
        fit(Dirichlet(2), X[:, 0])
    for value in (-1.0, 0.5):
        with pytest.raises(ValueError, match=f"support of Poisson, integers from 0; got {value:g} in row 3"):
            fit(Poisson(), np.where(np.arange(12) == 3, value, 2.0))


@pytest.mark.parametrize(("estimator", "inference"), CLASSIFIERS)
def test_classification(estimator, inference):
    def fit(likelihood):
        return estimator(inference=registry.quick(inference), likelihood=likelihood).fit(X, np.arange(12) % 3)

    for likelihood in (Categorical(2), Dirichlet(2)):
        with pytest.raises(ValueError, match="`num_classes` of the likelihood is 2, `y` has 3 classes"):
            fit(likelihood)
    with pytest.raises(ValueError, match="support of Bernoulli, 0 or 1; got 2 in row 2"):
        fit(Bernoulli())
    with pytest.raises(TypeError, match="`likelihood` must be an instance"):
        fit(Categorical)


def test_supports_that_depend_on_the_latents_or_have_gaps():
    class UpTo(Likelihood):
        def distribution(self, f):
            return td.Uniform(torch.zeros_like(f), f.exp())

    check_support(UpTo(), torch.tensor([[500.0], [torch.nan]]), name="y")
    with pytest.raises(ValueError, match="got -1 in row 1"):
        check_support(UpTo(), torch.tensor([[torch.nan], [-1.0]]), name="y")
    check_support(Gaussian([0.1, 0.2]), torch.tensor([[torch.nan, -3.0]]), name="y")
    check_support(Categorical(3), torch.tensor([0, 2]), name="y")
