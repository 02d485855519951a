"""A posterior inside Avalanche's strategies, by the real library."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.core.likelihood import Categorical
from bayeskit.core.types import Data

for operator in ("nms", "qnms"):  # torchvision asks for them at its import, and has none beside a torch without CUDA
    if not hasattr(torch.ops.torchvision, operator):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what Avalanche and its requirements say when they are imported
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.core import SupervisedPlugin
    from avalanche.training.supervised import Naive

    from bayeskit.integrations.avalanche import PosteriorPlugin

pytestmark = pytest.mark.filterwarnings("ignore:::avalanche")

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
LABELS = (torch.arange(120) % 2).long()
SIGNS = 2.0 * LABELS - 1
# In the first sixty rows the first column tells the label; later it misleads, and the second tells it.
X[:60, 0], X[60:, 0], X[60:, 1] = 2 * SIGNS[:60], -0.5 * SIGNS[60:], 3 * SIGNS[60:]


def rows(part):
    pairs = torch.utils.data.TensorDataset(X[part], LABELS[part])
    pairs.targets = LABELS[part].tolist()
    return as_classification_dataset(pairs)


STREAM = benchmark_from_datasets(train=[rows(slice(60)), rows(slice(60, 120))], test=[rows(slice(60))])


def strategy(network, plugins, **settings):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    common = {"model": network, "optimizer": optimizer, "criterion": nn.CrossEntropyLoss(), "evaluator": None}
    return Naive(**common, train_mb_size=60, plugins=plugins, **settings)


def network():
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def test_the_loss_is_that_of_the_posterior_before():
    net = network()
    plugin = PosteriorPlugin(net, Categorical(2), prior_precision=3.0)
    seen = []

    class Listener(SupervisedPlugin):
        def before_backward(self, strategy, **_):
            plain = nn.functional.cross_entropy(net(X[:60]), LABELS[:60])
            weights = plugin.posterior.weights
            mean, precision = weights.flat_mean, 1 / weights.covariance.diagonal()
            here = nn.utils.parameters_to_vector(net.parameters())
            expected = plain + 0.5 * (precision * (here - mean) ** 2).sum() / 60
            seen.append((float(strategy.loss.detach()), float(expected.detach())))

    train = strategy(net, [plugin, Listener()], train_epochs=3)
    train.train(STREAM.train_stream[0])
    # Equal up to the constant of the Gaussian's normalization, the same at every step.
    gaps = np.diff(np.array(seen), axis=1).ravel()
    assert len(gaps) == 3 and np.ptp(gaps) < 1e-4 and np.std([total for total, _ in seen]) > 1e-3


@pytest.mark.parametrize("structure", ["diagonal", "full"])
def test_a_step_goes_down_the_penalized_loss(structure):
    """Plain gradient descent, one step in the second experience, against the gradient written out."""
    net, rate = network(), 0.01
    method = bnn.Laplace(subset="all", structure=structure, prior_precision=1.0, pretrained=True)
    plugin = PosteriorPlugin(net, Categorical(2), method)
    train = strategy(net, [plugin], train_epochs=3)
    train.train(STREAM.train_stream[0])
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.3)  # away from the mean, where the penalty has no slope
    weights = plugin.posterior.weights
    start = nn.utils.parameters_to_vector(net.parameters()).detach().requires_grad_()
    like = dict(zip(weights.mean, start.split([v.numel() for v in weights.mean.values()]), strict=True))
    like = {name: part.reshape(weights.mean[name].shape) for name, part in like.items()}
    plain = nn.functional.cross_entropy(torch.func.functional_call(net, like, X[60:]), LABELS[60:])
    pull = torch.linalg.solve(weights.covariance.to_dense(), start.detach() - weights.flat_mean) / 60
    (slope,) = torch.autograd.grad(plain, start)
    assert pull.norm() > 0.1 * slope.norm()
    train.optimizer, train.train_epochs = torch.optim.SGD(net.parameters(), lr=rate), 1
    train.train(STREAM.train_stream[1])
    moved = nn.utils.parameters_to_vector(net.parameters()).detach() - start.detach()
    torch.testing.assert_close(moved, -rate * (slope + pull), rtol=1e-3, atol=1e-6)  # float32


def test_after_an_experience_the_posterior_is_laplaces_around_the_trained_weights():
    net = network()
    plugin = PosteriorPlugin(net, Categorical(2))
    train = strategy(net, [plugin], train_epochs=5)
    train.train(STREAM.train_stream[0])
    method = bnn.Laplace(subset="all", structure="diagonal", prior_precision=1.0, pretrained=True)
    prior = bnn.gaussian_prior(network())
    prior = bnn.BayesNet(net, prior.weights, prior.push_forward)
    data = Data(X[:60], LABELS[:60])
    fit = method.infer(prior, Categorical(2), data, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plugin.posterior.weights.flat_mean, fit.posterior.weights.flat_mean, atol=1e-6)
    precise = plugin.posterior.weights.covariance.diagonal()
    assert torch.allclose(precise, fit.posterior.weights.covariance.diagonal(), rtol=1e-5)
    train.train(STREAM.train_stream[1])
    assert (plugin.posterior.weights.covariance.diagonal() <= precise * (1 + 1e-6)).all()  # data only add precision


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_what_was_learned_is_kept_better_than_without(structure):
    method = bnn.Laplace(subset="all", structure=structure, prior_precision=1.0, pretrained=True)
    kept = []
    for plugins in ([], [0]):
        net = network()
        plugin = PosteriorPlugin(net, Categorical(2), method)
        train = strategy(net, [plugin] if plugins else [], train_epochs=60)
        for experience in STREAM.train_stream:
            train.train(experience)
        net.eval()
        with torch.no_grad():
            probs = plugin.predictive(X[:60]).probs if plugins else net(X[:60]).softmax(-1)
        kept.append(float((probs.argmax(-1) == LABELS[:60]).double().mean()))
    assert kept[1] > kept[0]


def test_its_notebook_runs():
    """In a process of its own, for it declares torchvision's operators as this file does."""
    path = Path(__file__).parents[2] / "examples" / "integrations" / "with_avalanche.py"
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    shares = [[float(share) for share in re.findall(r"\d\.\d\d", line)] for line in result.stdout.splitlines()]
    plain, posterior = shares[1], shares[3]
    assert posterior[0] > plain[0] + 0.05  # of what was learned first
