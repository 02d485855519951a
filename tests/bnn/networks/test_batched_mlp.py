"""MLPs at many draws of their weights: equal to one draw after another, and only used where that holds."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.networks import batched_mlp
from bayeskit.bnn.networks.batched_mlp import mlp_layers, run_mlp
from bayeskit.bnn.networks.functional import VMAP_ROWS, call, evaluate, frozen, parameters


def deep(**options):
    layers = [nn.Linear(6, 4, **options), nn.Tanh(), nn.Linear(4, 5, bias=False, **options), nn.ReLU(inplace=True)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(5, 2, **options))


def drawn(network, generator, names=None, s=7):
    names = names or [name for name, _ in network.named_parameters()]
    return {n: torch.randn(s, *v.shape, generator=generator).to(v) for n, v in parameters(network, names).items()}


def one_by_one(network, draws, x):
    each = [{name: value[i] for name, value in draws.items()} for i in range(len(next(iter(draws.values()))))]
    return torch.stack([call(network, params, x) for params in each])


@pytest.mark.parametrize("together", [1, 30, 10**6])
@pytest.mark.parametrize("names", [None, ["5.weight", "5.bias"], ["1.weight", "1.bias", "5.weight", "5.bias"]])
def test_an_mlp_at_many_draws(names, together, generator, monkeypatch):
    """All weights, the last layer alone, or with a fixed layer between, in chunks of draws of any size."""
    monkeypatch.setattr(batched_mlp, "CACHED_ELEMENTS", together)
    network = frozen(deep(dtype=torch.float64))
    draws = drawn(network, generator, names)
    x = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    layers = mlp_layers(network, draws, x)
    assert len(layers) == 5
    torch.testing.assert_close(run_mlp(layers, draws, x), one_by_one(network, draws, x), rtol=1e-12, atol=1e-12)
    assert run_mlp(layers, draws, x[:0]).shape == (7, 0, 2)


def test_inputs_are_cast_to_the_type_of_the_weights_and_half_precision_outputs_to_single(generator):
    network = frozen(deep(dtype=torch.bfloat16))
    draws = drawn(network, generator)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    assert run_mlp(mlp_layers(network, draws, x), draws, x).dtype == torch.bfloat16
    assert evaluate(network, draws, x).dtype == torch.float32


def hooked():
    network = deep()
    network[3].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return network


def shared():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 2))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "build",
    [
        hooked,
        shared,
        lambda: nn.Sequential(Doubled(6, 2)),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1), nn.Linear(4, 2)),
    ],
)
def test_other_networks_run_without_batched_products(build, generator):
    """Few inputs under vmap, many one draw at a time."""
    network = frozen(build())
    draws, x = drawn(network, generator), torch.randn(VMAP_ROWS + 1, 6, generator=generator)
    assert mlp_layers(network, draws, x) == []
    expected = one_by_one(network, draws, x)
    torch.testing.assert_close(evaluate(network, draws, x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(evaluate(network, draws, x[:3]), expected[:, :3], rtol=1e-5, atol=1e-5)


def test_an_mlp_is_recognized_for_some_inputs_and_draws_only(generator):
    network = frozen(nn.Sequential(nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 2)))
    draws, x = drawn(network, generator), torch.randn(3, 6, generator=generator)
    assert mlp_layers(network, draws, x)
    assert not mlp_layers(network, draws, x.unsqueeze(1))  # rows of rows, which the network does not return as (n, k)
    assert not mlp_layers(network, draws, x.long())
    assert not mlp_layers(network, {"0.bias": draws["0.bias"]}, x)
    assert not mlp_layers(network, {**draws, "0.mask": torch.ones(7, 6)}, x)


def test_gradients_reach_inputs_and_draws(generator):
    network = frozen(bnn.MLP(3, 1, hidden=(4,), dtype=torch.float64))
    draws = {name: value.requires_grad_() for name, value in drawn(network, generator, s=2).items()}
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [x, *draws.values()]
    ours = torch.autograd.grad(evaluate(network, draws, x).sin().sum(), leaves)
    theirs = torch.autograd.grad(one_by_one(network, draws, x).sin().sum(), leaves)
    torch.testing.assert_close(ours, theirs)
