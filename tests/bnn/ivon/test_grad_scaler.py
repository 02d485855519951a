"""IVON, and the sampler in the form of an optimizer, under `torch.amp.GradScaler`."""

import copy
import math

import pytest
import torch
from torch import nn

from bayeskit import bnn, mcmc

SETTINGS = {
    "price": {},
    "gradsq": {"hess_approx": "gradsq", "gradsq_scale": 20},
    "fused": {"fused": None},
    "clipped": {"clip_radius": 0.01},
}


def problem(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=g).to(dtype)
    net = nn.Linear(3, 1, dtype=dtype)
    return net, x, x.sum(1, keepdim=True)


def scaler(enabled=True):
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6, enabled=enabled)


def optimizer_of(net, settings):
    options = {"lr": 0.1, "num_data": 200, "hess_init": 10.0, "fused": False, **settings}
    return bnn.IVONOptimizer(net.named_parameters(), **options)


def train(settings, *, scaled, unscale=False, contexts=1, dtype=torch.float32, overflow=None, steps=6):
    torch.manual_seed(0)
    net, x, y = problem(dtype)
    optimizer, scale = optimizer_of(net, settings), scaler(scaled)
    for step in range(steps):
        for _ in range(contexts):
            with optimizer.sampled_params():
                loss = (net(x) - y).square().mean() * (math.inf if step == overflow else 1.0)
                scale.scale(loss).backward()
                if unscale:
                    scale.unscale_(optimizer)
        scale.step(optimizer)
        scale.update()
    return net, optimizer


def state(net, optimizer):
    saved = copy.deepcopy(optimizer.state_dict()["state"])
    return [*(p.detach().clone() for p in net.parameters()), *(v for s in saved.values() for v in s.values())]


@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_steps_are_those_without_a_scaler(settings, contexts, dtype):
    """The scale is a power of two, so that not a bit is lost."""
    expected = state(*train(settings, scaled=False, contexts=contexts, dtype=dtype))
    found = state(*train(settings, scaled=True, contexts=contexts, dtype=dtype))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    if contexts == 1:  # torch lets an optimizer be unscaled once a step
        inside = state(*train(settings, scaled=True, unscale=True, dtype=dtype))
        assert all(torch.equal(a, b) for a, b in zip(expected, inside, strict=True))


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_that_overflows_leaves_no_trace(settings, unscale):
    before = state(*train(settings, scaled=True, unscale=unscale, steps=4))
    net, optimizer = train(settings, scaled=True, unscale=unscale, overflow=4, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(before, state(net, optimizer), strict=True))
    assert all(group["steps"] == 4 for group in optimizer.param_groups)
    after = state(*train(settings, scaled=True, unscale=unscale, overflow=4, steps=8))
    assert all(torch.isfinite(value).all() for value in after)


def test_one_overflow_among_several_draws_skips_the_step():
    torch.manual_seed(0)
    net, x, y = problem()
    optimizer, scale = optimizer_of(net, {}), scaler()
    before = [p.detach().clone() for p in net.parameters()]
    for factor in (math.inf, 1.0):
        with optimizer.sampled_params():
            scale.scale((net(x) - y).square().mean() * factor).backward()
    scale.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_unscaling_after_the_context_is_refused():
    net, x, y = problem()
    optimizer, scale = optimizer_of(net, {}), scaler()
    with optimizer.sampled_params():
        scale.scale((net(x) - y).square().mean()).backward()
    scale.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscale_.* came after `sampled_params`.*inside"):
        scale.step(optimizer)


def test_a_sampler_as_an_optimizer_skips_an_overflow():
    def run(overflow, steps):
        torch.manual_seed(0)
        net, x, y = problem()
        optimizer, scale = mcmc.Optimizer(net.parameters(), mcmc.SGHMC(lr=1e-4), num_data=20), scaler()
        for step in range(steps):
            optimizer.zero_grad()
            scale.scale((net(x) - y).square().mean() * (math.inf if step == overflow else 1.0)).backward()
            scale.step(optimizer)
            scale.update()
        return [p.detach().clone() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(None, 4), run(4, 5), strict=True))
