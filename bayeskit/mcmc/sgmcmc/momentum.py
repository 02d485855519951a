"""Momenta of unit mass, shared by the underdamped kernels.

In time t, with friction c and temperature T, `dq = p dt` and `dp = (g - c p) dt + N(0, 2 c T dt)`. A step of duration h
is parametrized by `lr = h^2` and `momentum = 1 - c h`, the learning rate and the momentum of gradient descent, to which
it reduces at T = 0.
"""

from dataclasses import dataclass

import torch

from bayeskit.core import generators
from bayeskit.mcmc.base.log_density import Position


@dataclass(frozen=True, eq=False)
class MomentumState:
    """Positions and momenta of the chains.

    Args:
        position: Leaves (c, *shape).
        momentum: Leaves (c, *shape), N(0, T) in equilibrium, preconditioned.
        lr: The squared duration of a step before the schedule's multiplier.
        count: Steps taken.
    """

    position: Position
    momentum: Position
    lr: float
    count: int = 0


def start(
    position: Position, lr: float, *, momentum: float, temperature: float, generator: torch.Generator
) -> MomentumState:
    """Chains at `position` with momenta drawn from their stationary distribution, N(0, T).

    Raises:
        ValueError: `momentum` is not in [0, 1).
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be at least 0 and less than 1; got {momentum!r}")
    momenta = {
        name: temperature**0.5 * generators.normal(leaf.shape, like=leaf, generator=generator)
        if temperature > 0
        else torch.zeros_like(leaf)
        for name, leaf in position.items()
    }
    return MomentumState(position, momenta, lr)


def duration_and_friction(size: float, lr: float, momentum: float) -> tuple[float, float]:
    """The duration h of a step with step size `size`, and the fraction of the momentum that it removes.

    When a schedule changes the step size from `lr` to `m lr`, the duration and the fraction both change by sqrt(m), so
    the friction per unit of time stays the same.

    >>> duration_and_friction(0.25, 1.0, 0.5)
    (0.5, 0.25)
    """
    return size**0.5, (1 - momentum) * (size / lr) ** 0.5
