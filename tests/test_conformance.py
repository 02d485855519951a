"""Properties of every registered method, by its declared kind. No method is named here: the registry lists them.

All kinds: shapes, arguments untouched, determinism, variances, covariances, samples, batching, round trips, the
estimators. GP posterior: prior without data, order of the data, uncertainty away from it. Weights and draws: the
distribution of the function is that of weight samples pushed through the network. Point: no epistemic uncertainty.
"""

import copy
import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayeskit import load, registry, save
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian
from bayeskit.core.types import Data
from bayeskit.estimators import make

CASES = [(name, task) for name in registry.names() for task in sorted(registry.tasks(name))]
every_method = pytest.mark.parametrize(("name", "task"), CASES)


def of_kind(*kinds):
    chosen = [case for case in CASES if registry.inference_class(case[0]).kind in kinds]
    return pytest.mark.parametrize(("name", "task"), chosen)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(task, n=30, outputs=1):
    x = torch.randn(n, 2, generator=generator(1), dtype=torch.float64)
    signal = torch.sin(2 * x[:, :1]) + 0.5 * x[:, 1:]
    if task == "classification":
        return Data(x, (signal[:, 0] > 0).long())
    noise = 0.1 * torch.randn(n, outputs, generator=generator(2), dtype=torch.float64)
    return Data(x, signal + torch.arange(outputs) * x[:, :1] + noise)


def likelihood_for(task):
    return Gaussian() if task == "regression" else Bernoulli()


def infer(name, data, likelihood, *, structure=None, seed=0):
    build = registry.prior(registry.family_of(name))
    prior = build(structure, data.x, likelihood.num_latents(data.y), dtype=None, generator=generator(seed))
    return registry.quick(name).infer(prior, likelihood, data, generator=generator(seed))


@functools.cache
def fitted(name, task):
    return infer(name, table(task), likelihood_for(task))


X_NEW = torch.randn(7, 2, generator=generator(3), dtype=torch.float64)


@every_method
def test_shapes(name, task):
    values = fitted(name, task).posterior(X_NEW)
    assert values.mean.shape == (7, 1)
    assert values.variance.shape == (7, 1)
    assert values.covariance.shape == (7, 7)
    assert values.output_covariance().shape == (7, 1, 1)
    assert values.sample(3, generator=generator()).shape == (3, 7, 1)


@every_method
def test_several_outputs(name, task):
    if task == "regression":
        data, likelihood, k = table(task, outputs=3), Gaussian(), 3
    else:
        x = table(task).x
        data, likelihood, k = Data(x, (x[:, 0] * 2).round().long().clamp(-1, 1) + 1), Categorical(3), 3
    values = infer(name, data, likelihood).posterior(X_NEW)
    assert values.mean.shape == (7, k)
    assert values.covariance.shape == (7 * k, 7 * k)
    joint = values.covariance.to_dense().reshape(7, k, 7, k)
    blocks = torch.stack([joint[i, :, i, :] for i in range(7)])
    assert torch.allclose(values.output_covariance(), blocks, atol=1e-10)


def wrong_data(task):
    """Data that no method may take, and what the sentence must speak of."""
    x, y = table(task).x, table(task).y
    with_nan, with_infinity = x.clone(), y.double().clone()
    with_nan[3, 1] = torch.nan
    with_infinity[2] = torch.inf
    yield "data.x", Data(with_nan, y)
    yield "data.y", Data(x, with_infinity)
    yield "same length", Data(x, y[:-1])
    yield "data.y", Data(x, y.reshape(-1, 1, 1))
    if task == "classification":
        yield "data.y", Data(x, torch.nn.functional.one_hot(y, 2))
        yield "support of Bernoulli, 0 or 1", Data(x, y + 1)
        yield "support of Bernoulli, 0 or 1", Data(x, y - 1)
        yield "support of Bernoulli, 0 or 1", Data(x, y + 0.5)
    else:
        yield "needs 3 latent functions .*num_outputs=1", Data(x, y.expand(-1, 3))


@every_method
def test_data_that_do_not_fit_are_refused_with_a_sentence(name, task):
    prior = registry.prior(registry.family_of(name))(None, table(task).x, 1, dtype=None, generator=generator())
    for sentence, data in wrong_data(task):
        with pytest.raises(ValueError, match=sentence):
            registry.quick(name).infer(prior, likelihood_for(task), data, generator=generator())


@every_method
def test_a_prior_with_another_number_of_outputs_is_refused(name, task):
    build = registry.prior(registry.family_of(name))
    likelihood, data = (Gaussian() if task == "regression" else Categorical(4)), table(task)
    for outputs in (2, 3, 5):
        prior = build(None, data.x, outputs, dtype=None, generator=generator())
        with pytest.raises(ValueError, match=f"needs . latent functions .*num_outputs={outputs}"):
            registry.quick(name).infer(prior, likelihood, data, generator=generator())


@every_method
def test_arrays_are_tensors(name, task):
    data, likelihood = table(task), likelihood_for(task)
    prior = registry.prior(registry.family_of(name))(None, data.x, 1, dtype=None, generator=generator())
    method, arrays = registry.quick(name), Data(data.x.numpy(), data.y.numpy())
    found = method.infer(prior, likelihood, arrays, generator=generator()).posterior(X_NEW)
    expected = method.infer(prior, likelihood, data, generator=generator()).posterior(X_NEW)
    assert torch.equal(found.mean, expected.mean)


@every_method
def test_arguments_are_left_as_they_are(name, task):
    data, likelihood, method = table(task), likelihood_for(task), registry.quick(name)
    prior = registry.prior(registry.family_of(name))(None, data.x, 1, dtype=None, generator=generator())
    before = copy.deepcopy((data.x, data.y, likelihood.state_dict(), repr(method.get_params())))
    values = prior(X_NEW)
    mean, variance = values.mean.clone(), values.variance.clone()
    method.infer(prior, likelihood, data, generator=generator())
    assert torch.equal(data.x, before[0]) and torch.equal(data.y, before[1])
    assert all(torch.equal(a, b) for a, b in zip(likelihood.state_dict().values(), before[2].values(), strict=True))
    assert repr(method.get_params()) == before[3]
    assert torch.equal(prior(X_NEW).mean, mean) and torch.equal(prior(X_NEW).variance, variance)


@every_method
def test_same_generator_same_answer(name, task):
    again = infer(name, table(task), likelihood_for(task))
    assert torch.equal(again.posterior(X_NEW).mean, fitted(name, task).posterior(X_NEW).mean)


@every_method
def test_variance_is_the_diagonal_of_a_covariance(name, task):
    values = fitted(name, task).posterior(X_NEW)
    dense = values.covariance.to_dense()
    scale = dense.abs().max()
    assert (values.variance >= 0).all()
    assert torch.allclose(values.variance.reshape(-1), dense.diagonal(), rtol=1e-8, atol=1e-12)
    assert torch.allclose(dense, dense.mT, atol=1e-12 * float(scale + 1))
    # Rounding of a float64 eigendecomposition of 7 rows.
    assert torch.linalg.eigvalsh(dense).min() >= -1e-10 * scale


@pytest.mark.monte_carlo
@every_method
def test_samples_have_the_moments(name, task):
    values = fitted(name, task).posterior(X_NEW)
    s = 4_000
    draws = values.sample(s, generator=generator()).flatten(1)
    dense = values.covariance.to_dense()
    std = dense.diagonal().clamp(min=0).sqrt()
    # Five standard errors: of a mean, sd / sqrt(s); of a covariance of Gaussians, at most sd sd' sqrt(2 / s). The
    # distribution of few stored draws has lighter tails than a Gaussian, so the same bound holds.
    assert ((draws.mean(0) - values.mean.reshape(-1)).abs() <= 5 * std / s**0.5 + 1e-10).all()
    gap = (torch.cov(draws.mT) - dense).abs()
    assert (gap <= 5 * (2 / s) ** 0.5 * std[:, None] * std + 1e-10).all()


@every_method
def test_predictions_do_not_depend_on_batching(name, task):
    posterior = fitted(name, task).posterior
    whole = posterior(X_NEW)
    parts = [posterior(rows) for rows in X_NEW.split(3)]
    assert torch.allclose(torch.cat([p.mean for p in parts]), whole.mean, rtol=1e-10, atol=1e-12)
    assert torch.allclose(torch.cat([p.variance for p in parts]), whole.variance, rtol=1e-8, atol=1e-12)


@every_method
def test_sampled_functions_agree_between_calls(name, task):
    f = fitted(name, task).posterior.sample_functions(3, generator=generator())
    whole = f(X_NEW)
    assert whole.shape == (3, 7, 1)
    assert torch.allclose(f(X_NEW[4:]), whole[:, 4:], rtol=1e-8, atol=1e-10)
    assert torch.allclose(f(X_NEW[:4].flip(0)).flip(1), whole[:, :4], rtol=1e-8, atol=1e-10)


@every_method
def test_uncertainty_adds_up(name, task):
    fit = fitted(name, task)
    predictive = fit.likelihood.predictive(fit.posterior(X_NEW))
    assert torch.allclose(predictive.total, predictive.aleatoric + predictive.epistemic, rtol=1e-6, atol=1e-10)
    assert (predictive.epistemic >= -1e-10).all()


@every_method
def test_case_weights(name, task):
    """Doubling every weight of half the rows says more than leaving them; a method that cannot weigh says so."""
    data = table(task)
    weights = torch.ones(len(data), dtype=torch.float64)
    weights[:15] = 5.0
    fit = infer(name, Data(data.x, data.y, weights), likelihood_for(task))
    assert torch.isfinite(fit.posterior(X_NEW).mean).all()
    assert not torch.equal(fit.posterior(X_NEW).mean, fitted(name, task).posterior(X_NEW).mean)


ROW_NOISE = {
    "federated_sgld": "rows are dealt out to clients",
    "bootstrap": "rows are drawn with replacement",
    "low_rank_vi": "weights are drawn for each mini-batch",
    "mc_dropout": "masks are drawn for each row",
    "mean_field": "outputs are drawn for each row",
    "ssvi": "outputs are drawn for each row",
    "swag": "weights are collected over mini-batches",
}
"""Methods whose random numbers depend on the rows, so that weights and copies agree in distribution alone, and why."""


def weighted_and_repeated(task, times):
    """The first 24 rows of the table with integer weights, and with as many copies instead."""
    data, weights = table(task).rows(torch.arange(24)), torch.tensor(times).repeat(24 // len(times))
    return Data(data.x, data.y, weights.double()), data.rows(torch.arange(24).repeat_interleave(weights))


@every_method
def test_weight_two_is_the_row_twice(name, task):
    """To 1e-3 standard deviations, of at least 0.1: Adam's steps depend on the loss per row by some 1e-6."""
    if name in ROW_NOISE or (name, task) == ("baoab", "classification"):  # its quick steps diverge, rounding grows
        return
    weighted, repeated = (
        infer(name, data, likelihood_for(task)).posterior(X_NEW) for data in weighted_and_repeated(task, (1, 2))
    )
    scale = weighted.variance.sqrt().clamp_min(0.1)
    assert ((weighted.mean - repeated.mean).abs() < 1e-3 * scale).all()
    assert torch.allclose(weighted.variance.sqrt(), repeated.variance.sqrt(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.monte_carlo
@pytest.mark.parametrize(("name", "task"), [case for case in CASES if case[0] in ROW_NOISE])
def test_weight_four_is_the_row_four_times_in_distribution(name, task):
    """The mean difference over ten seeds is within 8 standard errors (t of 9 degrees of freedom: 2e-5)."""
    build, likelihood, differences = registry.prior(registry.family_of(name)), likelihood_for(task), []
    for seed in range(10):
        means = []
        for data in weighted_and_repeated(task, (1, 4)):
            prior = build(None, data.x, 1, dtype=None, generator=generator(seed))
            fit = registry.quick(name).infer(prior, likelihood, data, generator=generator(seed))
            means.append(fit.posterior(X_NEW).mean.mean())
        differences.append(float(means[0] - means[1]))
    differences = torch.tensor(differences)
    assert differences.mean().abs() < 8 * differences.std() / 10**0.5


@every_method
def test_fit_survives_pickling(name, task):
    fit = fitted(name, task)
    again = pickle.loads(pickle.dumps(fit))
    assert torch.equal(again.posterior(X_NEW).mean, fit.posterior(X_NEW).mean)
    assert torch.equal(again.posterior(X_NEW).variance, fit.posterior(X_NEW).variance)


@every_method
def test_settings_are_scikit_learn_parameters(name, task):
    method = registry.quick(name)
    assert repr(clone(method)) == repr(method)
    assert type(method)() is not None
    for key, value in method.get_params(deep=False).items():
        method.set_params(**{key: value})


@every_method
def test_one_row(name, task):
    data = table(task).rows(torch.tensor([0]))
    fit = infer(name, data, likelihood_for(task))
    assert torch.isfinite(fit.posterior(X_NEW).mean).all()


# -- estimators ------------------------------------------------------------------------------------------------------


@functools.cache
def estimator(name, task):
    data = table(task)
    y = data.y.numpy().ravel() if task == "regression" else np.where(data.y.numpy() > 0, "high", "low")
    return quick_estimator(name, task).fit(data.x.numpy(), y), y


def quick_estimator(name, task):
    model = make(name, task, random_state=0)
    return model.set_params(inference=registry.quick(name))


@every_method
def test_estimator_predicts_in_the_users_terms(name, task):
    model, y = estimator(name, task)
    x = X_NEW.numpy()
    prediction = model.predict(x)
    assert prediction.shape == (7,)
    if task == "classification":
        assert set(prediction) <= {"high", "low"}
        assert np.allclose(model.predict_proba(x).sum(1), 1)
        assert model.predictive(x).log_prob(y[:7]).shape == (7,)
    else:
        mean, std = model.predict(x, return_std=True)
        assert mean.dtype == std.dtype == np.float64
        low, high = model.predictive(x).interval(0.9)
        assert (low < high).all()
        _, covariance = model.predict(x, return_cov=True)
        assert np.allclose(np.sqrt(covariance.diagonal()), std)
        assert model.sample_y(x, 4).shape == (7, 4)
    assert model.sample_functions(2, random_state=0)(x).shape == (2, 7)


@every_method
def test_saved_estimator_predicts_the_same_bits(name, task, tmp_path):
    model, _ = estimator(name, task)
    save(model, tmp_path / "model.bayeskit")
    again = load(tmp_path / "model.bayeskit")
    x = X_NEW.numpy()
    assert (again.predict(x) == model.predict(x)).all()
    assert torch.equal(again.latent(x).variance, model.latent(x).variance)
    assert repr(again) == repr(model)


@every_method
def test_pipeline_and_grid_search(name, task):
    data = table(task)
    y = data.y.numpy().ravel()
    model = quick_estimator(name, task)
    pipe = make_pipeline(StandardScaler(), model).fit(data.x.numpy(), y)
    assert np.isfinite(pipe.score(data.x.numpy(), y))
    search = GridSearchCV(model, {"inference": [registry.quick(name)]}, cv=2, error_score="raise")
    assert search.fit(data.x.numpy(), y).best_params_


@every_method
def test_partial_fit_or_a_refusal_by_name(name, task):
    model = clone(quick_estimator(name, task))
    data = table(task)
    x, y = data.x.numpy(), data.y.numpy().ravel()
    if registry.inference_class(name).kind in ("GP posterior", "weights"):
        extra = {} if task == "regression" else {"classes": [0, 1]}
        model.partial_fit(x[:20], y[:20], **extra)
        before = model.predict(x)
        model.partial_fit(x[20:], y[20:])
        assert model.predict(x).shape == before.shape
    else:
        with pytest.raises(AttributeError) as caught:
            _ = model.partial_fit
        # scikit-learn's own sentence, with ours as its cause.
        assert type(model.inference).__name__ in str(caught.value.__cause__ or caught.value)


# -- by kind ---------------------------------------------------------------------------------------------------------


def frozen(prior):
    """A prior whose hyperparameters are kept, so that `infer` conditions and learns nothing."""
    for module in (prior.mean, prior.kernel):
        module.requires_grad_(False)
    return prior


def condition(name, task, data, prior=None):
    likelihood = likelihood_for(task).requires_grad_(False)
    prior = prior or frozen(registry.prior("gp")(None, table(task).x, 1, dtype=None, generator=generator()))
    return registry.quick(name).infer(prior, likelihood, data, generator=generator()), prior


@of_kind("GP posterior")
def test_no_data_returns_the_prior(name, task):
    fit, prior = condition(name, task, table(task).rows(torch.arange(0)))
    assert torch.allclose(fit.posterior(X_NEW).mean, prior(X_NEW).mean, atol=1e-10)
    assert torch.allclose(fit.posterior(X_NEW).covariance.to_dense(), prior(X_NEW).covariance.to_dense(), atol=1e-10)


@of_kind("GP posterior")
def test_order_of_the_data_changes_nothing(name, task):
    data = table(task)
    forward, _ = condition(name, task, data)
    backward, _ = condition(name, task, data.rows(torch.arange(len(data)).flip(0)))
    gap = (forward.posterior(X_NEW).mean - backward.posterior(X_NEW).mean).abs().max()
    assert gap <= 1e-8  # rounding


@pytest.mark.monte_carlo
@of_kind("GP posterior")
def test_uncertainty_grows_away_from_data(name, task):
    fit, prior = condition(name, task, table(task))
    near, far = fit.posterior(table(task).x).variance.mean(), fit.posterior(X_NEW + 100).variance.mean()
    assert near < far
    assert torch.allclose(far, prior(X_NEW + 100).variance.mean(), rtol=1e-6)


@pytest.mark.monte_carlo
@of_kind("weights", "draws")
def test_function_distribution_is_that_of_pushed_weights(name, task):
    """On a linear network pushing is exact, whether by linearization or by draws."""
    network = torch.nn.Linear(2, 1, dtype=torch.float64)
    posterior = infer(name, table(task), likelihood_for(task), structure=network).posterior
    s = 4_000
    draws = posterior.weights.sample(s, generator=generator())
    f = torch.einsum("nd,sod->sno", X_NEW, draws["weight"]) + draws["bias"][:, None]
    values = posterior(X_NEW)
    std = values.variance.sqrt()
    assert ((f.mean(0) - values.mean).abs() <= 5 * std / s**0.5 + 1e-10).all()
    assert ((f.var(0) - values.variance).abs() <= 5 * (2 / s) ** 0.5 * values.variance + 1e-10).all()


@of_kind("point")
def test_a_point_has_no_epistemic_uncertainty(name, task):
    fit = fitted(name, task)
    predictive = fit.likelihood.predictive(fit.posterior(X_NEW))
    assert (fit.posterior(X_NEW).variance == 0).all()
    assert (predictive.epistemic.abs() < 1e-12).all()


# -- scikit-learn's own checks ---------------------------------------------------------------------------------------

WEIGHTS = ["check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data"]
ROUNDING = {
    "baoab": "a chain that diverges amplifies rounding",
    "deep_ensemble": "Adam's steps depend on the loss per row by 1e-6",
    "hmc": "a chain amplifies rounding",
    "laplace": "Adam's steps depend on the loss per row by 1e-6",
    "map": "Adam's steps depend on the loss per row by 1e-6",
    "nuts": "a chain amplifies rounding",
    "sgnht": "a chain amplifies rounding",
    "vbll": "Adam's steps depend on the loss per row by 1e-6",
}
"""Methods for which weights and copies agree to more than the 1e-7 of scikit-learn's check, and why."""
ONE_A_FAMILY = [
    ("exact", "regression"),
    ("svgp", "classification"),
    ("laplace", "regression"),
    ("map", "classification"),
]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case not in ONE_A_FAMILY]


@pytest.mark.parametrize(("name", "task"), [*ONE_A_FAMILY, *SLOW])
def test_check_estimator(name, task):
    from sklearn.utils.estimator_checks import check_estimator

    model = quick_estimator(name, task)
    reason = (ROW_NOISE | ROUNDING).get(name)
    exempt = {} if reason is None else dict.fromkeys(WEIGHTS, reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(model, expected_failed_checks=exempt, on_skip=None, on_fail=None)
    failed = {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"}
    assert not failed
