"""The template of CONTRIBUTING.md is a method like any other: one file and one line."""

import importlib.util
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from bayeskit import BNNRegressor, registry

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "docs" / "template_method.py"


def load_as(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The file where CONTRIBUTING.md says to put it, and the line that it says to write."""
    load_as("bayeskit.bnn.bootstrap", TEMPLATE)
    registry.METHODS["bootstrap"] = registry.Method("bnn", "bayeskit.bnn.bootstrap:Bootstrap")
    yield
    del registry.METHODS["bootstrap"], sys.modules["bayeskit.bnn.bootstrap"]


# The properties of every method, and those of its kind; tests that need more than a name and a task stay there.
conformance = load_as("bayeskit_conformance", Path(__file__).parent / "test_conformance.py")
PROPERTIES = [
    check
    for name, check in vars(conformance).items()
    if name.startswith("test_")
    and list(inspect.signature(check).parameters) == ["name", "task"]
    and check.pytestmark[0].args[1] is conformance.CASES
]
PROPERTIES += [conformance.test_function_distribution_is_that_of_pushed_weights]


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_property(check, task):
    check("bootstrap", task)


def test_saved(tmp_path):
    conformance.test_saved_estimator_predicts_the_same_bits("bootstrap", "regression", tmp_path)


def test_registered_under_its_name():
    assert registry.tasks("bootstrap") == {"regression", "classification"}
    assert registry.family_of("bootstrap") == "bnn"


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
    import torch

    from bayeskit.core.types import Data

    data = Data(torch.zeros(20_000, 1), torch.zeros(20_000, 1))
    u = sys.modules["bayeskit.bnn.bootstrap"]._weights(data, torch.Generator().manual_seed(0))
    assert float(u.mean()) == pytest.approx(1)
    assert abs(float(u.var()) - 1) < 5 * (8 / 20_000) ** 0.5


def test_contributing_shows_the_file():
    assert f"```python\n{TEMPLATE.read_text()}```" in (ROOT / "CONTRIBUTING.md").read_text()
