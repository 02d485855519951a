"""Momenta of unit mass: what the kernels that have one share.

In time t, with friction c and temperature T, `dq = p dt` and `dp = (g - c p) dt + N(0, 2 c T dt)`. A step of duration h
is told by `lr = h^2` and `momentum = 1 - c h`, the learning rate and the momentum of gradient descent: at T = 0 it is
that.
"""

from dataclasses import dataclass

import torch

from bayeskit.core import generators
from bayeskit.mcmc.base.log_density import Position


@dataclass(frozen=True, eq=False)
class MomentumState:
    """Where the chains are and where they are going.

    Args:
        position: Leaves (c, *shape).
        momentum: Leaves (c, *shape), of law N(0, T) in equilibrium, in the units of the kernel's `scale`.
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
    """Chains at `position` with momenta drawn from their law, N(0, T).

    Raises:
        ValueError: `momentum` is not a share.
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
    """The duration h of a step with step size `size`, and the share of the momentum that it takes away.

    A schedule shortens time: when the step size goes from `lr` to `m lr`, durations go down by sqrt(m) and so does what
    is lost in a step, which leaves the friction in time as it is.

    >>> duration_and_friction(0.25, 1.0, 0.5)
    (0.5, 0.25)
    """
    return size**0.5, (1 - momentum) * (size / lr) ** 0.5
