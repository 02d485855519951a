"""Networks as functions of their weights."""

import pickle

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.networks import functional as networks
from bayeskit.bnn.networks.builders import build, reinitialize
from bayeskit.bnn.networks.functional import (
    NetworkFunction,
    call,
    evaluate,
    flatten,
    frozen,
    hollow,
    parameters,
    unflatten,
    with_parameters,
)
from bayeskit.bnn.networks.last_layer import find_head, last_layer, scale_outputs

from ..example_networks import Convolutional, Recursive, images, seeded


def test_flatten_and_unflatten_are_inverse_over_any_batch(generator):
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(())}
    params = {name: torch.randn(5, 2, *value.shape, generator=generator) for name, value in like.items()}
    flat = flatten(params, like)
    assert flat.shape == (5, 2, 11)
    assert all(torch.equal(value, params[name]) for name, value in unflatten(flat, like).items())


def test_a_callable_builds_under_the_generator_and_leaves_the_global_one_alone(generator):
    state = torch.get_rng_state()
    first, second = (build(nn.Linear, 3, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(state, torch.get_rng_state())
    module = nn.Linear(3, 2)
    copied = build(module, 9, 9, generator=generator)
    assert copied is not module and torch.equal(copied.weight, module.weight)


@pytest.mark.parametrize("wrong", [3, "mlp", lambda i, o: None])
def test_anything_but_a_network_is_refused(wrong, generator):
    with pytest.raises(TypeError, match="`network` must"):
        build(wrong, 3, 2, generator=generator)


def test_a_network_with_other_outputs_than_needed_is_refused(generator):
    with pytest.raises(ValueError, match="returns 2 outputs, and the likelihood needs 3"):
        bnn.default_prior(nn.Linear(4, 2), torch.zeros(5, 4), 3, generator=generator)


@pytest.mark.parametrize(
    ("width", "dtype", "expected"),
    [(3, None, torch.float64), (1000, None, torch.float32), (3, torch.float32, torch.float32)],
)
def test_the_library_picks_double_precision_while_the_network_is_small(width, dtype, expected, generator):
    prior = bnn.default_prior(None, torch.zeros(2, width), 1, dtype=dtype, generator=generator)
    assert next(iter(prior.weights.mean.values())).dtype == expected


def test_the_dtype_of_a_users_network_is_kept(generator):
    prior = bnn.default_prior(nn.Linear, torch.zeros(2, 3).double(), 1, generator=generator)
    assert prior(torch.zeros(2, 3).double()).mean.dtype == torch.float32


def test_the_function_pickles(generator):
    network = seeded(Convolutional).eval()
    function = NetworkFunction(network, parameters(network))
    x = images(generator, n=3)[0]
    flat = flatten(parameters(network), parameters(network))
    again = pickle.loads(pickle.dumps(function))
    assert torch.equal(again(flat, x), function(flat, x))


def test_outputs_of_other_shapes_are_refused_or_reshaped():
    squeezed = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    assert call(squeezed, parameters(squeezed), torch.zeros(4, 3)).shape == (4, 1)
    sequence = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"outputs of shape \(n, k\) with n = 4; got \(4, 5, 2\)"):
        call(sequence, parameters(sequence), torch.zeros(4, 5, 3))


@pytest.mark.parametrize("build_network", [Recursive, lambda: bnn.MLP(2, 1, hidden=(3,))])
def test_draws_are_evaluated_one_by_one_or_together(build_network, generator, monkeypatch):
    network = frozen(seeded(build_network))
    draws = {n: torch.randn(4, *v.shape, generator=generator) for n, v in parameters(network, _names(network)).items()}
    x = torch.randn(5, 2, generator=generator)
    one_by_one = torch.stack([call(network, {n: v[i] for n, v in draws.items()}, x) for i in range(4)])
    assert torch.allclose(evaluate(network, draws, x), one_by_one, atol=1e-6)
    if not isinstance(network, Recursive):  # whose answer depends on the batch
        for module in ("operators", "operators.chunking"):
            monkeypatch.setattr(f"bayeskit.core.{module}.CHUNK_ELEMENTS", 600)
        assert torch.allclose(evaluate(network, draws, x), one_by_one, atol=1e-6)


def test_frozen_is_a_copy_unless_it_is_so_already():
    network = seeded(Convolutional)
    still = frozen(network)
    assert still is not network and network.training and not still.training
    assert not any(p.requires_grad for p in still.parameters())
    assert frozen(still) is still
    assert all(p.requires_grad for p in network.parameters())


def test_with_parameters_leaves_the_network_unchanged():
    network = nn.Linear(2, 1)
    before = network.weight.detach().clone()
    changed = with_parameters(network, {"weight": torch.full((1, 2), 7.0)})
    assert changed.weight.flatten().tolist() == [7.0, 7.0] and torch.equal(network.weight, before)


def test_reinitialization_uses_the_generator():
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.MultiheadAttention(4, 2))
    first, second, third = (reinitialize(network, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, third[0].weight)
    assert not torch.equal(first[2].in_proj_weight, third[2].in_proj_weight)


def test_the_last_layer_is_the_one_whose_output_is_returned():
    x = torch.zeros(3, 2)
    assert last_layer(nn.Linear(2, 1), x) == ["weight", "bias"]
    assert last_layer(seeded(Convolutional), torch.zeros(3, 1, 8, 8)) == ["head.weight", "head.bias"]
    squeezed = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    assert last_layer(squeezed, x) == ["0.weight", "0.bias"]
    for activation in (nn.Tanh(), nn.ReLU(inplace=True)):
        with pytest.raises(ValueError, match="not the output of a layer with parameters.*subset='all'"):
            last_layer(nn.Sequential(nn.Linear(2, 1), activation), x)


def test_a_residual_around_the_last_layer_has_no_head():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return x + self.layer(x)

    assert find_head(Residual(), torch.zeros(3, 2)) is None


def test_features_are_the_inputs_of_the_last_layer(generator):
    network = seeded(Convolutional).eval()
    x = images(generator, n=5)[0]
    head = find_head(network, x)
    assert torch.allclose(network.head(head.features(x)), network(x), atol=1e-6)
    assert torch.allclose(scale_outputs(network, 0.5, x)(x), 0.5 * network(x), atol=1e-6)


def _names(network):
    return [name for name, _ in network.named_parameters()]


def test_a_hollow_network_stores_one_number_for_each_parameter_named(generator):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    shell = hollow(net, ["0.weight"])
    assert shell[0].weight.shape == (4, 3) and shell[0].weight.untyped_storage().nbytes() == 4
    assert torch.equal(shell[1].weight, net[1].weight) and not shell[1].weight.requires_grad
    assert net[0].weight.requires_grad and net[0].weight.untyped_storage().nbytes() == 48
    x = torch.randn(5, 3, generator=generator)
    assert torch.equal(call(shell, parameters(net, ["0.weight", "0.bias"]), x), net(x))
    assert torch.equal(with_parameters(shell, parameters(net, ["0.weight"]))(x), net(x))


def test_many_inputs_agree_with_few(generator):
    """More inputs than run under vmap give the same values, to rounding."""
    network = bnn.MLP(3, 2, hidden=(4,), dtype=torch.float64)
    draws = bnn.gaussian_prior(network).weights.sample(5, generator=generator)
    x = torch.randn(networks.VMAP_ROWS + 1, 3, generator=generator, dtype=torch.float64)
    whole = evaluate(network, draws, x)
    assert torch.allclose(whole[:, :7], evaluate(network, draws, x[:7]), atol=1e-12)
    assert evaluate(network, draws, x[:0]).shape == (5, 0, 2)
