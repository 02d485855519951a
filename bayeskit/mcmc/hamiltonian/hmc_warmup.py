"""The warm-up of Hamiltonian Monte Carlo: adaptation of step size, mass matrix and trajectory length."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayeskit.mcmc.base.log_density import LogDensity, ravel
from bayeskit.mcmc.base.state_io import pack, to_device, unpack
from bayeskit.mcmc.base.transition_kernel import BurnIn
from bayeskit.mcmc.hamiltonian.leapfrog import HMCState, PhasePoint, draw_momentum, energy, leapfrog
from bayeskit.mcmc.hamiltonian.warmup_adaptation import LONG, DualAveraging, Window

EARLY_STEPS = 32
"""Largest number of leapfrog steps before the first estimate of the mass."""

APPROACH_STEPS = 4
"""Largest number of leapfrog steps between two draws of the momentum in the first phase. Far from the typical set a
long trajectory turns hundreds of nats of log density into speed, and may end anywhere that speed leads, such as a
component of a mixture that collapsed onto one observation. With new momenta chains stay near the steepest ascent."""

FAILED, PENALTY = 0.1, 9.0
"""A trajectory with an acceptance below FAILED counts as failed, and lowers the mean acceptance by which the final step
size is tuned by PENALTY: if one trajectory in a hundred fails, chains stick in regions of high curvature, such as the
neck of a funnel, and the step has to be shorter. At the target acceptance on a Gaussian none fails."""

MIN_TRAJECTORIES = 500
"""Trajectories of all chains needed to detect that one in a hundred fails, or that draws are autocorrelated."""

MAX_AUTOCORRELATION = 0.5
"""Lag-one autocorrelation of draws above which trajectories last half a period instead of a quarter."""


class HMCBurnIn(BurnIn):
    """The burn-in of HMC in phases: approach, windows whose draws set mass and trajectory length, final step size.

    Until the last phase each chain has its own step size, because chains that start in regions of high curvature need
    much shorter steps than others. In the last phase they share one, unless `per_chain`.

    Args:
        settings: The `HMC` kernel to tune.
        state: The state of the chains.
        log_density: Maps leaves (c, *shape) to (c,).
        phases: Steps of the first phase, of each window, and of the last phase, as `warmup_adaptation.windows` gives
            them.
        generator: Source of all randomness.
    """

    def __init__(
        self,
        settings: Any,
        state: HMCState,
        log_density: LogDensity,
        phases: tuple[int, list[int], int],
        generator: torch.Generator,
    ):
        first, middle, last = phases
        self.settings, self.state, self.log_density, self.generator = settings, state, log_density, generator
        self.phases, self.phase, self.done = [first, *middle, last], 0, 0
        self.window: Window | None = None
        self.kernel = replace(settings, max_steps=min(settings.max_steps, EARLY_STEPS))
        given = 1.0 if settings.step_size is None else settings.step_size
        self._restart(torch.as_tensor(given, dtype=state.gradient.dtype, device=state.gradient.device))
        self._next_phase()

    @property
    def finished(self) -> bool:
        """Whether all phases are completed."""
        return self.phase == len(self.phases) - 1 and self.done == self.phases[-1]

    @property
    def mean_log_density(self) -> float:
        """The mean log density of the chains."""
        return self.state.log_density.mean().item()

    def advance(self) -> None:
        """One trajectory of every chain; at the end of a window also the update of mass and trajectory length.

        In the first phase it is cut into trajectories of at most `APPROACH_STEPS` leapfrog steps.
        """
        approach = self.phase == 0 and self.done < self.phases[0]
        for _ in range(self._parts() if approach else 1):
            self._trajectory(APPROACH_STEPS if approach else self.kernel.max_steps)
        if self.window is not None:
            self.window.add(ravel(self.state.position))
        self.done += 1
        self._next_phase()

    def _parts(self) -> int:
        """Number of short trajectories that take as many leapfrog steps as a whole one."""
        length, size = self.kernel.trajectory or math.pi / 2, self.tuner.current.log().mean().exp().item()
        return math.ceil(min(self.kernel.max_steps, length / size) / APPROACH_STEPS)

    def _trajectory(self, max_steps: int) -> None:
        """A trajectory of every chain, and the update of the step size by its acceptance."""
        self.kernel = replace(self.kernel, step_size=self.tuner.current)
        short = replace(self.kernel, max_steps=min(self.kernel.max_steps, max_steps))
        self.state, info = short.step(self.state, self.log_density, generator=self.generator)
        acceptance = info["acceptance"]
        if self.tuner.current.ndim == 0:
            enough = self._enough_trajectories(self.phases[-1])
            acceptance = penalized_acceptance(acceptance) if enough else acceptance.mean()
        self.tuner.update(acceptance)

    def result(self) -> tuple[Any, HMCState]:
        """The tuned kernel, and the state of the chains."""
        tuned = {"inverse_mass": self.kernel.inverse_mass, "trajectory": self.kernel.trajectory}
        return replace(self.settings, step_size=self.tuner.average, **tuned), self.state

    @property
    def saved(self) -> dict[str, Any]:
        """The state of the chains, the tuned settings, and the draws of the current window."""
        window = {} if self.window is None else {**vars(self.window), "draws": list(self.window.draws)}
        return {
            **{"kernel": pack(self.kernel), "state": pack(self.state), "tuner": dict(vars(self.tuner))},
            **{"phase": self.phase, "done": self.done, "window": window},
        }

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Return to the point at which `saved` was taken."""
        self.kernel, self.state = (
            unpack(blank, saved[name], device) for name, blank in (("kernel", self.settings), ("state", self.state))
        )
        vars(self.tuner).update(to_device(saved["tuner"], device))
        self.phase, self.done = saved["phase"], saved["done"]
        self._open_window()
        if self.window is not None:
            vars(self.window).update(to_device(saved["window"], device))

    def _next_phase(self) -> None:
        """Go to the next phase that has steps left, and estimate the mass at the end of a window."""
        while self.phase < len(self.phases) - 1 and self.done == self.phases[self.phase]:
            if self.window is not None:
                self._set_mass_and_trajectory(self.window)
            self.phase, self.done = self.phase + 1, 0
            self._open_window()
            if self.phase == len(self.phases) - 1 and not self.settings.per_chain:
                self.tuner = DualAveraging(self.tuner.average.log().mean().exp(), self.settings.target_acceptance)

    def _open_window(self) -> None:
        inside, (chains, dimension) = 0 < self.phase < len(self.phases) - 1, self.state.gradient.shape
        self.window = Window(chains, dimension, self.phases[self.phase]) if inside else None

    def _set_mass_and_trajectory(self, window: Window) -> None:
        """Set the mass and the trajectory length from the draws of a window."""
        estimate = window.mass_estimate(self.kernel.inverse_mass, dense=self.settings.dense_mass)
        slow = (
            window.count >= LONG
            and self._enough_trajectories(window.count)
            and window.autocorrelation() > MAX_AUTOCORRELATION
        )
        length = self.settings.trajectory or (math.pi if slow else math.pi / 2) * estimate.largest_std
        self.kernel = replace(
            self.settings, step_size=self.tuner.average, inverse_mass=estimate.inverse_mass, trajectory=length
        )
        self._restart(self.tuner.average)

    def _enough_trajectories(self, num_steps: int) -> bool:
        return num_steps * len(self.state.gradient) >= MIN_TRAJECTORIES

    def _restart(self, step_size: Tensor) -> None:
        """Start dual averaging at the step size, for each chain, whose one-step acceptance crosses the target.

        References:
            Hoffman and Gelman (2014), algorithm 4.
        """
        position, inverse_mass = ravel(self.state.position), self.kernel.inverse_mass
        size = step_size.expand(len(position)).clone()
        target, rising = self.settings.target_acceptance, None
        momentum = draw_momentum(position, inverse_mass, generator=self.generator)
        start = PhasePoint(position, momentum, self.state.log_density, self.state.gradient)
        for _ in range(50):
            end = leapfrog(
                self.log_density,
                start,
                size[:, None],
                num_steps=1,
                inverse_mass=inverse_mass,
                like=self.state.position,
            )
            gain = energy(start, inverse_mass) - energy(end, inverse_mass)
            above = gain.nan_to_num(nan=-math.inf) > math.log(target)
            rising = above if rising is None else rising
            going = above == rising
            if not going.any():
                break
            size = torch.where(going, torch.where(rising, 2 * size, 0.5 * size), size)
        self.tuner = DualAveraging(size, target)


def penalized_acceptance(acceptance: Tensor) -> Tensor:
    """The mean acceptance of the chains (c,), less `PENALTY` for each failed trajectory, at least 0.

    >>> penalized_acceptance(torch.tensor([1.0] * 99 + [0.0]))
    tensor(0.9000)
    """
    failed = (acceptance < FAILED).to(acceptance.dtype)
    return (acceptance - PENALTY * failed).mean().clamp(min=0)
