"""Markov transition kernels on named tensors, many chains at a time.

A position is a dict of tensors with chains as the leading axis, and a log density maps it to one number a chain, up to
a constant, on the scale of the full data. A kernel is settings and two pure functions:

    state = kernel.init(position, log_density, generator=g)
    state, info = kernel.step(state, log_density, generator=g)

Stochastic-gradient kernels take a different log density at every step, an unbiased estimate from a mini-batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.mcmc.base.log_density import LogDensity, Position

Info = dict[str, Tensor]
"""Diagnostics of a step, (c,) each: "log_density", "acceptance", "divergent" ..."""


class TransitionKernel(ABC):
    """A Markov kernel: a frozen dataclass of settings with `init` and `step`.

    A state is a frozen dataclass of tensors, numbers and dicts of tensors with a field `position`; `step` returns a new
    one and changes nothing in place.

    Invariant: the density is stationary: if the position is distributed as it, so is the position after a step (up to
    the discretization error that the kernel documents).

    Class attributes:
        mini_batches: Whether a step may be given a noisy estimate of the log density.
        interacting: Whether chains interact, as particles do; then R-hat and effective sample sizes are meaningless.
    """

    mini_batches: ClassVar[bool] = True
    interacting: ClassVar[bool] = False

    @abstractmethod
    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> Any:
        """The state of c chains that start at `position`, leaves (c, *shape)."""

    @abstractmethod
    def step(self, state: Any, log_density: LogDensity, *, generator: torch.Generator) -> tuple[Any, Info]:
        """One transition of every chain: the new state and its diagnostics."""

    def prepared(
        self, log_density: LogDensity, position: Position, *, share: float = 1.0, generator: torch.Generator
    ) -> "TransitionKernel":
        """The kernel with everything set that it can measure before it runs, such as a step size.

        Args:
            log_density: The log density, or an estimate of it from a mini-batch.
            position: Positions typical of the run, leaves (n, *shape).
            share: The share of the data in a mini-batch.
            generator: Source of all randomness.
        """
        return self

    def samples(self, count: int) -> bool:
        """Whether the step after `count` steps is a draw; only cyclical kernels have steps that are not."""
        return True


class AdaptiveKernel(TransitionKernel, ABC):
    """A kernel that is tuned in its burn-in; the tuned kernel is a fixed Markov kernel again."""

    @abstractmethod
    def adapt(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> tuple["AdaptiveKernel", Any]:
        """Run `num_steps` tuning steps, taking a log density from the endless iterator for each.

        Returns:
            A copy of the kernel with its tuned settings, and the state of the chains.
        """

    def burn_in(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> "BurnIn | None":
        """The same step by step, so that it can be saved and resumed; None if the kernel has `adapt` only."""
        return None


class BurnIn(ABC):
    """A burn-in that can be run step by step, saved and resumed."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all steps are taken."""

    @property
    @abstractmethod
    def mean_log_density(self) -> float:
        """The mean log density of the chains."""

    @abstractmethod
    def advance(self) -> None:
        """One step."""

    @abstractmethod
    def result(self) -> tuple[AdaptiveKernel, Any]:
        """A copy of the kernel with the settings tuned so far, and the state of the chains."""

    @property
    @abstractmethod
    def saved(self) -> dict[str, Any]:
        """Everything that `restore` needs to resume: nested dicts and lists of tensors and numbers."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Return to the point at which `saved` was taken; the caller restores the generator."""


def adapt(
    kernel: TransitionKernel,
    position: Position,
    log_density: LogDensity | Iterable[LogDensity],
    *,
    num_steps: int,
    generator: torch.Generator,
) -> tuple[TransitionKernel, Any]:
    """Run the burn-in of a kernel, with tuning if it can be tuned.

    Args:
        kernel: The kernel, which is not changed.
        position: Where the chains start, leaves (c, *shape).
        log_density: A log density, or an iterable of mini-batch estimates to cycle through.
        num_steps: Number of steps.
        generator: Source of all randomness.

    Returns:
        The tuned copy of the kernel, and the final state of the chains.

    Examples:
        >>> from bayeskit import mcmc
        >>> g, start = torch.Generator().manual_seed(0), {"x": torch.zeros(2, 3)}
        >>> kernel, state = mcmc.adapt(
        ...     mcmc.NUTS(), start, lambda q: -0.5 * q["x"].square().sum(-1), num_steps=20, generator=g
        ... )
        >>> kernel.step_size.shape, state.position["x"].shape
        (torch.Size([2]), torch.Size([2, 3]))
    """
    densities = Stream(kernel, log_density, generator)
    if isinstance(kernel, AdaptiveKernel):
        return kernel.adapt(position, densities, num_steps=num_steps, generator=generator)
    state = kernel.init(position, next(densities), generator=generator)
    for _ in range(num_steps):
        state, _ = kernel.step(state, next(densities), generator=generator)
    return kernel, state


class Stream:
    """The endless iterator over log densities: always the same one, or an iterable that is restarted at its end.

    It keeps its position for resumed runs: the current pass began at the generator state `start`, and `used` densities
    of it have been taken. That is exact for iterables which draw their random numbers when a pass starts.

    Args:
        kernel: Refuses mini-batches if it needs the full density.
        log_density: A log density or an iterable of them.
        generator: The generator that the iterable may draw from.
    """

    def __init__(
        self, kernel: TransitionKernel, log_density: LogDensity | Iterable[LogDensity], generator: torch.Generator
    ):
        if not callable(log_density) and not kernel.mini_batches:
            raise ValueError(
                f"{type(kernel).__name__} needs the full log density, a function; got an iterable of mini-batch "
                "densities. Pass one function, or use a stochastic-gradient kernel such as SGLD."
            )
        self.generator = generator
        self.source = log_density
        self.start, self.used = generator.get_state(), 0
        self._iterator: Iterator[LogDensity] | None = None

    def __iter__(self) -> Iterator[LogDensity]:
        return self

    def __next__(self) -> LogDensity:
        if callable(self.source):
            return self.source
        for _ in range(2):
            if self._iterator is None:
                self.start, self.used, self._iterator = self.generator.get_state(), 0, iter(self.source)
            density = next(self._iterator, None)
            if density is not None:
                self.used += 1
                return density
            self._iterator = None
        raise ValueError("`log_density` has no mini-batches left; pass an iterable that can be iterated over again.")

    def move(self, start: Tensor, used: int) -> None:
        """Go to the point after `used` densities of the pass that began at generator state `start`."""
        self.generator.set_state(start)
        self.start, self.used = start, used
        if not callable(self.source) and used:
            self._iterator = iter(self.source)
            for _ in range(used):
                next(self._iterator)
