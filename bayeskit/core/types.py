"""The two data structures that travel between the parts of the library.

`Params` names the weights of a network; `Data` carries inputs, targets and case weights, cuts itself into
mini-batches, and is the *only* place where a sum over a mini-batch is rescaled to the full data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

Params = dict[str, Tensor]


class Rows:
    """Inputs that stay in a `torch.utils.data.Dataset` until their rows are asked for.

    Indexing with a slice, integers of shape (b,) or a mask of shape (n,) reads those items and stacks their inputs into
    a tensor of shape (b, *input_shape), cast to `dtype` and moved to `device`; `rows[:]` reads everything.

    Args:
        dataset: Items are `(x, y)` pairs or bare inputs; `x` is anything `torch.as_tensor` takes.
        dtype: Floating type of the inputs; integer inputs (token ids) keep theirs.
        device: Where the rows are delivered.

    Examples:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.arange(6.0).view(3, 2), torch.zeros(3))
        >>> rows = Rows(dataset, dtype=torch.float64, device=torch.device("cpu"))
        >>> rows.shape, rows[1:].tolist()
        (torch.Size([3, 2]), [[2.0, 3.0], [4.0, 5.0]])
    """

    def __init__(self, dataset: Dataset, *, dtype: torch.dtype, device: torch.device):
        self.dataset, self.device = dataset, device
        first = self._read([0])
        self.dtype = dtype if first.is_floating_point() else first.dtype
        self.shape = torch.Size((len(dataset), *first.shape[1:]))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        positions = self._positions(index)
        if not positions:
            return torch.empty(0, *self.shape[1:], dtype=self.dtype, device=self.device)
        return self._read(positions).to(device=self.device, dtype=self.dtype)

    def take(self, index: Tensor | slice) -> "Rows":
        """Some of the rows, still unread; `index` as for reading, and not empty."""
        subset = Subset(self.dataset, self._positions(index))
        return Rows(subset, dtype=self.dtype, device=self.device)

    def _positions(self, index: Tensor | slice) -> Any:
        if isinstance(index, slice):
            return range(len(self))[index]
        return (index.nonzero().squeeze(-1) if index.dtype == torch.bool else index).tolist()

    def _read(self, positions: Any) -> Tensor:
        items = [self.dataset[i] for i in positions]
        return default_collate([item[0] if isinstance(item, tuple | list) else item for item in items])


Inputs = Tensor | Rows


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs and targets, with optional case weights.

    Args:
        x: Inputs of shape (n, *input_shape): a tensor, or `Rows` of a data set too large to hold.
        y: Targets, (n, k) real numbers or counts, or (n,) integer class codes.
        weights: Multipliers of the log-likelihood terms, (n,), or None for ones.
        scale: Factor by which a sum over these rows estimates the sum over the whole data set; a mini-batch of b
            rows out of n has n / b.

    Examples:
        >>> data = Data(torch.zeros(4, 2), torch.arange(4.0).unsqueeze(-1))
        >>> [float(batch.total(batch.y[:, 0])) for batch in data.batches(2)], float(data.total(data.y[:, 0]))
        ([2.0, 10.0], 6.0)
    """

    x: Inputs
    y: Tensor
    weights: Tensor | None = None
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Tensor | slice) -> "Data":
        """These rows alone, as their own data set; inputs that are `Rows` stay unread."""
        y = self.y[index]
        x = self.x.take(index) if isinstance(self.x, Rows) and len(y) else self.x[index]
        return Data(x, y, None if self.weights is None else self.weights[index])

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator["Data"]:
        """One pass over the rows in mini-batches of at most `size`, shuffled if a generator is given.

        Every batch carries `scale = n / len(batch)`, so `batch.total(...)` is unbiased for `self.total(...)`.
        """
        n = len(self)
        if generator is None:
            order = torch.arange(n, device=self.y.device)
        else:
            order = torch.randperm(n, generator=generator, device=generator.device).to(self.y.device)
        for start in range(0, n, size):
            index = order[start : start + size]
            rows = self.rows(index)
            yield replace(rows, x=rows.x[:], scale=self.scale * n / len(index))

    def total(self, values: Tensor) -> Tensor:
        """The sum over the full data set of a quantity given per row: `scale * sum_i w_i values_i`.

        Args:
            values: (*b, n) one number a row, such as log-likelihood terms.

        Returns:
            (*b,) the rescaled weighted sum.
        """
        weighted = values if self.weights is None else values * self.weights
        return self.scale * weighted.sum(-1)

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Data":
        """The same data elsewhere; integer inputs and class codes keep their type."""

        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None)

        if isinstance(self.x, Rows):
            x: Inputs = Rows(self.x.dataset, dtype=dtype or self.x.dtype, device=device or self.x.device)
        else:
            x = move(self.x)
        return replace(self, x=x, y=move(self.y), weights=None if self.weights is None else move(self.weights))
