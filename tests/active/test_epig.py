"""Information about labels elsewhere: the joint covariance, dense integration, and tables of draws."""

import pytest
import torch
from linear_operator import to_linear_operator

from bayeskit import active
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, StudentT
from bayeskit.core.posterior import GaussianValues, SampledValues

from .joint_distributions import gaussian, sampled


@pytest.mark.parametrize("k", [1, 2])
def test_gaussian_epig_is_the_mutual_information_of_the_joint_covariance(k):
    values, noise = gaussian(6, k), torch.linspace(0.1, 0.2, k, dtype=torch.float64)
    joint = values.covariance.to_dense() + torch.diag(noise.repeat(6))
    expected = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for j in (4, 5):
            at = torch.cat([torch.arange(i * k, (i + 1) * k), torch.arange(j * k, (j + 1) * k)])
            pair = joint[at][:, at]
            expected[i] += (pair[:k, :k].logdet() + pair[k:, k:].logdet() - pair.logdet()) / 4
    torch.testing.assert_close(active.epig(values, Gaussian(noise), num_targets=2), expected)


def test_float32_agrees_with_float64():
    exact = active.epig(gaussian(6), Gaussian(0.1), num_targets=3)
    rough = active.epig(gaussian(6, dtype=torch.float32), Gaussian(0.1), num_targets=3)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.monte_carlo
@pytest.mark.parametrize(("scale", "rho"), [(1.0, 0.8), (3.0, 0.95), (1.0, 1.0), (2.0, 0.0)])
def test_two_labels_on_one_latent_are_integrated(scale, rho):
    covariance = scale**2 * torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    mean = torch.tensor([[0.5], [-0.3]], dtype=torch.float64)
    z = torch.linspace(-9, 9, 601, dtype=torch.float64)
    w = (-(z**2) / 2).softmax(0)
    f = mean[0] + scale * z[:, None].expand(-1, 601)
    g = mean[1] + scale * (rho * z[:, None] + (1 - rho**2) ** 0.5 * z)
    p, q, weights = torch.sigmoid(f), torch.sigmoid(g), w[:, None] * w
    table = torch.stack([torch.stack([(weights * a * b).sum() for b in (1 - q, q)]) for a in (1 - p, p)])
    expected = (table * (table / (table.sum(1, keepdim=True) * table.sum(0))).log()).sum()
    values = GaussianValues(mean, to_linear_operator(covariance))
    found = active.epig(values, Bernoulli(), num_targets=1)
    assert found.item() == pytest.approx(float(expected), rel=2e-3, abs=1e-9)


def test_labels_of_draws_are_a_table():
    values = sampled(6, 4, 3)
    p = values.draws.softmax(-1)
    expected = torch.zeros(2, dtype=torch.float64)
    for i in range(2):
        for j in (2, 3):
            table = torch.einsum("sc,sd->cd", p[:, i], p[:, j]) / 6
            independent = table.sum(1, keepdim=True) * table.sum(0)
            expected[i] += (table * (table / independent).log()).sum() / 2
    torch.testing.assert_close(active.epig(values, Categorical(3), num_targets=2), expected)


def test_numbers_of_draws_come_close_to_the_gaussian_they_were_drawn_from():
    exact = gaussian(5, scale=1.5)
    draws = exact.sample(400, generator=torch.Generator().manual_seed(1))
    found = active.epig(SampledValues(draws), Gaussian(0.5), num_targets=2)
    # 400 draws of functions and as many of y: the log ratios have a standard deviation of up to 0.7
    torch.testing.assert_close(found, active.epig(exact, Gaussian(0.5), num_targets=2), atol=0.1, rtol=0)


def test_what_is_independent_of_the_targets_says_nothing_of_them():
    values = GaussianValues(torch.zeros(3, 1), to_linear_operator(torch.eye(3)))
    torch.testing.assert_close(active.epig(values, Gaussian(0.1), num_targets=1), torch.zeros(2))
    torch.testing.assert_close(active.epig(values, Bernoulli(), num_targets=1), torch.zeros(2), atol=1e-6, rtol=0)


def test_no_label_says_more_of_others_than_of_the_function():
    values = gaussian(6, scale=2.0)
    for likelihood in (Gaussian(0.2), Bernoulli()):
        of_function = active.bald(values, likelihood)[:4]
        assert (active.epig(values, likelihood, num_targets=2) <= of_function + 1e-9).all()


def test_other_noise_than_gaussian_on_gaussian_values():
    values = gaussian(4, scale=2.0)
    found = active.epig(values, StudentT(df=100.0, scale=0.5), num_targets=1)
    near = active.epig(values, Gaussian(0.255), num_targets=1)  # variance 0.25 * 100 / 98; 256 draws
    torch.testing.assert_close(found, near, atol=0.15, rtol=0)


@pytest.mark.parametrize("num_targets", [0, 4, 5])
def test_targets_must_leave_candidates(num_targets):
    with pytest.raises(ValueError, match="between 1 and 3"):
        active.epig(gaussian(4), Gaussian(0.1), num_targets=num_targets)


def test_information_is_symmetric():
    pair = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    forward, back = (
        active.epig(GaussianValues(torch.zeros(2, 1), to_linear_operator(K)), Bernoulli(), num_targets=1)
        for K in (pair, pair.flip(0, 1))
    )
    torch.testing.assert_close(forward, back, rtol=1e-3, atol=1e-6)
