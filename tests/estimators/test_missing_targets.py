"""NaN in `y`: an entry that was not observed with several outputs, an error with one."""

import numpy as np
import pandas as pd
import pytest
import torch
from gpytorch.kernels import RBFKernel
from torch.utils.data import TensorDataset

from bayeskit import BNNRegressor, GPClassifier, GPRegressor, bnn, gp, load, registry, save
from bayeskit.core.likelihood import Dirichlet, Gaussian, StudentT
from bayeskit.estimators.scaling import Standardizer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
Y = np.column_stack([X.sum(1), 100 * np.sin(2 * X[:, 0]) + 500]) + 0.01 * RNG.normal(size=(40, 2))
GAPS = RNG.uniform(size=Y.shape) < 0.3
GAPS[5] = True
HOLES = np.where(GAPS, np.nan, Y)
METHODS = ["exact", "sgpr", "svgp"]


def regressor(name, **settings):
    return GPRegressor(inference=registry.quick(name), random_state=0, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_gaps_are_predicted_from_the_other_rows(name):
    model = regressor(name).fit(X, HOLES)
    mean, std = model.predict(X, return_std=True)
    error = np.abs(mean - Y) / Y.std(0)
    assert np.isfinite(mean).all() and np.isfinite(std).all()
    assert error[~GAPS].mean() < 0.2 and error[GAPS].mean() < 0.5
    # The first output is linear: of its own kernel, it is known as well in its gaps. The second is not.
    assert std[GAPS[:, 1], 1].mean() > std[~GAPS[:, 1], 1].mean()


def test_containers_of_gaps_are_read_alike():
    base = regressor("exact").fit(X, HOLES).predict(X)
    nullable = pd.DataFrame(HOLES, columns=["a", "b"]).astype("Float64").mask(GAPS)
    assert nullable.isna().to_numpy().any()
    objects = np.where(GAPS, None, Y.astype(object))
    items = TensorDataset(torch.tensor(X), torch.tensor(HOLES))
    for y in (pd.DataFrame(HOLES), nullable, objects, HOLES.tolist(), torch.tensor(HOLES)):
        assert np.allclose(regressor("exact").fit(X, y).predict(X), base)
    assert np.allclose(regressor("exact").fit(items).predict(X), base)


def test_each_output_is_a_problem_of_its_own_in_units_and_evidence():
    """At fixed noise and kernel, the evidence in the target's units is the sum of that of the outputs alone."""

    def make():
        kernel = RBFKernel(ard_num_dims=2).double()
        return GPRegressor(kernel, gp.Exact(learn=False), Gaussian(0.1, learn=False), random_state=0)

    joint, total = make().fit(X, HOLES), 0.0
    inputs = joint.input_scaler_
    for j in range(2):
        seen = ~GAPS[:, j]
        one = make()
        one.fit(X[seen], Y[seen, j])
        assert np.isclose(one.target_scaler_.shift[0], joint.target_scaler_.shift[j])
        assert np.isclose(one.target_scaler_.scale[0], joint.target_scaler_.scale[j])
        # inputs of the joint fit are standardized by other rows: compare at the same inputs, through the scaler
        z = (X[seen] - inputs.shift.numpy()) / inputs.scale.numpy()
        mean, scale = one.target_scaler_.shift.item(), one.target_scaler_.scale.item()
        gram = np.exp(-0.5 * ((z[:, None] - z) ** 2).sum(-1) / np.log(2) ** 2) + 0.1 * np.eye(len(z))
        y = (Y[seen, j] - mean) / scale
        total -= 0.5 * (y @ np.linalg.solve(gram, y) + np.linalg.slogdet(gram)[1] + len(y) * np.log(2 * np.pi))
        total -= len(y) * np.log(scale)
    assert np.isclose(float(joint.log_evidence_), total, rtol=1e-5)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("name", METHODS)
def test_partial_fit_takes_gaps_and_outputs_that_are_missing_throughout(name):
    model = regressor(name).partial_fit(X[:20], HOLES[:20])
    before = model.predict(X)
    later = HOLES[20:].copy()
    later[:, 1] = np.nan
    after = model.partial_fit(X[20:], later).predict(X)
    assert np.isfinite(after).all() and not np.allclose(after[:, 0], before[:, 0])
    assert np.allclose(after[:, 1], before[:, 1], atol=0.05 * Y[:, 1].std())


def test_rows_without_any_observation_count_for_nothing():
    weights = np.linspace(0.5, 2, 40)
    there = ~GAPS.all(1)
    one = regressor("exact").fit(X, HOLES, sample_weight=weights)
    two = regressor("exact").fit(X[there], HOLES[there], sample_weight=weights[there])
    assert np.array_equal(one.predict(X), two.predict(X)) and float(one.log_evidence_) == float(two.log_evidence_)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_model_answers_alike(name, tmp_path):
    model = regressor(name).fit(X, HOLES)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    for one, two in zip(model.predict(X, return_std=True), again.predict(X, return_std=True), strict=True):
        assert np.array_equal(one, two)


def test_what_stays_refused():
    one = HOLES[:, 1]
    for y in (one, one[:, None]):
        with pytest.raises(ValueError, match="NaN"):
            regressor("exact").fit(X, y)
    infinite = HOLES.copy()
    infinite[0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        regressor("exact").fit(X, infinite)
    empty = HOLES.copy()
    empty[:, 1] = np.nan
    with pytest.raises(ValueError, match=r"`y` must have an observation of every output.*column 1"):
        regressor("exact").fit(X, empty)
    model = regressor("exact").partial_fit(X, HOLES)
    with pytest.raises(ValueError, match="`y` must have an observation"):
        model.partial_fit(X, np.full_like(Y, np.nan))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 1))
    with pytest.raises(ValueError, match="`y` must be finite"):  # inputs that are no table
        BNNRegressor(network, registry.quick("map")).fit(torch.randn(40, 2, 3), one)


def test_scales_are_those_of_what_was_observed():
    x = torch.tensor([[torch.nan, 1.0], [2.0, torch.nan], [4.0, 3.0]], dtype=torch.float64)
    scaler = Standardizer.fit(x, torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64))
    assert torch.allclose(scaler.shift, torch.tensor([2.5, 2.0], dtype=torch.float64))
    assert torch.allclose(scaler.scale, torch.tensor([0.75**0.5, 1.0], dtype=torch.float64))
    assert scaler(x).isnan().sum() == 2


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    ("name", "likelihood"),
    [
        *((name, None) for name in registry.names("regression", family="bnn")),
        ("map", StudentT()),
        ("laplace", StudentT()),
    ],
    ids=str,
)
def test_networks_learn_from_what_was_observed(name, likelihood):
    model = BNNRegressor(inference=registry.quick(name), likelihood=likelihood, random_state=0).fit(X, HOLES)
    mean = model.predict(X)
    assert np.isfinite(mean).all()
    assert np.corrcoef(mean[:, 0], Y[:, 0])[0, 1] > 0.5  # at least .83 over 16 seeds and all methods; chance has .16


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    ("structure", "noise"), [("full", 0.1), ("full", [0.1, 0.1]), ("kronecker", 0.1), ("diagonal", 0.1)]
)
def test_laplace_learns_its_noise_from_what_was_observed(structure, noise):
    """Targets that are pure noise: the noise variances found are those of the observed entries."""
    y = np.where(GAPS, np.nan, np.random.default_rng(1).normal(size=Y.shape) * [1.0, 3.0])
    settings = {"structure": structure, "training": bnn.Laplace.quickly().training}
    model = BNNRegressor(torch.nn.Linear(2, 2), bnn.Laplace(**settings), Gaussian(noise), random_state=0).fit(X, y)
    found = (model.predict(X, return_std=True)[1].mean(0) / np.nanstd(y, axis=0)) ** 2
    assert np.allclose(found, 1, atol=0.1)
    later = np.column_stack([y[:, 0], np.full(40, np.nan)])[~GAPS[:, 0]]
    if structure == "full":
        assert np.isfinite(model.partial_fit(X[~GAPS[:, 0]], later).predict(X)).all()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 3])
def test_dirichlet_classifies_by_any_gp(method, classes, tmp_path):
    labels = np.array(["a", "b", "c"])[np.digitize(X[:, 0], [-0.3, 0.5][: classes - 1])]
    model = GPClassifier(inference=registry.quick(method), likelihood=Dirichlet(classes), random_state=0)
    probs = model.fit(X, labels).predict_proba(X)
    assert probs.shape == (40, classes) and np.allclose(probs.sum(1), 1)
    assert (model.predict(X) == labels).mean() > 0.85
    save(model, tmp_path / "model")
    assert np.array_equal(load(tmp_path / "model").predict_proba(X), probs)
    again = GPClassifier(inference=registry.quick(method), likelihood=Dirichlet(classes), random_state=0)
    again.partial_fit(X[:20], labels[:20], classes=np.unique(labels)).partial_fit(X[20:], labels[20:])
    assert (again.predict(X) == labels).mean() > 0.8
