"""The templates of CONTRIBUTING.md and of the guide are methods like any other: one file and one line."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bayeskit import BNNRegressor, bnn, gp, registry
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "templates"
TEMPLATES = {
    "bootstrap": registry.Method("bnn", "bayeskit.bnn.methods.bootstrap:Bootstrap"),
    "low_rank_vi": registry.Method("bnn", "bayeskit.bnn.methods.low_rank_vi:LowRankVI"),
    "projected_process": registry.Method("gp", "bayeskit.gp.methods.projected_process:ProjectedProcess"),
}


def load_as(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Each file where the guide says to put it, and the line that it says to write."""
    for name, method in TEMPLATES.items():
        load_as(method.target.split(":")[0], FOLDER / f"{name}.py")
        registry.METHODS[name] = method
    yield
    for name, method in TEMPLATES.items():
        del registry.METHODS[name], sys.modules[method.target.split(":")[0]]


# The properties of every method, and those of its kind; tests that need more than a name and a task stay there.
conformance = load_as("bayeskit_conformance", Path(__file__).parent / "test_conformance.py")
CHECKS = [
    check
    for name, check in vars(conformance).items()
    if name.startswith("test_") and list(inspect.signature(check).parameters) == ["name", "task"]
]
OF_EVERY_METHOD = [check for check in CHECKS if check.pytestmark[0].args[1] is conformance.CASES]
GP_POSTERIOR = [
    conformance.test_no_data_returns_the_prior,
    conformance.test_order_of_the_data_changes_nothing,
    conformance.test_uncertainty_grows_away_from_data,
]
WEIGHTS = [conformance.test_function_distribution_is_that_of_pushed_weights]
CASES = [(check, "projected_process", "regression") for check in OF_EVERY_METHOD + GP_POSTERIOR]
for task in ("regression", "classification"):
    CASES += [(check, name, task) for name in ("bootstrap", "low_rank_vi") for check in OF_EVERY_METHOD + WEIGHTS]


@pytest.mark.parametrize(("check", "name", "task"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_property(check, name, task):
    check(name, task)


@pytest.mark.parametrize("name", TEMPLATES)
def test_saved(name, tmp_path):
    conformance.test_saved_estimator_predicts_the_same_bits(name, "regression", tmp_path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_short(name):
    """At most 60 lines of code, imports and docstrings aside: what an author has to write."""
    source = (FOLDER / f"{name}.py").read_text()
    other = (ast.Import, ast.ImportFrom)
    spans = [
        range(node.lineno, node.end_lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, other) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    left_out = {line for span in spans for line in span}
    code = [line for number, line in enumerate(source.splitlines(), 1) if line.strip() and number not in left_out]
    assert len(code) <= 60


def test_registered_under_its_name():
    assert registry.tasks("bootstrap") == {"regression", "classification"}
    assert registry.family_of("bootstrap") == "bnn"
    assert registry.tasks("projected_process") == {"regression"}


def test_estimator_by_name():
    x = np.linspace(-1, 1, 60)[:, None]
    model = BNNRegressor(inference=registry.quick("bootstrap"), random_state=0).fit(x, x[:, 0] ** 2)
    mean, std = model.predict(x, return_std=True)
    assert mean.shape == std.shape == (60,)
    assert (std > 0).all()
    assert repr(BNNRegressor(inference="bootstrap")._resolve_inference(60)) == "Bootstrap()"


@pytest.mark.monte_carlo
def test_weights_that_the_bootstrap_draws():
    """A fixed generator, 20,000 rows: mean 1 exactly, variance 1 with standard error sqrt(8 / n) for exponentials."""
    data = Data(torch.zeros(20_000, 1), torch.zeros(20_000, 1))
    u = sys.modules["bayeskit.bnn.methods.bootstrap"]._weights(data, torch.Generator().manual_seed(0))
    assert float(u.mean()) == pytest.approx(1)
    assert abs(float(u.var()) - 1) < 5 * (8 / 20_000) ** 0.5


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_projected_process_is_the_optimal_sparse_posterior(outputs):
    """At all the inputs it is the exact posterior, else that of SGPR at the same Z; case weights and a gap included."""
    g = torch.Generator().manual_seed(0)
    x, noise = (
        torch.randn(40, 2, dtype=torch.float64, generator=g),
        torch.randn(40, 2, dtype=torch.float64, generator=g),
    )
    y = (torch.stack([x.sum(-1).sin(), x[:, 0]], -1) + 0.1 * noise)[:, :outputs]
    y[3, -1] = torch.nan if outputs > 1 else y[3, -1]
    data = Data(x, y, torch.randint(1, 4, (40,), generator=g).double())
    method = registry.inference_class("projected_process")
    for num_inducing, peer in ((40, gp.Exact(learn=False)), (15, gp.SGPR(15, learning="subset", learn=False))):
        fits = [
            one.infer(gp.default_prior(x, outputs), Gaussian(), data, generator=torch.Generator().manual_seed(1))
            for one in (method(num_inducing, learn=False), peer)
        ]
        ours, theirs = (fit.posterior(x[:5] + 0.3) for fit in fits)
        assert torch.allclose(ours.mean, theirs.mean, rtol=0, atol=1e-9)
        assert torch.allclose(ours.variance, theirs.variance, rtol=0, atol=1e-9)


@pytest.mark.monte_carlo
def test_low_rank_vi_is_exact_on_a_linear_model():
    """Any 4 x 4 covariance is a multiple of I plus a matrix of rank 3, so the optimum is the posterior."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, dtype=torch.float64, generator=g)
    y = x.sum(-1, keepdim=True) + 0.5 * torch.randn(60, 1, dtype=torch.float64, generator=g)
    prior, likelihood = (
        bnn.gaussian_prior(torch.nn.Linear(3, 1).double()),
        Gaussian(0.25).double().requires_grad_(False),
    )
    training = Training(lr=3e-2, max_epochs=800, schedule="cosine", batch_size=None)
    method = registry.inference_class("low_rank_vi")(rank=3, training=training)
    weights = method.infer(prior, likelihood, Data(x, y), generator=g).posterior.weights
    design = torch.cat([x, torch.ones(60, 1).double()], dim=1)
    covariance = (prior.weights.covariance.to_dense().inverse() + design.mT @ design / 0.25).inverse()
    mean, sd = covariance @ design.mT @ y[:, 0] / 0.25, covariance.diagonal().sqrt()
    # Noise of the last steps, ten seeds: .13 +- .05 posterior sd in the mean, .21 +- .06 variances in the covariance.
    assert ((weights.flat_mean - mean).abs() < 0.5 * sd).all()
    assert torch.allclose(weights.covariance.to_dense(), covariance, rtol=0, atol=0.5 * float(sd.max()) ** 2)


def test_contributing_shows_the_file():
    assert f"```python\n{(FOLDER / 'bootstrap.py').read_text()}```" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("name", ["projected_process", "low_rank_vi"])
def test_the_guide_shows_the_file(name):
    assert f'--8<-- "docs/templates/{name}.py"' in (ROOT / "docs" / "guide" / "extending.md").read_text()
