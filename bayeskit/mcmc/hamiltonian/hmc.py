"""Hamiltonian Monte Carlo with all chains in step: one gradient evaluation moves every one of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, generators, progress
from bayeskit.mcmc.base.log_density import LogDensity, Position, ravel, unravel
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel, Info
from bayeskit.mcmc.hamiltonian.hmc_warmup import HMCBurnIn
from bayeskit.mcmc.hamiltonian.leapfrog import Path, leapfrog, slope_at, velocity
from bayeskit.mcmc.hamiltonian.warmup_adaptation import windows

DIVERGENT = 1000.0
"""An error of the energy beyond which a trajectory is called divergent."""


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
        path = Path(start, self.draw_momentum(start, generator), state.log_density, state.slope)
        end = leapfrog(
            log_density, path, size[:, None], num_steps=num_steps, inverse_mass=self.inverse_mass, like=state.position
        )
        error = self.energy(end) - self.energy(path)  # (c,), float64
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
        if num_steps == 0 and self.step_size is not None:
            return self, self.init(position, next(densities), generator=generator)
        tuning = self.burn_in(position, densities, num_steps=num_steps, generator=generator)
        with progress.track(num_steps, "burn-in") as bar:
            for _ in range(num_steps):
                tuning.advance()
                bar.update(1, log_density=tuning.level)
        return tuning.result()

    def burn_in(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> HMCBurnIn:
        """The same, step by step."""
        log_density = next(densities)
        state = self.init(position, log_density, generator=generator)
        return HMCBurnIn(self, state, log_density, windows(num_steps, len(state.slope)), generator)

    def draw_momentum(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Momenta (c, p) of covariance M, the inverse of the inverse mass."""
        z = generators.normal(like.shape, like=like, generator=generator)
        if self.inverse_mass is None:
            return z
        if self.inverse_mass.ndim == 1:
            return z * self.inverse_mass.rsqrt()
        root = torch.linalg.cholesky(self.inverse_mass)  # S = L L', so L^-T z has covariance S^-1
        return torch.linalg.solve_triangular(root.mT, z.mT, upper=True).mT

    def energy(self, path: Path) -> Tensor:
        """Potential and kinetic energy of each chain, in float64: it is differences of large numbers that count."""
        kinetic = 0.5 * (path.momentum * velocity(path.momentum, self.inverse_mass)).sum(-1, dtype=torch.float64)
        return kinetic - path.value.double()
