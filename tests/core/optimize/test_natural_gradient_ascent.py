import math
from dataclasses import dataclass

import pytest

from bayeskit.core.optimize import natural_gradient_ascent


@dataclass(frozen=True)
class PoissonRate:
    """Natural-gradient ascent on y x - exp(x) - x^2 / 2 by Newton steps, which overshoot from the left."""

    x: float
    y: float

    @property
    def value(self):
        return self.y * self.x - math.exp(self.x) - self.x**2 / 2

    def propose(self, length):
        newton = (self.y - math.exp(self.x) - self.x) / (math.exp(self.x) + 1)
        return PoissonRate(self.x + length * newton, self.y)


@dataclass(frozen=True)
class Wrong:
    """A state whose steps lower the value, by a loss in proportion to their length."""

    value: float
    loss: float

    def propose(self, length):
        return Wrong(self.value - self.loss * length, self.loss)


def test_overshooting_steps_are_halved_until_the_value_rises():
    found = natural_gradient_ascent(PoissonRate(0.0, 30.0), max_steps=100, tolerance=1e-14)
    assert found.stopped in ("converged", "no step improves")
    assert 30.0 - math.exp(found.state.x) - found.state.x == pytest.approx(0.0, abs=1e-5)


def test_the_value_never_falls():
    values = [natural_gradient_ascent(PoissonRate(0.0, 30.0), max_steps=i).state.value for i in range(8)]
    assert values == sorted(values)


def test_an_ascent_continues_from_its_state_and_length():
    whole = natural_gradient_ascent(PoissonRate(0.0, 300.0), max_steps=12, tolerance=0.0)
    first = natural_gradient_ascent(PoissonRate(0.0, 300.0), max_steps=5, tolerance=0.0)
    assert first.stopped == "max_steps"
    second = natural_gradient_ascent(first.state, max_steps=7, tolerance=0.0, length=first.length)
    assert second.state == whole.state


@pytest.mark.parametrize("loss", [1e-3, 1e6])
def test_a_state_that_no_step_improves_is_returned(loss):
    start = Wrong(1.0, loss)
    found = natural_gradient_ascent(start, max_steps=100)
    assert found.state is start
    assert (found.steps, found.stopped) == (0, "no step improves")


def test_a_loss_within_rounding_is_accepted_and_ends_the_ascent():
    found = natural_gradient_ascent(Wrong(1.0, 1e-13), max_steps=100, rounding=1e-12)
    assert (found.steps, found.stopped) == (1, "converged")


def test_a_proposal_that_is_not_a_number_is_refused():
    found = natural_gradient_ascent(Wrong(1.0, math.nan), max_steps=100)
    assert found.state.value == 1.0
    assert found.stopped == "no step improves"
