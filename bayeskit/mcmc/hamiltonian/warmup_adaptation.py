"""What kernels of Hamiltonian kind learn while they burn in: step sizes, masses, and how long to move."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ROWS, MAX_NUMBERS = 2_000, 20_000_000
"""Draws of a window that are looked at, in rows and in numbers altogether: enough for spreads right to some percent."""

SHRINKAGE = 5.0
"""Draws that the variances of the window before count for."""


class DualAveraging:
    """Step sizes that bring an acceptance to its target, for any number of chains at once.

    With `H_t` the running mean of `target - acceptance`, `log e_t = log e_0 - sqrt(t) / gamma H_t`, and the answer is
    the average of these with weights that forget the beginning.

    Args:
        step_size: Where to start, (c,) or ().
        target: The acceptance aimed at.

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler, equation 6 and section 3.2.1. Steps are drawn towards
        the first one, not ten times that: a trajectory that fails costs as much as any, and a burn-in may be short.

    Examples:
        >>> tuner = DualAveraging(torch.tensor(4.0), target=0.8)
        >>> for _ in range(200):
        ...     tuner.update(torch.exp(-tuner.current))  # acceptance falls with the step
        >>> round(tuner.average.item(), 1)
        0.2
    """

    def __init__(self, step_size: Tensor, target: float):
        self.target, self.count = target, 0
        self.center = self.log_step = self.log_average = step_size.log()
        self.shortfall = torch.zeros_like(step_size)

    def update(self, acceptance: Tensor) -> None:
        """Learn from the acceptance probabilities that the current steps led to, shaped like them."""
        self.count += 1
        self.shortfall = self.shortfall + (self.target - acceptance - self.shortfall) / (self.count + 10)
        self.log_step = self.center - self.count**0.5 / 0.05 * self.shortfall
        self.log_average = self.log_average + self.count**-0.75 * (self.log_step - self.log_average)

    @property
    def current(self) -> Tensor:
        """The steps to take next."""
        return self.log_step.exp()

    @property
    def average(self) -> Tensor:
        """The steps to keep."""
        return self.log_average.exp()


LONG = 20
"""Steps of a window from which it may tell how much a draw depends on the one before."""

MANY_CHAINS = 10
"""Chains from which a window of ten steps teaches enough to be worth a new mass."""


def windows(num_steps: int, num_chains: int = 1) -> tuple[int, list[int], int]:
    """A burn-in in parts: steps until chains are roughly in place, windows, and steps to finish.

    After each window the mass is set from its draws; the first and the last part tune the step size alone. The windows
    of a few chains double (about). Those of many are short, for each widens what the next can see, up to the last one,
    which is half of them all.

    References:
        Stan Reference Manual, Hamiltonian Monte Carlo, automatic parameter tuning, for a few chains.

    Examples:
        >>> windows(200)
        (30, [10, 20, 40, 70], 30)
        >>> windows(200, num_chains=100)
        (30, [10, 10, 10, 10, 10, 10, 10, 70], 30)
    """
    first = last = min(75, round(0.15 * num_steps))
    middle, size, parts = num_steps - first - last, max(5, min(25, num_steps // 20)), []
    if num_chains >= MANY_CHAINS:
        parts = [10] * (middle // 20)
        return first, [*parts, middle - sum(parts)] if middle else [], last
    while middle >= 2.5 * size:  # the one after is to be longer than this one
        parts.append(size)
        middle, size = middle - size, 2 * size
    return first, [*parts, middle] if middle else parts, last


class Window:
    """The draws of a window, as many as are worth looking at.

    Args:
        num_chains: Chains c.
        dimension: Numbers p of each.
        num_steps: Steps that the window will have.
    """

    def __init__(self, num_chains: int, dimension: int, num_steps: int):
        rows = max(2 * num_chains, min(MAX_ROWS, MAX_NUMBERS // dimension))
        self.stride = math.ceil(num_chains * num_steps / rows)
        self.count, self.draws = 0, []

    def add(self, point: Tensor) -> None:
        """Take in the positions (c, p) after a step."""
        self.count += 1
        if self.count % self.stride == 0:
            self.draws.append(point)
        if self.count == 1:
            self._first, self._before = point, torch.zeros_like(point)
            self._sums = torch.zeros(3, *point.shape, dtype=point.dtype, device=point.device)
        here = point - self._first
        self._sums = self._sums + torch.stack([here, here.square(), here * self._before])
        self._before = here

    def geometry(self, inverse_mass: Tensor | None, *, dense: bool | None) -> "Geometry":
        """What the draws say about the shape of the law."""
        return Geometry.of(torch.stack(self.draws, dim=1), inverse_mass, dense=dense)

    def autocorrelation(self) -> float:
        """The largest correlation of any number with itself one step before, within chains; 0 for a constant.

        On a Gaussian whose trajectories last a quarter of a period there is none but for rejections.

        Examples:
            >>> g, slow = torch.Generator().manual_seed(0), Window(50, 1, 100)
            >>> point = torch.zeros(50, 1)
            >>> for _ in range(100):
            ...     point = 0.8 * point + torch.randn(50, 1, generator=g)
            ...     slow.add(point)
            >>> 0.7 < slow.autocorrelation() < 0.85
            True
        """
        mean, square, lagged = (total / self.count for total in self._sums)
        together = (lagged * self.count / max(1, self.count - 1) - mean.square()).mean(0)
        spread = (square - mean.square()).mean(0)
        return torch.where(spread > 0, together / spread, 0.0).max().item()


MAX_DENSE = 100
"""Numbers of a chain up to which a whole mass matrix is learnt if the draws allow."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """The shape of a law as some draws show it.

    Args:
        inverse_mass: Variances (p,) or covariance (p, p).
        stretch: The largest standard deviation of any direction in units of that mass.
    """

    inverse_mass: Tensor
    stretch: float

    @classmethod
    def of(cls, draws: Tensor, before: Tensor | None, *, dense: bool | None) -> "Geometry":
        """From draws (c, n, p) of all chains together.

        Variances are shrunk a little towards `before`. The covariance is taken if `dense`, or, with None, if p is at
        most `MAX_DENSE` and there are ten draws for each of the p numbers.
        """
        chains, length, dimension = draws.shape
        number = chains * length
        deviations = draws - draws.mean((0, 1))
        rows = deviations.flatten(0, 1)
        prior = torch.ones_like(rows[0]) if before is None else before
        known = number / (number + SHRINKAGE)
        if dense or (dense is None and dimension <= MAX_DENSE and number >= 10 * dimension):
            whole = prior if prior.ndim == 2 else prior.diag()
            return cls(known * (rows.mT @ rows) / number + (1 - known) * whole, 1.0)
        variances = known * rows.square().mean(0) + (1 - known) * (prior.diagonal() if prior.ndim == 2 else prior)
        return cls(variances, _stretch(deviations * variances.rsqrt()))


def _stretch(units: Tensor, num_iterations: int = 20) -> float:
    """The standard deviation (at least 1) of draws (c, n, p) of unit variances along their first principal direction.

    The direction is found from one half of the draws and its variance measured on the other: with fewer draws than
    dimensions the largest eigenvalue of all would tell of noise.
    """
    axis = 0 if units.shape[0] > 1 else 1
    if units.shape[axis] < 2:
        return 1.0
    half = units.shape[axis] // 2
    halves = [part.flatten(0, 1) for part in (units.narrow(axis, 0, half), units.narrow(axis, half, half))]
    found = []
    for one, other in (halves, halves[::-1]):
        direction = one.square().sum(-1) @ one  # a start that leans towards far-out draws
        for _ in range(num_iterations):
            direction = direction / direction.norm().clamp_min(torch.finfo(one.dtype).tiny)
            direction = (one @ direction) @ one
        direction = direction / direction.norm().clamp_min(torch.finfo(one.dtype).tiny)
        found.append((other @ direction).square().mean())
    return max(1.0, torch.stack(found).mean().sqrt().item())
