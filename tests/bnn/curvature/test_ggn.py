"""Gauss-Newton curvature in three structures, against sums of outer products written out."""

import copy

import pytest
import torch
from linear_operator import to_dense
from torch import nn
from torch.func import functional_call

from bayeskit.bnn import MLP
from bayeskit.bnn.curvature import ggn
from bayeskit.bnn.curvature.kfac_factors import kronecker
from bayeskit.bnn.curvature.linearized_evidence import Expansion
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.networks.functional import NetworkFunction, flatten, parameters, unflatten
from bayeskit.bnn.weights.layer_block_covariance import LayerBlocks
from bayeskit.core import operators
from bayeskit.core.likelihood import Categorical, Gaussian, Poisson
from bayeskit.core.operators import chunking
from bayeskit.core.types import Data

from ..example_networks import Convolutional, images, seeded


def written_out(network, data, likelihood):
    """`sum_i w_i J_i' Lambda_i J_i` with J by plain autograd, and the flat weights."""
    mean = parameters(network)
    flat = flatten(mean, mean)
    jacobian = torch.autograd.functional.jacobian(
        lambda w: functional_call(network, unflatten(w, mean), (data.x,)), flat
    )
    local = likelihood.curvature(network(data.x), data.y)
    weights = torch.ones(len(data)).double() if data.weights is None else data.weights
    return flat, torch.einsum("n,nip,nij,njq->pq", weights, jacobian, local, jacobian)


def case(name, generator):
    """A network, data and a likelihood."""
    if name == "convolutions":
        x, labels = images(generator, n=6)
        return seeded(Convolutional).double().eval(), Data(x.double(), labels), Categorical(3)
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(9, generator=generator, dtype=torch.float64)
    if name == "linear":
        y = torch.randint(0, 4, (9,), generator=generator)
        return seeded(lambda: nn.Linear(3, 4).double()), Data(x, y, weights), Categorical(4)
    y = torch.poisson(torch.ones(9, 2).double(), generator=generator)
    return seeded(lambda: MLP(3, 2, hidden=(4,)).double()), Data(x, y, weights), Poisson()


@pytest.mark.parametrize("name", ["linear", "deep", "convolutions"])
def test_full_and_diagonal(name, generator, monkeypatch):
    network, data, likelihood = case(name, generator)
    flat, expected = written_out(network, data, likelihood)
    function = NetworkFunction(network, parameters(network))
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 4 * len(flat) * 4 * 2)  # two or three data points at a time
    assert torch.allclose(ggn.full(function, flat, data, likelihood).matrix, expected, atol=1e-10)
    diagonal = ggn.diagonal(function, flat, data, likelihood).diagonal
    assert torch.allclose(diagonal, expected.diagonal(), atol=1e-10)


def test_factors_are_sums_over_layer_inputs_and_gradients(generator):
    network, data, likelihood = case("deep", generator)
    flat, _ = written_out(network, data, likelihood)
    found = kronecker(NetworkFunction(network, parameters(network)), flat, data, likelihood)
    hidden = network[1](data.x)
    entering = [data.x, network[2](hidden)]
    outputs = network(data.x)
    root = torch.linalg.cholesky(likelihood.curvature(outputs, data.y))
    slopes = torch.autograd.functional.jacobian(lambda h: network[3](network[2](h)).sum(0), hidden).permute(1, 0, 2)
    leaving = [torch.einsum("nij,nid->njd", root, slopes), root.mT]
    assert [name for *_, name in found.layers] == ["1", "3"]
    entering = [torch.cat([a, torch.ones(9, 1).double()], dim=1) for a in entering]
    for (_, output, inputs, _), a, s in zip(found.layers, entering, leaving, strict=True):
        assert torch.allclose(inputs, torch.einsum("n,ni,nj->ij", data.weights, a, a), atol=1e-10)
        total = torch.einsum("n,nci,ncj->ij", data.weights, s, s)
        assert torch.allclose(output, total / data.weights.sum(), atol=1e-10)


def test_one_linear_layer_is_exact(generator):
    network, data, _ = case("linear", generator)
    likelihood, data = Gaussian(torch.tensor([0.1, 0.2, 0.3, 0.4])), Data(data.x, torch.zeros(9, 4), data.weights)
    flat, expected = written_out(network, data, likelihood)
    found = kronecker(NetworkFunction(network, parameters(network)), flat, data, likelihood)
    index, output, inputs, _ = found.layers[0]
    dense = torch.zeros_like(expected)
    dense[index[:, None], index] = torch.kron(output, inputs)
    assert torch.allclose(dense, expected, atol=1e-10)


def test_a_convolution_over_the_whole_image_is_a_linear_layer(generator):
    convolution = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 4, padding=(1, 0)), nn.Flatten()).double())
    convolution[0] = nn.Conv2d(2, 3, 4).double()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(32, 3).double())
    with torch.no_grad():
        linear[1].weight.copy_(convolution[0].weight.flatten(1))
        linear[1].bias.copy_(convolution[0].bias)
    x = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    data = Data(x, torch.randint(0, 3, (5,), generator=generator))
    factors = []
    for network in (convolution, linear):
        flat = flatten(parameters(network), parameters(network))
        found = kronecker(NetworkFunction(network, parameters(network)), flat, data, Categorical(3))
        factors.append(found.layers[0])
    for one, other in zip(factors[0][:3], factors[1][:3], strict=True):
        assert torch.allclose(one.double(), other.double(), atol=1e-12)


def test_padding_stride_and_sequences_are_unfolded_as_the_layer_does(generator):
    layers = [
        (nn.Conv2d(2, 3, 3, padding=1, stride=2, dilation=1, padding_mode="circular"), (2, 6, 5)),
        (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 6, 5)),
        (nn.Conv1d(2, 3, 3, padding=2), (2, 6)),
        (nn.Linear(4, 3), (5, 4)),
    ]
    from bayeskit.bnn.curvature.kfac_factors import _locations, _output_locations

    for layer, shape in layers:
        x = torch.randn(4, *shape, generator=generator)
        product = _locations(layer, x) @ layer.weight.detach().flatten(1).mT + layer.bias.detach()
        assert torch.allclose(product, _output_locations(layer, layer(x).detach()), atol=1e-5)


@pytest.mark.parametrize("structure", ["full", "kronecker", "diagonal"])
@pytest.mark.parametrize("dense_prior", [False, True])
def test_basis_and_covariance_are_exact(structure, dense_prior, generator):
    network, data, likelihood = case("deep", generator)
    flat, _ = written_out(network, data, likelihood)
    function = NetworkFunction(network, parameters(network))
    p = len(flat)
    precision = torch.cat([torch.full((v.numel(),), 1.0 + i // 2).double() for i, v in enumerate(network.parameters())])
    if structure == "full":
        found = ggn.full(function, flat, data, likelihood)
        if dense_prior:
            root = torch.randn(p, p, generator=generator, dtype=torch.float64)
            precision = root @ root.mT + torch.eye(p).double()
    elif structure == "kronecker":
        found = kronecker(function, flat, data, likelihood)
    else:
        found = ggn.diagonal(function, flat, data, likelihood)
    prior = precision if precision.ndim == 2 else torch.diag(precision)
    factor, groups = torch.tensor(0.7).double(), torch.zeros(p, dtype=torch.long)
    known = PriorPrecision(precision, groups, ("",), known=True)
    covariance = found.covariance(known, torch.zeros(1).double(), factor, dtype=torch.float64).to_dense()
    h = (torch.linalg.inv(covariance) - prior) / factor
    zeros = torch.zeros(p, dtype=torch.float64)
    basis = found.evidence(Expansion(zeros, zeros, zeros.sum(), None, known)).basis
    b = torch.stack([basis.back(e) for e in torch.eye(p).double()], dim=1)
    assert torch.allclose(b.mT @ prior @ b, torch.eye(p).double(), atol=1e-8)
    assert torch.allclose(b.mT @ h @ b, torch.diag(basis.values), atol=1e-7)
    v = torch.randn(p, generator=generator, dtype=torch.float64)
    assert torch.allclose(basis.coordinates(basis.back(v)), v, atol=1e-10)
    assert torch.allclose(basis.dual(v), b.mT @ v, atol=1e-10)


@pytest.mark.monte_carlo
def test_layer_blocks_do_what_their_matrix_does(generator):
    first = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    blocks = LayerBlocks(
        operators.Inverse(first @ first.mT + torch.eye(3).double()),
        torch.tensor([4, 0, 2]),
        torch.tensor([1.0, 2.0, 3.0]).double(),
        operators.Inverse(torch.eye(2).double() * 2),
        torch.tensor([1, 3]),
        torch.tensor([0.5, 1.0]).double(),
    )
    dense = blocks.to_dense()
    v = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(dense, dense.mT) and torch.allclose(blocks.diagonal(), dense.diagonal())
    assert torch.allclose(blocks @ v, dense @ v)
    assert torch.allclose(blocks @ v[:, 0], dense @ v[:, 0])
    assert torch.allclose(operators.solve(blocks, v), torch.linalg.solve(dense, v))
    assert torch.allclose(operators.logdet(blocks), torch.logdet(dense))
    half = operators.half_product(blocks, v)
    assert torch.allclose(half.mT @ half, v.mT @ dense @ v)
    draws = operators.draw(blocks, 20_000, generator=generator)
    error = (draws.mT @ draws / 20_000 - dense).abs()
    spread = (dense.square() + torch.outer(dense.diagonal(), dense.diagonal())).sqrt()
    assert (error < 5 * spread / 20_000**0.5).all()
    assert torch.allclose(to_dense(copy.deepcopy(blocks)), dense)
