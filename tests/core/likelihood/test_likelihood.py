import copy
import pickle

import numpy as np
import pytest
import torch
from torch import distributions as td

from bayeskit.core.likelihood import (
    Bernoulli,
    Categorical,
    Dirichlet,
    Drawn,
    Gaussian,
    Heteroscedastic,
    Likelihood,
    Poisson,
    StudentT,
)
from bayeskit.core.posterior import MixtureValues, SampledValues

from .likelihoods import LaplaceNoise, Ordinal, Softmax, Waiting, draw_case, values

DOUBLE = torch.float64


class Correlated(Likelihood):
    """Noise correlated between two outputs: latents do not factorize."""

    def distribution(self, f):
        covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=f.dtype)
        return td.MultivariateNormal(f, covariance)


LIKELIHOODS = [
    Gaussian([0.2, 0.5]),
    StudentT(),
    Heteroscedastic(),
    Bernoulli("logit"),
    Bernoulli("probit"),
    Categorical(3),
    Poisson(),
    LaplaceNoise(),
    Waiting(),
    Ordinal(),
    Softmax(),
    Correlated(),
]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda lik: type(lik).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_derived_quantity_has_its_shape_and_type(likelihood, dtype):
    mean, variance, y = draw_case(likelihood, dtype=dtype)
    n, k = mean.shape
    assert likelihood.log_prob(mean, y).shape == (n,)
    assert likelihood.log_prob(mean.expand(4, n, k), y).shape == (4, n)
    assert likelihood.log_prob(mean.expand(2, 4, n, k), y).shape == (2, 4, n)
    expected = likelihood.expected_log_prob(mean, variance, y)
    assert expected.shape == (n,) and expected.dtype == dtype
    assert likelihood.expected_log_prob(mean.expand(4, n, k), variance.expand(4, n, k), y).shape == (4, n)
    alpha, beta = likelihood.site_gradients(mean, variance, y)
    assert alpha.shape == beta.shape == (n, k) and (beta >= 2e-8 * (1 - 1e-6)).all() and alpha.dtype == dtype
    curvature = likelihood.curvature(mean, y)
    assert curvature.shape == (n, k, k)
    assert torch.linalg.eigvalsh(curvature).min() > -1e-6
    for predictive in (
        likelihood.predictive(values(mean, variance)),
        likelihood.predictive(SampledValues(mean.expand(3, n, k))),
    ):
        assert predictive.log_prob(y).shape == (n,) and not predictive.log_prob(y).requires_grad
        torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda lik: type(lik).__name__)
def test_no_variance_leaves_the_likelihood(likelihood):
    mean, _, y = draw_case(likelihood)
    torch.testing.assert_close(likelihood.expected_log_prob(mean, 0 * mean, y), likelihood.log_prob(mean, y))
    predictive = likelihood.predictive(values(mean, 0 * mean))
    torch.testing.assert_close(predictive.log_prob(y), likelihood.log_prob(mean, y).detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(predictive.epistemic, torch.zeros_like(predictive.epistemic), rtol=0, atol=1e-9)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda lik: type(lik).__name__)
def test_single_input(likelihood):
    mean, variance, y = draw_case(likelihood, n=1)
    assert likelihood.log_prob(mean, y).shape == (1,)
    assert likelihood.predictive(values(mean, variance)).log_prob(y).shape == (1,)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda lik: type(lik).__name__)
def test_predictions_do_not_depend_on_the_batch(likelihood):
    mean, variance, y = draw_case(likelihood, n=6)
    variance[0] = 0.0
    whole = likelihood.predictive(values(mean, variance)).log_prob(y)
    parts = [likelihood.predictive(values(mean[i], variance[i])).log_prob(y[i]) for i in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda lik: type(lik).__name__)
def test_copies_and_pickles(likelihood):
    mean, variance, y = draw_case(likelihood)
    expected = likelihood.log_prob(mean, y)
    assert torch.equal(copy.deepcopy(likelihood).log_prob(mean, y), expected)
    assert torch.equal(pickle.loads(pickle.dumps(likelihood)).log_prob(mean, y), expected)
    predictive = likelihood.predictive(values(mean, variance))
    assert torch.equal(pickle.loads(pickle.dumps(predictive)).log_prob(y), predictive.log_prob(y))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda lik: type(lik).__name__)
def test_site_gradients_are_derivatives_of_the_expected_log_prob(likelihood):
    mean, variance, y = draw_case(likelihood)
    mean.requires_grad_()
    variance.requires_grad_()
    total = likelihood.expected_log_prob(mean, variance, y).sum()
    by_mean, by_variance = torch.autograd.grad(total, (mean, variance))
    alpha, beta = likelihood.site_gradients(mean, variance, y)
    # the quadrature of a derivative is the derivative of the quadrature, but for the closed second derivative
    # of the softmax, which Sobol draws reach to 512^-1
    tolerance = 5e-3 if isinstance(likelihood, Categorical) else 1e-8
    torch.testing.assert_close(alpha, by_mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(beta, (-2 * by_variance).clamp(min=2e-8), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "likelihood", [Gaussian([0.2, 0.5]), Bernoulli("logit"), Bernoulli("probit"), Categorical(3), Poisson()], ids=repr
)
def test_curvature_is_the_negative_hessian_of_log_concave_likelihoods(likelihood):
    mean, _, y = draw_case(likelihood)
    for i in range(len(mean)):
        hessian = torch.autograd.functional.hessian(
            lambda f, i=i: likelihood.log_prob(f[None], y[i : i + 1]).sum(), mean[i]
        )
        torch.testing.assert_close(likelihood.curvature(mean, y)[i], -hessian, rtol=1e-8, atol=1e-10)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("likelihood", [StudentT(), Heteroscedastic()], ids=repr)
def test_curvature_is_the_fisher_information_elsewhere(likelihood):
    mean, _, y = draw_case(likelihood, n=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = likelihood.distribution(mean).sample((40000,))[:, 0]  # (s, t)
    copies = mean.expand(40000, -1).clone().requires_grad_()
    (score,) = torch.autograd.grad(likelihood.log_prob(copies, draws).sum(), copies)
    products = score[:, :, None] * score[:, None, :]
    error = 5 * products.std(0) / 40000**0.5
    assert ((products.mean(0) - likelihood.curvature(mean, y)[0]).abs() < error).all()


@pytest.mark.parametrize(
    "likelihood", [Gaussian([0.2, 0.5]), Poisson(), Heteroscedastic()], ids=lambda v: type(v).__name__
)
def test_closed_forms_agree_with_quadrature(likelihood):
    mean, variance, y = draw_case(likelihood)
    z, w = np.polynomial.hermite_e.hermegauss(40)
    z, w = torch.as_tensor(z), torch.as_tensor(w / w.sum())
    cases = [(mean, variance, y)]
    if mean.shape[-1] == 4:  # a mean and a log variance for each of two independent outputs: one output at a time
        cases = [(mean[:, [j, j + 2]], variance[:, [j, j + 2]], y[:, [j]]) for j in range(2)]
    grid = torch.cartesian_prod(z, z)
    weights = torch.cartesian_prod(w, w).prod(-1)
    for m, v, target in cases:
        by_grid = torch.einsum("q,qn->n", weights, likelihood.log_prob(m + v.sqrt() * grid[:, None, :], target))
        torch.testing.assert_close(likelihood.expected_log_prob(m, v, target), by_grid, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("extreme", [-1e3, 1e3])
@pytest.mark.parametrize(
    "likelihood",
    [lik for lik in LIKELIHOODS if not isinstance(lik, Waiting)],  # its own exp(1000) is no rate of an exponential
    ids=lambda lik: type(lik).__name__,
)
def test_extreme_latents_give_no_nan(likelihood, extreme):
    mean, variance, y = draw_case(likelihood)
    far = mean + extreme
    for quantity in (
        likelihood.log_prob(far, y),
        likelihood.predictive(values(far, variance)).log_prob(y),
        likelihood.predictive(SampledValues(far.expand(2, *far.shape))).log_prob(y),
    ):
        assert not quantity.isnan().any()


def test_many_rows_of_classes_are_the_rows_one_at_a_time():
    generator, likelihood = torch.Generator().manual_seed(0), Categorical(12)
    mean = torch.randn(2, 250, 12, dtype=DOUBLE, generator=generator).requires_grad_()  # several parts of the cache
    variance = torch.rand(2, 250, 12, dtype=DOUBLE, generator=generator).requires_grad_()
    y = torch.randint(12, (250,), generator=generator)
    whole = likelihood.expected_log_prob(mean, variance, y)
    single = torch.stack([likelihood.expected_log_prob(mean[:, i], variance[:, i], y[i]) for i in range(250)], dim=1)
    torch.testing.assert_close(whole, single, rtol=1e-12, atol=1e-12)
    slopes = torch.autograd.grad(whole.sum(), (mean, variance))
    torch.testing.assert_close(slopes, torch.autograd.grad(single.sum(), (mean, variance)), rtol=1e-10, atol=1e-12)
    alpha, beta = likelihood.site_gradients(mean[0].detach(), variance[0].detach(), y)
    for i in (0, 249):
        alone = likelihood.site_gradients(mean[0, i : i + 1].detach(), variance[0, i : i + 1].detach(), y[i : i + 1])
        torch.testing.assert_close((alpha[i : i + 1], beta[i : i + 1]), alone, rtol=1e-12, atol=1e-12)


def test_noise_is_a_variance_and_is_learnt_above_its_floor():
    assert Gaussian(0.25).noise.dtype == DOUBLE
    torch.testing.assert_close(Gaussian(0.25).noise, torch.tensor([0.25], dtype=DOUBLE), rtol=1e-15, atol=0)
    torch.testing.assert_close(Gaussian([0.1, 0.2]).noise, torch.tensor([0.1, 0.2], dtype=DOUBLE), rtol=1e-14, atol=0)
    assert Gaussian(1e-12, learn=False).noise.item() == pytest.approx(1e-12)
    assert not Gaussian(0.1, learn=False).raw_noise.requires_grad
    with pytest.raises(ValueError, match="learn=False"):
        Gaussian(1e-7)
    with pytest.raises(ValueError, match="`noise`"):
        Gaussian(-1.0, learn=False)


def test_parameters_learn_through_the_expected_log_prob():
    for likelihood in (Gaussian(0.5), StudentT(4.0, 0.5), LaplaceNoise(0.5)):
        mean, variance, y = draw_case(likelihood)
        likelihood.expected_log_prob(mean, variance, y).sum().backward()
        assert next(likelihood.parameters()).grad.abs() > 0


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    for likelihood in LIKELIHOODS:
        mean, variance, y = draw_case(likelihood)
        likelihood.site_gradients(mean, variance, y)
        likelihood.curvature(mean, y)
        likelihood.predictive(values(mean, variance)).log_prob(y)
    assert torch.equal(before, torch.get_rng_state())


def test_settings_are_checked():
    with pytest.raises(ValueError, match="did you mean 'probit'"):
        Bernoulli("probitt")
    with pytest.raises(ValueError, match="`num_classes`"):
        Categorical(0)
    with pytest.raises(ValueError, match="`df`"):
        StudentT(-1.0)
    with pytest.raises(ValueError, match="`scale`"):
        StudentT(4.0, 0.0)


def test_predictive_keeps_its_own_copy_of_the_likelihood():
    for likelihood in (Gaussian(0.1), StudentT(4.0, 0.3), LaplaceNoise(0.3)):
        mean, variance, y = draw_case(likelihood)
        predictive = likelihood.predictive(values(mean, variance))
        before = predictive.log_prob(y)
        with torch.no_grad():
            next(likelihood.parameters()).add_(1.0)
        assert torch.equal(predictive.log_prob(y), before)


def test_predictives_differentiate_through_the_values():
    for likelihood in LIKELIHOODS[:8]:
        mean, variance, y = draw_case(likelihood, n=2)
        mean.requires_grad_()
        predictive = likelihood.predictive(values(mean, variance))
        (slope,) = torch.autograd.grad(predictive.log_prob(y).sum(), mean)
        assert slope.isfinite().all() and slope.abs().max() > 0


def test_capabilities_of_each_likelihood():
    noise = {type(one).__name__: one.noise_variance for one in LIKELIHOODS}
    assert [name for name, variance in noise.items() if variance is not None] == ["Gaussian"]
    assert {type(one).__name__ for one in LIKELIHOODS if one.has_labels} == {
        "Bernoulli",
        "Categorical",
        "Ordinal",
        "Softmax",
    }
    assert Bernoulli().has_logits and Categorical(3).has_logits
    assert not (Bernoulli("probit").has_logits or Dirichlet(3).has_logits or Gaussian().has_logits)
    assert Gaussian().is_conjugate and Dirichlet(3).is_conjugate and not StudentT().is_conjugate
    with pytest.raises(TypeError, match="StudentT is not conjugate"):
        StudentT().observations(torch.zeros(1, 1))
    with pytest.raises(TypeError, match="StudentT has no noise variance"):
        StudentT().set_noise_variance(torch.tensor(1.0))


def test_noise_variance_is_set_above_its_floor():
    likelihood = Gaussian([0.1, 0.2])
    likelihood.set_noise_variance(torch.tensor([0.5, 0.0], dtype=DOUBLE))
    torch.testing.assert_close(likelihood.noise_variance[0], torch.tensor(0.5, dtype=DOUBLE), rtol=1e-14, atol=0)
    assert likelihood.noise_floor < likelihood.noise_variance[1] < 1.001 * likelihood.noise_floor
    assert likelihood.noise_parameter is likelihood.raw_noise and likelihood.raw_noise.requires_grad


def test_a_mixture_of_likelihoods_pairs_members_with_components_of_the_function():
    mean, variance = torch.zeros(2, 1, dtype=DOUBLE), torch.ones(2, 1, dtype=DOUBLE)
    one, two = values(mean, variance), values(mean + 1, variance)
    weights = torch.tensor([0.25, 0.75], dtype=DOUBLE)
    drawn = Drawn([Gaussian(0.1), Gaussian(0.2)], weights)
    assert drawn.components == tuple(drawn.members) and Gaussian().components == ()
    assert [(w, f) for w, f, _ in drawn.paired(one)] == [(0.25, one), (0.75, one)]
    assert [f for _, f, _ in drawn.paired(MixtureValues((one, two), weights))] == [one, two]
    assert [(w, f) for w, f, _ in Gaussian().paired(MixtureValues((one, two), weights))] == [(0.25, one), (0.75, two)]


@pytest.mark.parametrize("likelihood", [Categorical(4), Bernoulli(), StudentT(), Poisson()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_root_of_the_curvature_is_its_root(likelihood, dtype):
    """Also where a probability is zero to the last digit."""
    k = 4 if isinstance(likelihood, Categorical) else 1
    f = torch.linspace(-3, 3, 6 * k, dtype=dtype).reshape(6, k)
    f[0, 0] = -300.0 if k > 1 else 0.0
    y = torch.ones(6, dtype=torch.long) if likelihood.has_labels else torch.ones(6, 1, dtype=dtype)
    root = likelihood.curvature_root(f, y)
    expected = likelihood.curvature(f, y)
    assert torch.allclose(root @ root.mT, expected, atol=1e-6 if dtype == torch.float32 else 1e-14)
