"""Whether targets, and a prior's outputs, are what a likelihood needs."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from bayeskit.core import checks
from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.predictive import distribution_cdfs

LATENTS = (0.0, -10.0, 10.0)
"""Values of the latents at which the support is looked up: it may depend on them."""


def check_support(likelihood: Likelihood, y: Tensor, *, name: str) -> None:
    """Raise `ValueError` unless targets have a shape of p(y | f), are finite and lie in its support.

    Args:
        likelihood: The distribution of y given f.
        y: (n, t) or (n,) targets, where NaN is a missing one; (n,) class codes, none missing.
        name: Their name in the caller.

    Raises:
        ValueError: Another shape, an infinite target, or one outside the support: the first is named with its row.

    Examples:
        >>> from bayeskit.core.likelihood import Poisson
        >>> check_support(Poisson(), torch.tensor([[2.0], [0.5]]), name="y")
        Traceback (most recent call last):
        ValueError: `y` must lie in the support of Poisson, integers from 0; got 0.5 in row 1
    """
    if likelihood.has_labels and y.ndim != 1:
        raise ValueError(f"`{name}` must hold one class code for each row, (n,); got shape {tuple(y.shape)}")
    if y.ndim not in (1, 2):
        raise ValueError(f"`{name}` must have shape (n, t) for t outputs; got {tuple(y.shape)}")
    checks.finite(y if likelihood.has_labels else y.masked_fill(y.isnan(), 0), name=name)
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


def check_outputs(likelihood: Likelihood, y: Tensor, num_outputs: int) -> None:
    """Raise `ValueError` unless a function of `num_outputs` outputs has the latents that p(y | f) needs.

    Args:
        likelihood: The distribution of y given f.
        y: (n, t) or (n,) targets.
        num_outputs: Outputs k of the prior.

    Examples:
        >>> from bayeskit.core.likelihood import Categorical
        >>> check_outputs(Categorical(3), torch.tensor([0, 2]), 1)
        Traceback (most recent call last):
        ValueError: Categorical needs 3 latent functions for these targets; the prior has `num_outputs=1`
    """
    needed = likelihood.num_latents(y)
    if len(y) and num_outputs != needed:
        raise ValueError(
            f"{type(likelihood).__name__} needs {needed} latent functions for these targets; the prior has "
            f"`num_outputs={num_outputs}`"
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
