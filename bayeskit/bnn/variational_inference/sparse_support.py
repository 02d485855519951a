"""Which weights of a network a mean-field law lives on: all of them, or a few active ones of some tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayeskit.core.types import Params


class Support(nn.Module):
    """The active coordinates of a set of named tensors, laid out as one vector, tensor after tensor.

    A tensor is either whole (each of its numbers is active, in order) or has a sorted list of active positions. Numbers
    that are not active are zero, and nothing is stored for them.

    Args:
        like: The tensors, or their shapes, by name.
        positions: For each tensor that is not whole, the active positions within it, (a,) sorted integers.

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
        """Active positions within a tensor, (a,), or None if it is whole."""
        return getattr(self, f"positions{self.sparse.index(name)}") if name in self.sparse else None

    @property
    def version(self) -> tuple[int, ...]:
        """A number for each sparse tensor that grows when its positions are changed in place."""
        return tuple(position._version for position in self.buffers())

    @property
    def densities(self) -> dict[str, float]:
        """The share of each tensor's numbers that are active."""
        return {name: count / max(1, self.shapes[name].numel()) for name, count in self.counts.items()}

    def spread(self, numbers: dict[str, float]) -> Tensor:
        """A number for each tensor, given to each of its active entries: (s,)."""
        return torch.cat([torch.full((count,), numbers[name]) for name, count in self.counts.items()])

    @property
    def counts(self) -> dict[str, int]:
        """How many numbers of each tensor are active."""
        found = {name: self.positions(name) for name in self.shapes}
        return {name: self.shapes[name].numel() if p is None else len(p) for name, p in found.items()}

    @property
    def size(self) -> int:
        """How many weights there are, active or not: p."""
        return sum(shape.numel() for shape in self.shapes.values())

    def index(self) -> Tensor | None:
        """The active coordinates within the flat vector of all the weights, (s,), or None if that is all of them."""
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
        """The numbers of each tensor side by side: (*c, s) to parts (*c, a)."""
        counts = self.counts
        return dict(zip(counts, flat.split(list(counts.values()), dim=-1), strict=True))

    def leaf(self, name: str, values: Tensor) -> Tensor:
        """One tensor with zeros where it is not active: (*c, a) to (*c, *shape)."""
        positions, shape = self.positions(name), self.shapes[name]
        if positions is not None:
            zeros = values.new_zeros(*values.shape[:-1], shape.numel())
            values = zeros.index_copy(-1, positions, values)
        return values.reshape(*values.shape[:-1], *shape)

    def leaves(self, flat: Tensor) -> Params:
        """All the tensors: (*c, s) to leaves (*c, *shape)."""
        return {name: self.leaf(name, values) for name, values in self.split(flat).items()}
