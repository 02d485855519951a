"""Outputs drawn in place of weights: their moments, and the layers for which this is not valid."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.networks.functional import parameters
from bayeskit.bnn.variational_inference.layer_estimators import obstacles

COPIES = 20_000


def noisy(layer, estimator, generator):
    """The layer with standard deviations that differ from weight to weight."""
    q = bnn.variational(layer, estimator=estimator)
    with torch.no_grad():
        q.log_scale.copy_(0.3 * torch.randn(q.log_scale.shape, generator=generator, dtype=torch.float64) - 1)
    return q


@pytest.mark.monte_carlo
@pytest.mark.parametrize("estimator", ["local", "flipout", "weight"])
def test_outputs_have_the_moments_under_the_weights(estimator, generator):
    layer = nn.Linear(3, 2, dtype=torch.float64)
    q = noisy(layer, estimator, generator)
    x = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    if estimator == "local":
        draws = q(x.expand(COPIES, -1), generator=generator)[0]
    else:  # one draw of the weights a call
        draws = q(x, num_samples=2_000, generator=generator)[:, 0]
    variances = q.support.split((2 * q.log_scale).exp())
    mean = layer(x)[0]
    variance = (x.square() @ variances["weight"].reshape(2, 3).mT)[0] + variances["bias"]
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / len(draws)).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 5 * (2 / len(draws)) ** 0.5).all()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("estimator", ["local", "flipout"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 3, 3, padding=1, dtype=torch.float64), (2, 5)),
        (nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="circular", dtype=torch.float64), (2, 6, 6)),
        (nn.Conv2d(4, 4, 2, groups=2, bias=False, dtype=torch.float64), (4, 4, 4)),
    ],
    ids=["1d", "circular", "groups"],
)
def test_convolutions_too(estimator, layer, shape, generator):
    q = noisy(nn.Sequential(layer, nn.Flatten()), estimator, generator)
    x = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    if estimator == "local":
        draws = q(x.expand(4_000, *shape), generator=generator)[0]
    else:
        draws = q(x, num_samples=1_000, generator=generator)[:, 0]
    exact = bnn.variational(nn.Sequential(layer, nn.Flatten()), estimator="weight")
    exact.load_state_dict(q.state_dict())
    reference = torch.stack([exact(x, generator=generator)[0, 0] for _ in range(1_000)])
    mean, variance = reference.mean(0), reference.var(0)
    assert ((draws.mean(0) - mean).abs() < 5 * (2 * variance / 1_000).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 5 * (4 / 1_000) ** 0.5).all()


def test_noise_is_independent_between_inputs(generator):
    x = torch.ones(2, 3, dtype=torch.float64)
    for estimator, equal in (("weight", True), ("local", False), ("flipout", False)):
        q = noisy(nn.Linear(3, 8, dtype=torch.float64), estimator, generator)
        first, second = q(x, generator=generator)[0]
        assert torch.equal(first, second) is equal


def test_the_network_is_unchanged(generator):
    class Fails(nn.Module):
        def forward(self, x):
            raise OSError("as it happens")

    q = bnn.variational(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), estimator="local")
    q(torch.ones(3, 2), generator=generator)
    q.network.append(Fails())
    with pytest.raises(OSError, match="as it happens"):
        q(torch.ones(3, 2), generator=generator)
    assert "forward" not in q.network[0].__dict__


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.outer(self.inner(self.inner(x).relu()))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class Aside(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) @ self.layer.weight


@pytest.mark.parametrize(
    ("network", "words"),
    [(Twice(), "`inner`.*runs 2 times"), (Tied(), "`first`.*shares its weight"), (Aside(), "`layer`.*outside its own")],
    ids=["twice", "tied", "aside"],
)
def test_unsuitable_layers_are_refused_by_name(network, words, generator):
    x = torch.randn(4, 2, generator=generator)
    for estimator in ("local", "flipout"):
        with pytest.raises(ValueError, match=f"{words}.*estimator='weight'"):
            bnn.variational(network, estimator=estimator)(x, generator=generator)
    assert bnn.variational(network, estimator="weight")(x, generator=generator).shape[:2] == (1, 4)


def test_other_layers_are_drawn_as_weights(generator):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

        def forward(self, tokens):
            h = self.norm(self.embed(tokens))
            return self.head(self.attention(h, h, h)[0].mean(1))

    network, tokens = Attends(), torch.tensor([[0, 1, 2], [2, 3, 4]])
    assert obstacles(network, parameters(network), tokens) == {"head": ""}
    q = bnn.variational(network, estimator="local")
    first, second = q(tokens, num_samples=2, generator=generator)
    assert not torch.equal(first, second)
    (q(tokens, generator=generator).square().sum() + q.kl()).backward()
    assert all((part != 0).any() for part in q.support.split(q.mean.grad).values())
