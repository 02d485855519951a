"""BatchBALD: greedy choice of a batch by its joint mutual information with the function."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bayeskit.active import function_draws
from bayeskit.active.conditional import GaussianGains, LabelGains, SimulatedGains
from bayeskit.core import checks, generators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.posterior import FunctionValues, GaussianValues

ROUNDING = 1e-6
"""Gains below this share of the largest first one are rounding."""

BLOCK = 64
"""Inputs whose gains are computed together: few enough that lazy evaluation skips most of a pool."""


class Batch(NamedTuple):
    """Inputs chosen, in the order in which they were chosen, with what each scored."""

    indices: Tensor
    scores: Tensor


class Gains(Protocol):
    """The information gain of each of n labels, given those taken so far."""

    def gains(self, index: Tensor) -> Tensor:
        """I(y_i; f | labels taken) at some of the inputs, (m,) for (m,)."""
        ...

    def take(self, index: int) -> None:
        """Add a label to those taken; its value is not known yet."""
        ...


def batch_bald(
    values: FunctionValues, likelihood: Likelihood, batch_size: int, *, generator: torch.Generator | None = None
) -> Batch:
    """A batch chosen greedily by the mutual information of its labels and the function, I(y_1, ..., y_b; f).

    Each step takes the input with the largest I(y_i; f | y_1, ..., y_b), so the scores of the first b add up to the
    information of the first b labels together. The information is submodular: the greedy batch has at least 1 - 1/e of
    the most that any batch of its size has. Closed form for Gaussian values under Gaussian noise,
    log det(I + K_b / noise) / 2. Otherwise over functions drawn jointly: all outcomes of the batch while there are few,
    then outcomes drawn from the model. The information of a batch over s draws is at most log s, so scores fall to zero
    in a large batch, and the rest is taken by the information of each label alone.

    Args:
        values: Joint distribution of the function at n inputs.
        likelihood: p(y | f).
        batch_size: b, at most n.
        generator: Source of the draws; None starts one at seed 0.

    Returns:
        Indices (b,), none twice, and scores (b,) in nats.

    References:
        Kirsch, van Amersfoort and Gal (2019), BatchBALD: efficient and diverse batch acquisition for deep Bayesian
        active learning, NeurIPS 32, sections 3 and 4.

    Examples:
        >>> from linear_operator import to_linear_operator
        >>> from bayeskit.core.likelihood import Gaussian
        >>> K = to_linear_operator(torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))  # one input twice
        >>> batch_bald(GaussianValues(torch.zeros(3, 1), K), Gaussian(1.0), 2).indices
        tensor([0, 2])
    """
    n = values.mean.shape[-2]
    checks.positive(batch_size, name="batch_size", integer=True)
    if batch_size > n:
        raise ValueError(f"`batch_size` must be at most the number of inputs, {n}; got {batch_size}")
    state = _state(values, likelihood, generators.given_or_fixed(generator))
    alone = state.gains(torch.arange(n, device=values.mean.device)).double().cpu()
    bounds = alone.clone()  # the information is submodular: a gain never grows as labels are taken
    index = int(alone.argmax())
    indices, scores = [index], [float(alone[index])]
    while len(indices) < batch_size:
        state.take(index)
        bounds[indices] = -torch.inf
        best, gain = _next(state, bounds)
        told_apart = gain > ROUNDING * scores[0]
        index = best if told_apart else int(torch.where(bounds.isinf(), -torch.inf, alone).argmax())
        indices.append(index)
        scores.append(float(bounds[index]) if told_apart else max(0.0, float(state.gains(torch.tensor([index])))))
    return Batch(torch.tensor(indices), torch.tensor(scores, dtype=torch.float64))


def _next(state: Gains, bounds: Tensor) -> tuple[int, float]:
    """The input with the largest gain, and that gain, by lazy evaluation in the order of the bounds (n,).

    The bounds of those evaluated become their gains.
    """
    order = bounds.argsort(descending=True, stable=True)
    order = order[~bounds[order].isinf()]
    best, gain = int(order[0]), -float("inf")
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        if float(bounds[block[0]]) <= gain:
            break
        bounds[block] = state.gains(block).double().cpu()
        place = int(bounds[block].argmax())
        if float(bounds[block[place]]) > gain:
            best, gain = int(block[place]), float(bounds[block[place]])
    return best, gain


def _state(values: FunctionValues, likelihood: Likelihood, generator: torch.Generator) -> Gains:
    if isinstance(values, GaussianValues) and likelihood.noise_variance is not None:
        return GaussianGains(values, likelihood.noise_variance)
    functions = function_draws.joint(values, likelihood, generator=generator)
    if likelihood.has_labels:
        return LabelGains(functions, generator=generator)
    return SimulatedGains(functions, generator=generator)
