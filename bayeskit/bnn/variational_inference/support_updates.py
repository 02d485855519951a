"""Exchanges of active weights during training.

An exchange deactivates the active weights of smallest signal-to-noise ratio |mean| / scale, and activates as many
others, those of largest gradient. Their number never changes.

References:
    Li, Miao, Qiu, Zhang. Training Bayesian neural networks with sparse subspace variational inference. ICLR 2024.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeskit.bnn.variational_inference.sparse_support import Grid
from bayeskit.bnn.variational_inference.variational_module import Variational
from bayeskit.core import checks
from bayeskit.core.optimize import distributed
from bayeskit.core.types import Params


class Subspace:
    """Exchanges active weights during training; call `step` after each step of the optimizer.

    At every `every`-th step, up to `until`, the share `fraction / 2 * (1 + cos(pi t / until))` of the active units of
    each tensor is exchanged: deactivated by |mean| / scale (its sum of squares over a block), activated by the size of
    the gradient of that step's mini-batch, which is then dense. Newly active weights start at mean zero with the
    average log scale of their tensor, and with an empty optimizer state.

    Args:
        q: The variational distribution.
        every: Steps between exchanges.
        until: Step after which there are none, such as three quarters of the training.
        fraction: Share of the active weights in the first exchange.
        block: Shape of the units, the same as for `random_support`.

    Attributes:
        count: Steps so far, ().

    >>> from bayeskit.bnn.variational_inference import variational
    >>> q = variational(torch.nn.Linear(100, 20), density=0.05)
    >>> optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    >>> subspace, g = Subspace(q, every=5, until=20), torch.Generator().manual_seed(0)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     q(torch.ones(8, 100), generator=g).square().mean().backward()
    ...     optimizer.step()
    ...     subspace.step(optimizer)
    >>> q.support.counts
    {'weight': 100, 'bias': 20}
    """

    def __init__(
        self, q: Variational, *, every: int = 100, until: int, fraction: float = 0.3, block: Sequence[int] = (1, 1)
    ):
        checks.positive(every, name="every", integer=True)
        checks.positive(until, name="until", integer=True)
        checks.fraction(fraction, name="fraction")
        self.q, self.every, self.until, self.fraction = q, every, until, fraction
        self.grids = {name: Grid(q.support.shapes[name], block) for name in q.support.sparse}
        self.count = torch.zeros((), dtype=torch.long)
        self.watch()

    @property
    def due(self) -> bool:
        """Whether an exchange follows the next step."""
        step = int(self.count) + 1
        return bool(self.grids) and step % self.every == 0 and step < self.until

    def watch(self) -> None:
        """Record the gradients of all the weights, active or not, in the next step if an exchange follows it."""
        self.q.gradients = {} if self.due else None

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Count a step of the optimizer, exchange if it is due, and prepare the next."""
        gradients, due = self.q.gradients, self.due
        self.count += 1
        if due and gradients:
            share = self.fraction / 2 * (1 + math.cos(math.pi * int(self.count) / self.until))
            averaged = dict(zip(gradients, distributed.average(list(gradients.values())), strict=True))
            self._exchange(averaged, share, optimizer)
        self.watch()

    def _exchange(self, gradients: Params, share: float, optimizer: torch.optim.Optimizer) -> None:
        parts = [self.q.support.split(self.q.mean), self.q.support.split(self.q.log_scale)]
        kept, moved = [], {}
        start = 0
        for name, mean in parts[0].items():
            old, log_scale = self.q.support.positions(name), parts[1][name]
            if old is None or name not in gradients:
                kept.append(torch.arange(start, start + len(mean), device=mean.device))
            else:
                new = self._chosen(name, (mean, log_scale), gradients[name], share)
                at = torch.searchsorted(old, new).clamp_max(len(old) - 1)
                kept.append(torch.where(old[at] == new, start + at, -1))
                moved[name] = new
            start += len(mean)
        source = torch.cat(kept)  # the previous place of each weight, -1 for newly active ones
        average = self.q.support.spread({name: float(part.mean()) for name, part in parts[1].items()})
        self._move(source, average.to(self.q.log_scale), optimizer)
        for name, new in moved.items():
            positions = self.q.support.positions(name)
            assert positions is not None and len(new) == len(positions)
            positions.copy_(new)

    def _chosen(self, name: str, q: tuple[Tensor, Tensor], gradient: Tensor, share: float) -> Tensor:
        """The new active positions in a tensor, sorted, as many as before."""
        grid, positions = self.grids[name], self.q.support.positions(name)
        assert positions is not None
        active, unit = grid.units_of(positions).unique(return_inverse=True)
        mean, log_scale = (part.double() for part in q)
        ratio = (mean.abs() * (-log_scale).exp()).square()  # (mean / scale)^2, which may overflow in float32
        scores = torch.zeros(len(active), dtype=ratio.dtype, device=ratio.device).index_add(0, unit, ratio)
        number = int(share * len(active))
        keep = active[scores.sort(descending=True, stable=True).indices[: len(active) - number]]
        slopes = grid.totals(gradient.double().square())
        slopes[keep] = -1
        return grid.positions(torch.cat([keep, slopes.topk(number).indices]))

    def _move(self, source: Tensor, average: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Move the parameters of every weight, and the optimizer's state of it, to its new place."""
        new, at = source < 0, source.clamp_min(0)
        for parameter, fresh in ((self.q.mean, torch.zeros_like(average)), (self.q.log_scale, average)):
            parameter.copy_(torch.where(new, fresh, parameter[at]))
            state: dict[str, Any] = optimizer.state.get(parameter, {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.copy_(torch.where(new, torch.zeros_like(value), value[at]))
