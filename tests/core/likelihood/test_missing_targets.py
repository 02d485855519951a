"""Missing (NaN) targets: an entry that was not observed adds nothing, in value or gradient, for any likelihood."""

import pytest
import torch
from torch import distributions as td

from bayeskit.core.likelihood import Gaussian, Heteroscedastic, Likelihood, Poisson, StudentT
from bayeskit.core.predictive import distribution_cdfs

from .likelihoods import LaplaceNoise, Waiting, draw_case

DOUBLE = torch.float64


class LogNormal(Likelihood):
    """0 is not in the support: the log density and its slope are infinite there."""

    def distribution(self, f):
        return td.Independent(td.LogNormal(f, 0.5), 1)


class Shares(Likelihood):
    """Outputs between 0 and 1, both excluded."""

    def distribution(self, f):
        return td.Independent(td.Beta(torch.exp(f), 2.0), 1)


class Correlated(Likelihood):
    def distribution(self, f):
        covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=f.dtype)
        return td.MultivariateNormal(f, covariance)


LIKELIHOODS = [
    Gaussian([0.2, 0.5]),
    StudentT(4.0, [0.3, 0.6]),
    Heteroscedastic(),
    Poisson(),
    LaplaceNoise(),
    LogNormal(),
    Shares(),
]
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda lik: type(lik).__name__)


def case(likelihood, n=6):
    mean, variance, y = draw_case(likelihood, n=n)
    if isinstance(likelihood, LogNormal | Shares):
        y = y.abs() / (1 + y.abs())
    gaps = torch.zeros(n, 2, dtype=torch.bool)
    gaps[1, 0] = gaps[2, 1] = gaps[3, 0] = gaps[3, 1] = True
    return mean, variance, y, gaps


def latents_of(gaps, k):
    """Gaps of outputs as gaps of latents."""
    return torch.cat([gaps] * (k // gaps.shape[-1]), -1)


@every_likelihood
def test_expectations_are_sums_over_what_was_observed(likelihood):
    mean, variance, y, gaps = case(likelihood)
    holes = y.masked_fill(gaps, torch.nan)
    for terms, total in (
        (likelihood.log_prob_terms(mean, y), likelihood.log_prob(mean, holes)),
        (likelihood.expected_log_prob_terms(mean, variance, y), likelihood.expected_log_prob(mean, variance, holes)),
    ):
        torch.testing.assert_close(total, torch.where(gaps, 0.0, terms).sum(-1))
        assert (total[3] == 0).all()
    draws = mean.expand(4, *mean.shape)
    torch.testing.assert_close(likelihood.log_prob(draws, holes), likelihood.log_prob(mean, holes).expand(4, -1))


@every_likelihood
def test_gradients_are_zero_where_nothing_was_observed_and_finite_elsewhere(likelihood):
    mean, variance, y, gaps = case(likelihood)
    holes, hidden = y.masked_fill(gaps, torch.nan), latents_of(gaps, mean.shape[-1])
    leaves = [mean.requires_grad_(), variance.requires_grad_(), *likelihood.parameters()]
    slopes = torch.autograd.grad(likelihood.expected_log_prob(mean, variance, holes).sum(), leaves)
    assert all(slope.isfinite().all() for slope in slopes)
    whole = torch.autograd.grad(likelihood.expected_log_prob(mean, variance, y).sum(), leaves)
    for one, other in zip(slopes[:2], whole[:2], strict=True):
        torch.testing.assert_close(one, torch.where(hidden, 0.0, other))
    (slope,) = torch.autograd.grad(likelihood.log_prob(mean, holes).sum(), mean)
    assert slope.isfinite().all() and (slope[hidden] == 0).all()


@every_likelihood
def test_sites_and_curvature_are_zero_where_nothing_was_observed(likelihood):
    mean, variance, y, gaps = case(likelihood)
    holes, hidden = y.masked_fill(gaps, torch.nan), latents_of(gaps, mean.shape[-1])
    for part, whole in zip(
        likelihood.site_gradients(mean, variance, holes), likelihood.site_gradients(mean, variance, y), strict=True
    ):
        torch.testing.assert_close(part, torch.where(hidden, 0.0, whole), rtol=0, atol=0)
    curvature = likelihood.curvature(mean, holes)
    assert (curvature[hidden] == 0).all() and (curvature.mT[hidden] == 0).all()
    assert torch.linalg.eigvalsh(curvature).min() > -1e-8 and curvature[0].abs().max() > 0


def test_one_number_or_label_an_input():
    mean, variance, y = draw_case(Waiting())
    for holes in (y.clone(), y.clone().unsqueeze(-1)):
        holes[1] = torch.nan
        value = Waiting().expected_log_prob(mean, variance, holes)
        whole = Waiting().expected_log_prob(mean, variance, y)
        assert value[1] == 0 and torch.equal(value[2:], whole[2:])
        alpha, beta = Waiting().site_gradients(mean, variance, holes)
        assert alpha[1] == beta[1] == 0 and alpha.isfinite().all()


def test_a_joint_distribution_of_the_outputs_refuses_by_name():
    mean, variance, y, gaps = case(Correlated())
    holes = y.masked_fill(gaps, torch.nan)
    for evaluate in (
        lambda: Correlated().log_prob(mean, holes),
        lambda: Correlated().expected_log_prob(mean, variance, holes),
        lambda: Correlated().site_gradients(mean, variance, holes),
        lambda: Correlated().curvature(mean, holes),
    ):
        with pytest.raises(ValueError, match=r"Correlated has one joint distribution.*missing"):
            evaluate()
    assert Correlated().log_prob(mean, y).isfinite().all()


def test_terms_summed_over_outputs_are_refused():
    class Summed(Gaussian):
        def log_prob_terms(self, f, y):
            return super().log_prob_terms(f, y).sum(-1)

    mean, _, y, gaps = case(Gaussian())
    with pytest.raises(ValueError, match="one term for each of its 2 outputs"):
        Summed().log_prob(mean, y.masked_fill(gaps, torch.nan))


@pytest.mark.parametrize(
    "likelihood",
    [
        td.Normal(torch.zeros(3), 1.0),
        td.Gamma(torch.ones(3), 1.0),
        td.Uniform(torch.full((3,), 2.0), 3.0),
        td.Poisson(torch.ones(3)),
        td.Binomial(5, torch.full((3,), 0.5)),
        td.Bernoulli(torch.full((3,), 0.5)),
        td.Categorical(torch.ones(3, 4)),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_missing_entries_are_filled_from_the_support(likelihood):
    value = distribution_cdfs.allowed(likelihood)
    assert value.shape == (3,) and likelihood.support.check(value).all()
    assert likelihood.log_prob(value).isfinite().all()
