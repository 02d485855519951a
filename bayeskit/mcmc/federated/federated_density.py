"""A log density with distributed data: a prior, and the likelihood of each shard."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayeskit.mcmc.base.log_density import LogDensity, Position
from bayeskit.mcmc.federated.shard_surrogates import Surrogate


@dataclass(frozen=True, eq=False)
class Federation:
    """A prior, and the likelihoods of shards of the data that stay with their owners.

    Called, it is the log density given all the data, if all shards are held here.

    Args:
        log_prior: Maps leaves (c, *shape) to (c,).
        shards: By number, the log likelihood of the rows of that shard (the sum over them), or an iterable of
            estimates of it from mini-batches, restarted at each visit. All of them in a simulation, or those of this
            rank of `torch.distributed`. Mini-batches are shuffled by their own generators.
        sizes: Number of data points of every shard, held here or not. Chains visit shards in proportion to them.
        surrogates: A Gaussian approximation of every shard's likelihood, for conducive gradients, or None.

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

    def local(self, number: int, likelihood: LogDensity, position: Position, chains: Tensor) -> Tensor:
        """The log density used by the chains with indices `chains` at one shard, (c,): unbiased over shards.

        `log p(q) + log p(y_s | q) / f_s`, and with surrogates `sum_r log q_r(q) - log q_s(q) / f_s`, whose mean over
        shards is zero, and which corrects the drift towards the posterior of one shard.
        """
        share = self.sizes[number] / sum(self.sizes)
        value = self.log_prior(position) + likelihood(position) / share
        if self.surrogates is None:
            return value
        mine, everyone = self.surrogates[number].of(chains), self._product.of(chains)
        return value + everyone(position) - mine(position) / share

    @cached_property
    def _product(self) -> Surrogate:
        """The product of the surrogates."""
        assert self.surrogates is not None
        dense = any(one.precision.ndim > one.linear.ndim for one in self.surrogates)
        parts = [
            one.precision.diag() if dense and one.precision.ndim == 1 else one.precision for one in self.surrogates
        ]
        return Surrogate(torch.stack([one.linear for one in self.surrogates]).sum(0), torch.stack(parts).sum(0))

    def check(self) -> None:
        """Raise unless shards, sizes and surrogates are consistent."""
        if not self.sizes or min(self.sizes) <= 0:
            raise ValueError(f"`sizes` must be positive, one for every shard; got {list(self.sizes)}")
        if not set(self.shards) <= set(range(len(self.sizes))):
            raise ValueError(f"`shards` must be numbered 0 to {len(self.sizes) - 1}; got {sorted(self.shards)}")
        if self.surrogates is not None and len(self.surrogates) != len(self.sizes):
            raise ValueError(
                f"`surrogates` must have one for each of {len(self.sizes)} shards; got {len(self.surrogates)}"
            )
