"""The No-U-Turn sampler of pyro on any log density, one chain after the other."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, generators, progress
from bayeskit.mcmc.base.log_density import LogDensity, Position, ravel, unravel
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel, Info

SITE = "q"
"""The name of the pyro site that holds all parameters of a chain."""


@dataclass(frozen=True, eq=False)
class NUTSState:
    """The state of the chains.

    Args:
        position: Leaves (c, *shape).
    """

    position: Position


@dataclass(frozen=True, eq=False)
class NUTS(AdaptiveKernel):
    """The No-U-Turn sampler: Hamiltonian trajectories that end at a U-turn; asymptotically exact, nothing to tune.

    `mcmc.run` tunes each chain's step size (dual averaging to `target_acceptance`) and mass matrix in its burn-in.
    Chains run one after the other. It is the reference posterior of the benchmarks.

    Args:
        step_size: Leapfrog step of each chain, (c,) or one number; None before tuning.
        inverse_mass: Estimated posterior variances of each chain's parameters, (c, p), or covariances
            (c, p, p) with `dense_mass`; None before tuning.
        target_acceptance: Acceptance the step size is tuned to.
        max_tree_depth: A trajectory has at most `2^max_tree_depth - 1` steps.
        dense_mass: Adapt a full mass matrix, for strongly correlated targets of moderate dimension.

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler, algorithm 6; Betancourt (2017), A conceptual introduction to
        Hamiltonian Monte Carlo, appendix A.4, for the multinomial form used here.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> start = {"x": torch.zeros(2, 3, dtype=torch.float64)}
        >>> chain = mcmc.run(
        ...     NUTS(), lambda q: -0.5 * q["x"].square().sum(-1), start, num_samples=10, burn_in=10, generator=g
        ... )
        >>> chain.samples["x"].shape
        torch.Size([2, 10, 3])
    """

    step_size: Tensor | float | None = None
    inverse_mass: Tensor | None = None
    target_acceptance: float = 0.8
    max_tree_depth: int = 10
    dense_mass: bool = False

    mini_batches: ClassVar[bool] = False

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> NUTSState:
        """The chains at `position`."""
        checks.fraction(self.target_acceptance, name="target_acceptance")
        checks.positive(self.max_tree_depth, name="max_tree_depth", integer=True)
        return NUTSState(position)

    def adapt(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> tuple["NUTS", NUTSState]:
        """Tune step size and mass matrix of each chain in `num_steps` steps."""
        log_density = next(densities)
        self.init(position, log_density, generator=generator)
        chains = ravel(position)  # (c, p)
        steps, masses, points = [], [], []
        with progress.track(len(chains) * num_steps, "burn-in") as bar, quiet(generator):
            for chain in chains:
                engine = self._engine(chain, log_density, position, tune_for=num_steps)
                place = {SITE: chain}
                for _ in range(num_steps):
                    place = engine.sample(place)
                    bar.update(1)
                steps.append(engine.step_size)
                masses.append(engine.inverse_mass_matrix[SITE,])
                points.append(place[SITE].detach())
        size = torch.tensor(steps, dtype=chains.dtype, device=chains.device)
        tuned = replace(self, step_size=size, inverse_mass=torch.stack(masses))
        return tuned, NUTSState(unravel(torch.stack(points), position))

    def step(self, state: NUTSState, log_density: LogDensity, *, generator: torch.Generator) -> tuple[NUTSState, Info]:
        """One trajectory of every chain."""
        if self.step_size is None:
            raise ValueError("NUTS has no `step_size` yet: run `mcmc.adapt` first, or give one.")
        points, acceptance, divergent = [], [], []
        with quiet(generator):
            for i, chain in enumerate(ravel(state.position)):
                engine = self._engine(chain, log_density, state.position, chain_number=i)
                points.append(engine.sample({SITE: chain})[SITE].detach())
                acceptance.append(float(engine.logging()["acc. prob"]))
                divergent.append(bool(engine.diagnostics()["divergences"]))
        position = unravel(torch.stack(points), state.position)
        with torch.no_grad():
            value = log_density(position)
        return NUTSState(position), {
            "log_density": value,
            "acceptance": value.new_tensor(acceptance),
            "divergent": value.new_tensor(divergent),
        }

    def _engine(
        self,
        chain: Tensor,
        log_density: LogDensity,
        like: Position,
        *,
        chain_number: int = 0,
        tune_for: int | None = None,
    ) -> Any:
        """Pyro's kernel for one chain (p,), set up to adapt for `tune_for` steps or with the tuned settings."""
        from pyro.infer.mcmc import NUTS as PyroNUTS

        def potential(place: dict[str, Tensor]) -> Tensor:
            return -log_density(unravel(place[SITE].unsqueeze(0), like)).squeeze(0)

        tuning = tune_for is not None
        size: Any = 1.0 if self.step_size is None else self.step_size
        if isinstance(size, Tensor):
            size = size.reshape(-1)[chain_number % size.numel()].item()
        engine = PyroNUTS(
            potential_fn=potential,
            step_size=size,
            adapt_step_size=tuning,
            adapt_mass_matrix=tuning,
            full_mass=self.dense_mass,
            target_accept_prob=self.target_acceptance,
            max_tree_depth=self.max_tree_depth,
        )
        engine.initial_params = {SITE: chain.detach().clone()}
        engine.setup(tune_for or 0)
        if self.inverse_mass is not None:
            engine.mass_matrix_adapter.inverse_mass_matrix = {(SITE,): self.inverse_mass[chain_number]}
        return engine


@contextmanager
def quiet(generator: torch.Generator | None) -> Iterator[None]:
    """Import and run pyro without its warnings and argument checks, with draws from `generator` if one is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyro

        with pyro.validation_enabled(False), nullcontext() if generator is None else generators.seeded(generator):
            yield
