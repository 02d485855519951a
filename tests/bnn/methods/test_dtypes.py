"""Every registered network method fits a user's network of either floating type to float64 data."""

import numpy as np
import pytest
import torch
from torch import nn

from bayeskit import BNNClassifier, BNNRegressor, registry

CASES = [
    (task, name)
    for task in ("regression", "classification")
    for name in registry.names(task)
    if registry.family_of(name) == "bnn"
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_network_keeps_its_type(task, name, dtype):
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(25, 2)), rng.normal(size=25)
    regression = task == "regression"
    network = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 1 if regression else 2)).to(dtype)
    y = x[:, 0] + 0.1 * noise if regression else np.where(x[:, 0] > 0, "a", "b")
    estimator = BNNRegressor if regression else BNNClassifier
    fitted = estimator(network=network, inference=registry.quick(name), random_state=0).fit(x, y)
    assert all(value.dtype == dtype for value in fitted.posterior_.network.parameters())
    assert all(value.dtype == dtype for value in fitted.posterior_.weights.mean.values())
    values = fitted.latent(x)
    assert values.mean.isfinite().all() and (values.variance >= 0).all()
    predicted = fitted.predict(x) if regression else fitted.predict_proba(x)
    assert predicted.dtype == np.float64 and np.isfinite(predicted).all()
