"""Columns that a kernel reads as codes reach it as they came."""

import numpy as np
import pytest
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    CylindricalKernel,
    HammingIMQKernel,
    IndexKernel,
    MaternKernel,
    ProductKernel,
    RBFKernel,
    ScaleKernel,
)

from bayeskit import GPClassifier, GPRegressor, gp, load, save
from bayeskit.estimators.coded_columns import coded_columns


def index(dims):
    return IndexKernel(num_tasks=3, rank=2, active_dims=dims)


@pytest.mark.parametrize(
    ("kernel", "columns"),
    [
        (RBFKernel(), []),
        (ScaleKernel(RBFKernel(active_dims=[1])), []),
        (index([2]), [2]),
        (index(None), [0, 1, 2, 3]),
        (ScaleKernel(index([3])), [3]),
        (ScaleKernel(ScaleKernel(index([3]))), [3]),
        (RBFKernel(active_dims=[0]) * index([1]), [1]),
        (ScaleKernel(RBFKernel(active_dims=[0]) * index([1])) + index([2]), [1, 2]),
        (ProductKernel(RBFKernel(), index([1])), [1]),
        (AdditiveKernel(ProductKernel(RBFKernel(), index([0])), index([3])), [0, 3]),
        (HammingIMQKernel(vocab_size=4), [0, 1, 2, 3]),
        (CylindricalKernel(3, RBFKernel(), active_dims=[1, 2]), [1, 2]),
    ],
)
def test_columns_are_found_through_any_composition(kernel, columns):
    assert coded_columns(kernel, 4) == columns


def instruments():
    """One curve measured by three instruments, of different offsets and numbers of samples; the code is last."""
    rng = np.random.default_rng(0)
    code = np.repeat([0.0, 1.0, 2.0], [60, 10, 20])
    time = rng.uniform(0, 6, 90)
    offset = np.array([0.0, 5.0, -5.0])
    y = np.sin(time) + offset[code.astype(int)] + 0.05 * rng.standard_normal(90)
    return np.column_stack([time, code]), y, offset


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch, in GPyTorch's IndexKernel
@pytest.mark.parametrize("inference", [gp.Exact(), gp.SGPR(num_inducing=90)])
def test_every_task_keeps_its_offset(inference, tmp_path):
    X, y, offset = instruments()
    kernel = ScaleKernel(MaternKernel(nu=2.5, active_dims=[0])) * index([1])
    model = GPRegressor(kernel, inference=inference, random_state=0).fit(X, y)
    assert (model.input_scaler_.shift[1].item(), model.input_scaler_.scale[1].item()) == (0.0, 1.0)
    assert model.input_scaler_.scale[0] != 1
    grid = np.linspace(0.5, 5.5, 20)
    for task in range(3):
        mean = model.predict(np.column_stack([grid, np.full(20, task)]))
        assert np.sqrt(np.mean((mean - np.sin(grid) - offset[task]) ** 2)) < 0.3  # tasks run together are off by 2 to 5
    save(model, tmp_path / "model")
    assert np.allclose(load(tmp_path / "model").predict(X), model.predict(X))


def test_a_classifier_keeps_codes_as_well():
    X, y, _ = instruments()
    kernel = MaternKernel(nu=2.5, active_dims=[0]) * index([1])
    model = GPClassifier(kernel, inference=gp.SVGP.quickly(), random_state=0).fit(X, y > 0)
    assert model.input_scaler_.scale[1] == 1
    assert torch.equal(model.input_scaler_(torch.tensor(X))[:, 1], torch.tensor(X)[:, 1])
