"""Hamiltonian Monte Carlo with all chains in step: one gradient evaluation moves every one of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, progress, random
from bayeskit.mcmc.density import LogDensity, Position, ravel, unravel
from bayeskit.mcmc.kernel import AdaptiveKernel, Info
from bayeskit.mcmc.leapfrog import Path, leapfrog, slope_at, velocity
from bayeskit.mcmc.tuning import LONG, DualAveraging, Window, windows

DIVERGENT = 1000.0
"""An error of the energy beyond which a trajectory is called divergent."""

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


@dataclass(frozen=True, eq=False)
class HMCState:
    """Where the chains are, and how the ground lies there.

    Args:
        position: Leaves (c, *shape).
        log_density: (c,).
        slope: Gradients of all numbers of a chain side by side, (c, p).
    """

    position: Position
    log_density: Tensor
    slope: Tensor


@dataclass(frozen=True, eq=False)
class HMC(AdaptiveKernel):
    """Hamiltonian trajectories of one length for all chains, each accepted or not by its own error of the energy.

    A step draws momenta `p ~ N(0, M)`, follows `q' = M^-1 p`, `p' = grad log density` by leapfrog steps `e` for a
    random time in `(1 +- jitter) trajectory`, the same for all chains, and accepts with probability
    `min(1, exp(-change of energy))`. The law is exact.

    `mcmc.run` tunes it in the burn-in, with all chains learning together: step sizes by dual averaging, the mass from
    the draws of windows that double, the time from the spread of the most stretched direction in units of that mass: a
    quarter of its period, or half of it where draws are found to depend on those before. Where trajectories fail now
    and then, steps are shorter than the target acceptance asks for. The more chains, the shorter a burn-in will do: a
    hundred steps for a hundred chains.

    Args:
        step_size: Leapfrog step, one number, or (c,) for one of each chain; None before tuning.
        inverse_mass: Estimated posterior variances of a chain's numbers side by side, (p,), or covariance (p, p); None
            before tuning, and for ones.
        trajectory: Mean time of a trajectory in units of the mass; None to tune it.
        jitter: Trajectories last `(1 - jitter)` to `(1 + jitter)` times that, lest they come full circle.
        target_acceptance: Mean acceptance the step size is tuned to.
        max_steps: Leapfrog steps of a trajectory at most.
        per_chain: Keep a step size for each chain rather than one for all.
        dense_mass: Adapt a full mass matrix; None does so for up to 100 numbers a chain and ten draws for each in a
            window.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, sections 3.2 and 4.2; Hoffman and Gelman (2014), The No-U-Turn
        sampler, section 3.2, for the step size; Sountsov and Hoffman (2021), Focusing on difficult directions for
        learning HMC trajectory lengths, for learning the time across chains from the first principal component.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> start = {"x": torch.randn(100, 2, generator=g)}
        >>> widths = torch.tensor([1.0, 10.0])
        >>> chain = mcmc.run(
        ...     HMC(), lambda q: -0.5 * (q["x"] / widths).pow(2).sum(-1), start, num_samples=20, burn_in=60, generator=g
        ... )
        >>> bool(abs(chain.samples["x"][..., 1].std() - 10) < 1)
        True
    """

    step_size: Tensor | float | None = None
    inverse_mass: Tensor | None = None
    trajectory: float | None = None
    jitter: float = 0.5
    target_acceptance: float = 0.9
    max_steps: int = 100
    per_chain: bool = False
    dense_mass: bool | None = None

    mini_batches: ClassVar[bool] = False

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> HMCState:
        """The chains at `position`."""
        checks.fraction(self.target_acceptance, name="target_acceptance")
        checks.positive(self.max_steps, name="max_steps", integer=True)
        if not 0 <= self.jitter < 1:
            raise ValueError(f"`jitter` must be at least 0 and below 1; got {self.jitter!r}")
        if self.trajectory is not None:
            checks.positive(self.trajectory, name="trajectory")
        value, slope = slope_at(log_density, ravel(position), position)
        bad = ~torch.isfinite(value)
        if bad.any():
            raise ValueError(
                f"the log density where chain {int(bad.nonzero()[0])} starts is {value[bad][0].item()}; start the "
                "chains where it is finite."
            )
        return HMCState(position, value, slope)

    def step(self, state: HMCState, log_density: LogDensity, *, generator: torch.Generator) -> tuple[HMCState, Info]:
        """One trajectory of every chain."""
        if self.step_size is None:
            raise ValueError("HMC has no `step_size` yet: run `mcmc.adapt` first, or give one.")
        start = ravel(state.position)
        size = torch.as_tensor(self.step_size, dtype=start.dtype, device=start.device).expand(len(start))
        spread = 1 + self.jitter * (2 * torch.rand((), generator=generator, device=generator.device).item() - 1)
        length = (math.pi / 2 if self.trajectory is None else self.trajectory) * spread
        num_steps = min(self.max_steps, max(1, round(length / size.log().mean().exp().item())))
        path = Path(start, self._momentum(start, generator), state.log_density, state.slope)
        end = leapfrog(
            log_density, path, size[:, None], num_steps=num_steps, inverse_mass=self.inverse_mass, like=state.position
        )
        error = self._energy(end) - self._energy(path)  # (c,), float64
        acceptance = error.neg().exp().clamp(max=1).nan_to_num(nan=0.0)
        coin = torch.rand(len(start), generator=generator, device=generator.device, dtype=torch.float64)
        accepted = coin.to(start.device) < acceptance
        keep = accepted[:, None]
        moved = HMCState(
            unravel(torch.where(keep, end.point, start), state.position),
            torch.where(accepted, end.value, state.log_density),
            torch.where(keep, end.slope, state.slope),
        )
        return moved, {
            "log_density": moved.log_density,
            "acceptance": acceptance.to(start.dtype),
            "divergent": (~(error < DIVERGENT)).to(start.dtype),
            "step_size": size,
        }

    def adapt(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> tuple["HMC", HMCState]:
        """Tune step size, mass and time of the trajectories in `num_steps` steps."""
        log_density = next(densities)
        state = self.init(position, log_density, generator=generator)
        if num_steps == 0 and self.step_size is not None:
            return self, state
        first, middle, last = windows(num_steps, len(state.slope))
        with progress.track(num_steps, "burn-in") as bar:
            tuning = _Tuning(self, state, log_density, generator, bar)
            tuning.run(first)
            for size in middle:
                tuning.learn(size)
            tuning.finish(last)
        return tuning.kernel, tuning.state

    def _momentum(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Momenta (c, p) of covariance M, the inverse of the inverse mass."""
        z = random.normal(like.shape, like=like, generator=generator)
        if self.inverse_mass is None:
            return z
        if self.inverse_mass.ndim == 1:
            return z * self.inverse_mass.rsqrt()
        root = torch.linalg.cholesky(self.inverse_mass)  # S = L L', so L^-T z has covariance S^-1
        return torch.linalg.solve_triangular(root.mT, z.mT, upper=True).mT

    def _energy(self, path: "Path") -> Tensor:
        """Potential and kinetic energy of each chain, in float64: it is differences of large numbers that count."""
        kinetic = 0.5 * (path.momentum * velocity(path.momentum, self.inverse_mass)).sum(-1, dtype=torch.float64)
        return kinetic - path.value.double()


def cautious(acceptance: Tensor) -> Tensor:
    """The mean acceptance of the chains (c,), less `PENALTY` for each that failed, at least 0.

    >>> cautious(torch.tensor([1.0] * 99 + [0.0]))
    tensor(0.9000)
    """
    failed = (acceptance < FAILED).to(acceptance.dtype)
    return (acceptance - PENALTY * failed).mean().clamp(min=0)


class _Tuning:
    """A burn-in on its way.

    While chains may still be far from each other each has a step size of its own: one that starts in a gorge must not
    hold up the others, nor be left behind by them. In the last part they share one, unless each is to keep its own.
    """

    def __init__(
        self,
        settings: HMC,
        state: HMCState,
        log_density: LogDensity,
        generator: torch.Generator,
        bar: progress.Tracker,
    ):
        self.settings, self.state, self.log_density = settings, state, log_density
        self.generator, self.bar = generator, bar
        self.kernel = replace(settings, max_steps=min(settings.max_steps, EARLY_STEPS))
        self.judged: Callable[[Tensor], Tensor] = torch.mean
        given = 1.0 if settings.step_size is None else settings.step_size
        self._restart(torch.as_tensor(given, dtype=state.slope.dtype, device=state.slope.device))

    def run(self, num_steps: int, window: Window | None = None) -> None:
        """Take some steps, tuning their size, and put the positions into a window."""
        for _ in range(num_steps):
            self.kernel = replace(self.kernel, step_size=self.tuner.current)
            self.state, info = self.kernel.step(self.state, self.log_density, generator=self.generator)
            acceptance = info["acceptance"]
            self.tuner.update(acceptance if self.tuner.current.ndim else self.judged(acceptance))
            if window is not None:
                window.add(ravel(self.state.position))
            self.bar.update(1, log_density=info["log_density"].mean().item(), acceptance=acceptance.mean().item())

    def learn(self, num_steps: int) -> None:
        """Run through a window and set mass and time from its draws."""
        window = Window(len(self.state.slope), self.state.slope.shape[1], num_steps)
        self.run(num_steps, window)
        shape = window.geometry(self.kernel.inverse_mass, dense=self.settings.dense_mass)
        telling = num_steps >= LONG and num_steps * len(self.state.slope) >= ENOUGH
        slow = telling and window.autocorrelation() > SLOW
        time = self.settings.trajectory or (math.pi if slow else math.pi / 2) * shape.stretch
        self.kernel = replace(
            self.settings, step_size=self.tuner.average, inverse_mass=shape.inverse_mass, trajectory=time
        )
        self._restart(self.tuner.average)

    def finish(self, num_steps: int) -> None:
        """Tune the step size that is to be kept."""
        if not self.settings.per_chain:
            self.tuner = DualAveraging(self.tuner.average.log().mean().exp(), self.settings.target_acceptance)
            self.judged = cautious if num_steps * len(self.state.slope) >= ENOUGH else torch.mean
        self.run(num_steps)
        trajectory = self.kernel.trajectory
        self.kernel = replace(self.settings, step_size=self.tuner.average, inverse_mass=self.kernel.inverse_mass)
        self.kernel = replace(self.kernel, trajectory=trajectory)

    def _restart(self, step_size: Tensor) -> None:
        """Start tuning each chain's step size where one step of it changes the energy by about as much as is right.

        References:
            Hoffman and Gelman (2014), algorithm 4.
        """
        point = ravel(self.state.position)
        size = step_size.expand(len(point)).clone()
        target, rising = self.settings.target_acceptance, None
        path = Path(point, self.kernel._momentum(point, self.generator), self.state.log_density, self.state.slope)
        for _ in range(50):
            end = leapfrog(
                self.log_density,
                path,
                size[:, None],
                num_steps=1,
                inverse_mass=self.kernel.inverse_mass,
                like=self.state.position,
            )
            gain = self.kernel._energy(path) - self.kernel._energy(end)
            above = gain.nan_to_num(nan=-math.inf) > math.log(target)
            rising = above if rising is None else rising
            going = above == rising
            if not going.any():
                break
            size = torch.where(going, torch.where(rising, 2 * size, 0.5 * size), size)
        self.tuner = DualAveraging(size, target)
