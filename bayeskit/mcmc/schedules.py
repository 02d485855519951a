"""Step sizes that change on the way: multipliers of `lr` by the number of steps taken."""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]
"""Maps the number of steps taken to a multiplier of the step size `lr`."""


@dataclass(frozen=True)
class polynomial_decay:
    """The schedule `(1 + t / delay)^-power`, whose steps sum to infinity and, for power > 1/2, their squares do not.

    Args:
        delay: Steps before the decay sets in.
        power: In (1/2, 1] for draws that become exact; 1/3 is best for the mean squared error of an average.

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
