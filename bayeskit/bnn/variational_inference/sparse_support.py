"""The active weights of a network: all of them, or a few of some tensors; the others are zero."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bayeskit.core import checks
from bayeskit.core.types import Params

WHOLE = 1_000
"""Entries of a tensor up to which all are active: little memory is saved, and a narrow layer needs all of them."""


class Support(nn.Module):
    """The active entries of named tensors as one vector, tensor after tensor.

    A tensor is either dense (all its entries are active, in order) or has a sorted list of active positions. Other
    entries are zero and not stored.

    Args:
        like: The tensors, or their shapes, by name.
        positions: For each sparse tensor the active positions within it, (a,) sorted integers.

    >>> support = Support({"w": torch.zeros(2, 3), "b": torch.zeros(2)}, {"w": torch.tensor([1, 5])})
    >>> support.leaves(torch.tensor([7.0, 8.0, 1.0, 2.0]))
    {'w': tensor([[0., 7., 0.],
            [0., 0., 8.]]), 'b': tensor([1., 2.])}
    """

    def __init__(self, like: Mapping[str, Tensor | torch.Size], positions: Params | None = None):
        super().__init__()
        self.shapes = {name: v.shape if isinstance(v, Tensor) else v for name, v in like.items()}
        self.sparse = [name for name in like if name in (positions or {})]
        for number, name in enumerate(self.sparse):
            self.register_buffer(f"positions{number}", (positions or {})[name])

    def positions(self, name: str) -> Tensor | None:
        """Active positions within a tensor, (a,), or None if it is dense."""
        return getattr(self, f"positions{self.sparse.index(name)}") if name in self.sparse else None

    @property
    def version(self) -> tuple[int, ...]:
        """The version of the positions of each sparse tensor, which changes when they do."""
        return tuple(position._version for position in self.buffers())

    @property
    def densities(self) -> dict[str, float]:
        """The share of each tensor's entries that are active."""
        return {name: count / max(1, self.shapes[name].numel()) for name, count in self.counts.items()}

    def spread(self, numbers: dict[str, float]) -> Tensor:
        """One number for each tensor, repeated for each of its active entries: (s,)."""
        return torch.cat([torch.full((count,), numbers[name]) for name, count in self.counts.items()])

    @property
    def counts(self) -> dict[str, int]:
        """The number of active entries of each tensor."""
        found = {name: self.positions(name) for name in self.shapes}
        return {name: self.shapes[name].numel() if p is None else len(p) for name, p in found.items()}

    @property
    def size(self) -> int:
        """The number p of weights, active or not."""
        return sum(shape.numel() for shape in self.shapes.values())

    def index(self) -> Tensor | None:
        """The active positions within the flat vector of all the weights, (s,), or None if all are active."""
        if not self.sparse:
            return None
        parts, start = [], 0
        for name, shape in self.shapes.items():
            positions = self.positions(name)
            parts.append(start + (torch.arange(shape.numel()) if positions is None else positions))
            start += shape.numel()
        return torch.cat([part.to(parts[0].device) for part in parts])

    def take(self, dense: Tensor) -> Tensor:
        """The active entries of a vector over all the weights: (p,) to (s,)."""
        index = self.index()
        return dense if index is None else dense[index.to(dense.device)]

    def split(self, flat: Tensor) -> Params:
        """The active entries of each tensor: (*c, s) to parts (*c, a)."""
        counts = self.counts
        return dict(zip(counts, flat.split(list(counts.values()), dim=-1), strict=True))

    def leaf(self, name: str, values: Tensor) -> Tensor:
        """One tensor with zeros at the inactive entries: (*c, a) to (*c, *shape)."""
        positions, shape = self.positions(name), self.shapes[name]
        if positions is not None:
            zeros = values.new_zeros(*values.shape[:-1], shape.numel())
            values = zeros.index_copy(-1, positions, values)
        return values.reshape(*values.shape[:-1], *shape)

    def leaves(self, flat: Tensor) -> Params:
        """All the tensors: (*c, s) to leaves (*c, *shape)."""
        return {name: self.leaf(name, values) for name, values in self.split(flat).items()}


class Grid:
    """A weight (o, *inputs) as a matrix of blocks, the units that are active or not.

    Where the block does not divide a side, its greatest common divisor with that side is used: all units have one size,
    so the number of active weights is the number of active units times that size.

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
        height, width = (torch.arange(side, device=units.device) for side in self.block)
        row = (units // self.grid[1] * self.block[0])[:, None, None] + height[:, None]
        column = (units % self.grid[1] * self.block[1])[:, None, None] + width
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
    """A random share of the units of each matrix or convolution weight; vectors and small tensors stay dense.

    Args:
        like: The weights.
        density: Share of active units in a tensor, at least one of them.
        block: Shape of a unit.
        whole: Entries of a tensor up to which it stays dense.
        generator: Picks the units; not used at density 1.

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
