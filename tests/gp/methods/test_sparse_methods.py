"""Properties of every sparse method with inducing points and any likelihood."""

import pytest

from bayeskit.core.likelihood import Bernoulli, Categorical, Heteroscedastic, Poisson, StudentT
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SVGP, CoresetGP, DualSVGP, OrthogonalSVGP, default_prior

from ..problems import constant, generator, noise, process, regression, same_gp, test_inputs

TRAINING = Training(lr=0.05, max_epochs=15, batch_size=32)
METHODS = {
    "svgp": SVGP(num_inducing=12, training=TRAINING),
    "orthogonal": OrthogonalSVGP(num_inducing=7, num_orthogonal=5, training=TRAINING),
    "dual": DualSVGP(num_inducing=12, max_iter=20),
    "dual, mini-batches": DualSVGP(num_inducing=12, by_rows=1, training=TRAINING),
    "coreset": CoresetGP(num_points=12, max_iter=10, training=Training(lr=0.02, max_epochs=10, batch_size=32)),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
@pytest.mark.parametrize(
    ("likelihood", "k"),
    [(Bernoulli(), 1), (Categorical(3), 3), (Heteroscedastic(), 2), (StudentT(), 1), (Poisson(), 1)],
    ids=["bernoulli", "categorical", "heteroscedastic", "student_t", "poisson"],
)
def test_any_likelihood(likelihood, k, method):
    data = regression(60)
    y = {
        "binary": (data.y[:, 0] > 0).long(),
        "classes": (data.y[:, 0] * 1.4 + 1.4).long().clamp(0, 2),
        "count": data.y.abs().round(),
    }
    data = Data(data.x, y.get(likelihood.target, data.y))
    result = method.infer(default_prior(data.x, k), likelihood, data, generator=generator())
    values = result.posterior(data.x)
    assert values.mean.shape == (60, k)
    assert (values.variance > 0).all()
    predictive = result.likelihood.predictive(values)
    prior_predictive = result.likelihood.predictive(default_prior(data.x, k)(data.x))
    assert predictive.log_prob(data.y).mean() > prior_predictive.log_prob(data.y).mean()


@every_method
def test_no_data_returns_the_prior(method):
    prior = process(mean=constant(0.3))
    empty = regression().rows(slice(0, 0))
    same_gp(method.infer(prior, noise(), empty, generator=generator()).posterior, prior, test_inputs(), 0)
