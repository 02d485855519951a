"""The leapfrog integrator of Hamiltonian dynamics, for many chains at once."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayeskit.core import generators
from bayeskit.mcmc.base.log_density import LogDensity, Position, unravel, value_and_gradient


@dataclass(frozen=True, eq=False)
class HMCState:
    """The chains between two trajectories.

    Args:
        position: Leaves (c, *shape).
        log_density: (c,).
        gradient: Of the log density, (c, p).
    """

    position: Position
    log_density: Tensor
    gradient: Tensor


class PhasePoint(NamedTuple):
    """A point of each chain's trajectory in phase space.

    Args:
        position: (c, p).
        momentum: (c, p).
        log_density: (c,).
        gradient: Of the log density, (c, p).
    """

    position: Tensor
    momentum: Tensor
    log_density: Tensor
    gradient: Tensor


def draw_momentum(position: Tensor, inverse_mass: Tensor | None, *, generator: torch.Generator) -> Tensor:
    """Momenta (c, p) from N(0, M) for an inverse mass None (ones), (p,) or (p, p)."""
    z = generators.normal(position.shape, like=position, generator=generator)
    if inverse_mass is None:
        return z
    if inverse_mass.ndim == 1:
        return z * inverse_mass.rsqrt()
    root = torch.linalg.cholesky(inverse_mass)  # S = L L', so L^-T z has covariance S^-1
    return torch.linalg.solve_triangular(root.mT, z.mT, upper=True).mT


def velocity(momentum: Tensor, inverse_mass: Tensor | None) -> Tensor:
    """`M^-1 p` for momenta (c, p) and an inverse mass None (ones), (p,) or (p, p)."""
    if inverse_mass is None:
        return momentum
    return momentum * inverse_mass if inverse_mass.ndim == 1 else momentum @ inverse_mass


def energy(point: PhasePoint, inverse_mass: Tensor | None) -> Tensor:
    """Potential plus kinetic energy of each chain, (c,), in float64: only differences of large numbers matter."""
    kinetic = 0.5 * (point.momentum * velocity(point.momentum, inverse_mass)).sum(-1, dtype=torch.float64)
    return kinetic - point.log_density.double()


def leapfrog(
    log_density: LogDensity,
    start: PhasePoint,
    step_size: Tensor | float,
    *,
    num_steps: int,
    inverse_mass: Tensor | None,
    like: Position,
) -> PhasePoint:
    """The ends of the trajectories after some leapfrog steps.

    Half a momentum step, position and momentum steps in turn, half a momentum step: reversible (on negating the
    momentum), volume-preserving, with an energy error of second order in the step size.

    Args:
        log_density: Maps leaves (c, *shape) to (c,).
        start: The beginning of each trajectory.
        step_size: (c, 1) or one number.
        num_steps: Number of steps, one gradient each.
        inverse_mass: None, (p,) or (p, p).
        like: Leaves (c, *shape) with the names and shapes that the log density takes.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, equations 18 to 20.

    Examples:
        >>> import torch
        >>> like = {"x": torch.ones(1, 1)}
        >>> start = PhasePoint(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([-0.5]), torch.tensor([[-1.0]]))
        >>> end = leapfrog(
        ...     lambda q: -0.5 * q["x"][:, 0] ** 2, start, 0.01, num_steps=314, inverse_mass=None, like=like
        ... )
        >>> round(end.position.item(), 3)  # half a period
        -1.0
    """
    position, momentum, value, gradient = start
    momentum = momentum + 0.5 * step_size * gradient
    for i in range(num_steps):
        position = position + step_size * velocity(momentum, inverse_mass)
        value, gradient = density_and_gradient(log_density, position, like)
        momentum = momentum + (step_size if i < num_steps - 1 else 0.5 * step_size) * gradient
    return PhasePoint(position, momentum, value, gradient)


def density_and_gradient(log_density: LogDensity, position: Tensor, like: Position) -> tuple[Tensor, Tensor]:
    """Log densities (c,) and gradients (c, p) at positions (c, p).

    >>> import torch
    >>> density_and_gradient(lambda q: -0.5 * q["x"] ** 2, torch.tensor([[2.0]]), {"x": torch.ones(1)})[1]
    tensor([[-2.]])
    """
    value, gradients = value_and_gradient(lambda q: log_density(unravel(q["flat"], like)), {"flat": position})
    return value, gradients["flat"]
