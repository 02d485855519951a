"""The four estimators beyond the conformance suite: containers, units, reproducibility, the user's own parts."""

import copy

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from bayeskit import BNNClassifier, BNNRegressor, GPClassifier, GPRegressor, registry
from bayeskit.core.likelihood import Categorical, Gaussian, Heteroscedastic, Likelihood, Poisson, StudentT
from bayeskit.estimators import input_validation, make

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
Y = 100 + 20 * np.sin(X[:, 0]) + 5 * X[:, 1]


def exact(**settings):
    return GPRegressor(inference=registry.quick("exact"), random_state=0, **settings)


def laplace(**settings):
    return BNNRegressor(inference=registry.quick("laplace"), random_state=0, **settings)


@pytest.mark.parametrize("build", [exact, laplace])
def test_units_of_the_target(build):
    model, other = build().fit(X, Y), build().fit(X, 3 * Y - 7)
    mean, std = model.predict(X, return_std=True)
    mean_other, std_other = other.predict(X, return_std=True)
    assert np.allclose(mean_other, 3 * mean - 7, rtol=1e-6)
    assert np.allclose(std_other, 3 * std, rtol=1e-6)
    # The evidence may be near zero while its terms are not: an absolute tolerance.
    assert np.isclose(float(other.log_evidence_), float(model.log_evidence_) - 40 * np.log(3), rtol=1e-6, atol=1e-4)
    values = model.latent(X[:3])
    assert torch.allclose(values.mean.squeeze(1), torch.tensor(mean[:3]))
    assert (values.variance.squeeze(1) <= torch.tensor(std[:3]) ** 2).all()


def test_noise_is_in_predictions_and_not_in_the_latent():
    model = exact().fit(X, Y)
    predictive, values = model.predictive(X), model.latent(X)
    assert torch.allclose(predictive.epistemic, values.variance.squeeze(1))
    assert torch.allclose(predictive.variance, predictive.epistemic + predictive.aleatoric)
    noise = float(model.likelihood_.noise) * float(model.target_scaler_.scale) ** 2
    assert torch.allclose(predictive.aleatoric, torch.full((40,), noise, dtype=torch.float64))


@pytest.mark.parametrize("kernel", [None, gpytorch.kernels.RBFKernel()])
@pytest.mark.parametrize("name", ["exact", "svgp"])
def test_correlated_outputs(name, kernel):
    targets = np.column_stack([Y, -3 * Y, X[:, 1]]) + RNG.normal(size=(40, 3))
    settings = {"kernel": kernel, "num_latents": 2, "random_state": 0}
    model = GPRegressor(inference=registry.quick(name), **settings).fit(X, targets)
    mean, std = model.predict(X, return_std=True)
    assert mean.shape == std.shape == (40, 3)
    assert model.predict(X[:5], return_cov=True)[1].shape == (5, 5, 3)
    assert model.sample_y(X[:5], 2).shape == (5, 3, 2)
    between = model.latent(X[:1]).output_covariance()[0]
    assert between[0, 1] < 0 and model.num_outputs_ == 3
    assert GPRegressor(**settings).fit(X[:20], targets[:20]).inference_.__class__.__name__ == "Exact"


@pytest.mark.monte_carlo
def test_correlated_classes():
    model = GPClassifier(num_latents=2, inference=registry.quick("svgp"), random_state=0)
    model.fit(X, np.digitize(X[:, 0], [-0.5, 0.5]))
    assert model.posterior_.mixing.shape == (3, 2) and model.score(X, np.digitize(X[:, 0], [-0.5, 0.5])) > 0.8


@pytest.mark.parametrize("num_latents", [0, -1, 1.5, "two"])
def test_wrong_numbers_of_latents_are_refused(num_latents):
    with pytest.raises((ValueError, TypeError), match="num_latents"):
        GPRegressor(num_latents=num_latents).fit(X, Y)


@pytest.mark.parametrize("build", [exact, laplace])
def test_several_outputs(build):
    targets = np.column_stack([Y, -3 * Y, X[:, 1]]) + RNG.normal(size=(40, 3))
    model = build().fit(X, targets)
    mean, std = model.predict(X, return_std=True)
    assert mean.shape == std.shape == (40, 3)
    _, covariance = model.predict(X[:5], return_cov=True)
    assert covariance.shape == (5, 5, 3)
    assert np.allclose(np.sqrt(np.einsum("iik->ik", covariance)), std[:5])
    assert model.sample_y(X[:5], 4).shape == (5, 3, 4)
    assert model.predictive(X[:5]).log_prob(targets[:5]).shape == (5,)
    assert model.sample_functions(2)(X[:5]).shape == (2, 5, 3)
    assert model.latent(X[:5]).covariance.shape == (15, 15)


@pytest.mark.monte_carlo
def test_joint_draws_have_the_joint_covariance():
    model = exact().fit(X[:10], Y[:10])
    points = np.array([[3.0, 3.0], [3.1, 3.0]])
    mean, covariance = model.predict(points, return_cov=True)
    draws = model.sample_y(points, 20_000)
    # Five standard errors: of a mean sd / sqrt(s), of a covariance at most sd sd' sqrt(2 / s).
    std = np.sqrt(covariance.diagonal())
    assert (np.abs(draws.mean(1) - mean) < 5 * std / 20_000**0.5).all()
    assert (np.abs(np.cov(draws) - covariance) < 5 * (2 / 20_000) ** 0.5 * np.outer(std, std)).all()


def test_flags_exclude_each_other():
    with pytest.raises(RuntimeError, match="At most one"):
        exact().fit(X, Y).predict(X, return_std=True, return_cov=True)


@pytest.mark.parametrize("name", ["exact", "deep_ensemble", "sgld"])
def test_seeds(name):
    def predictions(seed):
        model = make(name, "regression", random_state=seed).set_params(inference=registry.quick(name))
        return model.fit(X, Y).predict(X)

    assert (predictions(0) == predictions(0)).all()
    if name != "exact":
        assert (predictions(0) != predictions(1)).any()


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    state, numpy_state = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    for name in ("svgp", "deep_ensemble", "nuts"):
        model = make(name, "regression", random_state=0).set_params(inference=registry.quick(name)).fit(X, Y)
        model.predict(X, return_std=True)
        model.sample_y(X)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.mtrand._rand.get_state()[1] == numpy_state).all()


def test_data_frames_of_other_types():
    frame = pd.DataFrame({"a": X[:, 0].astype("float32"), "b": pd.array((X[:, 1] * 9).astype(int), dtype="Int64")})
    assert np.isfinite(exact().fit(frame, pd.Series(Y)).predict(frame)).all()


class Images(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        bright = float(i % 2)
        return torch.full((1, 6, 6), bright) + 0.01 * i, i % 2


def convolution():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


@pytest.mark.parametrize("budget", [2**30, 0], ids=["held in memory", "read when needed"])
@pytest.mark.parametrize("name", ["map", "laplace", "deep_ensemble"])
def test_dataset_of_images_into_a_network(name, budget, monkeypatch):
    monkeypatch.setattr(input_validation, "MEMORY_BUDGET", budget)
    torch.manual_seed(0)
    model = BNNClassifier(network=convolution(), inference=registry.quick(name), random_state=0).fit(Images())
    assert isinstance(model.likelihood_, Categorical)
    assert model.predict_proba(Images()).shape == (24, 2)
    assert model.predict(torch.stack([Images()[i][0] for i in range(4)])).shape == (4,)
    with pytest.raises(ValueError, match="rows of shape"):
        model.predict(torch.zeros(2, 1, 5, 5))


def test_tensor_dataset():
    pairs = TensorDataset(torch.tensor(X), torch.tensor(Y))
    assert np.allclose(exact().fit(pairs).predict(X), exact().fit(X, Y).predict(X))
    with pytest.raises(ValueError, match="`y` must be None"):
        exact().fit(pairs, Y)


def test_a_network_handed_over_is_left_as_it_is_and_gets_raw_inputs():
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    before = copy.deepcopy(network.state_dict())
    model = BNNRegressor(network=network, inference=registry.quick("map"), random_state=0).fit(X, Y)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert model.input_scaler_ is None
    assert model.predict(X).dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_keep_their_dtype(dtype):
    network = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1)).to(dtype)
    model = BNNRegressor(network=network, inference=registry.quick("laplace"), random_state=0).fit(X, Y)
    assert next(model.posterior_.network.parameters()).dtype == dtype
    mean, std = model.predict(X, return_std=True)
    assert mean.dtype == std.dtype == np.float64
    assert model.latent(X).covariance.dtype == torch.float64


def test_kernels_of_gpytorch_are_copied_and_frozen_ones_are_kept():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.base_kernel.raw_lengthscale.requires_grad_(False)
    before = copy.deepcopy(kernel.state_dict())
    model = exact(kernel=kernel).fit(X, Y)
    assert all(torch.equal(kernel.state_dict()[key], value) for key, value in before.items())
    learnt = model.posterior_.kernel.base
    assert torch.isclose(learnt.base_kernel.lengthscale.float(), kernel.base_kernel.lengthscale).all()
    assert not torch.isclose(learnt.outputscale.float(), kernel.outputscale)
    with pytest.raises(TypeError, match="`kernel` must be"):
        exact(kernel="rbf").fit(X, Y)


@pytest.mark.monte_carlo
def test_other_likelihoods():
    robust = GPRegressor(inference=registry.quick("svgp"), likelihood=StudentT(), random_state=0).fit(X, Y)
    low, high = robust.predictive(X).interval(0.9)
    assert (low < torch.tensor(robust.predict(X))).all() and (high > low).all()
    counts = RNG.poisson(np.exp(X[:, 0]))
    model = GPRegressor(inference=registry.quick("svgp"), likelihood=Poisson(), random_state=0).fit(X, counts)
    assert (model.predict(X) > 0).all()
    assert torch.isfinite(model.predictive(X).log_prob(counts)).all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_noise_that_varies_has_latents_in_the_units_of_the_target(outputs):
    y = np.column_stack([Y, 0.1 * Y])[:, :outputs]
    model = GPRegressor(inference=registry.quick("svgp"), likelihood=Heteroscedastic(), random_state=0).fit(X, y)
    values, predictive = model.latent(X), model.predictive(X)
    mean, log_variance = values.mean.chunk(2, dim=1)
    assert torch.allclose(mean.squeeze(), predictive.mean)
    spread = values.variance.chunk(2, dim=1)[1]
    assert torch.allclose((log_variance + spread / 2).exp().squeeze(), predictive.aleatoric)  # a log-normal mean
    assert model.sample_functions(3)(X).shape == (3, 40, 2 * outputs)
    assert model.sample_y(X, 3).shape == ((40, 3) if outputs == 1 else (40, 2, 3))
    with pytest.raises(ValueError, match="return_cov"):
        model.predict(X, return_cov=True)


class PositiveLaw(Likelihood):
    def distribution(self, f):
        return td.Independent(td.Gamma(torch.full_like(f, 2.0), 2 * (-f).exp()), 1)


class LogLatent(Likelihood):
    def distribution(self, f):
        return td.Independent(td.Normal(f.exp(), 0.3), 1)


class OneNumber(Likelihood):
    def distribution(self, f):
        return td.Laplace(f[..., 0], 0.3)


def test_likelihoods_of_ones_own():
    def fit(likelihood, y):
        return GPRegressor(inference=registry.quick("svgp"), likelihood=likelihood, random_state=0).fit(X, y)

    positive = fit(PositiveLaw(), np.exp(X[:, 0]))
    assert (positive.predict(X) > 0).all()
    with pytest.raises(ValueError, match="return_cov"):
        fit(LogLatent(), Y).predict(X, return_cov=True)
    assert fit(OneNumber(), Y).sample_y(X[:1], 2).shape == (1, 2)


@pytest.mark.parametrize("name", ["map", "laplace"])
@pytest.mark.parametrize("container", ["tensor", "dataset"])
def test_token_ids_reach_an_embedding(name, container):
    tokens = torch.randint(7, (30, 5), generator=torch.Generator().manual_seed(0))
    target = tokens.double().mean(1)

    def build(in_features, out_features):
        return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(20, out_features))

    model = BNNRegressor(network=build, inference=registry.quick(name), random_state=0)
    if container == "tensor":
        model.fit(tokens, target)
    else:
        model.fit(TensorDataset(tokens, target))
    assert model.predict(tokens).shape == (30,)


@pytest.mark.monte_carlo
def test_more_classes():
    labels = np.array(["low", "mid", "high"])[np.digitize(X[:, 0], [-0.5, 0.5])]
    for build in (GPClassifier, BNNClassifier):
        name = "svgp" if build is GPClassifier else "laplace"
        model = build(inference=registry.quick(name), random_state=0).fit(X, labels)
        assert list(model.classes_) == ["high", "low", "mid"]
        p = model.predict_proba(X)
        assert p.shape == (40, 3) and np.allclose(p.sum(1), 1)
        assert model.score(X, labels) > 0.5


def test_partial_fit_freezes_the_scales_of_the_first_chunk():
    model = exact().partial_fit(X[:20], Y[:20])
    scaler = model.target_scaler_
    model.partial_fit(X[20:], Y[20:] + 1000)
    assert model.target_scaler_ is scaler


def test_three_chunks_equal_one_batch_at_the_same_hyperparameters():
    first = exact().partial_fit(X[:20], Y[:20])
    batch = copy.deepcopy(first)
    first.partial_fit(X[20:30], Y[20:30]).partial_fit(X[30:], Y[30:])
    batch.partial_fit(X[20:], Y[20:])
    assert np.allclose(first.predict(X), batch.predict(X), rtol=1e-8)


def test_classes_are_asked_for_once():
    labels = np.where(Y > 100, "up", "down")
    model = GPClassifier(inference=registry.quick("svgp"), random_state=0)
    with pytest.raises(ValueError, match="first call"):
        model.partial_fit(X, labels)
    model.partial_fit(X[:20], labels[:20], classes=["down", "up"]).partial_fit(X[20:], labels[20:])
    with pytest.raises(ValueError, match="same as in the first call"):
        model.partial_fit(X, labels, classes=["a", "b"])


def test_gaussian_noise_given_and_kept():
    likelihood = Gaussian(noise=0.25).requires_grad_(False)
    model = exact(likelihood=likelihood).fit(X, Y)
    assert np.isclose(float(model.likelihood_.noise), 0.25)


def test_many_rows_are_predicted_in_parts(monkeypatch):
    from bayeskit.estimators import estimator

    model = exact().fit(X, Y)
    whole = model.predict(X, return_std=True)
    monkeypatch.setattr(estimator, "PREDICT_ROWS", 7)
    parts = model.predict(X, return_std=True)
    assert np.allclose(whole, parts, rtol=1e-10)
