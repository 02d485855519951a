"""Whether targets lie in the support of a likelihood."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.predictive import distribution_cdfs

LATENTS = (0.0, -10.0, 10.0)
"""Values of the latents at which the support is looked up: it may depend on them."""


def check_support(likelihood: Likelihood, y: Tensor, *, name: str) -> None:
    """Raise `ValueError` naming the first target outside the support of p(y | f); NaN is a missing one.

    Args:
        likelihood: The distribution of y given f.
        y: (n, t) or (n,) targets.
        name: Their name in the caller.

    Examples:
        >>> from bayeskit.core.likelihood import Poisson
        >>> check_support(Poisson(), torch.tensor([[2.0], [0.5]]), name="y")
        Traceback (most recent call last):
        ValueError: `y` must lie in the support of Poisson, integers from 0; got 0.5 in row 1
    """
    if not len(y):
        return
    likelihood = copy.deepcopy(likelihood).cpu().requires_grad_(False)
    targets = y.detach().cpu()
    supports = [_support(likelihood, likelihood.num_latents(targets), value) for value in LATENTS]
    inside = targets.isnan()
    for support in supports:
        inside = inside | support.check(targets)
    if not bool(inside.all()):
        place = (~inside).nonzero()[0]
        raise ValueError(
            f"`{name}` must lie in the support of {type(likelihood).__name__}, {_described(supports[0])}; "
            f"got {targets[tuple(place)].item():g} in row {int(place[0])}"
        )


def _support(likelihood: Likelihood, num_latents: int, value: float) -> Any:
    """The support of each output by itself."""
    f = torch.full((1, num_latents), value, dtype=torch.float64)
    with distribution_cdfs.unvalidated():
        support: Any = likelihood.distribution(f).support
    return getattr(support, "base_constraint", support)


def _described(support: Any) -> str:
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    kind = "integers" if getattr(support, "is_discrete", False) else "numbers"
    if low is not None:
        low, high = float(torch.as_tensor(low).min()), math.inf if high is None else float(torch.as_tensor(high).max())
        return f"{kind} from {low:g}" + (f" to {high:g}" if math.isfinite(high) else "")
    return "0 or 1" if support is constraints.boolean else kind
