"""Federated sampling: chains that travel between clients, each of which keeps its data to itself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from bayeskit.core import checks, random
from bayeskit.mcmc.density import LogDensity, Position, ravel
from bayeskit.mcmc.kernel import Info, TransitionKernel
from bayeskit.mcmc.surrogates import Surrogate


@dataclass(frozen=True, eq=False)
class Federation:
    """A prior, and the likelihoods of shards of the data that stay where they are.

    Called, it is the log density of all the data, for whoever holds all shards.

    Args:
        log_prior: Maps leaves (c, *shape) to (c,).
        shards: By number, the log likelihood of the rows of that shard (the sum over them), or an iterable of
            estimates of it from mini-batches, gone through from its start at each visit. All of them to simulate, or
            those that this rank of `torch.distributed` holds. Mini-batches shuffle by generators of their own.
        sizes: Rows of every shard, held here or not. A chain visits shards in proportion to them.
        surrogates: A Gaussian stand-in for every shard's likelihood, for conducive gradients; None for none.

    Examples:
        >>> shards = {s: lambda q, s=s: -0.5 * (q["x"] - s) ** 2 for s in range(2)}
        >>> Federation(lambda q: -0.5 * q["x"] ** 2, shards, sizes=[1, 1])({"x": torch.ones(1)})
        tensor([-1.])
    """

    log_prior: LogDensity
    shards: Mapping[int, LogDensity | Iterable[LogDensity]]
    sizes: Sequence[float]
    surrogates: Sequence[Surrogate] | None = None

    def __call__(self, position: Position) -> Tensor:
        """Log density of c positions given all the data, (c,)."""
        total = self.log_prior(position)
        for number in range(len(self.sizes)):
            shard = self.shards.get(number)
            if not callable(shard):
                raise ValueError(
                    "a step size is measured on the whole log density, which needs every shard here, as a function; "
                    f"shard {number} is not. Give the kernel its `lr`."
                )
            total = total + shard(position)
        return total

    @property
    def whole(self) -> bool:
        """Whether all shards are held here."""
        return len(self.shards) == len(self.sizes)

    def local(self, number: int, likelihood: LogDensity, position: Position) -> Tensor:
        """What a chain at one shard takes for its log density, (c,): unbiased over shards.

        `log p(q) + log p(y_s | q) / f_s`, and with surrogates `sum_r log q_r(q) - log q_s(q) / f_s`, whose mean over
        shards is zero, and which holds the chain where all the data want it while it is at one of them.
        """
        share = self.sizes[number] / sum(self.sizes)
        value = self.log_prior(position) + likelihood(position) / share
        if self.surrogates is None:
            return value
        return value + self._everyone(position) - self.surrogates[number](position) / share

    @cached_property
    def _everyone(self) -> Surrogate:
        """The surrogates' product."""
        assert self.surrogates is not None
        dense = any(one.precision.ndim == 2 for one in self.surrogates)
        parts = [
            one.precision.diag() if dense and one.precision.ndim == 1 else one.precision for one in self.surrogates
        ]
        return Surrogate(torch.stack([one.linear for one in self.surrogates]).sum(0), torch.stack(parts).sum(0))

    def check(self) -> None:
        """Raise unless numbers, sizes and surrogates fit together."""
        if not self.sizes or min(self.sizes) <= 0:
            raise ValueError(f"`sizes` must be positive, one for every shard; got {list(self.sizes)}")
        if not set(self.shards) <= set(range(len(self.sizes))):
            raise ValueError(f"`shards` must be numbered 0 to {len(self.sizes) - 1}; got {sorted(self.shards)}")
        if self.surrogates is not None and len(self.surrogates) != len(self.sizes):
            raise ValueError(
                f"`surrogates` must have one for each of {len(self.sizes)} shards; got {len(self.surrogates)}"
            )


@dataclass(frozen=True, eq=False)
class Federated(TransitionKernel):
    """A kernel whose chains travel: each stays some steps with a client, sees its data alone, and moves on.

    A step of this kernel is a round. Every chain draws its next shard in proportion to the shards' sizes and takes
    `local_steps` of the kernel inside there; then positions are exchanged, and that is all the communication. Without
    surrogates a long visit drifts to what one shard, counted `1 / f_s` times, wants: distributed SGLD, which is biased
    unless the shards look alike. With surrogates (conducive gradients) that drift is taken out, up to what the
    surrogates miss; exact surrogates and whole shards make it the kernel inside on all the data.

    With all shards in one process the clients are simulated. With `torch.distributed`, every rank runs the same call
    with its own shards and a generator in the same state, and they end with the same chains, the simulation's.

    Args:
        kernel: What a client runs: one that bears a noisy gradient, `SGLD(lr=...)`. A step size is measured only
            where all shards are held.
        local_steps: Steps of a visit.

    References:
        El Mekkaoui, Mesquita, Blomstedt and Kaski (2021), Federated stochastic gradient Langevin dynamics, sections 3
        and 4; Ahn, Shahbaba and Welling (2014), Distributed stochastic gradient MCMC, for the same without surrogates.

    Examples:
        >>> from bayeskit import mcmc
        >>> shards = {s: lambda q, m=m: -0.5 * (q["x"] - m) ** 2 for s, m in enumerate([-5.0, 5.0])}
        >>> flat, start = lambda q: 0 * q["x"], {"x": torch.zeros(400)}
        >>> fitted = [mcmc.laplace_surrogate(shard, {"x": torch.zeros(1)}) for shard in shards.values()]
        >>> kernel = Federated(mcmc.SGLD(lr=0.1), local_steps=20)
        >>> for surrogates in (None, fitted):
        ...     federation, g = Federation(flat, shards, [1, 1], surrogates), torch.Generator().manual_seed(0)
        ...     x = mcmc.run(kernel, federation, start, num_samples=1, burn_in=10, generator=g).samples["x"]
        ...     print(0.4 < x.var().item() < 0.7)  # 0.5 is right; the shards are at -5 and 5
        False
        True
    """

    kernel: TransitionKernel
    local_steps: int = 10

    mini_batches: ClassVar[bool] = False

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> Any:
        """The state of the kernel inside."""
        checks.positive(self.local_steps, name="local_steps", integer=True)
        federation = _federation(log_density)
        federation.check()
        if not self.kernel.mini_batches:
            raise ValueError(f"`kernel` must bear a noisy gradient, as SGLD does; got {type(self.kernel).__name__}")
        return self.kernel.init(position, federation, generator=generator)

    def step(self, state: Any, log_density: LogDensity, *, generator: torch.Generator) -> tuple[Any, Info]:
        """One round: every chain visits a shard, and comes back."""
        federation = _federation(log_density)
        chains = len(next(iter(state.position.values())))
        sizes = torch.tensor(federation.sizes, dtype=torch.float64, device=generator.device)
        goes = random.categorical(sizes, chains, generator=generator).cpu()  # (c,)
        visited = [number for number in sorted(federation.shards) if (goes == number).any()]
        batches = {number: _endless(federation.shards[number]) for number in visited}
        reports = []
        for _ in range(self.local_steps):
            visit = _Visit(federation, {number: next(source) for number, source in batches.items()}, goes)
            state, info = self.kernel.step(state, visit, generator=generator)
            reports.append(info)
        info = {name: torch.stack([report[name] for report in reports]).mean(0) for name in reports[0]}
        if federation.whole:
            return state, info
        mine = torch.isin(goes, torch.tensor(sorted(federation.shards)))
        _one_owner(mine)
        return _exchanged(state, mine), _exchanged(info, mine)


@dataclass(frozen=True, eq=False)
class _Visit:
    """The log densities of chains at the shards held here; zero for those elsewhere.

    Args:
        federation: Prior, sizes and surrogates.
        likelihoods: Of the shards that are visited here.
        goes: The shard where each chain is, (c,).
    """

    federation: Federation
    likelihoods: Mapping[int, LogDensity]
    goes: Tensor

    def __call__(self, position: Position) -> Tensor:
        total = 0 * ravel(position).square().sum(-1)  # a gradient of zeros for chains elsewhere
        goes = self.goes.repeat(len(total) // len(self.goes))  # a kernel may ask for several positions of each chain
        for number, likelihood in self.likelihoods.items():
            rows = (goes == number).nonzero()[:, 0].to(total.device)
            value = self.federation.local(number, likelihood, {name: leaf[rows] for name, leaf in position.items()})
            total = total.index_add(0, rows, value)
        return total


def _federation(log_density: Any) -> Federation:
    if not isinstance(log_density, Federation):
        raise ValueError(f"Federated needs a `Federation` as its log density; got {type(log_density).__name__}")
    return log_density


def _endless(shard: LogDensity | Iterable[LogDensity]) -> Iterator[LogDensity]:
    """A shard's densities from the start of its first pass on."""
    while True:
        if callable(shard):
            yield shard
        else:
            used = False
            for density in shard:
                used = True
                yield density
            if not used:
                raise ValueError("a shard has no mini-batches left; pass an iterable that can be iterated over again")


def _one_owner(mine: Tensor) -> None:
    """Raise unless every chain is at exactly one rank."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "`shards` are not all here and `torch.distributed` is not initialized: give all of them, or start ranks"
        )
    owners = mine.long()
    dist.all_reduce(owners)
    if not (owners == 1).all():
        raise RuntimeError(
            "ranks disagree about where the chains are: every shard must be held by one rank, and all ranks must be "
            "given generators in the same state that nothing else draws from."
        )


def _exchanged(value: Any, mine: Tensor) -> Any:
    """The nest of tensors (c, ...) with every chain's rows as its own rank has them; the rest as it is."""
    if isinstance(value, Tensor) and value.ndim and len(value) == len(mine):
        keep = mine.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
        whole = torch.where(keep, value, torch.zeros_like(value))
        dist.all_reduce(whole)
        return whole
    if isinstance(value, dict):
        return {name: _exchanged(item, mine) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _exchanged(getattr(value, item.name), mine) for item in fields(value)})
    return value
