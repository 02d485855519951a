"""Stochastic-gradient Langevin dynamics."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bayeskit.core import checks, random
from bayeskit.mcmc.density import LogDensity, Position, curvature, value_and_gradient
from bayeskit.mcmc.kernel import Info, TransitionKernel

Schedule = Callable[[int], float]
"""Maps the number of steps taken to a multiplier of the step size."""


@dataclass(frozen=True, eq=False)
class SGLDState:
    """Where the chains are.

    Args:
        position: Leaves (c, *shape).
        lr: Step size before the schedule's multiplier.
        count: Steps taken.
    """

    position: Position
    lr: float
    count: int = 0


@dataclass(frozen=True, eq=False)
class SGLD(TransitionKernel):
    """Gradient ascent on the log density with noise that turns it into a sampler.

    With full-scale gradients `g` of the log density, exact or from mini-batches, a step is

        q <- q + h g + N(0, h (2 T - h V))

    There is no accept/reject step: on a Gaussian with precision `l` the stationary variance is
    `(T + h V' / 2) / (l (1 - h l / 2))`, with `V'` the gradient noise not accounted for, so a step size well below
    `2 / l` in the stiffest direction is what makes the draws right. Authors who use gradients per datum write `lr / N`
    for `h`.

    Args:
        lr: Step size `h` for the log density of the full data. None measures the curvature where the chains start
            (`curvature`) and takes `0.25 / curvature`: an eighth of the stability limit, the variance of the stiffest
            direction 14 % too large and the others nearly exact. Start near a mode, or give a number. Mini-batch noise
            asks for a smaller one, by about the share of the data in a batch.
        temperature: T of the tempered law `exp(log density / T)`; 1 is the posterior, 0 is gradient ascent.
        schedule: Multiplier of `lr` as a function of the number of steps taken, such as `polynomial_decay`; None keeps
            it. With a decreasing one, weigh draws by the reported "step_size".
        gradient_noise: Known variance V of the gradient noise, subtracted from the noise that is injected.

    References:
        Welling and Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics, equation 4 (their step is
        `2 h`); Ahn, Korattikara and Welling (2012) for subtracting the gradient noise.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> start = {"x": torch.zeros(500)}
        >>> chain = mcmc.run(
        ...     SGLD(lr=0.1), lambda q: -0.5 * q["x"] ** 2, start, num_samples=20, burn_in=50, generator=g
        ... )
        >>> bool(abs(chain.samples["x"].var() - 1 / 0.95) < 0.05)
        True
    """

    lr: float | None = None
    temperature: float = 1.0
    schedule: Schedule | None = None
    gradient_noise: float = 0.0

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> SGLDState:
        """The chains at `position`, with the step size measured if none is given."""
        for name in ("temperature", "gradient_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)!r}")
        if self.lr is not None:
            checks.positive(self.lr, name="lr")
            return SGLDState(position, self.lr)
        steepest = curvature(log_density, position, generator=generator).max().item()
        if not 0 < steepest < float("inf"):
            raise ValueError(
                f"the curvature of the log density where the chains start is {steepest}, which gives no step size; "
                "give `lr`, or start elsewhere."
            )
        return SGLDState(position, 0.25 / steepest)

    def step(self, state: SGLDState, log_density: LogDensity, *, generator: torch.Generator) -> tuple[SGLDState, Info]:
        """One step uphill, and noise."""
        size = state.lr * (1.0 if self.schedule is None else self.schedule(state.count))
        value, slopes = value_and_gradient(log_density, state.position)
        variance = max(0.0, size * (2 * self.temperature - size * self.gradient_noise))
        position = {name: torch.add(leaf, slopes[name], alpha=size) for name, leaf in state.position.items()}
        if variance > 0:
            for leaf in position.values():
                leaf.add_(random.normal(leaf.shape, like=leaf, generator=generator), alpha=variance**0.5)
        return SGLDState(position, state.lr, state.count + 1), {
            "log_density": value,
            "step_size": torch.full_like(value, size),
        }


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
