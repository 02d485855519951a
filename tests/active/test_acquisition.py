"""Scores of single labels: closed forms, and dense integration where there are none."""

import math

import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import distributions as td

from bayeskit import active
from bayeskit.core.likelihood import Bernoulli, Categorical, Drawn, Gaussian, Heteroscedastic, Poisson, StudentT
from bayeskit.core.posterior import GaussianValues, MixtureValues, SampledValues

from .joint_distributions import gaussian, sampled

GRID = torch.linspace(-40, 40, 80_001, dtype=torch.float64)


def integral(values):
    """Over the grid, by the trapezoidal rule."""
    return torch.trapezoid(values, GRID)


def entropy_of(log_density):
    p = log_density.exp()
    return -integral(torch.where(p > 0, p * log_density, 0.0))


def one(mean, variance, dtype=torch.float64):
    return GaussianValues(
        torch.tensor([[mean]], dtype=dtype), DiagLinearOperator(torch.tensor([variance], dtype=dtype))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bald_of_regression_is_the_log_of_one_plus_signal_to_noise(dtype):
    values = gaussian(6, dtype=dtype)
    expected = (values.variance[:, 0] / 0.3).log1p() / 2
    found = active.bald(values, Gaussian(0.3))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)


def test_bald_keeps_its_digits_where_nothing_is_left_to_learn():
    values = GaussianValues(torch.zeros(1, 1), DiagLinearOperator(torch.tensor([1e-9])))
    assert active.bald(values, Gaussian(1.0)).item() == pytest.approx(5e-10)


def test_bald_of_several_outputs_is_half_a_log_determinant():
    values, noise = gaussian(4, 3), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    ratio = torch.eye(3).double() + values.output_covariance() / noise  # similar to the symmetric form
    torch.testing.assert_close(active.bald(values, Gaussian(noise)), torch.linalg.det(ratio).log() / 2)


def test_entropy_of_regression_is_that_of_a_gaussian():
    values, noise = gaussian(4, 2), torch.tensor([0.1, 0.2], dtype=torch.float64)
    predictive = td.MultivariateNormal(values.mean, values.output_covariance() + torch.diag(noise))
    torch.testing.assert_close(active.entropy(values, Gaussian(noise)), predictive.entropy())


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 4.0), (-3.0, 30.0), (0.3, 1e-6)])
def test_bald_of_two_classes_is_the_integral(mean, variance):
    density = td.Normal(mean, variance**0.5).log_prob(GRID).exp() if variance > 1e-3 else None
    p = torch.sigmoid(GRID)
    if density is None:  # to first order in the variance: p (1 - p) v / 2
        q = torch.sigmoid(torch.tensor(mean)).item()
        expected = q * (1 - q) * variance / 2
    else:
        total = td.Bernoulli(integral(p * density)).entropy()
        expected = float(total - integral(td.Bernoulli(p, validate_args=False).entropy().nan_to_num() * density))
    assert active.bald(one(mean, variance), Bernoulli()).item() == pytest.approx(expected, rel=1e-5, abs=1e-10)


def test_bald_of_draws_is_the_spread_of_their_entropies():
    values = sampled(7, 3, 4)
    p = values.draws.softmax(-1)
    expected = td.Categorical(p.mean(0)).entropy() - td.Categorical(p).entropy().mean(0)
    torch.testing.assert_close(active.bald(values, Categorical(4)), expected)


@pytest.mark.monte_carlo
def test_bald_of_draws_under_gaussian_noise_is_the_integral():
    values, noise = sampled(5, 1, seed=3), 0.1
    parts = td.Normal(values.draws.reshape(-1, 1), noise**0.5).log_prob(GRID)
    total = entropy_of(parts.logsumexp(0) - math.log(5))
    expected = total - math.log(2 * math.pi * math.e * noise) / 2
    # eight nodes under each of five needles: the log of a mixture is no polynomial, 2e-2 of it stays
    assert active.bald(values, Gaussian(noise)).item() == pytest.approx(float(expected), rel=2e-2)
    assert active.entropy(values, Gaussian(noise)).item() == pytest.approx(float(total), abs=2e-2)


@pytest.mark.monte_carlo
def test_bald_of_a_mixture_of_processes_counts_what_is_between_them():
    parts = tuple(one(m, 0.2) for m in (-1.0, 1.0))
    values, noise = MixtureValues(parts, torch.tensor([0.5, 0.5])), 0.3
    density = [td.Normal(m, 0.5**0.5).log_prob(GRID) for m in (-1.0, 1.0)]
    total = entropy_of(torch.stack(density).logsumexp(0) - math.log(2))
    expected = float(total) - math.log(2 * math.pi * math.e * noise) / 2
    assert active.bald(values, Gaussian(noise)).item() == pytest.approx(expected, rel=1e-2)
    drawn = Drawn([Gaussian(noise), Gaussian(noise)])
    assert active.bald(values, drawn).item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.monte_carlo
def test_bald_under_heavy_tails_is_the_integral():
    noise = StudentT(df=4.0, scale=0.5)
    f = torch.linspace(-6, 6, 201, dtype=torch.float64)
    weights = (-(f**2) / 2).log_softmax(0)
    density = td.StudentT(4.0, f[:, None], 0.5).log_prob(GRID)
    expected = float(entropy_of((density + weights[:, None]).logsumexp(0)) - td.StudentT(4.0, 0.0, 0.5).entropy())
    # 1024 pairs; their log ratio has a standard deviation of 0.9, the error one of 0.03
    assert active.bald(one(0.0, 1.0), noise).item() == pytest.approx(expected, abs=0.09)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("likelihood", [Poisson(), Heteroscedastic(), StudentT()])
def test_bald_grows_with_what_is_not_known(likelihood):
    k = likelihood.num_latents(torch.zeros(1, 1))
    found = [
        active.bald(GaussianValues(torch.zeros(1, k), DiagLinearOperator(torch.full((k,), v))), likelihood).item()
        for v in (1e-6, 0.3, 3.0)
    ]
    assert abs(found[0]) < 1e-3 < found[1] < found[2]


def test_one_function_has_nothing_to_learn():
    for likelihood, k in ((Gaussian(0.1), 1), (Bernoulli(), 1), (Categorical(3), 3)):
        values = SampledValues(torch.randn(1, 4, k, generator=torch.Generator().manual_seed(0)))
        torch.testing.assert_close(active.bald(values, likelihood), torch.zeros(4), atol=1e-6, rtol=0)
        assert float(active.variance(values, likelihood).abs().max()) == 0


@pytest.mark.monte_carlo
def test_variance_of_a_probability_is_the_integral():
    density = td.Normal(0.5, 1.5).log_prob(GRID).exp()
    p = torch.sigmoid(GRID)
    expected = 2 * float(integral(p**2 * density) - integral(p * density) ** 2)
    assert active.variance(one(0.5, 2.25), Bernoulli()).item() == pytest.approx(expected, rel=1e-2)


def test_variance_of_numbers_is_that_of_the_function():
    values = gaussian(4, 2)
    torch.testing.assert_close(active.variance(values, Gaussian(0.1)), values.variance.sum(-1))


def test_margin_is_one_minus_the_lead():
    values = SampledValues(torch.tensor([[[3.0, 2.0, 1.0]]]).log())
    assert active.margin(values, Categorical(3)).item() == pytest.approx(1 - 1 / 6)
    with pytest.raises(ValueError, match="use 'variance' or 'bald'"):
        active.margin(gaussian(2), Gaussian(0.1))


@pytest.mark.parametrize("acquisition", [active.variance, active.entropy, active.bald])
@pytest.mark.parametrize("likelihood", [Gaussian(0.1), StudentT(), Bernoulli(), Poisson()])
@pytest.mark.parametrize("values", [gaussian(5, dtype=torch.float32), sampled(9, 5, dtype=torch.float32)])
def test_scores_do_not_depend_on_the_batch(acquisition, likelihood, values):
    # Draws of counts and of heavy tails are those of the batch: each of the 72 or more has a part in 1e-1.
    whole = acquisition(values, likelihood)
    if isinstance(values, SampledValues):
        alone = acquisition(SampledValues(values.draws[:, 2:3]), likelihood)
    else:
        alone = acquisition(one(values.mean[2].item(), values.variance[2].item(), torch.float32), likelihood)
    drawn = isinstance(likelihood, StudentT | Poisson) and acquisition is not active.variance
    torch.testing.assert_close(whole[2:3], alone, atol=0.2 if drawn else 1e-4, rtol=1e-4)


def test_scores_leave_no_trace_of_their_gradient():
    for likelihood in (Gaussian(0.1), StudentT(), Bernoulli()):
        assert not active.bald(gaussian(2), likelihood).requires_grad


def test_a_draw_is_reproducible():
    values = gaussian(5)
    first, second = (active.uniform(values, Gaussian()) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (5,)
