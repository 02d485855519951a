"""A mean-field law for a loop of one's own, dense or sparse."""

import torch
from torch import nn

from bayeskit.bnn.networks.functional import parameters
from bayeskit.bnn.pushforward.bayes_net import BayesNet, gaussian_prior
from bayeskit.bnn.variational_inference.sparse_weights import SparseWeights
from bayeskit.bnn.variational_inference.support_updates import random_support
from bayeskit.bnn.variational_inference.variational_module import INITIAL_SCALE, Variational
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import generators


def variational(
    network: nn.Module | BayesNet,
    *,
    estimator: str = "local",
    initial_scale: float = INITIAL_SCALE,
    density: float = 1.0,
    block: tuple[int, int] = (1, 1),
    generator: torch.Generator | None = None,
) -> Variational:
    """A mean-field law over a network's weights, to train in a loop of one's own.

    Args:
        network: A module, given the library's Gaussian prior (`gaussian_prior`), or a `BayesNet` whose weights are the
            prior, such as yesterday's posterior: Gaussian ones, or sparse ones, whose active weights stay the active
            ones. It is copied.
        estimator: "local", "flipout" or "weight": what is drawn at each step (see `Variational`).
        initial_scale: Standard deviations at the start, in units of the prior's.
        density: Share of the weights of each matrix that are active; `Subspace` exchanges them.
        block: Shape of the groups of weights that are active together.
        generator: Picks the active weights at the start.

    Raises:
        TypeError: The weights of a `BayesNet` are not Gaussian.

    >>> net, g = nn.Linear(3, 1), torch.Generator().manual_seed(0)
    >>> q = variational(net)
    >>> optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    >>> x, y = torch.ones(8, 3), torch.zeros(8, 1)
    >>> loss = (q(x, generator=g) - y).square().mean() + q.kl() / len(x)
    >>> loss.backward(); optimizer.step()
    >>> q.posterior()(x).mean.shape
    torch.Size([8, 1])
    """
    prior = network if isinstance(network, BayesNet) else gaussian_prior(network)
    trained = network.network if isinstance(network, BayesNet) else network
    weights = prior.weights
    if not isinstance(weights, GaussianWeights | SparseWeights):
        raise TypeError(
            f"`network` must have Gaussian weights to be a prior; got {type(weights).__name__}. Pass the module."
        )
    if isinstance(weights, SparseWeights):
        support = weights.support
    else:
        like = parameters(trained, weights.mean)
        support = random_support(like, density, block=block, generator=generators.given_or_fixed(generator))
    return Variational(trained, weights, estimator=estimator, initial_scale=initial_scale, support=support)
