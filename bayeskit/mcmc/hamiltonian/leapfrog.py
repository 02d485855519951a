"""Leapfrog steps of many chains at once."""

from typing import NamedTuple

from torch import Tensor

from bayeskit.mcmc.base.log_density import LogDensity, Position, unravel, value_and_gradient


class Path(NamedTuple):
    """A point of each chain's trajectory.

    Args:
        point: (c, p).
        momentum: (c, p).
        value: Log density there, (c,).
        slope: Its gradient, (c, p).
    """

    point: Tensor
    momentum: Tensor
    value: Tensor
    slope: Tensor


def velocity(momentum: Tensor, inverse_mass: Tensor | None) -> Tensor:
    """`M^-1 p` for momenta (c, p) and an inverse mass None (ones), (p,) or (p, p)."""
    if inverse_mass is None:
        return momentum
    return momentum * inverse_mass if inverse_mass.ndim == 1 else momentum @ inverse_mass


def leapfrog(
    log_density: LogDensity,
    path: Path,
    step_size: Tensor | float,
    *,
    num_steps: int,
    inverse_mass: Tensor | None,
    like: Position,
) -> Path:
    """The trajectories after some leapfrog steps: half a kick, drift and kick in turn, half a kick.

    Reversible (turn the momentum round and come back), volume-preserving, and off by the square of the step in energy.

    Args:
        log_density: Maps leaves (c, *shape) to (c,).
        path: Where the chains are.
        step_size: (c, 1) or one number.
        num_steps: Number of steps, one gradient each.
        inverse_mass: None, (p,) or (p, p).
        like: Leaves (c, *shape) whose names and shapes the log density knows.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, equations 18 to 20.

    Examples:
        >>> import torch
        >>> like = {"x": torch.ones(1, 1)}
        >>> start = Path(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([-0.5]), torch.tensor([[-1.0]]))
        >>> end = leapfrog(
        ...     lambda q: -0.5 * q["x"][:, 0] ** 2, start, 0.01, num_steps=314, inverse_mass=None, like=like
        ... )
        >>> round(end.point.item(), 3)  # half a turn
        -1.0
    """
    point, momentum, value, slope = path
    momentum = momentum + 0.5 * step_size * slope
    for i in range(num_steps):
        point = point + step_size * velocity(momentum, inverse_mass)
        value, slope = slope_at(log_density, point, like)
        momentum = momentum + (step_size if i < num_steps - 1 else 0.5 * step_size) * slope
    return Path(point, momentum, value, slope)


def slope_at(log_density: LogDensity, point: Tensor, like: Position) -> tuple[Tensor, Tensor]:
    """Log densities (c,) and gradients (c, p) at points (c, p).

    >>> import torch
    >>> slope_at(lambda q: -0.5 * q["x"] ** 2, torch.tensor([[2.0]]), {"x": torch.ones(1)})[1]
    tensor([[-2.]])
    """
    value, slopes = value_and_gradient(lambda q: log_density(unravel(q["point"], like)), {"point": point})
    return value, slopes["point"]
