"""The weighted likelihood bootstrap: the best network for each of several random weightings of the rows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.bnn.methods.map import MAP
from bayeskit.bnn.pushforward.bayes_net import BayesNet, MonteCarlo
from bayeskit.bnn.weights.weight_posterior import SampledWeights
from bayeskit.core import checks
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data, Params


@dataclass(eq=False, repr=False)
class Bootstrap(Inference):
    """Networks trained on randomly weighted rows; the posterior is the uniform distribution over them.

    Member j maximizes `sum_i u_ij log p(y_i | f(x_i; w)) + log p(w)` with `u_j = n Dirichlet(1, ..., 1)`. Every member
    starts from the same weights, so their spread is due to the data and not to the start.

    Args:
        num_members: Number of networks.
        training: Settings of the training loop; None for those of `MAP`.

    References:
        Newton and Raftery (1994), Approximate Bayesian inference with the weighted likelihood bootstrap, section 2.
    """

    num_members: int = 10
    training: Training | None = None

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "draws"
    quick: ClassVar[Mapping[str, Any]] = {"num_members": 3, "training": Training(lr=2e-2, max_epochs=15)}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train once on all rows, which also learns the noise, and once for each weighting."""
        self.check(prior, likelihood, data)
        checks.positive(self.num_members, name="num_members", integer=True)
        method = MAP(training=self.training)
        whole = method.infer(prior, likelihood, data, generator=generator)
        noise = whole.likelihood.requires_grad_(False)
        members = []
        for _ in range(self.num_members):
            weighted = replace(data, weights=_weights(data, generator))
            members.append(_network(method.infer(prior, noise, weighted, generator=generator)))
        draws = _stack([member.weights.mean for member in members])
        buffers = _stack([dict(member.network.named_buffers()) for member in members])
        posterior = BayesNet(members[0].network, SampledWeights(draws, buffers), MonteCarlo())
        return Fit(posterior, noise, history=whole.history)


def _weights(data: Data, generator: torch.Generator) -> Tensor:
    """Case weights times a draw of `n Dirichlet(1, ..., 1)`: exponentials over their mean, (n,)."""
    u = torch.empty(len(data), dtype=torch.float64, device=generator.device).exponential_(generator=generator)
    u = (u / u.mean()).to(data.y.device)
    return u if data.weights is None else u * data.weights


def _network(fit: Fit) -> BayesNet:
    assert isinstance(fit.posterior, BayesNet)
    return fit.posterior


def _stack(members: list[Params]) -> Params:
    """The members' tensors side by side, leaves (s, *shape)."""
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}
