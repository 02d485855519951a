"""A sparse posterior of a data stream: its sites, the data in memory, and a summary of discarded data."""

import copy
import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.past_data import PastData
from bayeskit.gp.variational.per_datum_sites import RowSites
from bayeskit.gp.variational.site_posterior import DualProcess


@dataclass(frozen=True, eq=False)
class Memory:
    """The data points of a stream that are kept, a sample of all of it.

    Args:
        rows: Inputs, targets and case weights.
        sites: Their Gaussian sites.
        tickets: A standard exponential number for each, drawn once, (n,).
    """

    rows: Data
    sites: RowSites
    tickets: Tensor

    def __len__(self) -> int:
        return len(self.tickets)

    def kept(self, size: int) -> tuple["Memory", "Memory"]:
        """The `size` data points to keep, and those to discard.

        Point i has the key e_i / h_i with e_i standard exponential and h_i its leverage. Those of smallest key are a
        sample without replacement in proportion to h, and, the e_i being kept, one of the whole stream.
        """
        order = (self.tickets / self.sites.leverage.clamp(min=torch.finfo(torch.float64).tiny)).argsort(stable=True)
        return self.some(order[:size].sort().values), self.some(order[size:].sort().values)

    def some(self, index: Tensor) -> "Memory":
        """The data points of this index."""
        return Memory(self.rows.rows(index), self.sites.rows(index), self.tickets[index])

    def counted(self, total: float) -> Tensor:
        """How many data points of the stream each kept one stands for, times its case weight, (n,); `total` in all.

        A point of leverage h is kept with probability 1 - exp(-h t), and counts for the inverse of it, with the t at
        which the counts add up to `total`.
        """
        weights = weights_of(self.rows)
        if not len(self) or total <= float(weights.sum()) * (1 + 1e-12):
            return weights
        leverage = (self.sites.leverage / self.sites.leverage.max()).clamp(min=1e-12)
        low, high = -60.0, 60.0  # log t, by bisection, in units of the largest leverage
        for _ in range(60):
            middle = (low + high) / 2
            number = float((weights / -torch.expm1(-leverage * math.exp(middle))).sum())
            low, high = (middle, high) if number > total else (low, middle)
        return weights / -torch.expm1(-leverage * math.exp(high))


@dataclass(frozen=True, eq=False)
class MemoryProcess(DualProcess):
    """A `DualProcess` for streams: to `MemoryDualGP` it is a prior whose Z and hyperparameters still move.

    Its `sites` are those of `rest` plus those of the data in `memory`: each data point seen is in one of the two.

    Args:
        mean: See `GaussianProcess`.
        kernel: See `GaussianProcess`.
        num_outputs: k.
        base: The process before the data.
        sites: Sites of all data on v = L^-1 (f(Z) - m(Z)).
        rest: Summary of the discarded data.
        memory: The data in memory.
        seen: Number of data points, as the sum of their case weights.
        learnt: `base`, with those of its parameters that are still to be learned.

    References:
        Chang, Verma, John, Solin and Khan (2023), "Memory-Based Dual Gaussian Processes for Sequential Learning".
    """

    rest: PastData = field(kw_only=True)
    memory: Memory = field(kw_only=True)
    seen: float = field(kw_only=True)
    learnt: GaussianProcess = field(kw_only=True)

    @classmethod
    def after(
        cls, model: Model, process: DualProcess, *, past: PastData, memory: Memory, seen: float
    ) -> "MemoryProcess":
        """`process` with the state of its stream; `model` is copied."""
        learnt = GaussianProcess(model.mean, model.kernel, process.num_outputs, model.mixing)
        inherited = {part.name: getattr(process, part.name) for part in fields(DualProcess)}
        return cls(**inherited, rest=past, memory=memory, seen=seen, learnt=copy.deepcopy(learnt))


def weights_of(rows: Data) -> Tensor:
    """Case weights (n,), ones where there are none."""
    return torch.ones(len(rows), dtype=torch.float64, device=rows.y.device) if rows.weights is None else rows.weights


def joined(first: Data, second: Data) -> Data:
    """The data points of both.

    Examples:
        >>> one = Data(torch.zeros(1, 2), torch.zeros(1, 1))
        >>> len(joined(one, one)), joined(one, one).weights
        (2, None)
    """
    assert isinstance(first.x, Tensor) and isinstance(second.x, Tensor)
    weighted = first.weights is not None or second.weights is not None
    weights = torch.cat([weights_of(first), weights_of(second)]) if weighted else None
    missing = first.y.shape[-1] - second.y.shape[-1] if first.y.ndim > 1 else 0
    # Where `KnownNoise` has columns of variances that earlier data lack, their known noise is zero.
    earlier = second.y if missing <= 0 else torch.cat([second.y, torch.zeros_like(second.y)], dim=-1)
    return Data(torch.cat([first.x, second.x]), torch.cat([first.y, earlier]), weights)
