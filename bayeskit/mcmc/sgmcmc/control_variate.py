"""Control variates: mini-batch gradients whose noise vanishes near a center."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from bayeskit.core import checks
from bayeskit.mcmc.base.log_density import LogDensity, Position, value_and_gradient
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel, Info, TransitionKernel


@dataclass(frozen=True, eq=False)
class ControlVariateState:
    """A kernel's state, and the center of the control variate.

    Args:
        inner: The kernel's state.
        center: Leaves (c, *shape).
        gradient: The gradient of the full log density there.
        count: Steps taken since the center was last moved.
    """

    inner: Any
    center: Position
    gradient: Position
    count: int = 0

    @property
    def position(self) -> Position:
        """Leaves (c, *shape)."""
        return self.inner.position


@dataclass(frozen=True, eq=False)
class ControlVariate(AdaptiveKernel):
    """Any kernel, run on mini-batch gradients with a control variate about a center.

    With estimates `l_B` of the log density `l` from mini-batches B and a center q0,

        l_B(q) + <grad l(q0) - grad l_B(q0), q - q0>

    is an unbiased estimate of l(q) up to a constant, and so is its gradient: `grad l(q0) + grad l_B(q) - grad l_B(q0)`.
    Its variance grows with `|q - q0|^2`, and is zero at the center, and everywhere for a quadratic whose curvature is
    the same in all batches. Far from the center it is larger than that of plain mini-batches: start at a mode, or
    refresh. A kernel that is tuned in its burn-in is tuned on plain mini-batches, and the center is its final position.

    Args:
        kernel: The kernel to run.
        log_density: The log density of all the data. `mcmc.run` is given the mini-batches, as always.
        refresh: Steps after which the center becomes the current position and the full gradient is taken there, as in
            SVRG; None keeps the starting position, which should be a mode, as in SGLD-CV.

    References:
        Baker, Fearnhead, Fox and Nemeth (2019), Control variates for stochastic gradient MCMC, section 2; Dubey et al.
        (2016), Variance reduction in stochastic gradient Langevin dynamics, algorithm 2, for the refreshed center.

    Examples:
        >>> from bayeskit import mcmc
        >>> rows, g = torch.arange(10.0), torch.Generator().manual_seed(0)
        >>> def density(some):  # the mean of ten numbers, from some of them
        ...     return lambda q: -0.5 * 10 / len(some) * (rows[some] - q["m"][:, None]).square().sum(-1)
        >>> kernel = ControlVariate(mcmc.SGLD(lr=0.02), density(range(10)))
        >>> batches = [density(some) for some in torch.arange(10).split(2)]
        >>> chain = mcmc.run(
        ...     kernel, batches, {"m": torch.full((200,), 4.5)}, num_samples=20, burn_in=50, thin=5, generator=g
        ... )
        >>> bool(abs(chain.samples["m"].var() * 10 - 1 / 0.9) < 0.1)  # as with all rows at every step
        True
    """

    kernel: TransitionKernel
    log_density: LogDensity
    refresh: int | None = None

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> ControlVariateState:
        """The chains at `position`, which is the first center."""
        if self.refresh is not None:
            checks.positive(self.refresh, name="refresh", integer=True)
        return self._centered(self.kernel.init(position, log_density, generator=generator))

    def prepared(
        self, log_density: LogDensity, position: Position, *, share: float = 1.0, generator: torch.Generator
    ) -> "ControlVariate":
        """With the inner kernel prepared."""
        inside = self.kernel.prepared(log_density, position, share=share, generator=generator)
        return replace(self, kernel=inside)

    def adapt(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> tuple["ControlVariate", ControlVariateState]:
        """Tune the kernel on plain mini-batches, if it can be tuned; otherwise run it about the starting position."""
        if isinstance(self.kernel, AdaptiveKernel):
            tuned, inner = self.kernel.adapt(position, densities, num_steps=num_steps, generator=generator)
            return replace(self, kernel=tuned), self._centered(inner)
        state = self.init(position, next(densities), generator=generator)
        for _ in range(num_steps):
            state, _ = self.step(state, next(densities), generator=generator)
        return self, state

    def step(
        self, state: ControlVariateState, log_density: LogDensity, *, generator: torch.Generator
    ) -> tuple[ControlVariateState, Info]:
        """One step of the kernel on the controlled estimate, about a new center every `refresh` steps."""
        if self.refresh is not None and state.count == self.refresh:
            state = self._centered(state.inner)
        controlled = control(log_density, state.center, state.gradient)
        inner, info = self.kernel.step(state.inner, controlled, generator=generator)
        return replace(state, inner=inner, count=state.count + 1), info

    def samples(self, count: int) -> bool:
        """As the inner kernel."""
        return self.kernel.samples(count)

    def _centered(self, inner: Any) -> ControlVariateState:
        return ControlVariateState(inner, inner.position, value_and_gradient(self.log_density, inner.position)[1])


def control(log_density: LogDensity, center: Position, gradient: Position) -> LogDensity:
    """A mini-batch estimate with its gradient at `center` replaced by the full one, `gradient`, up to a constant.

    >>> batch = lambda q: -(q["x"] - 1) ** 2  # all the data: -(q["x"] - 2) ** 2
    >>> better = control(batch, {"x": torch.tensor([0.0])}, {"x": torch.tensor([4.0])})
    >>> value_and_gradient(better, {"x": torch.tensor([2.0])})[1]["x"].abs()
    tensor([0.])
    """
    known = value_and_gradient(log_density, center)[1]
    change = {name: gradient[name] - known[name] for name in gradient}

    def controlled(position: Position) -> torch.Tensor:
        value = log_density(position)
        for name, leaf in position.items():
            value = value + (change[name] * (leaf - center[name])).reshape(len(leaf), -1).sum(-1)
        return value

    return controlled
