"""The compiled functions against torch: the same generator and numbers to rounding, and the fallback without them."""

import math
import shutil

import pytest
import torch
from torch import nn

from bayeskit import bnn, mcmc
from bayeskit.bnn.ivon import fused_kernel
from bayeskit.bnn.ivon.update_rule import scale_noise_, update_
from bayeskit.core import normals
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def kernel():
    found = fused_kernel.load()
    assert found is not None
    return found


@needs_compiler
@pytest.mark.parametrize("sizes", [(16,), (17, 4096, 100), (4095, 4097, 30), (100_003,)])
def test_normals_are_those_of_torch(sizes):
    """Draw by draw from one generator, which must end where torch's does; logarithm and sine are accurate to 1e-6."""
    ours, theirs = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for size in sizes:
        found = torch.empty(size)
        kernel().normal_(found, ours)
        assert torch.allclose(found, torch.empty(size).normal_(generator=theirs), rtol=1e-5, atol=3e-6)
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.monte_carlo
@needs_compiler
def test_normals_are_finite_and_have_the_moments():
    draws = torch.empty(4_000_000)
    kernel().normal_(draws, torch.Generator().manual_seed(0))
    assert torch.isfinite(draws).all()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # spread: variance of the power
        assert abs(float(draws.double().pow(power).mean()) - moment) < 5 * math.sqrt(spread / len(draws))


@needs_compiler
@pytest.mark.parametrize("price", [True, False])
@pytest.mark.parametrize("clip_radius", [math.inf, 0.02])
def test_the_update_agrees_with_torch(price, clip_radius, generator):
    def lists():
        shapes = [(70, 30), (41,)]
        return [torch.randn(shape, generator=generator) for shape in shapes]

    means, momenta, gradients, products = lists(), lists(), lists(), lists()
    hessians = [h.abs() + 0.1 for h in lists()]
    copies = [[t.clone() for t in tensors] for tensors in (means, momenta, hessians, gradients, products)]
    settings = {"n": 50.0, "decay": 0.02, "step_size": 0.1, "betas": (0.9, 0.99), "bias": 0.19}
    settings |= {"clip_radius": clip_radius, "price": price}
    kernel().update_(means, momenta, hessians, gradients, products, **settings)
    update_(*copies, **settings)
    for found, expected in zip((means, momenta, hessians), copies, strict=False):
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)  # float32, in another order


@needs_compiler
def test_the_perturbation_agrees_with_torch(generator):
    mean, h, noise = (torch.randn(1000, generator=generator) for _ in range(3))
    h, p, own, scratch = h.abs(), torch.empty(1000), noise.clone(), torch.empty(1000)
    kernel().perturb_([p], [mean], [own], [h], n=30.0, decay=0.1)
    scale_noise_([noise], [h], [scratch], n=30.0, decay=0.1)
    assert torch.allclose(own, noise, rtol=1e-6)
    assert torch.allclose(p, mean + noise, rtol=1e-6, atol=1e-6)


def trained(fused, *, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 2))
        x, y = torch.randn(32, 6), torch.randn(32, 2)
    optimizer = bnn.IVONOptimizer(network.parameters(), lr=0.1, num_data=32, betas=(0.9, 0.99), fused=fused)
    for draws in (1, 1, 3, 1, 2):
        for _ in range(draws):
            with optimizer.sampled_params():
                nn.functional.mse_loss(network(x), y).backward()
        optimizer.step()
    weights = optimizer.posterior()
    return weights.flat_mean, weights.covariance.diagonal(), optimizer.generator.get_state()


@needs_compiler
def test_training_is_the_same_with_and_without():
    fused, eager = trained(True), trained(False)
    assert torch.allclose(fused[0], eager[0], rtol=1e-4, atol=1e-5)  # rounding of float32 through five steps
    assert torch.allclose(fused[1], eager[1], rtol=1e-4)
    assert torch.equal(fused[2], eager[2])


@needs_compiler
def test_other_memory_layouts_use_torch():
    convolution = nn.Conv2d(3, 4, 3)
    optimizer = bnn.IVONOptimizer(convolution.parameters(), lr=0.1, num_data=10, fused=True)
    with optimizer.sampled_params():
        convolution(torch.ones(1, 3, 5, 5)).square().sum().backward()
    convolution.to(memory_format=torch.channels_last)
    optimizer.step()
    before = convolution.weight.detach().clone()
    with optimizer.sampled_params(train=False):
        assert not torch.equal(convolution.weight, before)
    assert torch.equal(convolution.weight, before)


def forget():
    for load in (fused_kernel.load, normals.load):
        load.cache_clear()


def remove_compiler(monkeypatch, folder):
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    forget()


@pytest.fixture
def without_compiler(monkeypatch, tmp_path):
    remove_compiler(monkeypatch, tmp_path)
    yield
    forget()


def test_without_a_compiler_torch_is_used(without_compiler, monkeypatch):
    assert fused_kernel.load() is None
    monkeypatch.setattr("bayeskit.bnn.ivon.ivon_optimizer.FUSED_FROM", 1)
    first, second = trained(None), trained(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="needs a C compiler"):
        trained(True)


def test_a_failing_compiler_counts_as_none(without_compiler, tmp_path, monkeypatch):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert fused_kernel.load() is None
    assert list((tmp_path / "bayeskit").iterdir()) == []


SAMPLERS = ["SGLD", "PSGLD", "SGHMC", "SGNHT", "BAOAB", "HMC", "NUTS", "SVGD"]
METHODS = {
    "ivon": bnn.IVON(training=Training(max_epochs=3, batch_size=16)),
    "mean_field": bnn.MeanFieldVI(training=Training(max_epochs=3, batch_size=16)),
    **{
        name: bnn.MCMC(getattr(mcmc, name)(), num_chains=2, num_samples=2, burn_in=2, thin=1, start_steps=2)
        for name in SAMPLERS
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_inference_without_a_compiler_has_the_same_results(name, monkeypatch, tmp_path):
    """In float32, with normals compiled from 16 numbers on: equal to rounding, which short runs do not amplify."""
    monkeypatch.setattr("bayeskit.core.generators.COMPILED_FROM", 16)
    x = torch.linspace(-1, 1, 32)[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = bnn.gaussian_prior(bnn.MLP(1, 1, hidden=(20,), dtype=torch.float32))
    states, values = [], []
    for compiler in (True, False):
        forget()
        if not compiler:
            remove_compiler(monkeypatch, tmp_path)
            assert normals.load() is None
        generator = torch.Generator().manual_seed(0)
        fit = METHODS[name].infer(prior, Gaussian(0.1), Data(x, x.sin()), generator=generator)
        values.append(fit.posterior(x).mean)
        states.append(generator.get_state())
    forget()
    assert torch.equal(*states)
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)
