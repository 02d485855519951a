"""Kronecker factors in continual learning: the nearest product of a sum of two, and the posteriors from it."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.curvature.kfac import KroneckerCurvature, nearest_product
from bayeskit.bnn.curvature.kfac_factors import kronecker
from bayeskit.bnn.curvature.linearized_evidence import Expansion, Noise
from bayeskit.bnn.curvature.prior_precision import prior_precision
from bayeskit.bnn.networks.functional import NetworkFunction, flatten
from bayeskit.bnn.weights.layer_block_covariance import LayerBlocks
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import operators
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Convolutional, images, seeded

SHORT = Training(lr=1e-2, max_epochs=3, batch_size=32)
ALL = bnn.Laplace("all", "kronecker", 1.0, training=SHORT)


def semidefinite(n, generator, rank=None):
    root = torch.randn(n, rank or n, generator=generator, dtype=torch.float64)
    return root @ root.mT


def rearranged(matrix, a, b):
    """`vec(G) vec(A)'` for a matrix `G (x) A`."""
    return matrix.reshape(a, b, a, b).permute(0, 2, 1, 3).reshape(a * a, b * b)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rank", [1, 4])
def test_no_product_is_nearer_to_the_sum(rank, size, generator):
    first = semidefinite(3, generator), semidefinite(4, generator)
    second = size * semidefinite(3, generator, 1), semidefinite(4, generator, rank)
    output, inputs = nearest_product(first, second)
    total = torch.kron(*first) + torch.kron(*second)
    singular = torch.linalg.svdvals(rearranged(total, 3, 4))  # Eckart and Young: the others are what is lost
    assert torch.allclose((torch.kron(output, inputs) - total).norm(), singular[1:].norm(), atol=1e-12 * singular[0])
    for factor in (output, inputs):
        assert torch.equal(factor, factor.mT)
        assert torch.linalg.eigvalsh(factor)[0] > -1e-12 * factor.norm()


def test_a_sum_that_is_a_product_is_found(generator):
    g, a, other = semidefinite(3, generator), semidefinite(4, generator), semidefinite(4, generator, 2)
    nothing = torch.zeros_like(g), torch.zeros_like(a)
    cases = [((g, a), (3 * g, other)), ((other, g), (a, 0.2 * g)), (nothing, (g, a)), ((g, a), nothing)]
    for first, second in [*cases, (nothing, nothing)]:
        expected = torch.kron(*first) + torch.kron(*second)
        assert torch.allclose(torch.kron(*nearest_product(first, second)), expected, atol=1e-12 * expected.norm())


def test_of_two_products_at_right_angles_one_is_kept(generator):
    left, right = torch.diag(torch.tensor([1.0, 0.0])).double(), torch.diag(torch.tensor([0.0, 1.0])).double()
    output, inputs = nearest_product((left, left), (2 * right, right))
    assert torch.allclose(torch.kron(output, inputs), torch.kron(2 * right, right), atol=1e-12)


def regression(generator, n=45):
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, x @ torch.randn(3, 2, generator=generator, dtype=torch.float64) + torch.randn(
        n, 2, generator=generator, dtype=torch.float64
    )


def test_a_linear_network_in_three_chunks_is_that_of_all_data(generator):
    (x, y), likelihood = regression(generator), Gaussian(torch.tensor([0.3, 2.0]), learn=False)
    inference = bnn.Laplace(structure="kronecker", prior_precision=1.0, training=SHORT)
    posterior = bnn.gaussian_prior(seeded(lambda: nn.Linear(3, 2).double()))
    batch = inference.infer(posterior, likelihood, Data(x, y), generator=generator)
    evidence = 0.0
    for rows in (slice(0, 20), slice(20, 25), slice(25, None)):
        fit = inference.infer(posterior, likelihood, Data(x[rows], y[rows]), generator=generator)
        posterior, evidence = fit.posterior, evidence + float(fit.log_evidence)
    values, expected = posterior(x), batch.posterior(x)
    assert torch.allclose(values.mean, expected.mean, atol=1e-7)  # after the first chunk found by L-BFGS
    assert torch.allclose(values.covariance.to_dense(), expected.covariance.to_dense(), atol=1e-10)
    assert evidence == pytest.approx(float(batch.log_evidence), abs=1e-6)


def networks(name, generator):
    """A network and two data sets."""
    if name == "convolutions":
        (x, y), network = images(generator, n=16), seeded(lambda: Convolutional(normalize=False).double())
    else:
        x, y = torch.randn(16, 3, generator=generator), torch.randint(0, 3, (16,), generator=generator)
        network = seeded(lambda: bnn.MLP(3, 3, hidden=(4,), dtype=torch.float64))
    return network, [Data(x[rows].double(), y[rows]) for rows in (slice(0, 9), slice(9, None))]


@pytest.mark.parametrize("name", ["layers", "convolutions"])
def test_precisions_of_a_deep_network_add_up_to_the_nearest_products(name, generator):
    network, (first, second) = networks(name, generator)
    prior = bnn.gaussian_prior(network)
    one = ALL.infer(prior, Categorical(3), first, generator=generator).posterior
    fit = ALL.infer(one, Categorical(3), second, generator=generator)
    two, base = fit.posterior.weights, torch.diag(1 / prior.weights.covariance.diagonal()).double()
    flat = flatten(two.mean, two.mean)
    function = NetworkFunction(fit.posterior.network, two.mean)
    new = {name: (index, g, a) for index, g, a, name in kronecker(function, flat, second, Categorical(3)).layers}
    before = torch.linalg.inv(one.weights.covariance.to_dense()) - base  # the curvature of the first data
    after = torch.linalg.inv(two.covariance.to_dense()) - base
    for index, g, a in new.values():
        block = index[:, None], index
        scale = base.diagonal()[index].rsqrt()  # in these units products are compared
        total = scale[:, None] * (before[block] + torch.kron(g, a)) * scale
        left, values, right = torch.linalg.svd(rearranged(total, len(g), len(a)))
        nearest = values[0] * torch.kron(left[:, 0].reshape(g.shape), right[0].reshape(a.shape))
        found = scale[:, None] * after[block] * scale
        assert torch.allclose(found, nearest, atol=1e-8 * values[0])
    occam = 0.5 * (torch.logdet(torch.linalg.inv(two.covariance.to_dense())) + operators.logdet(one.weights.covariance))
    step = flat - flatten(one.weights.mean, two.mean)
    fitted = (
        Categorical(3).log_prob(function(flat, second.x), second.y).sum()
        + one.weights.log_density(flat.detach())
        - one.weights.log_density(flat - step)
    )
    assert float(fit.log_evidence) == pytest.approx(float(fitted - occam), rel=1e-8)


def test_the_penalty_of_training_is_the_log_density(generator):
    network, (rows, _) = networks("layers", generator)
    weights = ALL.infer(bnn.gaussian_prior(network), Categorical(3), rows, generator=generator).posterior.weights
    flat = weights.flat_mean + 0.1 * torch.randn(2, len(weights.flat_mean), generator=generator, dtype=torch.float64)
    dense = torch.distributions.MultivariateNormal(weights.flat_mean, weights.covariance.to_dense())
    flat.requires_grad_()
    (slope,) = torch.autograd.grad(weights.log_density(flat).sum(), flat)
    (expected,) = torch.autograd.grad(dense.log_prob(flat).sum(), flat)
    assert torch.allclose(weights.log_density(flat), dense.log_prob(flat), atol=1e-10)
    assert torch.allclose(slope, expected, atol=1e-10)


@pytest.mark.monte_carlo
def test_noise_of_each_output_is_learnt_beside_factors_of_earlier_data(generator):
    x, y = regression(generator, n=420)
    noisy = torch.tensor([0.1, 1.0], dtype=torch.float64) * torch.randn(420, 2, generator=generator).double()
    y[20:] = x[20:, :2] + noisy[20:]
    y[:20] = x[:20, :2] + torch.randn(20, 2, generator=generator).double()
    posterior = bnn.gaussian_prior(seeded(lambda: nn.Linear(3, 2).double()))
    likelihood = Gaussian(torch.tensor([0.5, 0.5]))
    inference = bnn.Laplace("all", "kronecker", 1.0, pretrained=True)
    for rows in (slice(0, 20), slice(20, None)):
        fit = inference.infer(posterior, likelihood, Data(x[rows], y[rows]), generator=generator)
        posterior, likelihood = fit.posterior, fit.likelihood
    ratio = likelihood.noise.detach() / torch.tensor([0.01, 1.0])
    assert torch.allclose(ratio, torch.ones(2).to(ratio), atol=0.36)  # 5 standard errors of 400 squares: 0.35


@pytest.mark.parametrize("shift", [1.0, 30.0])
def test_the_evidence_is_that_of_the_covariances(shift, generator):
    network, (first, second) = networks("layers", generator)
    before = ALL.infer(bnn.gaussian_prior(network), Categorical(3), first, generator=generator).posterior.weights
    parts = [(operators.KroneckerInverse(*block._args[:4], shift), *rest) for block, *rest in before.covariance.blocks]
    weights = GaussianWeights(before.mean, LayerBlocks(*(piece for part in parts for piece in part)))
    function, flat = NetworkFunction(network, before.mean), weights.flat_mean
    curvature = kronecker(function, flat, second, Categorical(3))
    prior = prior_precision(weights, list(weights.mean), "kronecker", 1.0)
    offset, ones = torch.full_like(flat, 0.1), torch.zeros(1, dtype=torch.float64)
    noise = torch.tensor(0.7, dtype=torch.float64)
    model = curvature.evidence(Expansion(offset, offset, ones.sum(), Noise(1.0, ones.sum(), -9.0), prior))
    log_prior, occam = model.expansion.log_prior(ones), model.occam(ones, noise)
    dense = weights.covariance.to_dense()
    after = curvature.covariance(prior, ones, (-noise).exp(), dtype=torch.float64).to_dense()
    scaled = [(index, (-noise).exp() * g, a, name) for index, g, a, name in curvature.layers]
    again = KroneckerCurvature(tuple(scaled)).covariance(prior, ones, torch.ones_like(noise), dtype=torch.float64)
    assert torch.allclose(after, again.to_dense(), atol=1e-12)
    assert float(log_prior) == pytest.approx(float(-0.5 * offset @ torch.linalg.solve(dense, offset)), rel=1e-8)
    assert float(occam) == pytest.approx(float(0.5 * (torch.logdet(after) - torch.logdet(dense))), rel=1e-8)


@pytest.mark.parametrize("shift", [1.0, 100.0])
def test_a_prior_of_one_layer_adds_up_as_the_whole_matrix_does(shift):
    one, two = torch.eye(1).double(), torch.eye(2).double()
    block = operators.KroneckerInverse(one, torch.ones(1).double(), two, torch.ones(2).double(), shift)
    weights = GaussianWeights(
        {"weight": torch.zeros(1, 2).double()}, LayerBlocks(block, torch.arange(2), two[0] + two[1])
    )
    prior = bnn.BayesNet(seeded(lambda: nn.Linear(2, 1, bias=False).double()), weights, bnn.Linearize())
    found = [
        bnn.Laplace("all", structure, 1.0, pretrained=True)
        .infer(prior, Gaussian(1.0, learn=False), Data(two, two[:, :1]), generator=torch.Generator())
        .posterior.weights.covariance.to_dense()
        for structure in ("full", "kronecker")
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-10)
    assert torch.allclose(found[0], two / (shift + 2), rtol=1e-10)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_factors_by_part_are_for_the_first_data(structure, generator):
    network, (first, second) = networks("layers", generator)
    parts = sorted({name.rpartition(".")[0] for name, _ in network.named_parameters()})
    inference = bnn.Laplace("all", structure, dict(zip(parts, (2.0, "evidence"), strict=True)), training=SHORT)
    one = inference.infer(bnn.gaussian_prior(network), Categorical(3), first, generator=generator).posterior
    assert inference.infer(one, Categorical(3), second, generator=generator).posterior.weights.scale_known


def test_factors_of_other_weights_are_refused_by_name(generator):
    network, (first, second) = networks("layers", generator)
    one = ALL.infer(bnn.gaussian_prior(network), Categorical(3), first, generator=generator).posterior
    for other in (bnn.Laplace("last_layer", "kronecker", training=SHORT), bnn.Laplace("all", "diagonal")):
        with pytest.raises(ValueError, match="needs independent weights.*'kronecker' continues from its own posterior"):
            other.infer(one, Categorical(3), second, generator=generator)
