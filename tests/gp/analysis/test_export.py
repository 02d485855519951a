"""A fitted predictive as a module of plain tensor operations, and as a program that needs torch alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from gpytorch import kernels as K
from linear_operator.operators import DiagLinearOperator

from bayeskit import BNNRegressor, GPClassifier, GPRegressor, gp
from bayeskit.core import likelihood as likelihoods
from bayeskit.core.posterior import GaussianValues
from bayeskit.gp.analysis.export import _Two

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(60, 2)) * 3 + 5, RNG.normal(size=(33, 2)) * 3 + 5
Y = np.sin(X.sum(1)) * 7 + 100
FRESH = """
import sys, torch
program = torch.export.load(sys.argv[1])
x, expected = torch.load(sys.argv[2])
found = program.module()(x)
found = torch.stack(found) if isinstance(found, tuple) else found
print(len(x), float((found - expected).abs().max()), "bayeskit" in sys.modules, "gpytorch" in sys.modules)
"""


def regressor(kernel=None, inference=None, y=Y, likelihood=None):
    inference = inference or gp.Exact(max_iter=5)
    return GPRegressor(kernel, inference=inference, likelihood=likelihood, random_state=0).fit(X, y)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh())


def predicted(model):
    """What the estimator itself says at `NEW`: mean and variance, or probabilities."""
    if isinstance(model, GPClassifier):
        return torch.as_tensor(model.predict_proba(NEW))
    mean, std = model.predict(NEW, return_std=True)
    return torch.stack([torch.as_tensor(mean), torch.as_tensor(std) ** 2])


def agrees(found, model):
    found = torch.stack(found) if isinstance(found, tuple) else found
    assert torch.allclose(found, predicted(model), rtol=1e-8, atol=1e-10)


def exported(model, rows=5):
    """The program, traced at some rows and for any number of them."""
    x = torch.as_tensor(NEW[:rows])
    shapes = ({0: torch.export.Dim("n")},)
    return torch.export.export(gp.predictive_module(model), (x,), dynamic_shapes=shapes)


KERNELS = {
    "default": lambda: None,
    "RBF": lambda: K.ScaleKernel(K.RBFKernel(ard_num_dims=2)),
    "Matern 1/2": lambda: K.MaternKernel(nu=0.5),
    "sum": lambda: K.ScaleKernel(K.RBFKernel(active_dims=[0])) + K.ScaleKernel(K.MaternKernel(nu=1.5, active_dims=[1])),
    "product": lambda: K.ScaleKernel(K.RBFKernel() * K.PeriodicKernel(ard_num_dims=2)),
    "rational quadratic": lambda: K.ScaleKernel(K.RQKernel()),
    "linear": lambda: K.ScaleKernel(K.LinearKernel(ard_num_dims=2)) + K.ConstantKernel(),
    "polynomial": lambda: K.PolynomialKernel(power=2),
    "cosine": lambda: K.CosineKernel(active_dims=[0]),
    "scaled columns": lambda: K.ScaleKernel(K.RBFKernel(), active_dims=[1]),
    "deep": lambda: gp.DeepKernel(network(), K.ScaleKernel(K.RBFKernel(ard_num_dims=4))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel_is_traced_and_agrees(name):
    model = regressor(KERNELS[name]())
    agrees(gp.predictive_module(model)(torch.as_tensor(NEW)), model)
    agrees(exported(model).module()(torch.as_tensor(NEW)), model)


@pytest.mark.parametrize("inference", [gp.SGPR.quickly(), gp.SVGP.quickly()])
def test_sparse_methods(inference):
    model = regressor(inference=inference)
    agrees(exported(model).module()(torch.as_tensor(NEW)), model)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_several_outputs(batch):
    kernel = K.ScaleKernel(K.RBFKernel(batch_shape=torch.Size(batch)), batch_shape=torch.Size(batch))
    model = regressor(kernel, gp.SGPR.quickly(), np.stack([Y, X[:, 0]], 1), likelihoods.Gaussian([0.1, 0.2]))
    agrees(exported(model).module()(torch.as_tensor(NEW)), model)


@pytest.mark.parametrize("likelihood", [likelihoods.StudentT(), likelihoods.Heteroscedastic()])
def test_other_noise(likelihood):
    model = regressor(inference=gp.SVGP.quickly(), likelihood=likelihood)
    agrees(gp.predictive_module(model)(torch.as_tensor(NEW)), model)


@pytest.mark.parametrize("classes", [2, 3])
def test_classes(classes):
    labels = np.digitize(Y, [100] if classes == 2 else [97, 103])
    model = GPClassifier(inference=gp.SVGP.quickly(), random_state=0).fit(X, labels)
    agrees(exported(model).module()(torch.as_tensor(NEW)), model)


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_two_classes_at_any_mean_and_variance(link):
    mean = torch.linspace(-60, 60, 13, dtype=torch.float64).repeat(9).unsqueeze(-1)
    variance = torch.logspace(-6, 6, 9, dtype=torch.float64).repeat_interleave(13)
    likelihood = likelihoods.Bernoulli(link)
    expected = likelihood.predictive(GaussianValues(mean, DiagLinearOperator(variance))).probs
    assert torch.allclose(_Two(likelihood)(mean, variance.unsqueeze(-1)), expected, rtol=0, atol=1e-9)


def test_inputs_far_apart_in_lengthscales():
    kernel = K.RBFKernel().double()
    kernel.lengthscale = torch.tensor(1e-5, dtype=torch.float64)
    model = regressor(kernel.requires_grad_(False))
    near = X[:5] + 1e-6
    mean, variance = gp.predictive_module(model)(torch.as_tensor(near))
    expected, std = model.predict(near, return_std=True)
    assert np.allclose(mean, expected, rtol=1e-7) and np.allclose(variance, std**2, rtol=1e-7)


def test_float32_inputs_and_one_row():
    model = regressor()
    x = torch.as_tensor(NEW[:1]).float()
    mean, variance = gp.predictive_module(model)(x)
    assert mean.shape == variance.shape == (1,) and mean.dtype == torch.float64
    assert np.allclose(mean, model.predict(x.numpy()))


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_fresh_process_with_torch_alone(tmp_path, task):
    """The issue's point: predictions where bayeskit is not imported."""
    if task == "regression":
        model = regressor(KERNELS["deep"](), gp.SGPR.quickly())
    else:
        model = GPClassifier(inference=gp.SVGP.quickly(), random_state=0).fit(X, Y > 100)
    torch.export.save(exported(model), tmp_path / "model.pt2")
    torch.save((torch.as_tensor(NEW), predicted(model)), tmp_path / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", FRESH, "model.pt2", "expected.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, error, *imported = done.stdout.split()
    assert int(rows) == 33 and float(error) < 1e-8 * float(predicted(model).abs().max())
    assert imported == ["False", "False"]


def test_what_cannot_be_exported_is_named():
    with pytest.raises(TypeError, match="a PiecewisePolynomialKernel cannot be exported; those that can are RBFKernel"):
        gp.predictive_module(regressor(K.PiecewisePolynomialKernel()))
    with pytest.raises(
        TypeError, match=r"got GaussianProcess with IterativelyConditioned. Fit with `inference=gp.Exac"
    ):
        gp.predictive_module(regressor(inference=gp.Exact(solver="cg", max_iter=2)))
    with pytest.raises(TypeError, match="must be a GaussianProcess with a Conditioned kernel; got BayesNet"):
        gp.predictive_module(BNNRegressor(inference="map", random_state=0).fit(X, Y))
    counts = regressor(inference=gp.SVGP.quickly(), y=np.arange(60), likelihood=likelihoods.Poisson())
    with pytest.raises(TypeError, match="a Poisson likelihood cannot be exported"):
        gp.predictive_module(counts)
