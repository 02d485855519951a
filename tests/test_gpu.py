"""On a machine with a CUDA device every method answers there, and says what it says on the CPU (`make test-gpu`)."""

import numpy as np
import pytest
import torch

from bayeskit import load, registry, save
from bayeskit.estimators import make

pytestmark = pytest.mark.gpu
CASES = [(name, task) for name in registry.names() for task in sorted(registry.tasks(name))]
X = np.random.default_rng(0).normal(size=(60, 3))
Y = np.sin(X[:, 0]) + 0.1 * X[:, 1]


def fitted(name, task, device):
    model = make(name, task, random_state=0).set_params(inference=registry.quick(name), device=device)
    return model.fit(X, Y if task == "regression" else Y > 0)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_fit_and_predict_on_the_device(name, task, tmp_path):
    model = fitted(name, task, "cuda")
    assert model.latent(X).mean.device.type == "cuda"
    assert np.isfinite(model.predict(X) if task == "regression" else model.predict_proba(X)).all()
    save(model, tmp_path / "model")
    assert (load(tmp_path / "model").predict(X) == model.predict(X)).all()


@pytest.mark.parametrize("name", ["exact", "sgpr"])
def test_deterministic_methods_agree_with_the_cpu(name):
    here, there = fitted(name, "regression", "cpu"), fitted(name, "regression", "cuda")
    # Two libraries for linear algebra, and an optimizer of fifteen steps that amplifies their rounding.
    assert np.allclose(here.predict(X), there.predict(X), rtol=1e-5, atol=1e-6)


def test_nothing_is_left_behind():
    for _ in range(2):
        fitted("laplace", "regression", "cuda").predict(X)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        fitted("laplace", "regression", "cuda").predict(X)
    assert torch.cuda.memory_allocated() <= before + 2**20
