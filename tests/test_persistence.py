"""Files hold data, never code: what is saved comes back to the bit, and a hostile file is refused."""

import json

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.priors import NormalPrior
from safetensors.torch import save_file
from torch import nn

from bayeskit import BNNClassifier, BNNRegressor, GPRegressor, gp, load, registry, save
from bayeskit.core.likelihood import StudentT

X = np.random.default_rng(0).normal(size=(25, 2))
Y = np.sin(X[:, 0]) + X[:, 1]


class OwnNetwork(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.first, self.second = nn.Linear(in_features, 8), nn.Linear(8, out_features)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class OwnKernel(gpytorch.kernels.RBFKernel):
    pass


def round_trip(model, tmp_path, **factories):
    save(model, tmp_path / "model.bayeskit")
    again = load(tmp_path / "model.bayeskit", **factories)
    assert (again.predict(X) == model.predict(X)).all()
    assert torch.equal(again.latent(X).variance, model.latent(X).variance)
    return again


KERNELS = {
    "rbf": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2)),
    "matern": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)),
    "sum": lambda: gpytorch.kernels.RBFKernel(active_dims=(0,)) + gpytorch.kernels.LinearKernel(),
    "product": lambda: gpytorch.kernels.RBFKernel() * gpytorch.kernels.PeriodicKernel(),
    "rational": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RQKernel()),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_known_kernels_need_no_factory(kernel, tmp_path):
    round_trip(GPRegressor(kernel=kernel(), inference=registry.quick("exact"), random_state=0).fit(X, Y), tmp_path)


@pytest.mark.parametrize("name", ["exact", "svgp"])
def test_correlated_outputs_come_back(name, tmp_path):
    model = GPRegressor(num_latents=2, inference=registry.quick(name), random_state=0)
    model.fit(X, np.column_stack([Y, -2 * Y + X[:, 1], X[:, 0]]))
    again = round_trip(model, tmp_path)
    assert (again.sample_functions(2)(X) == model.sample_functions(2)(X)).all()
    assert again.num_latents == 2
    again.partial_fit(X[:5], np.zeros((5, 3)))


def test_own_kernel_needs_its_factory(tmp_path):
    model = GPRegressor(kernel=OwnKernel(), inference=registry.quick("exact"), random_state=0).fit(X, Y)
    round_trip(model, tmp_path, kernel=OwnKernel)
    with pytest.raises(ValueError, match="kernel=..."):
        load(tmp_path / "model.bayeskit")


def categorical():
    from botorch.models.kernels import CategoricalKernel

    return gpytorch.kernels.RBFKernel(active_dims=[0]) * CategoricalKernel(active_dims=[1], ard_num_dims=1)


def constrained():
    """Of gpytorch's class, with a constraint of BoTorch's."""
    from botorch.utils.constraints import NonTransformedInterval

    interval = NonTransformedInterval(0.1, 10.0, initial_value=1.0)
    return gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(lengthscale_constraint=interval))


def scale(kernel):
    return gpytorch.kernels.ScaleKernel(kernel)


COMPOSITES = {
    "scaled": lambda: scale(OwnKernel()),
    "scaled twice, one for each column": lambda: scale(scale(OwnKernel(ard_num_dims=2))),
    "own + rbf": lambda: scale(OwnKernel()) + scale(gpytorch.kernels.RBFKernel()),
    "rbf + own": lambda: scale(gpytorch.kernels.RBFKernel()) + scale(OwnKernel()),
    "rbf * own": lambda: scale(gpytorch.kernels.RBFKernel(active_dims=[0])) * OwnKernel(active_dims=[1]),
    "own + own of two columns": lambda: OwnKernel(active_dims=[0]) + scale(OwnKernel(active_dims=[1])),
    "sum of three": lambda: scale(OwnKernel()) + gpytorch.kernels.LinearKernel() + gpytorch.kernels.PeriodicKernel(),
    "with a prior": lambda: scale(OwnKernel(lengthscale_prior=NormalPrior(1.0, 0.5))),
    "categorical of BoTorch": categorical,
    "constraint of BoTorch": constrained,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inference", ["exact", "sgpr", "svgp"])
@pytest.mark.parametrize("name", COMPOSITES)
def test_a_kernel_with_own_parts_is_built_as_a_whole(name, inference, tmp_path):
    inputs = np.column_stack([X[:, 0], np.arange(25) % 3])
    method = registry.quick(inference)
    model = GPRegressor(kernel=COMPOSITES[name](), inference=method, random_state=0).fit(inputs, Y)
    for factory in (COMPOSITES[name], COMPOSITES[name]()):
        again = round_trip(model, tmp_path, kernel=factory)
        assert (again.predict(inputs) == model.predict(inputs)).all()
        assert (again.sample_functions(2)(inputs) == model.sample_functions(2)(inputs)).all()
    with pytest.raises(ValueError, match="kernel=..."):
        load(tmp_path / "model.bayeskit")
    with pytest.raises(ValueError, match="does not have the structure of the kernel of class"):
        load(tmp_path / "model.bayeskit", kernel=gpytorch.kernels.LinearKernel)


@pytest.mark.parametrize("inference", ["exact", "svgp"])
@pytest.mark.parametrize("name", ["scaled", "own + rbf"])
def test_a_kernel_with_own_parts_for_correlated_outputs_and_streams(name, inference, tmp_path):
    """The library builds kernels around that of the user, whose parts are found by their classes and names."""
    model = GPRegressor(
        kernel=COMPOSITES[name](), num_latents=1, inference=registry.quick(inference), random_state=0
    ).fit(X, np.column_stack([Y, -2 * Y]))
    again = round_trip(model, tmp_path, kernel=COMPOSITES[name])
    for one in (model, again):
        one.partial_fit(X[:5], np.zeros((5, 2)))
    assert (again.predict(X) == model.predict(X)).all()


def stream(kernel=None):
    method = gp.MemoryDualGP(num_inducing=10, memory=5)
    return GPRegressor(kernel=kernel, inference=method, random_state=0).partial_fit(X[:15], Y[:15])


@pytest.mark.parametrize("own", [False, True])
def test_a_process_that_still_learns_goes_on_learning(own, tmp_path):
    """Also with a kernel of one's own; priors of hyperparameters come back with them."""
    model = stream(OwnKernel() if own else gpytorch.kernels.RBFKernel(lengthscale_prior=NormalPrior(0.5, 0.01)))
    again = round_trip(model, tmp_path, **({"kernel": OwnKernel} if own else {}))
    for one in (model, again):
        one.partial_fit(X[15:], Y[15:])
    assert (again.predict(X) == model.predict(X)).all()
    kernel = again.posterior_.base.kernel
    assert own or abs(kernel.lengthscale.item() - 0.5) < 0.1  # ten standard deviations


def test_a_prior_that_a_file_cannot_hold_is_refused_while_it_matters(tmp_path):
    kernel = gpytorch.kernels.RBFKernel()
    kernel.register_prior("mine", NormalPrior(0.0, 1.0), lambda module: module.lengthscale)
    with pytest.raises(TypeError, match="register a prior of gpytorch.priors"):
        save(stream(kernel), tmp_path / "model.bayeskit")
    save(GPRegressor(kernel=kernel, inference=registry.quick("exact")).fit(X, Y), tmp_path / "model.bayeskit")


@pytest.mark.parametrize("name", ["map", "laplace", "deep_ensemble", "sgld"])
def test_own_network_comes_back_through_its_factory(name, tmp_path):
    model = BNNRegressor(network=OwnNetwork, inference=registry.quick(name), random_state=0).fit(X, Y)
    again = round_trip(model, tmp_path, network=OwnNetwork)
    assert again.network is OwnNetwork
    with pytest.raises(ValueError, match="network=..."):
        load(tmp_path / "model.bayeskit")


def test_module_as_factory(tmp_path):
    model = BNNRegressor(network=OwnNetwork(2, 1), inference=registry.quick("laplace"), random_state=0).fit(X, Y)
    round_trip(model, tmp_path, network=OwnNetwork(2, 1))


def test_networks_of_torch_layers_need_no_factory(tmp_path):
    network = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    round_trip(BNNRegressor(network=network, inference=registry.quick("map"), random_state=0).fit(X, Y), tmp_path)


@pytest.mark.parametrize("name", ["laplace", "deep_ensemble"])
@pytest.mark.parametrize("shared", ["module", "weight"])
def test_parts_used_twice_are_one_part_again(shared, name, tmp_path):
    first = nn.Linear(2, 2)
    second = first if shared == "module" else nn.Linear(2, 2)
    second.weight = first.weight
    network = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(2, 1))
    round_trip(BNNRegressor(network=network, inference=registry.quick(name), random_state=0).fit(X, Y), tmp_path)


def test_labels_names_and_settings(tmp_path):
    import pandas as pd

    frame, labels = pd.DataFrame(X, columns=["left", "right"]), np.where(Y > 0, "up", "down")
    model = BNNClassifier(inference=registry.quick("map"), random_state=0, class_weight={"up": 2.0, "down": 1.0})
    save(model.fit(frame, labels), tmp_path / "m")
    again = load(tmp_path / "m")
    assert list(again.feature_names_in_) == ["left", "right"]
    assert (again.predict(frame) == model.predict(frame)).all()
    assert again.class_weight == model.class_weight
    assert again.fit(frame, labels) is again


def test_likelihood_parameters_come_back(tmp_path):
    model = GPRegressor(inference=registry.quick("svgp"), likelihood=StudentT(df=5.0), random_state=0).fit(X, Y)
    again = round_trip(model, tmp_path)
    for name, value in model.likelihood_.state_dict().items():
        assert torch.equal(again.likelihood_.state_dict()[name], value)


def test_an_existing_file_survives_a_failed_save(tmp_path):
    path = tmp_path / "m"
    save(GPRegressor(inference=registry.quick("exact"), random_state=0).fit(X, Y), path)
    before = path.read_bytes()
    broken = GPRegressor(inference=registry.quick("exact"), random_state=0).fit(X, Y)
    broken.extra_ = object()
    with pytest.raises(TypeError, match="extra_"):
        save(broken, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "node",
    [
        {"module": "os:system", "state": {"dict": []}},
        {"dataclass": "subprocess:Popen", "fields": {"dict": []}},
        {"estimator": "bayeskit.persistence:json", "state": {"dict": []}},
        {"operator": "builtins:eval", "args": {"list": []}, "kwargs": {"dict": []}},
        {"module": "bayeskit.registry:load", "state": {"dict": []}},
        {"dataclass": "bayeskit.core.checkpoint:Path", "fields": {"dict": []}},
        {"dataclass": "bayeskit.estimators.gp_estimators:GPRegressor", "fields": {"dict": []}},
    ],
)
def test_hostile_files_are_refused(node, tmp_path):
    header = {"bayeskit": json.dumps({"format": 1, "tree": node})}
    save_file({"t0": torch.zeros(1)}, tmp_path / "bad", metadata=header)
    with pytest.raises(ValueError, match="not a class that bayeskit loads"):
        load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"torch": "load", "kind": "dtype"}, "not a dtype"),
        (
            {"module": "torch.nn.modules.linear:Identity", "state": {"dict": [["forward", {"function": "exp"}]]}},
            "replaces forward",
        ),
        (
            {
                "module": "gpytorch.kernels.rbf_kernel:RBFKernel",
                "state": {"dict": []},
                "priors": [["p", None, "requires_grad_", "requires_grad_"]],
            },
            "reads a parameter by requires_grad_",
        ),
        ({"anything": 1}, "unknown kind"),
    ],
)
def test_hostile_parts_are_refused(node, message, tmp_path):
    header = {"bayeskit": json.dumps({"format": 1, "tree": node})}
    save_file({"t0": torch.zeros(1)}, tmp_path / "bad", metadata=header)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "bad")


def test_a_block_of_ones_own_inside_known_layers(tmp_path):
    def build(in_features, out_features):
        return nn.Sequential(OwnNetwork(in_features, 3), nn.Tanh(), nn.Linear(3, out_features))

    round_trip(
        BNNRegressor(network=build, inference=registry.quick("laplace"), random_state=0).fit(X, Y),
        tmp_path,
        network=build,
    )


def test_foreign_and_future_files(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a file written by"):
        load(tmp_path / "text")
    save_file({"t0": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="not written by"):
        load(tmp_path / "plain")
    save_file(
        {"t0": torch.zeros(1)}, tmp_path / "future", metadata={"bayeskit": json.dumps({"format": 99, "tree": None})}
    )
    with pytest.raises(ValueError, match="update bayeskit"):
        load(tmp_path / "future")


def test_only_estimators_are_saved(tmp_path):
    with pytest.raises(TypeError, match="bayeskit estimator"):
        save(nn.Linear(1, 1), tmp_path / "m")
