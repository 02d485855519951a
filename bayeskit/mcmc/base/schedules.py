"""Step-size schedules: multipliers of `lr` as functions of the number of steps taken."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from bayeskit.core import checks

Schedule = Callable[[int], float]
"""Maps the number of steps taken to a multiplier of the step size `lr`; `cosine_cycles` changes the temperature too."""


@dataclass(frozen=True)
class polynomial_decay:
    """The schedule `(1 + t / delay)^-power`: the sum of steps diverges and, for power > 1/2, that of squares converges.

    Args:
        delay: Steps before the decay sets in.
        power: In (1/2, 1] for convergence to the exact distribution; 1/3 minimizes the mean squared error of averages.

    References:
        Welling and Teh (2011), section 3; Teh, Thiery and Vollmer (2016), Consistency and fluctuations for stochastic
        gradient Langevin dynamics, section 5.

    Examples:
        >>> polynomial_decay(delay=10, power=1.0)(10)
        0.5
    """

    delay: float = 1000.0
    power: float = 0.55

    def __call__(self, step: int) -> float:
        """The multiplier after `step` steps."""
        return (1 + step / self.delay) ** -self.power


@dataclass(frozen=True)
class cosine_cycles:
    """The cyclical schedule `(1 + cos(pi r)) / 2`, with r from 0 to 1 in each cycle: exploration, then sampling.

    In the first part of each cycle, `exploration`, a kernel runs at temperature 0 and searches for another mode. In the
    rest it samples; `mcmc.run` keeps draws of this part only.

    Args:
        length: Steps in a cycle.
        exploration: Fraction of a cycle at temperature 0.
        floor: Smallest multiplier, so that steps at the end of a cycle do not vanish.

    References:
        Zhang, Li, Zhang, Chen and Wilson (2020), Cyclical stochastic gradient MCMC for Bayesian deep learning,
        equation 1 and algorithm 1.

    Examples:
        >>> schedule = cosine_cycles(length=4)
        >>> [round(schedule(step), 2) for step in range(5)]
        [1.0, 0.85, 0.5, 0.15, 1.0]
        >>> [schedule.explores(step) for step in range(5)]
        [True, True, False, False, True]
    """

    length: int
    exploration: float = 0.5
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that are out of range."""
        checks.positive(self.length, name="length", integer=True)
        for name in ("exploration", "floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and less than 1; got {getattr(self, name)!r}")

    def __call__(self, step: int) -> float:
        """The multiplier after `step` steps."""
        return max(self.floor, (1 + math.cos(math.pi * (step % self.length) / self.length)) / 2)

    def explores(self, step: int) -> bool:
        """Whether the step that follows `step` others searches rather than samples."""
        return step % self.length < self.exploration * self.length
