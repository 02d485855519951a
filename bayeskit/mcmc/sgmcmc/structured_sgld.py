"""Structured SG-MCMC: any kernel, without the dependence between groups of parameters."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.mcmc.base.log_density import LogDensity, Position, ravel, unravel
from bayeskit.mcmc.base.parameter_groups import Groups, group_labels
from bayeskit.mcmc.base.position_history import History
from bayeskit.mcmc.base.transition_kernel import Info, TransitionKernel
from bayeskit.mcmc.sgmcmc.sgld import SGLD


@dataclass(frozen=True, eq=False)
class StructuredState:
    """The state of the chains.

    Args:
        base: State of the inner kernel.
        labels: The group of each parameter, leaves (*shape,).
        history: Past positions.
    """

    base: Any
    labels: dict[str, Tensor]
    history: History

    @property
    def position(self) -> Position:
        """Leaves (c, *shape)."""
        return self.base.position


@dataclass(frozen=True, eq=False)
class Structured(TransitionKernel):
    """A kernel whose stationary distribution factorizes over groups of parameters.

    With groups q_1 ... q_M the inner kernel samples, in place of the log density U, its average over other groups,

        sum_i E U(q_i, q'_others),    q'_j from the past of the same chain, each group j from its own random time,

    whose distribution is the mean-field approximation, the factorized one that minimizes KL(q || target), with factors
    of free form. On a Gaussian N(m, P^-1) the factors are N(m_i, (P_ii)^-1): exact means, *conditional* variances.

    Every chain has random times of its own, so that chains stay independent and R-hat sees all of their variance.

    A step evaluates the density at M positions, in each of which one group is current and the others are past; or, with
    `num_passes`, at that many positions in which every group is current with probability `keep`. Then the distribution
    is between the two: on a Gaussian its precision is P on the diagonal blocks and `keep` P off them. A group that is
    current in none of a step's positions is not moved. With a single group, or `keep=1`, this is the inner kernel, bit
    for bit.

    Status: experimental. At equal numbers of gradients its accuracy on MNIST is 87.4 % where SGLD has 93.2 %, 3 seeds,
    and it mixes no faster on correlated parameters.

    Args:
        kernel: Any stochastic-gradient kernel.
        groups: "layer", "neuron", "parameter", "leaf", or your own labels; see `group_labels`.
        num_passes: None for one position per group; or the number of positions with random current groups.
        keep: Probability that a group is current, for `num_passes`.
        capacity: Past positions kept of each chain; memory is 1.25 times `capacity` positions. In the short run the
            means of the other groups have an error of 1 / sqrt(capacity) of their standard deviations.

    References:
        Alexos, Boyd and Mandt (2022), Structured stochastic gradient MCMC, sections 3.2 and 3.4.

    Examples:
        >>> from bayeskit import mcmc
        >>> g, start = torch.Generator().manual_seed(0), {"x": torch.zeros(500, 2)}
        >>> density = lambda q: -(q["x"].square().sum(-1) + 1.6 * q["x"].prod(-1))  # correlation -0.8, variances 1.39
        >>> kernel = Structured(SGLD(lr=0.1), groups="parameter")
        >>> x = mcmc.run(kernel, density, start, num_samples=1, burn_in=300, generator=g).samples["x"][:, 0]
        >>> bool((x.var(0) < 0.8).all() and abs(torch.corrcoef(x.T)[0, 1]) < 0.2)  # variances 0.5, no correlation
        True
    """

    kernel: TransitionKernel = field(default_factory=SGLD)
    groups: Groups = "layer"
    num_passes: int | None = None
    keep: float = 0.5
    capacity: int = 200

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> StructuredState:
        """The chains at `position`, which is also their whole past."""
        if not self.kernel.mini_batches:
            raise ValueError(
                "`kernel` must bear a noisy gradient, as SGLD does; "
                f"{type(self.kernel).__name__} needs the full density"
            )
        checks.positive(self.capacity, name="capacity", integer=True)
        if self.num_passes is not None:
            checks.positive(self.num_passes, name="num_passes", integer=True)
        if not 0 < self.keep <= 1:
            raise ValueError(f"`keep` must be above 0 and at most 1; got {self.keep!r}")
        labels = group_labels(self.groups, {name: leaf.shape[1:] for name, leaf in position.items()})
        labels = {name: label.to(position[name].device) for name, label in labels.items()}
        # The curvature of the average is at most that of the log density, so the step size measured here is stable.
        base = self.kernel.init(position, log_density, generator=generator)
        return StructuredState(base, labels, History.begin(ravel(position)))

    def prepared(
        self, log_density: LogDensity, position: Position, *, share: float = 1.0, generator: torch.Generator
    ) -> "Structured":
        """With the inner kernel prepared."""
        inside = self.kernel.prepared(log_density, position, share=share, generator=generator)
        return replace(self, kernel=inside)

    def samples(self, count: int) -> bool:
        """As the inner kernel."""
        return self.kernel.samples(count)

    def step(
        self, state: StructuredState, log_density: LogDensity, *, generator: torch.Generator
    ) -> tuple[StructuredState, Info]:
        """One step of the inner kernel on the average over the past."""
        groups = torch.cat([label.reshape(-1) for label in state.labels.values()])  # (p,)
        number = int(groups.max()) + 1
        if number == 1 or (self.num_passes is not None and self.keep == 1):
            base, info = self.kernel.step(state.base, log_density, generator=generator)
            return replace(state, base=base), info
        chains = len(next(iter(state.position.values())))
        current = self._draw_current(chains, number, generator).to(groups.device)  # (s, c, M), or (s, 1, M)
        past = state.history.draw(groups, number, len(current), generator=generator)
        average = _Average(log_density, current[..., groups], past)
        base, info = self.kernel.step(state.base, average, generator=generator)
        if not current.any(0).all():
            moving = {name: current.any(0)[:, label] for name, label in state.labels.items()}
            base = _with_fixed(state.base, base, moving)
        here = ravel({name: base.position[name] for name in state.labels})
        history = state.history.offer(here, capacity=self.capacity, generator=generator)
        return StructuredState(base, state.labels, history), info

    def _draw_current(self, chains: int, number: int, generator: torch.Generator) -> Tensor:
        """Which of M groups are current in each of s positions: (s, c, M) at random, or (s, 1, M) for all chains."""
        if self.num_passes is None:
            return torch.eye(number, dtype=torch.bool, device=generator.device)[:, None]
        shape = (self.num_passes, chains, number)
        return torch.rand(shape, generator=generator, device=generator.device) < self.keep


@dataclass(frozen=True, eq=False)
class _Average:
    """The mean log density (c,) over positions combined from current and past values.

    The gradient with respect to each parameter is the mean over the positions in which it is current, which is unbiased
    given that there are any. So it is scaled by s over their number.

    Args:
        log_density: Maps leaves (n, *shape) to (n,).
        current: Which parameters are current, (s, c, p) or (s, 1, p).
        past: Values of the others, (s, c, p).
    """

    log_density: LogDensity
    current: Tensor
    past: Tensor

    def __call__(self, position: Position) -> Tensor:
        here = ravel(position)
        share = len(self.current) / self.current.sum(0).clamp(min=1).to(here)
        scaled = here.detach() + (here - here.detach()) * share  # the same values, the gradient scaled
        mixed = torch.where(self.current, scaled, self.past.to(here))  # (s, c, p)
        return self.log_density(unravel(mixed.flatten(0, 1), position)).reshape(len(self.current), -1).mean(0)


def _with_fixed(before: Any, after: Any, moving: dict[str, Tensor]) -> Any:
    """The state `after` with the values (momenta too) of parameters that do not move as in `before`."""
    kept = {}
    for item in fields(after):
        new, old = getattr(after, item.name), getattr(before, item.name)
        if isinstance(new, dict) and new.keys() == moving.keys():
            kept[item.name] = {name: torch.where(moving[name], new[name], old[name]) for name in new}
    return replace(after, **kept)
