"""A full covariance over few single weights of a network, the others fixed.

References:
    Daxberger, Nalisnick, Allingham, Antoran, Hernandez-Lobato. Bayesian deep learning via subnetwork inference. ICML
    2021, section 5: of all sets of so many weights, those of largest marginal variance lose least in Wasserstein
    distance, the variances being taken as if weights were independent.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bayeskit.bnn.curvature import ggn as curvatures
from bayeskit.bnn.laplace_approximation.log_joint import Problem
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.core.inputs import Batch
from bayeskit.core.types import Params


@dataclass(frozen=True, eq=False)
class SubnetworkFunction:
    """`f(w, x)` of some of a network's weights, the others fixed.

    Args:
        function: Of all p weights.
        rest: All of them, (p,).
        index: Positions of those that vary, (a,).

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> whole = NetworkFunction(layer, {"weight": torch.zeros(1, 2)})
    >>> f = SubnetworkFunction(whole, torch.tensor([3.0, 5.0]), torch.tensor([1]))
    >>> f(torch.tensor([7.0]), torch.ones(1, 2)).tolist()
    [[10.0]]
    """

    function: NetworkFunction
    rest: Tensor
    index: Tensor

    @property
    def network(self) -> nn.Module:
        """The network that is called."""
        return self.function.network

    @property
    def like(self) -> Params:
        """The weights that vary, under one name that no layer has."""
        return {"chosen weights": self.rest[self.index]}

    @property
    def num_weights(self) -> int:
        """Length of the gradient of an output, before the entries of the fixed weights are dropped."""
        return len(self.rest)

    def __call__(self, weights: Tensor, x: Batch) -> Tensor:
        """Outputs (n, k) at inputs (n, *input_shape) for weights (a,)."""
        return self.function(self.rest.to(weights).index_copy(0, self.index, weights), x)


def most_uncertain(problem: Problem, count: int, precision: float) -> Tensor:
    """Positions of the weights of largest marginal variance `1 / (H_ii + d P_ii)` in a diagonal posterior, ascending.

    Args:
        problem: Over all the weights.
        count: How many to choose.
        precision: d, the factor on the prior's precision under which the network was trained.
    """
    flat = problem.start.to(problem.dtype)
    diagonal = curvatures.diagonal(problem.function, flat, problem.data, problem.likelihood).diagonal
    base = problem.prior.base
    assert isinstance(base, Tensor)
    own = base if base.ndim == 1 else base.diagonal()
    return (diagonal + precision * own).argsort(stable=True)[:count].sort().values


def restricted(problem: Problem, index: Tensor) -> Problem:
    """The same problem over the weights at these positions, given the others."""
    base, function = problem.prior.base, problem.function
    assert isinstance(base, Tensor) and isinstance(function, NetworkFunction)
    prior = replace(
        problem.prior, base=base[index] if base.ndim == 1 else base[index][:, index], groups=problem.prior.groups[index]
    )
    some = SubnetworkFunction(function, problem.start.to(problem.dtype), index)
    return replace(problem, function=some, center=problem.center[index], prior=prior, start=problem.start[index])


def by_parameter(index: Tensor, like: Params) -> dict[str, int]:
    """How many of the positions lie in each parameter."""
    owner = torch.cat([torch.full((value.numel(),), i) for i, value in enumerate(like.values())]).to(index.device)
    return dict(zip(like, owner[index].bincount(minlength=len(like)).tolist(), strict=True))
