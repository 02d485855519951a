"""Damped natural-gradient ascent: step, halve the step where the bound falls, stop where nothing is gained."""

from dataclasses import dataclass
from typing import Generic, Literal, Protocol, Self, TypeVar

SMALL_STEP = 1e-3
"""Step length at which a step that loses less than this share of the value has only rounding left to gain."""

SMALLEST_STEP = 1e-9
"""Step length at which the search ends whatever is lost: from a mean of 0, counts near 10^6 ask for one of 10^-5."""


class AscentState(Protocol):
    """A variational distribution and its objective; `propose` returns a new state and leaves this one as it is."""

    @property
    def value(self) -> float:
        """The objective to maximize."""
        ...

    def propose(self, length: float) -> Self:
        """The state after a natural-gradient step of this length: this one at 0, the target of a full step at 1."""
        ...


State = TypeVar("State", bound=AscentState)


@dataclass(frozen=True)
class Ascent(Generic[State]):
    """The result of `natural_gradient_ascent`.

    Args:
        state: The best state found.
        steps: Number of steps taken.
        length: Step length to start from if the ascent is continued.
        stopped: "converged" (the last step gained less than the tolerance), "no step improves" or "max_steps".
    """

    state: State
    steps: int
    length: float
    stopped: Literal["converged", "no step improves", "max_steps"]


def natural_gradient_ascent(
    start: State, *, max_steps: int, tolerance: float = 1e-7, rounding: float = 0.0, length: float = 1.0
) -> Ascent[State]:
    """Maximize by natural-gradient steps: a step that lowers the value is halved, the next may be four times as long.

    A full step is the optimum at once where the objective is quadratic, as for a Gaussian likelihood.

    Args:
        start: Where to start.
        max_steps: Steps at most.
        tolerance: Stop when a step gains less than this share of the value (plus one).
        rounding: Loss, as a share of the value (plus one), that counts as rounding error: such a step is accepted.
        length: Length of the first step, in (0, 1].

    References:
        Khan and Lin (2017), "Conjugate-Computation Variational Inference", section 3.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Quadratic:  # -(x - 3)^2, whose natural-gradient step leads to 3
        ...     x: float
        ...     @property
        ...     def value(self):
        ...         return -((self.x - 3) ** 2)
        ...     def propose(self, length):
        ...         return Quadratic(self.x + length * (3 - self.x))
        >>> found = natural_gradient_ascent(Quadratic(0.0), max_steps=10)
        >>> found.state.x, found.steps, found.stopped
        (3.0, 2, 'converged')
    """
    state, steps = start, 0
    while steps < max_steps:
        size = 1 + abs(state.value)
        proposal = state.propose(length)
        gain = proposal.value - state.value
        if gain >= -rounding * size:
            state, steps, length = proposal, steps + 1, min(1.0, 4 * length)
            if gain <= tolerance * size:
                return Ascent(state, steps, length, "converged")
            continue
        if (length <= SMALL_STEP and -gain <= SMALL_STEP * size) or length / 2 <= SMALLEST_STEP:
            return Ascent(state, steps, length, "no step improves")
        length /= 2
    return Ascent(state, steps, length, "max_steps")
