import copy
import io

import pytest
import torch
from torch import nn

from bayeskit import mcmc

N, PRECISION = 50, 2.0
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X @ torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
KERNELS = [mcmc.SGLD(lr=0.002), mcmc.SGHMC(lr=0.002), mcmc.SGNHT(lr=0.002), mcmc.BAOAB(lr=0.002)]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)


def network():
    net = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    return net


def train(optimizer, net, steps):
    """A loop as people write it; the draws."""
    draws = []
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (net(X) - Y) ** 2).mean().backward()
        optimizer.step()
        draws.append(net.weight.detach().clone())
    return torch.stack(draws)


def log_density(q):
    likelihood = -0.5 * (q["0"] @ X.mT - Y[:, 0]).square().sum((-1, -2))
    return likelihood - 0.5 * PRECISION * q["0"].square().sum((-1, -2))


@every_kernel
def test_it_is_the_kernel_on_the_full_scale_density(kernel):
    net = network()
    g = torch.Generator().manual_seed(0)
    optimizer = mcmc.Optimizer(net.parameters(), kernel, num_data=N, prior_precision=PRECISION, generator=g)
    draws = train(optimizer, net, 20)
    start = {"0": torch.zeros(1, 1, 3, dtype=torch.float64)}
    g = torch.Generator().manual_seed(0)
    chain = mcmc.run(kernel, log_density, start, num_samples=20, burn_in=0, generator=g)
    assert torch.allclose(draws, chain.samples["0"][0], rtol=1e-10, atol=1e-12)


def test_at_temperature_zero_it_is_sgd_with_weight_decay():
    nets = network(), network()
    kernel = mcmc.SGHMC(lr=0.1 / N, momentum=0.8, temperature=0.0)
    first = mcmc.Optimizer(nets[0].parameters(), kernel, num_data=N, prior_precision=PRECISION)
    second = torch.optim.SGD(nets[1].parameters(), lr=0.1, momentum=0.8, weight_decay=PRECISION / N)
    assert torch.allclose(train(first, nets[0], 30), train(second, nets[1], 30), rtol=1e-10)


@every_kernel
def test_a_saved_run_goes_on_to_the_bit(kernel):
    net = network()
    optimizer = mcmc.Optimizer(net.parameters(), kernel, num_data=N)
    train(optimizer, net, 5)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "network": net.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = copy.deepcopy(net)
    again.load_state_dict(saved["network"])
    resumed = mcmc.Optimizer(again.parameters(), kernel, num_data=N)
    resumed.load_state_dict(saved["optimizer"])
    assert torch.equal(train(optimizer, net, 5), train(resumed, again, 5))


def test_a_scheduler_of_torch_changes_the_step():
    net = network()
    optimizer = mcmc.Optimizer(net.parameters(), mcmc.SGLD(lr=0.002, temperature=0.0), num_data=N, prior_precision=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step(lambda: (0.5 * (net(X) - Y) ** 2).mean().backward())
    scheduler.step()
    before = net.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step(lambda: (0.5 * (net(X) - Y) ** 2).mean().backward())
    assert torch.allclose(net.weight - before, -0.001 * N * net.weight.grad, rtol=1e-12)


def test_frozen_parameters_stay_and_untouched_ones_have_the_prior():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    net[0].weight.requires_grad_(False)
    frozen, untouched = net[0].weight.clone(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    kernel = mcmc.SGLD(lr=0.01, temperature=0.0)
    optimizer = mcmc.Optimizer([*net.parameters(), untouched], kernel, num_data=N, prior_precision=3.0)
    net(X).mean().backward()
    optimizer.step()
    assert torch.equal(net[0].weight, frozen)
    assert torch.allclose(untouched, torch.full_like(untouched, 1 - 0.01 * 3))


def test_what_cannot_be_is_refused():
    net = network()
    with pytest.raises(ValueError, match="needs an `lr`"):
        mcmc.Optimizer(net.parameters(), mcmc.SGLD(), num_data=N)
    with pytest.raises(ValueError, match="`num_data`"):
        mcmc.Optimizer(net.parameters(), KERNELS[0], num_data=0)
    with pytest.raises(ValueError, match="one group"):
        groups = [{"params": [p]} for p in nn.Linear(1, 1).parameters()]
        mcmc.Optimizer(groups, KERNELS[0], num_data=N)
    with pytest.raises(RuntimeError, match="backward"):
        mcmc.Optimizer(net.parameters(), KERNELS[0], num_data=N).step()
