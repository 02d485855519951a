"""Estimators as BoTorch models, by the real library: acquisition functions, batches, gradients, fantasies."""

import copy
import pickle
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement, qLogExpectedImprovement
from botorch.acquisition.joint_entropy_search import qJointEntropySearch
from botorch.acquisition.knowledge_gradient import qKnowledgeGradient
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy, qMaxValueEntropy
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.acquisition.predictive_entropy_search import qPredictiveEntropySearch
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.generation import MaxPosteriorSampling
from botorch.models import ModelList, SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.posteriors import GPyTorchPosterior
from botorch.posteriors.ensemble import EnsemblePosterior
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler
from sklearn.exceptions import NotFittedError

from bayeskit import BNNRegressor, GPClassifier, GPRegressor, gp, registry
from bayeskit.core.likelihood import Heteroscedastic, StudentT
from bayeskit.core.types import Data
from bayeskit.integrations.botorch import as_model

RNG = np.random.default_rng(0)
X = RNG.uniform(0, 1, (25, 2))
Y = 3 + 2 * np.sin(5 * X[:, 0]) + X[:, 1] + 0.05 * RNG.normal(size=25)
BOX = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
EXACT = GPRegressor(random_state=0).fit(X, Y)
PAIR = GPRegressor(random_state=0).fit(X, np.stack([Y, 10 * Y**2], 1))

HEAVY = GPRegressor(likelihood=StudentT(), inference=gp.SVGP.quickly(), random_state=0).fit(X, Y)


def inputs(*shape, seed=0):
    return torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def fitted(name):
    make = GPRegressor if registry.family_of(name) == "gp" else BNNRegressor
    return make(inference=registry.quick(name), random_state=0).fit(X, Y)


@pytest.fixture(scope="module", params=registry.names("regression"))
def named(request):
    return request.param, fitted(request.param)


def test_every_method_is_a_model(named):
    name, estimator = named
    model, x = as_model(estimator), inputs(3, 2)
    posterior = model.posterior(x)
    assert isinstance(posterior, GPyTorchPosterior | EnsemblePosterior)
    assert posterior.mean.shape == posterior.variance.shape == (3, 2, 1)
    assert posterior.mean.dtype == torch.float64 and not posterior.mean.requires_grad
    expected = estimator.latent(x.reshape(6, 2).numpy()).mean.double().reshape(3, 2, 1)
    # 256 draws of a mixture stand for its mean: deviation 0.1 over 16
    tolerance = 0.05 if name == "fully_bayesian" else 1e-5
    torch.testing.assert_close(posterior.mean, expected, rtol=tolerance, atol=tolerance)
    sampler = get_sampler(posterior, torch.Size([16]), seed=0)
    assert sampler(posterior).shape == (16, 3, 2, 1)


def test_every_method_has_gradients_in_its_inputs(named):
    """Against finite differences, of the mean and of the second moment."""
    _, estimator = named
    model, x, step = as_model(estimator), inputs(2, 2), 1e-5

    def total(points):
        posterior = model.posterior(points)
        return (posterior.mean.sin() + posterior.variance).sum()

    (slope,) = torch.autograd.grad(total(x.requires_grad_()), x)
    direction = inputs(2, 2, seed=1) - 0.5
    with torch.no_grad():
        numeric = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
    # networks in float32 or with corners: a step across one changes the slope a little
    assert float((slope * direction).sum()) == pytest.approx(float(numeric), rel=2e-2, abs=2e-3)


def test_every_method_has_an_expected_improvement_to_climb(named):
    _, estimator = named
    acquisition = qLogExpectedImprovement(as_model(estimator), best_f=float(Y.max()) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # botorch warns where a search stops at its limit of steps
        candidates, value = optimize_acqf(
            acquisition, BOX, q=2, num_restarts=1, raw_samples=4, options={"maxiter": 3, "seed": 0}
        )
    assert candidates.shape == (2, 2) and bool(value.isfinite())


def test_the_posterior_is_that_of_the_same_gp_in_botorch():
    scaler, target, posterior = EXACT.input_scaler_, EXACT.target_scaler_, EXACT.posterior_
    theirs = SingleTaskGP(
        scaler(torch.as_tensor(X)),
        target(torch.as_tensor(Y)[:, None]),
        train_Yvar=EXACT.likelihood_.noise.detach().expand(25, 1),
        covar_module=copy.deepcopy(posterior.kernel.base),
        mean_module=copy.deepcopy(posterior.mean.base_mean),
        outcome_transform=None,
    ).eval()
    x = inputs(3, 4)
    ours, same = as_model(EXACT).posterior(x), theirs.posterior(scaler(x))
    torch.testing.assert_close((ours.mean - target.shift) / target.scale, same.mean, rtol=1e-6, atol=1e-6)
    covariance = ours.distribution.covariance_matrix / target.scale**2
    torch.testing.assert_close(covariance, same.distribution.covariance_matrix, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("estimator", [EXACT, PAIR])
def test_each_of_a_batch_is_the_joint_distribution_of_its_inputs(estimator):
    x, model = inputs(2, 3, 4), as_model(estimator)
    m = model.num_outputs
    posterior = model.posterior(x)
    assert posterior.mean.shape == (2, 3, 4, m)
    alone = estimator.latent(x[1, 2].numpy())
    torch.testing.assert_close(posterior.mean[1, 2], alone.mean)
    torch.testing.assert_close(posterior.distribution.covariance_matrix[1, 2], alone.covariance.to_dense())
    torch.testing.assert_close(model.posterior(x[1, 2]).mean, alone.mean)


def test_a_long_batch_is_cut_and_put_together():
    x, model = inputs(300, 3), as_model(EXACT)
    torch.testing.assert_close(model.posterior(x).variance[250:], model.posterior(x[250:]).variance)


def test_stored_draws_are_the_members_of_an_ensemble():
    estimator = fitted("deep_ensemble")
    posterior = as_model(estimator).posterior(inputs(2, 3))
    draws = estimator.latent(inputs(2, 3).reshape(6, 2).numpy()).draws
    assert isinstance(posterior, EnsemblePosterior)
    torch.testing.assert_close(posterior.values, draws.double().reshape(-1, 2, 3, 1).movedim(1, 0))


@pytest.mark.parametrize("name", ["exact", "dual_svgp", "laplace", "vbll"])
def test_noise_is_added_in_the_units_of_the_data(name):
    estimator = fitted(name)
    model, x = as_model(estimator), inputs(5)
    _, std = estimator.predict(x.numpy(), return_std=True)
    noisy = model.posterior(x, observation_noise=True)
    np.testing.assert_allclose(noisy.variance[:, 0].sqrt(), std, rtol=1e-5)
    given = model.posterior(x, observation_noise=torch.full((5, 1), 0.7, dtype=torch.float64))
    torch.testing.assert_close(given.variance - model.posterior(x).variance, torch.full((5, 1), 0.7).double())


@pytest.mark.monte_carlo
def test_noise_of_an_ensemble_widens_its_members():
    estimator = fitted("sgld")
    model, x = as_model(estimator), inputs(6)
    plain, noisy = model.posterior(x), model.posterior(x, observation_noise=True)
    expected = estimator.likelihood_.noise.item() * estimator.target_scaler_.scale.item() ** 2
    added = noisy.values.var(0) - plain.values.var(0)
    # 256 draws and more: a variance is known to a tenth, and what the noise shares with the draws by chance adds to it
    assert float(added.mean()) == pytest.approx(expected, rel=0.3)
    assert torch.equal(noisy.values, model.posterior(x, observation_noise=True).values)


def test_outputs_are_chosen_and_transformed():
    model, x = as_model(PAIR), inputs(3, 4)
    whole, second = model.posterior(x), model.posterior(x, output_indices=[1])
    torch.testing.assert_close(second.mean, whole.mean[..., 1:])
    torch.testing.assert_close(second.variance, whole.variance[..., 1:])
    both = model.posterior(x, output_indices=[1, 0], observation_noise=True)
    torch.testing.assert_close(both.variance, model.posterior(x, observation_noise=True).variance.flip(-1))
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
    scalar = model.posterior(x, posterior_transform=ScalarizedPosteriorTransform(weights))
    torch.testing.assert_close(scalar.mean, whole.mean @ weights[:, None])


@pytest.mark.parametrize("name", ["exact", "svgp", "dual_svgp"])
def test_conditioning_is_that_of_the_posterior_process(name):
    estimator = fitted(name)
    x, y, at = inputs(4, seed=1), 3 + torch.rand(4, 1, dtype=torch.float64), inputs(5, seed=2)
    model = as_model(estimator).condition_on_observations(x, y)
    data = Data(estimator.input_scaler_(x), estimator.target_scaler_(y))
    again = copy.copy(estimator)
    again.posterior_ = (
        gp.Exact(learn=False)
        .infer(estimator.posterior_, estimator.likelihood_, data, generator=torch.Generator())
        .posterior
    )
    torch.testing.assert_close(model.posterior(at).mean, again.latent(at.numpy()).mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.posterior(at).variance, again.latent(at.numpy()).variance, rtol=1e-5, atol=1e-7)


def test_conditioning_is_what_more_data_do_to_the_estimator():
    x, y, at = inputs(4, seed=1), 3 + torch.rand(4, 1, dtype=torch.float64), inputs(5, seed=2)
    more = copy.deepcopy(EXACT).partial_fit(x.numpy(), y.numpy()[:, 0]).latent(at.numpy())
    model = as_model(EXACT).condition_on_observations(x, y)
    torch.testing.assert_close(model.posterior(at).mean, more.mean, rtol=1e-6, atol=1e-6)


def test_conditioning_twice_is_conditioning_once():
    x, y, at = inputs(4, seed=1), 3 + torch.rand(4, 1, dtype=torch.float64), inputs(3, 2, seed=2)
    once = as_model(EXACT).condition_on_observations(x, y).posterior(at)
    twice = (
        as_model(EXACT).condition_on_observations(x[:1], y[:1]).condition_on_observations(x[1:], y[1:]).posterior(at)
    )
    torch.testing.assert_close(twice.mean, once.mean)
    torch.testing.assert_close(twice.distribution.covariance_matrix, once.distribution.covariance_matrix)


def test_several_outputs_are_conditioned_together():
    x, y = inputs(2, seed=1), torch.tensor([[3.0, 90.0], [4.0, 160.0]], dtype=torch.float64)
    model = as_model(PAIR).condition_on_observations(x, y, noise=torch.full((2, 2), 1e-6, dtype=torch.float64))
    torch.testing.assert_close(model.posterior(x).mean, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["exact", "vbll", "laplace"])
def test_fantasies_have_a_batch_and_are_right_on_average(name):
    model, x, at = as_model(fitted(name)), inputs(2, 3, seed=1), inputs(2, 4, seed=2)
    fantasies = model.fantasize(x, SobolQMCNormalSampler(torch.Size([256]), seed=0))
    assert fantasies.batch_shape == (256, 2)
    posterior = fantasies.posterior(at)
    assert posterior.mean.shape == (256, 2, 4, 1)
    before = model.posterior(at)
    # 256 quasi-random fantasies: the tower rule of means and of variances
    torch.testing.assert_close(posterior.mean.mean(0), before.mean, rtol=0, atol=0.05)
    total = posterior.mean.var(0) + posterior.variance.mean(0)
    torch.testing.assert_close(total, before.variance, rtol=0.1, atol=1e-4)


def test_knowledge_gradient_looks_one_step_ahead():
    acquisition = qKnowledgeGradient(as_model(EXACT), num_fantasies=4)
    x = inputs(2, 5).requires_grad_()  # one candidate and four fantasy solutions
    value = acquisition(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.shape == (2,) and bool((slope != 0).any())


def test_what_has_no_exact_conditioning_says_so():
    for estimator in (fitted("deep_ensemble"), HEAVY):
        with pytest.raises(NotImplementedError, match="no exact conditioning: fit the estimator again"):
            as_model(estimator).condition_on_observations(inputs(1), torch.ones(1, 1))


def test_closed_forms_and_thompson_sampling():
    model = as_model(EXACT)
    value = LogExpectedImprovement(model, best_f=float(Y.max()))(inputs(7, 1))
    assert value.shape == (7,) and bool(value.isfinite().all())
    for estimator in (EXACT, fitted("deep_ensemble")):
        with torch.no_grad():
            picked = MaxPosteriorSampling(as_model(estimator), replacement=False)(inputs(50), num_samples=3)
        assert picked.shape == (3, 2)


def test_what_cannot_be_a_model_is_refused():
    with pytest.raises(TypeError, match="must be a GPRegressor or BNNRegressor; got GPClassifier"):
        as_model(GPClassifier(inference=gp.SVGP.quickly()).fit(X, Y > 3))
    with pytest.raises(TypeError, match="latents are the outputs.*got Heteroscedastic"):
        as_model(GPRegressor(likelihood=Heteroscedastic(), inference=gp.SVGP.quickly(), random_state=0).fit(X, Y))
    with pytest.raises(ValueError, match=r"`X` must have shape \(\*b, q, 2\)"):
        as_model(EXACT).posterior(torch.rand(3, 5))
    with pytest.raises(NotImplementedError, match="needs Gaussian noise"):
        as_model(HEAVY).posterior(inputs(2), None, True)


def test_outputs_may_be_counted_from_the_end():
    model, x = as_model(PAIR), inputs(3, 4)
    last, second = (model.posterior(x, output_indices=[i]).distribution.covariance_matrix for i in (-1, 1))
    torch.testing.assert_close(last, second)
    for wrong in ([2], [-3], []):
        with pytest.raises(ValueError, match="`output_indices` must choose among the 2 outputs, 0 to 1"):
            model.posterior(x, output_indices=wrong)


@pytest.mark.parametrize("name", ["exact", "vbll", "deep_ensemble"])
def test_noise_that_does_not_fit_is_refused(name):
    model, x = as_model(fitted(name)), inputs(3, 2)
    for shape in ((5, 1), (3,), (7, 2, 1)):
        with pytest.raises(ValueError, match=r"noise variances that broadcast against \(\*b, q, m\), here \(3, 2, 1\)"):
            model.posterior(x, observation_noise=torch.ones(shape))
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="none of them negative or NaN"):
            model.posterior(x, observation_noise=torch.full((2, 1), wrong))


def test_inputs_that_are_none_are_refused():
    for name in ("exact", "deep_ensemble"):
        model = as_model(fitted(name))
        for wrong in (torch.zeros(3, 2, dtype=torch.long), X):  # integers would have had their means rounded
            with pytest.raises(TypeError, match="`X` must be a tensor of real numbers"):
                model.posterior(wrong)
        for wrong in (torch.rand(2), torch.rand(0, 2), torch.rand(0, 3, 2)):
            with pytest.raises(ValueError, match="at least one input"):
                model.posterior(wrong)


def test_observations_that_do_not_fit_are_refused():
    model, x, y = as_model(PAIR), inputs(3), torch.ones(3, 2, dtype=torch.float64)
    for wrong in (y[:, 0], y[:2], y[:, :1]):
        with pytest.raises(ValueError, match=r"`Y` must have shape \(\*c, 3, 2\), a row for each of `X`"):
            model.condition_on_observations(x, wrong)
    with pytest.raises(ValueError, match="`Y` must be finite"):
        model.condition_on_observations(x, y * float("nan"))
    with pytest.raises(ValueError, match="`noise` must hold noise variances that broadcast"):
        model.condition_on_observations(x, y, noise=torch.ones(4, 1))


def test_a_model_is_copied_whole_and_an_estimator_must_be_fitted():
    model = as_model(EXACT).condition_on_observations(inputs(2), torch.ones(2, 1, dtype=torch.float64))
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again.posterior(inputs(3)).mean, model.posterior(inputs(3)).mean, rtol=0, atol=0)
    with pytest.raises(NotFittedError):
        as_model(GPRegressor())


# -- some outputs, and what acquisition functions ask for beside the posterior -----------------------------------------

CORRELATED = GPRegressor(num_latents=1, random_state=0).fit(X, np.stack([Y, 10 * Y**2], 1))
FUNCTIONS = BNNRegressor(inference=registry.quick("deep_ensemble"), random_state=0).fit(X, np.stack([Y, -Y], 1))


def later(m):
    return inputs(3, seed=7), torch.randn(3, m, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("estimator", [PAIR, CORRELATED, FUNCTIONS], ids=["independent", "correlated", "functions"])
def test_some_outputs_are_columns_of_all(estimator, conditioned, noisy):
    if estimator is FUNCTIONS and (conditioned or noisy):  # not Gaussian; with noise samples for all its outputs
        return
    model, x = as_model(estimator), inputs(4, 3)
    if conditioned:
        model = model.condition_on_observations(*later(2))
    whole = model.posterior(x, observation_noise=noisy)
    for chosen in ([1], [0], [-1], [1, 0]):
        part = model.subset_output(chosen)
        found = part.posterior(x, observation_noise=noisy)
        assert part.num_outputs == len(chosen) and found.mean.shape == (4, 3, len(chosen))
        torch.testing.assert_close(found.mean, whole.mean[..., chosen], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.variance, whole.variance[..., chosen], rtol=1e-10, atol=1e-10)
        again = part.subset_output([0]).posterior(x, output_indices=[0], observation_noise=noisy)
        torch.testing.assert_close(again.mean, whole.mean[..., chosen[:1]], rtol=1e-10, atol=1e-10)
        if chosen in ([0], [1]):  # BoTorch's list has an order of its own
            together = ModelList(model, as_model(EXACT)).subset_output(chosen).posterior(x)
            torch.testing.assert_close(together.mean, model.posterior(x).mean[..., chosen], rtol=1e-10, atol=1e-10)
    for wrong in ([2], [], [-3]):
        with pytest.raises(ValueError, match="must choose among the 2 outputs"):
            model.subset_output(wrong)


def test_one_output_is_conditioned_by_its_own_observations():
    """Of independent outputs: as all of them by observations of which the other ones have no weight."""
    x, y = later(1)
    model, query = as_model(PAIR), inputs(4, 3)
    found = model.subset_output([1]).condition_on_observations(x, y).posterior(query)
    both = torch.cat([torch.zeros_like(y), y], -1)
    noise = model._noise(True, x) * torch.tensor([1e12, 1.0])
    expected = model.condition_on_observations(x, both, noise).posterior(query)
    torch.testing.assert_close(found.mean, expected.mean[..., 1:], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance, expected.variance[..., 1:], rtol=1e-6, atol=1e-6)
    shown = model.condition_on_observations(*later(2)).subset_output([1])
    with pytest.raises(NotImplementedError, match="condition the model of all outputs"):
        shown.condition_on_observations(x, y)


def test_a_call_is_the_posterior_and_training_inputs_are_those_of_the_data():
    for estimator, m in ((EXACT, 1), (PAIR, 2)):
        model, x = as_model(estimator), inputs(4, 3)
        normal, posterior = model(x), model.posterior(x)
        torch.testing.assert_close(normal.mean, posterior.distribution.mean)
        torch.testing.assert_close(normal.covariance_matrix, posterior.distribution.covariance_matrix)
        (kept,) = model.train_inputs
        kept = kept if m == 1 else kept[1]
        close = torch.cdist(kept, torch.as_tensor(X)) < 1e-12  # in an order of the method's own
        assert kept.shape == X.shape and close.sum(0).eq(1).all() and close.sum(1).eq(1).all()
        conditioned = model.condition_on_observations(*later(m)).train_inputs[0]
        assert conditioned.shape == ((28, 2) if m == 1 else (2, 28, 2))
    model = as_model(FUNCTIONS)
    assert not hasattr(model, "train_inputs") and not hasattr(model.posterior(inputs(2, 1)), "distribution")
    for attempt in (
        lambda: model(inputs(3)),
        lambda: model.train_inputs,
        lambda: model.posterior(inputs(3)).distribution,
        lambda: PathwiseThompsonSampling(as_model(EXACT))(inputs(2, 1)),
    ):
        with pytest.raises(NotImplementedError, match="Gaussian|training inputs|MaxPosteriorSampling"):
            attempt()


OPTIMA = {"optimal_inputs": inputs(3, seed=3), "optimal_outputs": torch.full((3, 1), 6.0, dtype=torch.float64)}
ENTROPY = {
    "MES": lambda model: qMaxValueEntropy(model, inputs(30)),
    "GIBBON": lambda model: qLowerBoundMaxValueEntropy(model, inputs(30)),
    "JES": lambda model: qJointEntropySearch(model, **OPTIMA, estimation_type="LB"),
    "JES by sampling": lambda model: qJointEntropySearch(model, **OPTIMA, estimation_type="MC"),
    "PES": lambda model: qPredictiveEntropySearch(model, OPTIMA["optimal_inputs"]),
    "KG": lambda model: qKnowledgeGradient(model, num_fantasies=2),
}


@pytest.mark.parametrize("method", ["exact", "svgp"])
@pytest.mark.parametrize("name", ENTROPY)
def test_acquisition_functions_that_look_ahead_propose(name, method):
    estimator = EXACT if method == "exact" else fitted("svgp")
    if name == "PES" and method == "exact":  # BoTorch's gradients of it are not numbers for its own models either
        assert bool(ENTROPY[name](as_model(estimator))(inputs(3, 2)).isfinite().all())
        return
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        candidates, value = optimize_acqf(
            ENTROPY[name](as_model(estimator)),
            BOX,
            q=2,
            num_restarts=1,
            raw_samples=4,
            sequential=name in ("MES", "GIBBON"),
            options={"maxiter": 3},
        )
    assert candidates.shape == (2, 2) and bool(value.isfinite().all())
    assert bool(((candidates >= 0) & (candidates <= 1)).all())
