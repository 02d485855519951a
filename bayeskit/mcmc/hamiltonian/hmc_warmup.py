"""How Hamiltonian Monte Carlo learns its step size, its mass and its time, one trajectory after the other."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayeskit.mcmc.base.log_density import LogDensity, ravel
from bayeskit.mcmc.base.state_io import pack, to_device, unpack
from bayeskit.mcmc.base.transition_kernel import BurnIn
from bayeskit.mcmc.hamiltonian.leapfrog import Path, leapfrog
from bayeskit.mcmc.hamiltonian.warmup_adaptation import LONG, DualAveraging, Window

if TYPE_CHECKING:
    from bayeskit.mcmc.hamiltonian.hmc import HMC, HMCState

EARLY_STEPS = 32
"""Leapfrog steps at most while nothing is known of the mass."""

FAILED, PENALTY = 0.1, 9.0
"""An acceptance below the first is that of a trajectory which failed, and takes the second off the mean acceptance that
the last step size is tuned by: where one trajectory in a hundred fails, chains stick in a neck, and the step is to be
shorter. At the target acceptance on a Gaussian none does."""

ENOUGH = 500
"""Trajectories of all chains from which one in a hundred that fails, or draws that depend on the last, can be told."""

SLOW = 0.5
"""An autocorrelation of draws beyond which a quarter of a period is too short, and trajectories last half of one."""


class HMCBurnIn(BurnIn):
    """A burn-in on its way, in parts: one to come near, windows whose draws set mass and time, one to finish.

    While chains may still be far from each other each has a step size of its own: one that starts in a gorge must not
    hold up the others, nor be left behind by them. In the last part they share one, unless each is to keep its own.

    Args:
        settings: The kernel to tune.
        state: Where the chains are.
        log_density: Maps leaves (c, *shape) to (c,).
        parts: Steps of the first part, of each window, and of the last part, as `tuning.windows` gives them.
        generator: Source of all randomness.
    """

    def __init__(
        self,
        settings: "HMC",
        state: "HMCState",
        log_density: LogDensity,
        parts: tuple[int, list[int], int],
        generator: torch.Generator,
    ):
        first, middle, last = parts
        self.settings, self.state, self.log_density, self.generator = settings, state, log_density, generator
        self.parts, self.part, self.done = [first, *middle, last], 0, 0
        self.window: Window | None = None
        self.kernel = replace(settings, max_steps=min(settings.max_steps, EARLY_STEPS))
        given = 1.0 if settings.step_size is None else settings.step_size
        self._restart(torch.as_tensor(given, dtype=state.slope.dtype, device=state.slope.device))
        self._close_parts()

    @property
    def over(self) -> bool:
        """Whether all parts are through."""
        return self.part == len(self.parts) - 1 and self.done == self.parts[-1]

    @property
    def level(self) -> float:
        """The mean log density of the chains."""
        return self.state.log_density.mean().item()

    def advance(self) -> None:
        """One trajectory of every chain; at the end of a window the mass and the time as well."""
        self.kernel = replace(self.kernel, step_size=self.tuner.current)
        self.state, info = self.kernel.step(self.state, self.log_density, generator=self.generator)
        acceptance = info["acceptance"]
        if self.tuner.current.ndim == 0:
            acceptance = cautious(acceptance) if self._telling(self.parts[-1]) else acceptance.mean()
        self.tuner.update(acceptance)
        if self.window is not None:
            self.window.add(ravel(self.state.position))
        self.done += 1
        self._close_parts()

    def result(self) -> tuple["HMC", "HMCState"]:
        """The tuned kernel, and where the chains are."""
        shape = {"inverse_mass": self.kernel.inverse_mass, "trajectory": self.kernel.trajectory}
        return replace(self.settings, step_size=self.tuner.average, **shape), self.state

    @property
    def saved(self) -> dict[str, Any]:
        """Where the chains are, what has been learnt, and the draws of the window that is open."""
        window = {} if self.window is None else {**vars(self.window), "draws": list(self.window.draws)}
        return {
            **{"kernel": pack(self.kernel), "state": pack(self.state), "tuner": dict(vars(self.tuner))},
            **{"part": self.part, "done": self.done, "window": window},
        }

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go to where `saved` was taken."""
        self.kernel, self.state = (
            unpack(blank, saved[name], device) for name, blank in (("kernel", self.settings), ("state", self.state))
        )
        vars(self.tuner).update(to_device(saved["tuner"], device))
        self.part, self.done = saved["part"], saved["done"]
        self._open_window()
        if self.window is not None:
            vars(self.window).update(to_device(saved["window"], device))

    def _close_parts(self) -> None:
        """Go on to the next part that has steps left, and learn from a window on leaving it."""
        while self.part < len(self.parts) - 1 and self.done == self.parts[self.part]:
            if self.window is not None:
                self._learn(self.window)
            self.part, self.done = self.part + 1, 0
            self._open_window()
            if self.part == len(self.parts) - 1 and not self.settings.per_chain:
                self.tuner = DualAveraging(self.tuner.average.log().mean().exp(), self.settings.target_acceptance)

    def _open_window(self) -> None:
        inside, (chains, dimension) = 0 < self.part < len(self.parts) - 1, self.state.slope.shape
        self.window = Window(chains, dimension, self.parts[self.part]) if inside else None

    def _learn(self, window: Window) -> None:
        """Set mass and time from the draws of a window."""
        shape = window.geometry(self.kernel.inverse_mass, dense=self.settings.dense_mass)
        slow = window.count >= LONG and self._telling(window.count) and window.autocorrelation() > SLOW
        time = self.settings.trajectory or (math.pi if slow else math.pi / 2) * shape.stretch
        self.kernel = replace(
            self.settings, step_size=self.tuner.average, inverse_mass=shape.inverse_mass, trajectory=time
        )
        self._restart(self.tuner.average)

    def _telling(self, num_steps: int) -> bool:
        """Whether so many steps of all chains are enough to judge by."""
        return num_steps * len(self.state.slope) >= ENOUGH

    def _restart(self, step_size: Tensor) -> None:
        """Start tuning each chain's step size where one step of it changes the energy by about as much as is right.

        References:
            Hoffman and Gelman (2014), algorithm 4.
        """
        point = ravel(self.state.position)
        size = step_size.expand(len(point)).clone()
        target, rising = self.settings.target_acceptance, None
        path = Path(point, self.kernel.draw_momentum(point, self.generator), self.state.log_density, self.state.slope)
        for _ in range(50):
            end = leapfrog(
                self.log_density,
                path,
                size[:, None],
                num_steps=1,
                inverse_mass=self.kernel.inverse_mass,
                like=self.state.position,
            )
            gain = self.kernel.energy(path) - self.kernel.energy(end)
            above = gain.nan_to_num(nan=-math.inf) > math.log(target)
            rising = above if rising is None else rising
            going = above == rising
            if not going.any():
                break
            size = torch.where(going, torch.where(rising, 2 * size, 0.5 * size), size)
        self.tuner = DualAveraging(size, target)


def cautious(acceptance: Tensor) -> Tensor:
    """The mean acceptance of the chains (c,), less `PENALTY` for each that failed, at least 0.

    >>> cautious(torch.tensor([1.0] * 99 + [0.0]))
    tensor(0.9000)
    """
    failed = (acceptance < FAILED).to(acceptance.dtype)
    return (acceptance - PENALTY * failed).mean().clamp(min=0)
