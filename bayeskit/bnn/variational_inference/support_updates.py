"""Which weights are active: a random choice at the start, and exchanges while training.

At an exchange the active weights that are least sure of not being zero, by |mean| / scale, are dropped, and as many are
taken up whose gradient is largest. Their number never changes.

References:
    Li, Miao, Qiu, Zhang. Training Bayesian neural networks with sparse subspace variational inference. ICLR 2024.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeskit.bnn.variational_inference.sparse_support import Support
from bayeskit.bnn.variational_inference.variational_module import Variational
from bayeskit.core import checks
from bayeskit.core.optimize import distributed
from bayeskit.core.types import Params

WHOLE = 1_000
"""Numbers of a tensor up to which it is left whole: there is nothing to save, and a narrow layer can ill spare them."""


class Grid:
    """A weight (o, *inputs) as a matrix cut into blocks, the units that are active or not.

    A side that the block does not divide is cut into the largest parts that divide both: every unit is of one size, and
    so the number of active weights is exactly the number of active units times that size.

    Args:
        shape: Of the weight.
        block: Rows and columns of a block.

    >>> grid = Grid(torch.Size((4, 6)), (2, 4))
    >>> grid.block, grid.units, grid.positions(torch.tensor([1])).tolist()
    ((2, 2), 6, [2, 3, 8, 9])
    """

    def __init__(self, shape: torch.Size, block: Sequence[int]):
        self.rows, self.columns = shape[0], shape[1:].numel()
        self.block = (math.gcd(block[0], self.rows), math.gcd(block[1], self.columns))
        self.grid = (self.rows // self.block[0], self.columns // self.block[1])
        self.units, self.size = self.grid[0] * self.grid[1], self.block[0] * self.block[1]

    def positions(self, units: Tensor) -> Tensor:
        """Sorted positions in the flattened weight of the entries of some units: (u,) to (u * size,)."""
        device = units.device
        row = (units // self.grid[1] * self.block[0])[:, None, None] + torch.arange(self.block[0], device=device)[
            :, None
        ]
        column = (units % self.grid[1] * self.block[1])[:, None, None] + torch.arange(self.block[1], device=device)
        return (row * self.columns + column).flatten().sort().values

    def units_of(self, positions: Tensor) -> Tensor:
        """The unit of each position, (a,)."""
        row, column = positions // self.columns, positions % self.columns
        return row // self.block[0] * self.grid[1] + column // self.block[1]

    def totals(self, dense: Tensor) -> Tensor:
        """Sums over the entries of every unit of a tensor of the weight's shape: (units,)."""
        return dense.reshape(self.grid[0], self.block[0], self.grid[1], self.block[1]).sum((1, 3)).flatten()


def random_support(
    like: Params, density: float, *, block: Sequence[int] = (1, 1), whole: int = WHOLE, generator: torch.Generator
) -> Support:
    """A random share of the units of each matrix or convolution weight; vectors and small tensors stay whole.

    Args:
        like: The weights.
        density: Share of active units in a tensor, at least one of them.
        block: Shape of a unit.
        whole: Numbers of a tensor up to which it stays whole.
        generator: Picks the units; not touched at density 1.

    Raises:
        ValueError: The density is not above 0 and at most 1, or a side of the block is not a positive integer.
    """
    if density != 1:
        checks.fraction(density, name="density")
    for side in block:
        checks.positive(side, name="block", integer=True)
    positions = {}
    for name, value in like.items():
        if value.ndim >= 2 and value.numel() > whole and density < 1:
            grid = Grid(value.shape, block)
            order = torch.randperm(grid.units, generator=generator, device=generator.device).to(value.device)
            positions[name] = grid.positions(order[: max(1, round(density * grid.units))])
    return Support(like, positions)


class Subspace:
    """Exchanges active weights of a law while it is trained; to be called after each step of the optimizer.

    At every `every`-th step, up to `until`, the share `fraction / 2 * (1 + cos(pi t / until))` of the active units of
    each tensor is exchanged: dropped by |mean| / scale (by its sum of squares over a block), taken up by the size of
    the gradient of that step's mini-batch, which is then dense. Newcomers start at zero with the average log scale of
    their tensor, and with nothing remembered by the optimizer.

    Args:
        q: The law.
        every: Steps between exchanges.
        until: Step after which there are none: three quarters of the training, say.
        fraction: Share of the active weights exchanged at first.
        block: Shape of the units, as the support was made with.

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
        """Whether the step to come is followed by an exchange."""
        step = int(self.count) + 1
        return bool(self.grids) and step % self.every == 0 and step < self.until

    def watch(self) -> None:
        """Have the gradients for all the weights written down if the step to come needs them."""
        self.q.gradients = {} if self.due else None

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Count a step of the optimizer, exchange if it is time, and prepare the next."""
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
        source = torch.cat(kept)  # where each number comes from, -1 for newcomers
        average = self.q.support.spread({name: float(part.mean()) for name, part in parts[1].items()})
        self._move(source, average.to(self.q.log_scale), optimizer)
        for name, new in moved.items():
            positions = self.q.support.positions(name)
            assert positions is not None and len(new) == len(positions)
            positions.copy_(new)

    def _chosen(self, name: str, law: tuple[Tensor, Tensor], gradient: Tensor, share: float) -> Tensor:
        """The positions in a tensor that are active from now on, sorted, as many as before."""
        grid, positions = self.grids[name], self.q.support.positions(name)
        assert positions is not None
        active, unit = grid.units_of(positions).unique(return_inverse=True)
        mean, log_scale = (part.double() for part in law)
        sure = (mean.abs() * (-log_scale).exp()).square()  # (mean / scale)^2, which float32 might not hold
        scores = torch.zeros(len(active), dtype=sure.dtype, device=sure.device).index_add(0, unit, sure)
        number = int(share * len(active))
        keep = active[scores.sort(descending=True, stable=True).indices[: len(active) - number]]
        slopes = grid.totals(gradient.double().square())
        slopes[keep] = -1
        return grid.positions(torch.cat([keep, slopes.topk(number).indices]))

    def _move(self, source: Tensor, average: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Put every number of the law, and what the optimizer remembers of it, where its weight now is."""
        new, at = source < 0, source.clamp_min(0)
        for parameter, fresh in ((self.q.mean, torch.zeros_like(average)), (self.q.log_scale, average)):
            parameter.copy_(torch.where(new, fresh, parameter[at]))
            state: dict[str, Any] = optimizer.state.get(parameter, {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.copy_(torch.where(new, torch.zeros_like(value), value[at]))
