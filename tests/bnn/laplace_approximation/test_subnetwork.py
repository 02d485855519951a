"""A posterior of the most uncertain weights: of all it is the full structure, of fewer the rest is fixed."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.networks.functional import flatten
from bayeskit.core import operators
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.types import Data

from ..example_networks import seeded


def case(generator, classes=False):
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0) if classes else torch.sin(2 * x[:, :1])
    network = seeded(lambda: bnn.MLP(3, 3 if classes else 1, hidden=(5,), dtype=torch.float64))
    likelihood = Categorical(3) if classes else Gaussian(0.1, learn=False)
    return bnn.gaussian_prior(network), likelihood, Data(x, y)


def infer(subset, given, generator, **settings):
    return bnn.Laplace(subset, pretrained=True, **settings).infer(*given, generator=generator)


@pytest.mark.parametrize("classes", [False, True])
def test_a_subnetwork_of_all_weights_is_the_network(classes, generator):
    given = case(generator, classes)
    count = len(given[0].weights.flat_mean)
    some, whole = (infer(subset, given, generator, prior_precision=0.8) for subset in (count, "all"))
    x = given[2].x
    assert float(some.log_evidence) == pytest.approx(float(whole.log_evidence), abs=1e-8)
    values, expected = some.posterior(x), whole.posterior(x)
    assert torch.allclose(values.covariance.to_dense(), expected.covariance.to_dense(), atol=1e-10)
    assert torch.equal(values.mean, expected.mean)


def test_the_most_uncertain_weights_are_conditioned_on_the_others(generator):
    """Their covariance inverts their block of the precision; the rest has none and is fixed."""
    given = case(generator)
    some = infer(7, given, generator, prior_precision=2.0)
    whole = infer("all", given, generator, prior_precision=2.0)
    alone = infer("all", given, generator, structure="diagonal", prior_precision=1.0)
    index = alone.posterior.weights.covariance.diagonal().topk(7).indices.sort().values
    covariance = some.posterior.weights.covariance
    assert isinstance(covariance, operators.Masked)
    assert torch.equal(covariance.index, index)
    precision = torch.linalg.inv(whole.posterior.weights.covariance.to_dense())
    expected = torch.zeros_like(precision)
    expected[index[:, None], index] = torch.linalg.inv(precision[index[:, None], index])
    assert torch.allclose(covariance.to_dense(), expected, atol=1e-8)
    assert sum(some.diagnostics["weights chosen"].values()) == 7
    values = some.posterior(given[2].x)
    jacobian = values.covariance.jacobian(given[2].x).flatten(0, 1)
    assert torch.allclose(values.covariance.to_dense(), jacobian @ expected @ jacobian.mT, atol=1e-8)


def test_training_moves_the_rest_and_the_evidence_only_what_was_chosen(generator):
    prior, likelihood, data = case(generator)
    trained = bnn.MAP().infer(prior, likelihood, data, generator=torch.Generator().manual_seed(0))
    fit = bnn.Laplace(6).infer(prior, likelihood, data, generator=torch.Generator().manual_seed(0))
    weights, start = fit.posterior.weights, trained.posterior.weights
    assert fit.diagnostics["prior precision"] == pytest.approx([trained.diagnostics["prior precision"]])
    moved = (flatten(weights.mean, weights.mean) - flatten(start.mean, start.mean)).abs() > 0
    assert set(moved.nonzero().flatten().tolist()) <= set(weights.covariance.index.tolist())
    draws = flatten(weights.sample(3, generator=generator), weights.mean)
    still = torch.ones(len(moved), dtype=torch.bool)
    still[weights.covariance.index] = False
    assert torch.equal(draws[:, still], draws[:1, still].expand(3, -1))
    assert (draws[:, ~still].std(0) > 0).all()


def test_a_single_layer(generator):
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    prior = bnn.gaussian_prior(seeded(lambda: nn.Linear(3, 1, dtype=torch.float64)))
    given = prior, Gaussian(0.1, learn=False), Data(x, x[:, :1])
    values, expected = (infer(subset, given, generator, prior_precision=1.0).posterior(x) for subset in (4, "all"))
    assert torch.allclose(values.mean, expected.mean, atol=1e-8)
    assert torch.allclose(values.covariance.to_dense(), expected.covariance.to_dense(), atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subset": 0}, "`subset` must be a positive"),
        ({"subset": 10**6}, "`subset` must be at most the 26 weights"),
        ({"subset": 5, "structure": "kronecker"}, "for structure='full'"),
    ],
)
def test_settings_are_checked_by_name(settings, words, generator):
    with pytest.raises(ValueError, match=words):
        bnn.Laplace(**settings).infer(*case(generator), generator=generator)


def test_it_has_no_density_to_continue_from(generator):
    prior, likelihood, data = case(generator)
    fit = infer(5, (prior, likelihood, data), generator)
    with pytest.raises(torch.linalg.LinAlgError, match="21 entries are not active"):
        operators.solve(fit.posterior.weights.covariance, torch.ones(26, dtype=torch.float64))
