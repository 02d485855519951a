import numpy as np
import pandas as pd
import pytest
import torch
from linear_operator import to_linear_operator
from scipy import stats
from torch import distributions as td

from bayeskit.core.posterior import GaussianValues
from bayeskit.core.predictive import (
    CategoricalPredictive,
    GaussianPredictive,
    IntegralPredictive,
    MixturePredictive,
    NoisyStudentTPredictive,
    PooledPredictive,
    StudentTPredictive,
    pool,
)


def gaussian_values(n=4, k=1, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(n * k, n * k, generator=g, dtype=dtype)
    return GaussianValues(torch.randn(n, k, generator=g, dtype=dtype), to_linear_operator(root @ root.mT / n))


def laplace(f):
    return td.Laplace(f, 0.3)


def predictives(n=4, k=1, dtype=torch.float64):
    values = gaussian_values(n, k, dtype=dtype)
    spread = torch.linspace(-2, 2, 3, dtype=dtype).reshape(3, 1, 1)
    joint = td.Independent(td.Normal(values.mean + spread, 0.2 + spread**2), 1)
    one = torch.ones(n, k, dtype=dtype)
    return {
        "gaussian": GaussianPredictive(values, torch.tensor([0.3], dtype=dtype)),
        "student_t": StudentTPredictive(values.mean, 0.5 * one, 5 * one, latent_variance=0.1 * one),
        "mixture": MixturePredictive(joint),
        "weighted": MixturePredictive(joint.base_dist, torch.tensor([0.2, 0.3, 0.5], dtype=dtype).log()),
        "integral": IntegralPredictive(values, laplace),
        "pooled": PooledPredictive(
            (GaussianPredictive(values, torch.tensor([0.3], dtype=dtype)), MixturePredictive(joint)),
            torch.tensor([0.3, 0.7], dtype=dtype),
        ),
        "pooled row by row": PooledPredictive(
            (GaussianPredictive(values, torch.tensor([0.3], dtype=dtype)), MixturePredictive(joint)),
            torch.stack([torch.linspace(0, 1, n, dtype=dtype), 1 - torch.linspace(0, 1, n, dtype=dtype)]),
        ),
    }


NAMES = list(predictives())


@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one_and_to_the_cdf(name):
    predictive = predictives(n=1)[name]
    y = torch.linspace(-40, 40, 2001, dtype=torch.float64)
    density = predictive.log_prob(y[:, None, None]).exp().squeeze()
    trapezoids = ((density[1:] + density[:-1]) / 2 * (y[1] - y[0])).cumsum(0)
    cdf = predictive.cdf(y[1:, None, None]).squeeze()
    # the step 0.04 is a seventh of the narrowest scale; a t_5 of scale 0.5 has less than 1e-8 beyond 38
    assert abs(trapezoids[-1] - 1) < 1e-6
    assert (trapezoids - cdf).abs().max() < 1e-3  # step^2 / 12 times the largest slope of the density


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 2])
def test_quantile_inverts_the_cdf(name, k):
    predictive = predictives(k=k)[name]
    q = torch.tensor([1e-6, 0.01, 0.5, 0.95, 1 - 1e-6], dtype=torch.float64)
    y = predictive.quantile(q)
    assert y.shape == (5, 4, k)
    torch.testing.assert_close(predictive.cdf(y), q.reshape(5, 1, 1).expand(y.shape), rtol=1e-7, atol=1e-12)
    assert torch.equal(predictive.quantile(0.5), predictive.quantile([0.5])[0])


@pytest.mark.parametrize("name", NAMES)
def test_interval_holds_its_level(name):
    predictive = predictives()[name]
    low, high = predictive.interval(0.9)
    torch.testing.assert_close(
        predictive.cdf(high) - predictive.cdf(low), torch.full((4, 1), 0.9, dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_and_uncertainty(name, dtype, generator):
    predictive = predictives(n=3, k=2, dtype=dtype)[name]
    for part in (
        predictive.mean,
        predictive.std,
        predictive.total,
        predictive.aleatoric,
        predictive.epistemic,
        *predictive.interval(0.5),
    ):
        assert part.shape == (3, 2) and part.dtype == dtype
    torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic)
    torch.testing.assert_close(predictive.variance, predictive.std**2)
    assert (predictive.aleatoric >= 0).all() and (predictive.epistemic >= 0).all()
    assert predictive.log_prob(predictive.mean).shape == (3,) and predictive.log_prob(predictive.mean).dtype == dtype
    assert predictive.log_prob(predictive.mean.expand(5, 3, 2)).shape == (5, 3)
    assert predictive.sample(7, generator=generator).shape == (7, 3, 2)
    assert isinstance(predictive.rule, str)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_moments_and_the_cdf(name, generator):
    predictive = predictives(n=2)[name]
    draws = predictive.sample(4000, generator=generator)
    assert ((draws.mean(0) - predictive.mean).abs() < 5 * predictive.std / 4000**0.5).all()
    # probability integral transform: uniform, so its mean has standard error 1 / sqrt(12 s)
    assert ((predictive.cdf(draws).mean(0) - 0.5).abs() < 5 / (12 * 4000) ** 0.5).all()


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_draws_and_global_generator_untouched(name):
    predictive, before = predictives(n=2)[name], torch.get_rng_state()
    first, second = (predictive.sample(3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 2])
def test_affine_is_a_change_of_variables(name, k):
    predictive, shift, scale = predictives(k=k)[name], np.arange(k) - 3.0, np.arange(k) + 0.5
    other, t_shift, t_scale = predictive.affine(shift, scale), torch.as_tensor(shift), torch.as_tensor(scale)
    y = predictive.mean + 0.3
    torch.testing.assert_close(other.mean, t_shift + t_scale * predictive.mean)
    torch.testing.assert_close(other.variance, t_scale**2 * predictive.variance)
    torch.testing.assert_close(other.epistemic, t_scale**2 * predictive.epistemic)
    torch.testing.assert_close(other.log_prob(t_shift + t_scale * y), predictive.log_prob(y) - t_scale.log().sum())
    torch.testing.assert_close(other.cdf(t_shift + t_scale * y), predictive.cdf(y))
    torch.testing.assert_close(other.interval(0.8)[0], t_shift + t_scale * predictive.interval(0.8)[0])
    twice = other.affine(1.0, 2.0)
    torch.testing.assert_close(twice.mean, 1 + 2 * other.mean)


@pytest.mark.parametrize("name", NAMES)
def test_squeeze_drops_the_output_axis_everywhere(name, generator):
    predictive = predictives()[name]
    flat = predictive.affine(2.0, 3.0).squeeze()
    y = pd.Series(np.linspace(-1, 1, 4), index=[7, 5, 3, 1])
    for part in (flat.mean, flat.std, flat.aleatoric, flat.epistemic, flat.log_prob(y), flat.cdf(y), flat.cdf(0.0)):
        assert part.shape == (4,)
    assert flat.sample(5, generator=generator).shape == (5, 4) and flat.quantile([0.1, 0.2]).shape == (2, 4)
    torch.testing.assert_close(flat.log_prob(y), predictive.affine(2.0, 3.0).log_prob(y.to_numpy()[:, None]))
    torch.testing.assert_close(flat.affine(1.0, 2.0).mean, 1 + 2 * flat.mean)
    assert flat.squeeze() is flat


@pytest.mark.parametrize("given", [list, np.asarray, pd.Series, torch.tensor])
def test_targets_may_be_any_array(given):
    predictive = predictives()["gaussian"]
    y = given([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(
        predictive.log_prob(y), predictive.log_prob(torch.tensor([[0.1], [0.2], [0.3], [0.4]]).double())
    )


def test_one_input():
    predictive = predictives(n=1)["gaussian"]
    assert predictive.log_prob([0.5]).shape == (1,) and predictive.squeeze().log_prob([0.5]).shape == (1,)
    assert predictive.log_prob(torch.zeros(5, 1, 1)).shape == (5, 1)


def test_bad_arguments_are_named():
    predictive = predictives()["gaussian"]
    with pytest.raises(ValueError, match=r"`y` must have shape \(n, k\) = \(4, 1\)"):
        predictive.log_prob(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="`q` must lie strictly"):
        predictive.quantile(1.0)
    with pytest.raises(ValueError, match="`level` must lie strictly"):
        predictive.interval(90)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        predictive.affine(0.0, 0.0)


@pytest.mark.monte_carlo
def test_gaussian_uses_the_covariance_of_the_outputs(generator):
    values = gaussian_values(n=3, k=2)
    noise = torch.tensor([0.2, 0.7], dtype=torch.float64)
    predictive, y = GaussianPredictive(values, noise), torch.randn(3, 2, generator=generator, dtype=torch.float64)
    covariance = values.output_covariance() + torch.diag(noise)
    expected = td.MultivariateNormal(values.mean, covariance).log_prob(y)
    torch.testing.assert_close(predictive.log_prob(y), expected, rtol=1e-10, atol=1e-10)
    draws = predictive.sample(20000, generator=generator)
    empirical = torch.einsum("sni,snj->nij", draws - predictive.mean, draws - predictive.mean) / 20000
    # standard error of a covariance entry: sqrt((V_ii V_jj + V_ij^2) / s) <= sqrt(2 / s) max diag
    assert (empirical - covariance).abs().max() < 5 * (2 / 20000) ** 0.5 * covariance.max()


def test_gaussian_mean_does_not_pay_for_the_variance():
    class Values(GaussianValues):
        @property
        def variance(self):
            raise AssertionError("variance was computed")

    predictive = GaussianPredictive(Values(torch.zeros(2, 1), to_linear_operator(torch.eye(2))), torch.tensor(0.1))
    assert predictive.mean.shape == (2, 1) and predictive.affine(1.0, 2.0).squeeze().mean.shape == (2,)


def test_student_t_agrees_with_scipy():
    predictive = predictives()["student_t"]
    reference = stats.t(5, loc=predictive.mean.numpy(), scale=0.5)
    y = predictive.mean + torch.linspace(-3, 3, 4).double()[:, None]
    np.testing.assert_allclose(predictive.cdf(y), reference.cdf(y.numpy()), rtol=1e-12)
    np.testing.assert_allclose(predictive.quantile(0.03), reference.ppf(0.03), rtol=1e-10)
    np.testing.assert_allclose(predictive.log_prob(y), reference.logpdf(y.numpy())[:, 0], rtol=1e-12)
    np.testing.assert_allclose(predictive.variance, reference.var(), rtol=1e-12)


def test_mixture_is_the_mixture_and_not_the_moment_match():
    far = torch.tensor([-100.0, 100.0], dtype=torch.float64).reshape(2, 1, 1)
    predictive = MixturePredictive(td.Independent(td.Normal(far, 1.0), 1))
    expected = td.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)).double() - np.log(2)
    torch.testing.assert_close(predictive.log_prob(far[1]), expected.reshape(1), rtol=0, atol=1e-7)
    assert predictive.mean == 0 and abs(predictive.total - 10001) < 1e-9 and abs(predictive.aleatoric - 1) < 1e-12
    torch.testing.assert_close(predictive.quantile(0.25).squeeze(), torch.tensor(-100.0).double(), rtol=1e-12, atol=0)
    assert predictive.interval(0.4)[0] < -99 and predictive.interval(0.4)[1] > 99


def test_mixture_of_joint_components_keeps_outputs_together():
    means = torch.tensor([[[-5.0, -5.0]], [[5.0, 5.0]]], dtype=torch.float64)
    joint = MixturePredictive(td.Independent(td.Normal(means, 1.0), 1))
    apart = MixturePredictive(td.Normal(means, 1.0))
    agree, differ = torch.tensor([[5.0, 5.0]]).double(), torch.tensor([[5.0, -5.0]]).double()
    torch.testing.assert_close(joint.log_prob(agree), apart.log_prob(agree) + np.log(2), rtol=0, atol=1e-8)
    assert joint.log_prob(differ) < -40 and abs(apart.log_prob(differ) - apart.log_prob(agree)) < 1e-12
    draws = joint.sample(50, generator=torch.Generator().manual_seed(0)).squeeze(1)
    assert (draws[:, 0].sign() == draws[:, 1].sign()).all()


def test_mixture_of_correlated_components():
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    components = td.MultivariateNormal(torch.zeros(3, 2, 2).double(), covariance)
    predictive = MixturePredictive(components)
    torch.testing.assert_close(predictive.quantile(0.975), torch.full((2, 2), 1.959963984540054).double())
    torch.testing.assert_close(predictive.log_prob(torch.ones(2, 2)), components.log_prob(torch.ones(2, 2).double())[0])


def test_mixture_of_transformed_components_has_a_density_and_quantiles_name_what_is_missing():
    base = td.Normal(torch.zeros(2, 3, 1).double(), 1.0)
    predictive = MixturePredictive(td.TransformedDistribution(base, td.ExpTransform()))
    assert predictive.log_prob(torch.ones(3, 1)).shape == (3,)
    torch.testing.assert_close(predictive.cdf(1.0), torch.full((3, 1), 0.5).double())
    assert (predictive.cdf(-1.0) == 0).all()


def test_mixture_of_one_component_is_exact():
    predictive = MixturePredictive(td.Independent(td.Normal(torch.ones(1, 3, 1).double(), 2.0), 1))
    torch.testing.assert_close(predictive.quantile(0.9), torch.full((3, 1), 1 + 2 * 1.2815515655446004).double())
    assert (predictive.epistemic == 0).all()


def test_extreme_scales():
    for scale in (1e-12, 1e12):
        components = td.Independent(td.Normal(torch.tensor([-1.0, 2.0]).double().reshape(2, 1, 1) * scale, scale), 1)
        predictive = MixturePredictive(components)
        torch.testing.assert_close(predictive.cdf(predictive.quantile(0.3)).item(), 0.3, rtol=1e-9, atol=0)
        affine = predictives()["gaussian"].affine(scale, scale)
        torch.testing.assert_close(affine.cdf(affine.quantile(0.3)), torch.full((4, 1), 0.3, dtype=torch.float64))


@pytest.mark.monte_carlo
def test_categorical_averages_probabilities_and_splits_uncertainty(generator):
    logits = torch.randn(50, 6, 3, generator=generator, dtype=torch.float64)
    predictive = CategoricalPredictive.from_draws(logits.log_softmax(-1))
    torch.testing.assert_close(predictive.probs, logits.softmax(-1).mean(0))
    torch.testing.assert_close(predictive.total, td.Categorical(probs=predictive.probs).entropy())
    torch.testing.assert_close(predictive.aleatoric, td.Categorical(logits=logits).entropy().mean(0))
    torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic)
    assert (predictive.epistemic > 0).all() and predictive.rule == "50 draws"
    labels = predictive.sample(4000, generator=generator)
    assert labels.shape == (4000, 6)
    frequency = torch.nn.functional.one_hot(labels, 3).double().mean(0)
    assert (frequency - predictive.probs).abs().max() < 5 * 0.5 / 4000**0.5
    assert torch.equal(predictive.mode, predictive.probs.argmax(-1))


def test_categorical_survives_impossible_classes():
    predictive = CategoricalPredictive.from_draws(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]]).double())
    torch.testing.assert_close(predictive.epistemic, torch.tensor([np.log(2)]))
    deep = CategoricalPredictive.from_draws(torch.tensor([[[-1e3, 0.0]], [[-2e3, 0.0]]]).double())
    torch.testing.assert_close(deep.log_prob([0]), torch.tensor([-1000 - np.log(2)], dtype=torch.float64))


@pytest.mark.parametrize("given", [list, np.asarray, pd.Series, pd.Categorical])
def test_categorical_speaks_the_users_labels(given, generator):
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])
    predictive = CategoricalPredictive(probs.log(), torch.zeros(2), classes=np.array(["ant", "bee", "cat"]))
    torch.testing.assert_close(predictive.log_prob(given(["cat", "ant"])).exp(), torch.tensor([0.3, 0.7]))
    assert predictive.mode.tolist() == ["bee", "ant"]
    draws = predictive.sample(5, generator=generator)
    assert draws.shape == (5, 2) and set(draws.ravel()) <= {"ant", "bee", "cat"}


def test_categorical_names_unknown_labels():
    predictive = CategoricalPredictive(torch.full((2, 2), 0.5).log(), torch.zeros(2), classes=np.array([10, 20]))
    torch.testing.assert_close(predictive.log_prob([20, 10.0]).exp(), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="not among .*30"):
        predictive.log_prob([10, 30])
    with pytest.raises(ValueError, match="must have shape"):
        predictive.log_prob([10])
    codes = CategoricalPredictive(torch.full((2, 2), 0.5).log(), torch.zeros(2))
    with pytest.raises(ValueError, match="codes 0 to 1"):
        codes.log_prob([0, 2])


@pytest.mark.parametrize("name", [*NAMES, "noisy_student_t"])
@pytest.mark.parametrize("n", [1, 3])
def test_cdf_reads_targets_like_the_density(name, n):
    noisy = NoisyStudentTPredictive(gaussian_values(n), torch.tensor(0.5), 4.0)
    predictive = (predictives(n) | {"noisy_student_t": noisy})[name]
    y = torch.linspace(-1, 1, n, dtype=torch.float64)
    expected = predictive.cdf(y.unsqueeze(-1))
    assert expected.shape == (n, 1)
    torch.testing.assert_close(predictive.cdf(y), expected)
    torch.testing.assert_close(predictive.squeeze().cdf(y), expected.squeeze(-1))
    torch.testing.assert_close(predictive.affine(0.0, 1.0).cdf(y), expected)
    assert predictive.cdf(0.0).shape == (n, 1)
    assert predictive.cdf(y.expand(5, n)).shape == (5, n, 1)


def test_pooled_classes_average_probabilities():
    tables = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    parts = [CategoricalPredictive(table.log(), torch.full((3,), 0.1 * s)) for s, table in enumerate(tables)]
    predictive = pool(parts, torch.tensor([[0.25, 1.0, 0.5], [0.75, 0.0, 0.5]]))
    weights = torch.tensor([0.25, 1.0, 0.5]).unsqueeze(-1)
    torch.testing.assert_close(predictive.probs, weights * tables[0] + (1 - weights) * tables[1])
    torch.testing.assert_close(predictive.expected_entropy, torch.tensor([0.075, 0.0, 0.05]))


def test_a_pool_of_parts_of_one_distribution_is_the_mixture():
    means = torch.tensor([-1.0, 0.5, 3.0]).double()
    whole = MixturePredictive(td.Independent(td.Normal(means.reshape(3, 1, 1), 0.4), 1))
    parts = [MixturePredictive(td.Independent(td.Normal(m.reshape(1, 1, 1), 0.4), 1)) for m in means]
    predictive = pool(parts, torch.full((3,), 1 / 3).double())
    y = torch.linspace(-3, 5, 9).double().reshape(9, 1, 1)
    torch.testing.assert_close(predictive.log_prob(y), whole.log_prob(y))
    torch.testing.assert_close(predictive.cdf(y), whole.cdf(y))
    torch.testing.assert_close(predictive.quantile(0.7), whole.quantile(0.7))
    torch.testing.assert_close(predictive.total, whole.total)
