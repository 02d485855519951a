"""The data structures shared by all parts of the library.

`Params` names the weights of a network and `History` holds training curves. `Data` carries inputs, targets and case
weights, cuts itself into mini-batches, and is the *only* place where a sum over a mini-batch is rescaled to the full
data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inputs import Inputs, NamedInputs, Rows, as_inputs

Params = dict[str, Tensor]

History = dict[str, list[float]]
"""One list of numbers per training curve, such as {"loss": [...]}."""


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs and targets, with optional case weights.

    Args:
        x: Inputs of shape (n, *input_shape): a tensor or array, a dictionary of tensors for a network that takes
            several, or `Rows` of a data set too large to hold.
        y: Targets, a tensor or array: (n, k) real numbers or counts, or (n,) integer class codes.
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

    def __post_init__(self) -> None:
        if not isinstance(self.x, Tensor | NamedInputs | Rows):
            x = as_inputs(self.x)
            object.__setattr__(self, "x", x if isinstance(x, NamedInputs) else checks.tensor(x, name="data.x"))
        if not isinstance(self.y, Tensor):
            object.__setattr__(self, "y", checks.tensor(self.y, name="data.y"))

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

        x = move(self.x) if isinstance(self.x, Tensor) else self.x.to(device=device, dtype=dtype)
        return replace(self, x=x, y=move(self.y), weights=None if self.weights is None else move(self.weights))
