"""The data structures shared by all parts of the library.

`Params` names the weights of a network and `History` holds training curves. `Data` carries inputs, targets, case
weights and what is known about validation data, cuts itself into mini-batches, and is the *only* place where a sum over
a mini-batch is rescaled to the full data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inputs import Inputs, NamedInputs, Rows, as_inputs, as_real

Params = dict[str, Tensor]

History = dict[str, list[float]]
"""One list of numbers per training curve, such as {"loss": [...]}."""


@dataclass(frozen=True, eq=False)
class Validation:
    """What is known about the division of data into training and validation data, beyond the training settings.

    Args:
        groups: The group of each row, (n,) integers: rows of one group are never on both sides. None for no groups.
        fraction: Share of the rows to hold out, chosen at random; None for that of the training settings.
        splits: For each of f given splits, 1 where a row is trained on, 2 where it is held out, 0 where it is neither,
            (n, f). None for a random choice.
        data: A validation set of its own, of which nothing is trained on, or None.
    """

    groups: Tensor | None = None
    fraction: float | None = None
    splits: Tensor | None = None
    data: "Data | None" = None

    @property
    def decided(self) -> bool:
        """Whether the training settings are left nothing to decide."""
        return self.fraction is not None or self.splits is not None or self.data is not None

    def rows(self, index: Tensor | slice) -> "Validation":
        """The same of these rows alone."""
        groups = None if self.groups is None else self.groups[index]
        return replace(self, groups=groups, splits=None if self.splits is None else self.splits[index])

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Validation":
        """The same elsewhere."""
        groups = None if self.groups is None else self.groups.to(device=device)
        splits = None if self.splits is None else self.splits.to(device=device)
        data = None if self.data is None else self.data.to(device=device, dtype=dtype)
        return replace(self, groups=groups, splits=splits, data=data)


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
        validation: What is known about its division into training and validation data, or None.

    Examples:
        >>> data = Data(torch.zeros(4, 2), torch.arange(4.0).unsqueeze(-1))
        >>> [float(batch.total(batch.y[:, 0])) for batch in data.batches(2)], float(data.total(data.y[:, 0]))
        ([2.0, 10.0], 6.0)
    """

    x: Inputs
    y: Tensor
    weights: Tensor | None = None
    scale: float = 1.0
    validation: Validation | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.x, Tensor | NamedInputs | Rows):
            x = as_inputs(self.x)
            object.__setattr__(self, "x", x if isinstance(x, NamedInputs) else checks.tensor(x, name="data.x"))
        object.__setattr__(self, "x", as_real(self.x))
        if not isinstance(self.y, Tensor):
            object.__setattr__(self, "y", checks.tensor(self.y, name="data.y"))

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Tensor | slice) -> "Data":
        """These rows alone, as their own data set; inputs that are `Rows` stay unread."""
        y = self.y[index]
        x = self.x.take(index) if isinstance(self.x, Rows) and len(y) else self.x[index]
        weights = None if self.weights is None else self.weights[index]
        return Data(x, y, weights, validation=None if self.validation is None else self.validation.rows(index))

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
        weights = None if self.weights is None else move(self.weights)
        validation = None if self.validation is None else self.validation.to(device=device, dtype=dtype)
        return replace(self, x=x, y=move(self.y), weights=weights, validation=validation)
