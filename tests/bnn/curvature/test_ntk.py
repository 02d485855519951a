"""What enters and leaves the layers is taken for the gradients where it is all there is of them, and nowhere else."""

import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import nn
from torch.func import jacrev
from torch.nn import functional

from bayeskit import bnn
from bayeskit.bnn.curvature.ggn import diagonal
from bayeskit.bnn.curvature.ntk import separates
from bayeskit.bnn.networks.functional import NetworkFunction, flatten, parameters
from bayeskit.bnn.pushforward.bayes_net import linearize
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

from ..example_networks import seeded


class WeightTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return functional.linear(torch.tanh(self.layer(x)), self.layer.weight.mT)


class Prototypes(nn.Module):
    """Mixes its inputs with a buffer, which another layer reads."""

    def __init__(self, rows):
        super().__init__()
        self.layer, self.other = nn.Linear(3, 4), nn.Linear(3, 4)
        self.register_buffer("rows", torch.randn(rows, 3))

    def forward(self, x):
        return self.layer(x) @ self.other(self.rows).mT


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x.reshape(-1, 3)))).unflatten(0, (len(x), -1)).mean(1)


class InSingle(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x.float())))


def doubled():
    network = bnn.MLP(3, 2, hidden=(4,))
    next(m for m in network.modules() if isinstance(m, nn.Linear)).register_forward_hook(lambda *given: 2 * given[-1])
    return network


MIXED = {
    "a weight at work outside its layer": WeightTwice,
    "a layer of one constant row": lambda: Prototypes(1),
    "a layer of as many constant rows as inputs": lambda: Prototypes(5),
    "a layer of two constant rows": lambda: Prototypes(2),
    "rows of several parts": Bags,
    "a hook": doubled,
    "no float64": InSingle,
}


@pytest.mark.parametrize("name", [*MIXED, "layers alone"])
def test_variances_and_curvature_are_those_of_the_jacobian(name, generator):
    network = seeded(MIXED.get(name, lambda: bnn.MLP(3, 2, hidden=(4,))))
    x = torch.randn(5, 3, generator=generator)
    x = x.unsqueeze(1).expand(-1, 4, -1).contiguous() if name == "rows of several parts" else x
    like = parameters(network)
    function, flat = NetworkFunction(network, like), flatten(like, like).detach()
    assert separates(function, flat, x) == (name == "layers alone")
    jacobian = jacrev(lambda w: function(w, x))(flat).double()  # (n, k, p)
    variances = torch.rand(len(flat), generator=generator)
    weights = GaussianWeights(like, DiagLinearOperator(variances))
    expected = torch.einsum("nkp,p->nk", jacobian.square(), variances.double())
    assert torch.allclose(linearize(network, weights, x).moments[1].double(), expected, rtol=1e-4)  # single precision
    y = torch.zeros(5, expected.shape[1])
    found = diagonal(function, flat, Data(x, y), Gaussian(1.0)).diagonal
    assert torch.allclose(found, jacobian.square().sum((0, 1)), rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_mean_of_the_weights(generator):
    network = seeded(lambda: bnn.MLP(3, 2, hidden=(4,), dtype=torch.float64))
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    mean = {name: value.detach().clone().requires_grad_() for name, value in parameters(network).items()}
    variances = torch.rand(sum(value.numel() for value in mean.values()), generator=generator, dtype=torch.float64)

    def total():
        return linearize(network, GaussianWeights(mean, DiagLinearOperator(variances)), x).covariance.diagonal().sum()

    first = next(iter(mean.values()))
    (slope,) = torch.autograd.grad(total(), [first])
    with torch.no_grad():
        first[0, 0] += 1e-6
        above = total()
        first[0, 0] -= 2e-6
        below = total()
    assert float(slope[0, 0]) == pytest.approx(float(above - below) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
def test_predictions_under_inference_mode(structure, generator):
    x = torch.randn(9, 3, generator=generator)
    prior = bnn.gaussian_prior(seeded(lambda: bnn.MLP(3, 1, hidden=(4,))))
    inference = bnn.Laplace("all", structure, 1.0, pretrained=True)
    posterior = inference.infer(prior, Gaussian(), Data(x, x[:, :1]), generator=generator).posterior
    expected = posterior(x).moments[1]
    with torch.inference_mode():
        assert torch.allclose(posterior(x.clone()).moments[1], expected, rtol=1e-4)


def test_kronecker_factors_of_mixed_inputs_are_refused(generator):
    x = torch.randn(5, 4, 3, generator=generator)
    prior = bnn.gaussian_prior(seeded(Bags))
    inference = bnn.Laplace("all", "kronecker", 1.0, pretrained=True)
    with pytest.raises(ValueError, match="one for each data point; 'layer' got 20 inputs for 5 data points"):
        inference.infer(prior, Gaussian(), Data(x, x[:, 0, :2]), generator=generator)
