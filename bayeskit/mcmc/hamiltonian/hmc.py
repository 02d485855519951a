"""Hamiltonian Monte Carlo with all chains vectorized: one batched gradient evaluation moves all of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, progress
from bayeskit.mcmc.base.log_density import LogDensity, Position, ravel, unravel
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel, Info
from bayeskit.mcmc.hamiltonian.hmc_warmup import HMCBurnIn
from bayeskit.mcmc.hamiltonian.leapfrog import (
    HMCState,
    PhasePoint,
    density_and_gradient,
    draw_momentum,
    energy,
    leapfrog,
)
from bayeskit.mcmc.hamiltonian.warmup_adaptation import windows

DIVERGENT = 1000.0
"""The energy error beyond which a trajectory is called divergent."""


@dataclass(frozen=True, eq=False)
class HMC(AdaptiveKernel):
    """Hamiltonian Monte Carlo with one trajectory length for all chains and a Metropolis test for each.

    A step draws momenta `p ~ N(0, M)`, follows `q' = M^-1 p`, `p' = grad log density` by leapfrog steps `e` for a
    random time in `(1 +- jitter) trajectory`, the same for all chains, and accepts with probability
    `min(1, exp(-change of energy))`. The stationary distribution is exact.

    `mcmc.run` tunes it in the burn-in, pooling all chains: step sizes by dual averaging, the mass from the draws of
    windows that double, the trajectory length from the largest standard deviation of any direction under that mass: a
    quarter of its period, or half of it if successive draws are found to be autocorrelated. If a share of trajectories
    is rejected almost surely, steps are shorter than the target acceptance asks for. The more chains, the shorter the
    burn-in: a hundred steps are enough for a hundred chains.

    Args:
        step_size: Leapfrog step, one number, or (c,) for one of each chain; None before tuning.
        inverse_mass: Estimated posterior variances of all parameters of a chain, (p,), or covariance (p, p); None
            before tuning, and for ones.
        trajectory: Mean integration time of a trajectory under that mass; None to tune it.
        jitter: Integration times are uniform in `(1 - jitter)` to `(1 + jitter)` times that, against periodic orbits.
        target_acceptance: Mean acceptance the step size is tuned to.
        max_steps: Largest number of leapfrog steps of a trajectory.
        per_chain: Keep a step size for each chain rather than one for all.
        dense_mass: Adapt a full mass matrix; None does so for up to 100 parameters a chain and ten draws for each of
            them in a window.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, sections 3.2 and 4.2; Hoffman and Gelman (2014), The No-U-Turn
        sampler, section 3.2, for the step size; Sountsov and Hoffman (2021), Focusing on difficult directions for
        learning HMC trajectory lengths, for learning the length across chains from the first principal component.

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
        value, gradient = density_and_gradient(log_density, ravel(position), position)
        bad = ~torch.isfinite(value)
        if bad.any():
            raise ValueError(
                f"the log density where chain {int(bad.nonzero()[0])} starts is {value[bad][0].item()}; start the "
                "chains where it is finite."
            )
        return HMCState(position, value, gradient)

    def step(self, state: HMCState, log_density: LogDensity, *, generator: torch.Generator) -> tuple[HMCState, Info]:
        """One trajectory of every chain."""
        if self.step_size is None:
            raise ValueError("HMC has no `step_size` yet: run `mcmc.adapt` first, or give one.")
        start = ravel(state.position)
        size = torch.as_tensor(self.step_size, dtype=start.dtype, device=start.device).expand(len(start))
        spread = 1 + self.jitter * (2 * torch.rand((), generator=generator, device=generator.device).item() - 1)
        length = (math.pi / 2 if self.trajectory is None else self.trajectory) * spread
        num_steps = min(self.max_steps, max(1, round(length / size.log().mean().exp().item())))
        momentum = draw_momentum(start, self.inverse_mass, generator=generator)
        before = PhasePoint(start, momentum, state.log_density, state.gradient)
        end = leapfrog(
            log_density, before, size[:, None], num_steps=num_steps, inverse_mass=self.inverse_mass, like=state.position
        )
        error = energy(end, self.inverse_mass) - energy(before, self.inverse_mass)  # (c,), float64
        acceptance = error.neg().exp().clamp(max=1).nan_to_num(nan=0.0)
        uniform = torch.rand(len(start), generator=generator, device=generator.device, dtype=torch.float64)
        accepted = uniform.to(start.device) < acceptance
        keep = accepted[:, None]
        moved = HMCState(
            unravel(torch.where(keep, end.position, start), state.position),
            torch.where(accepted, end.log_density, state.log_density),
            torch.where(keep, end.gradient, state.gradient),
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
        """Tune step size, mass and trajectory length in `num_steps` steps."""
        if num_steps == 0 and self.step_size is not None:
            return self, self.init(position, next(densities), generator=generator)
        tuning = self.burn_in(position, densities, num_steps=num_steps, generator=generator)
        with progress.track(num_steps, "burn-in") as bar:
            for _ in range(num_steps):
                tuning.advance()
                bar.update(1, log_density=tuning.mean_log_density)
        return tuning.result()

    def burn_in(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> HMCBurnIn:
        """The adaptation of `adapt`, one step at a time."""
        log_density = next(densities)
        state = self.init(position, log_density, generator=generator)
        return HMCBurnIn(self, state, log_density, windows(num_steps, len(state.gradient)), generator)
