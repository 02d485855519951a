"""Tensors are made where their inputs live: a fake device, which needs no GPU, refuses any stray CPU tensor.

The fake device is a tensor subclass that reports a device of its own, computes on a CPU tensor inside, and raises as
soon as an operation mixes it with a CPU tensor of one axis or more, as a GPU would.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from bayeskit import registry
from bayeskit.core.likelihood import Bernoulli, Gaussian, StudentT
from bayeskit.core.types import Data


class FakeTensor(torch.Tensor):
    """A tensor that says it lives on the fake device."""

    @staticmethod
    def __new__(cls, inner):
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), device="fake:0", requires_grad=inner.requires_grad, **shape
        )
        made.inner = inner
        return made

    def __init__(self, inner):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class FakeDevice(TorchDispatchMode):
    """Lets factory functions make tensors on the fake device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class FakeTensorFactory(TorchFunctionMode):
    """What happens below the level of dispatch: `torch.tensor(number, device=...)`, and `tolist` of a subclass."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and "device" in kwargs:
            return torch.tensor(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(kwargs["device"])
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def run(func, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    fake = [t for t in tensors if isinstance(t, FakeTensor)]
    stray = [t for t in tensors if not isinstance(t, FakeTensor) and t.ndim > 0]
    name = func.__name__
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    # Copies may cross devices, and row numbers may come from the CPU, as on a GPU.
    if fake and stray and not any(part in name for part in ("_copy", "copy_", "index.Tensor", "index_put")):
        raise RuntimeError(f"{func} mixes the fake device with a CPU tensor of shape {tuple(stray[0].shape)}")
    inner = tree_map(lambda t: t.inner if isinstance(t, FakeTensor) else t, (args, dict(kwargs)))
    if device is not None and device.type == "fake":
        inner[1]["device"] = torch.device("cpu")
    result = func(*inner[0], **inner[1])
    if name.split(".")[0].endswith("_"):  # in place: the caller's own tensor is the result
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    there = device.type == "fake" if device is not None else bool(fake)
    return tree_map(lambda t: FakeTensor(t) if isinstance(t, torch.Tensor) and there else t, result)


class HostGenerator(torch.Generator):
    """The fake device has no generator of its own; draws are made on the CPU and moved."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, device="cpu" if torch.device(device).type == "fake" else device)


def data(likelihood, device):
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x[:, 0] > 0).long() if isinstance(likelihood, Bernoulli) else x[:, :1].sin()
    return Data(x, y).to(device=device)


def catch_a_stray_tensor(device):
    here = torch.zeros(3, device=device)
    assert (here + 1).device == device
    assert (here * torch.tensor(2.0)).device == device  # numbers may come from anywhere
    with pytest.raises(RuntimeError, match="mixes the fake device"):
        here + torch.ones(3)


def fit_and_predict(name, likelihood, device):
    likelihood = likelihood.to(device)
    rows = data(likelihood, device)
    generator = torch.Generator().manual_seed(0)
    prior = registry.prior(registry.family_of(name))(None, rows.x, 1, generator=generator)
    fit = registry.quick(name).infer(prior, likelihood, rows, generator=generator)
    values = fit.posterior(rows.x)
    assert values.mean.device == values.variance.device == device
    predictive = fit.likelihood.predictive(values)
    assert predictive.log_prob(rows.y).device == device
    assert predictive.total.device == device


def main(name, likelihood):
    _setup_privateuseone_for_python_backend("fake")
    torch.Generator = HostGenerator
    with FakeDevice(), FakeTensorFactory():
        device = torch.device("fake:0")
        catch_a_stray_tensor(device)
        fit_and_predict(name, LIKELIHOODS[likelihood](), device)


LIKELIHOODS = {"gaussian": Gaussian, "bernoulli": Bernoulli, "student_t": StudentT}
CASES = [
    ("exact", "gaussian"),
    ("sgpr", "gaussian"),
    ("svgp", "bernoulli"),
    ("svgp", "student_t"),
    ("map", "gaussian"),
    ("laplace", "gaussian"),
    ("deep_ensemble", "gaussian"),
    ("sgld", "gaussian"),
]


@pytest.mark.parametrize(("name", "likelihood"), CASES)
def test_fit_and_predict_stay_on_the_device(name, likelihood):
    # A backend is registered for the life of a process, so the fake one gets a process of its own.
    result = subprocess.run([sys.executable, __file__, name, likelihood], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # torch has no way to take a backend down again, and now and then aborts while trying
