"""Sparse products: values and gradients of the dense product."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.variational_inference import sparse_linear
from bayeskit.bnn.variational_inference.sparse_linear import Pattern, is_faster


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch", [(5,), (2, 3), (1,)])
def test_values_and_gradients_of_the_dense_product(dtype, batch, generator):
    positions = torch.randperm(77, generator=generator)[:20].sort().values
    pattern = Pattern(positions, torch.Size((7, 11)))
    x = torch.randn(*batch, 11, generator=generator, dtype=dtype, requires_grad=True)
    values, bias = (torch.randn(n, generator=generator, dtype=dtype, requires_grad=True) for n in (20, 7))
    weight = values.new_zeros(77).index_copy(0, positions, values).reshape(7, 11)
    expected, found = x @ weight.mT + bias, pattern.linear(x, values, bias)
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(found.shape, generator=generator, dtype=dtype)
    pair = [torch.autograd.grad(out, [x, values, bias], upstream) for out in (found, expected)]
    for one, other in zip(*pair, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(pattern.matrix(values).to_dense(), weight)
    torch.testing.assert_close(pattern.transposed(values).to_dense(), weight.mT)


def test_sparse_products_are_for_large_weights_of_low_density():
    large, small = torch.Size((256, 256)), torch.Size((100, 100))
    assert is_faster(torch.arange(5_000), large)
    assert not is_faster(torch.arange(20_000), large) and not is_faster(torch.arange(100), small)


@pytest.mark.parametrize("estimator", ["local", "flipout", "weight"])
def test_sparse_and_dense_passes_agree(estimator, generator, monkeypatch):
    """The same noise, so the same outputs and gradients to rounding, and the same predictions."""
    net = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 2)).double()
    x = torch.randn(9, 40, generator=generator, dtype=torch.float64)
    found = []
    for fewest in (10**9, 1):
        monkeypatch.setattr(sparse_linear, "MIN_SIZE", fewest)
        g = torch.Generator().manual_seed(3)
        q = bnn.variational(net, estimator=estimator, density=0.1, initial_scale=0.3, generator=g)
        if estimator == "weight":  # sparse layers draw first: give every weight its own distribution instead of noise
            q.log_scale.data.fill_(-100.0)
        f = q(x, generator=g)
        f.square().sum().backward()
        posterior = q.posterior(x)
        assert posterior.push_forward.layers == (("0", "2") if fewest == 1 else ())
        assert posterior.network[0].weight.untyped_storage().nbytes() == 8  # nothing is stored for it
        drawn = posterior.sample_functions(2, generator=torch.Generator().manual_seed(1))(x)
        found.append((f, q.mean.grad, posterior(x).draws, drawn))
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-10)


def test_the_push_forward_is_monte_carlo(generator):
    net = nn.Sequential(nn.Linear(300, 256), nn.ReLU(), nn.Linear(256, 1))
    q = bnn.variational(net, density=0.05, initial_scale=1.0, generator=generator)
    x = torch.randn(20, 300, generator=generator)
    posterior = q.posterior(x, num_samples=6)
    assert posterior.push_forward.layers == ("0",)  # the second has 256 weights, which stay whole
    weights, values = posterior.weights, posterior(x)
    draws = weights.sample(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(values.draws, bnn.monte_carlo(net, weights, x, num_samples=6).draws)
    assert values.draws.shape == (6, 20, 1) and draws["0.weight"].shape == (6, 256, 300)
    assert int((draws["0.weight"][0] != 0).sum()) == round(0.05 * 256 * 300)
