"""Adaptation of step size and mass matrix in the burn-in of Hamiltonian kernels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ROWS, MAX_NUMBERS = 2_000, 20_000_000
"""Largest number of draws of a window that are kept, in rows and in numbers: standard deviations to a few percent."""

SHRINKAGE = 5.0
"""Number of draws by which the variances of the previous window are weighted."""


class DualAveraging:
    """Dual averaging of step sizes towards a target acceptance, for any number of chains at once.

    With `H_t` the running mean of `target - acceptance`, `log e_t = log e_0 - sqrt(t) / gamma H_t`; the result is
    their average with weights that decrease into the past.

    Args:
        step_size: The first step size, (c,) or ().
        target: The target acceptance.

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler, equation 6 and section 3.2.1. Steps are shrunk towards
        the first one, not ten times that: a rejected trajectory costs as much as any, and a burn-in may be short.

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
        """Update by the acceptance probabilities of the current step sizes, shaped like them."""
        self.count += 1
        self.shortfall = self.shortfall + (self.target - acceptance - self.shortfall) / (self.count + 10)
        self.log_step = self.center - self.count**0.5 / 0.05 * self.shortfall
        self.log_average = self.log_average + self.count**-0.75 * (self.log_step - self.log_average)

    @property
    def current(self) -> Tensor:
        """The step sizes to use next."""
        return self.log_step.exp()

    @property
    def average(self) -> Tensor:
        """The step sizes to keep after the adaptation."""
        return self.log_average.exp()


LONG = 20
"""Steps of a window needed to estimate the autocorrelation of its draws."""

MANY_CHAINS = 10
"""Number of chains with which a window of ten steps is enough to estimate the mass anew."""


def windows(num_steps: int, num_chains: int = 1) -> tuple[int, list[int], int]:
    """The phases of a burn-in: steps towards the typical set, windows, and steps that tune the step size alone.

    After each window the mass is set from its draws; the first and the last phase tune the step size alone. With few
    chains windows double (about). With many they are short, because each improves the mass of the next, except the
    last one, which is half of all steps.

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
    """The draws of a window, thinned to a bounded number.

    Args:
        num_chains: Chains c.
        dimension: Parameters p of each.
        num_steps: Steps of the window.
    """

    def __init__(self, num_chains: int, dimension: int, num_steps: int):
        rows = max(2 * num_chains, min(MAX_ROWS, MAX_NUMBERS // dimension))
        self.stride = math.ceil(num_chains * num_steps / rows)
        self.count, self.draws = 0, []

    def add(self, point: Tensor) -> None:
        """Add the positions (c, p) after a step."""
        self.count += 1
        if self.count % self.stride == 0:
            self.draws.append(point)
        if self.count == 1:
            self._first, self._before = point, torch.zeros_like(point)
            self._sums = torch.zeros(3, *point.shape, dtype=point.dtype, device=point.device)
        here = point - self._first
        self._sums = self._sums + torch.stack([here, here.square(), here * self._before])
        self._before = here

    def mass_estimate(self, inverse_mass: Tensor | None, *, dense: bool | None) -> "MassEstimate":
        """The mass estimated from the draws."""
        return MassEstimate.from_draws(torch.stack(self.draws, dim=1), inverse_mass, dense=dense)

    def autocorrelation(self) -> float:
        """The largest lag-one autocorrelation of any parameter, within chains; 0 for a constant.

        On a Gaussian with trajectories of a quarter of a period, only rejections make it positive.

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
"""Largest number of parameters for which a dense mass matrix is estimated if the draws are enough."""


@dataclass(frozen=True, eq=False)
class MassEstimate:
    """An inverse mass estimated from draws.

    Args:
        inverse_mass: Variances (p,) or covariance (p, p).
        largest_std: The largest standard deviation of any direction after scaling by that mass.
    """

    inverse_mass: Tensor
    largest_std: float

    @classmethod
    def from_draws(cls, draws: Tensor, previous: Tensor | None, *, dense: bool | None) -> "MassEstimate":
        """The estimate from draws (c, n, p), pooled over chains.

        Variances are shrunk a little towards `previous`. The covariance is taken if `dense`, or, with None, if p is at
        most `MAX_DENSE` and there are ten draws for each of the p parameters.
        """
        chains, length, dimension = draws.shape
        number = chains * length
        deviations = draws - draws.mean((0, 1))
        rows = deviations.flatten(0, 1)
        prior = torch.ones_like(rows[0]) if previous is None else previous
        weight = number / (number + SHRINKAGE)
        if dense or (dense is None and dimension <= MAX_DENSE and number >= 10 * dimension):
            covariance = prior if prior.ndim == 2 else prior.diag()
            return cls(weight * (rows.mT @ rows) / number + (1 - weight) * covariance, 1.0)
        variances = weight * rows.square().mean(0) + (1 - weight) * (prior.diagonal() if prior.ndim == 2 else prior)
        return cls(variances, _largest_std(deviations * variances.rsqrt()))


def _largest_std(standardized: Tensor, num_iterations: int = 20) -> float:
    """The standard deviation (at least 1) of standardized draws (c, n, p) along their first principal component.

    The component is found from one half of the draws and its variance estimated from the other: with fewer draws than
    dimensions the largest eigenvalue of the sample correlation would be mostly noise.
    """
    axis = 0 if standardized.shape[0] > 1 else 1
    if standardized.shape[axis] < 2:
        return 1.0
    half = standardized.shape[axis] // 2
    parts = (standardized.narrow(axis, 0, half), standardized.narrow(axis, half, half))
    halves = [part.flatten(0, 1) for part in parts]
    found = []
    for one, other in (halves, halves[::-1]):
        direction = one.square().sum(-1) @ one  # weighted towards draws of large norm
        for _ in range(num_iterations):
            direction = direction / direction.norm().clamp_min(torch.finfo(one.dtype).tiny)
            direction = (one @ direction) @ one
        direction = direction / direction.norm().clamp_min(torch.finfo(one.dtype).tiny)
        found.append((other @ direction).square().mean())
    return max(1.0, torch.stack(found).mean().sqrt().item())
