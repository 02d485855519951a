"""Inputs of a function: a tensor, several named tensors, or rows of a data set that is not in memory.

The three share `len`, `x[index]`, `x.shape` and `x.device`, and `x[:]` of any of them is in memory. A dictionary of
tensors becomes `NamedInputs` on entry (`as_inputs`); only the code that calls the network distinguishes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, Subset, default_collate

from bayeskit.core import checks


@dataclass(frozen=True, eq=False)
class NamedInputs:
    """Several tensors with one row axis, such as token ids and their mask; torch's `vmap` maps over all of them.

    It is indexed, split and moved like a tensor. Made by `as_inputs` from a dictionary, which checks it.

    Args:
        leaves: Tensors (n, *leaf_shape) by name.

    Examples:
        >>> x = NamedInputs({"ids": torch.tensor([[3, 1], [2, 0]]), "mask": torch.tensor([[1.0, 1.0], [1.0, 0.0]])})
        >>> len(x), x.shape, x[1:].leaves["ids"].tolist(), x.to(dtype=torch.float64).leaves["ids"].dtype
        (2, torch.Size([2, 4]), [[2, 0]], torch.int64)
    """

    leaves: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: Any) -> "NamedInputs":
        return NamedInputs({name: value[index] for name, value in self.leaves.items()})

    @property
    def shape(self) -> torch.Size:
        """(n, numbers in a row), as if the leaves lay side by side."""
        return torch.Size((len(self), sum(value.shape[1:].numel() for value in self.leaves.values())))

    @property
    def device(self) -> torch.device:
        """Where the leaves are."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first leaf of real numbers; of the first leaf if there is none."""
        return next((value.dtype for value in self.leaves.values() if value.is_floating_point()), self._first.dtype)

    def is_floating_point(self) -> bool:
        """Whether any leaf holds real numbers."""
        return self.dtype.is_floating_point

    def to(self, dtype: torch.dtype | None = None, *, device: torch.device | None = None) -> "NamedInputs":
        """The same inputs elsewhere; leaves of integers (token ids) and truth values keep their type."""
        return NamedInputs({name: _moved(value, dtype, device) for name, value in self.leaves.items()})

    def split(self, sizes: int | list[int]) -> list["NamedInputs"]:
        """Consecutive rows in parts of these sizes."""
        parts = {name: value.split(sizes) for name, value in self.leaves.items()}
        return [NamedInputs(dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True)]

    def unsqueeze(self, dim: int) -> "NamedInputs":
        """Every leaf with a further axis: a single row under `vmap` becomes one of a batch."""
        return NamedInputs({name: value.unsqueeze(dim) for name, value in self.leaves.items()})

    @property
    def _first(self) -> Tensor:
        return next(iter(self.leaves.values()))


pytree.register_pytree_node(
    NamedInputs,
    lambda x: (list(x.leaves.values()), tuple(x.leaves)),
    lambda values, names: NamedInputs(dict(zip(names, values, strict=True))),
)

Batch = Tensor | NamedInputs
"""Inputs in memory."""


_BYTES = (torch.uint8, torch.int8, torch.int16, torch.bool)


def as_real(x: Any) -> Any:
    """Numbers that no embedding takes as real ones: those of 1, 8 or 16 bits, and integer images (n, channels, h, w).

    Args:
        x: A tensor, or named ones; anything else is returned as it is.

    Examples:
        >>> as_real(torch.zeros(2, 3, dtype=torch.uint8)).dtype, as_real(torch.zeros(2, 3, dtype=torch.int64)).dtype
        (torch.float32, torch.int64)
    """
    if isinstance(x, NamedInputs):
        return NamedInputs(
            {name: leaf if leaf.dtype == torch.bool else as_real(leaf) for name, leaf in x.leaves.items()}
        )
    if not isinstance(x, Tensor):
        return x
    whole = not x.is_floating_point() and not x.is_complex()
    return x.to(torch.get_default_dtype()) if x.dtype in _BYTES or (whole and x.ndim > 3) else x.contiguous()


class Rows:
    """Inputs that stay in a `torch.utils.data.Dataset` until their rows are indexed.

    Indexing with a slice, integers of shape (b,) or a mask of shape (n,) reads those items and stacks their inputs into
    a tensor of shape (b, *input_shape), cast to `dtype` and moved to `device`; `rows[:]` reads everything.

    Args:
        dataset: Anything with a length whose items are `(x, y)` pairs or bare inputs, or dictionaries with the key
            "labels" or "label" of the target; `x` is anything `torch.as_tensor` takes, or a dictionary of such.
        dtype: Floating type of the inputs; integer inputs (token ids) keep theirs.
        device: Where the rows are put.

    Raises:
        TypeError: The inputs of the items are neither arrays nor dictionaries of arrays.
        ValueError: They differ in shape.

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
        self._none = first[:0]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Any:
        positions = self._positions(index)
        return (self._read(positions) if positions else self._none).to(device=self.device, dtype=self.dtype)

    def take(self, index: Tensor | slice) -> "Rows":
        """Some of the rows, still unread; `index` as for reading, and not empty."""
        subset = Subset(self.dataset, self._positions(index))
        return Rows(subset, dtype=self.dtype, device=self.device)

    def to(self, dtype: torch.dtype | None = None, *, device: torch.device | None = None) -> "Rows":
        """The same rows on another device or of another type."""
        return Rows(self.dataset, dtype=dtype or self.dtype, device=device or self.device)

    def is_floating_point(self) -> bool:
        """Whether any part of a row holds real numbers."""
        return self.dtype.is_floating_point

    def _positions(self, index: Tensor | slice) -> Any:
        if isinstance(index, slice):
            return range(len(self))[index]
        return (index.nonzero().squeeze(-1) if index.dtype == torch.bool else index).tolist()

    def _read(self, positions: Sequence[int]) -> Batch:
        inputs = [_plain(item_parts(self.dataset[i])[0]) for i in positions]
        try:
            batch = as_real(as_inputs(default_collate(inputs), name="x"))
        except RuntimeError as error:
            raise ValueError(
                f"The inputs of a Dataset must have the same shape in every item: {error}. Pad or truncate them, for "
                "example in its `__getitem__`, with a mask of the padding."
            ) from None
        except TypeError:
            batch = None
        if not isinstance(batch, Tensor | NamedInputs):
            raise TypeError(
                "The inputs of a Dataset must be tensors, arrays or dictionaries of them; got "
                f"{type(inputs[0]).__name__}. Name the parts: {{'first': ..., 'second': ...}}, and make tensors of "
                "images, for example with `transform=ToTensor()`."
            )
        return batch


LABELS = ("labels", "label")
"""Keys of the target in the items of a data set that are dictionaries."""


def item_parts(item: Any) -> tuple[Any, Any]:
    """Input and target (or None) of an item of a data set: of a pair, or of a dictionary with "labels" or "label".

    Examples:
        >>> item_parts(([1.0], 2)), item_parts({"pixel_values": [1.0], "label": 2}), item_parts(torch.ones(2))[1]
        (([1.0], 2), ([1.0], 2), None)
    """
    if isinstance(item, Mapping):
        key = next((key for key in LABELS if key in item), None)
        if key is None:
            return item, None
        inputs = {name: value for name, value in item.items() if name != key}
        return (next(iter(inputs.values())) if len(inputs) == 1 else inputs), item[key]
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _plain(value: Any) -> Any:
    """Arrays of any strides and byte order as tensors, which collate."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return checks.tensor(value, name="x") if isinstance(value, np.ndarray) else value


Inputs = Tensor | NamedInputs | Rows


def as_inputs(value: Any, *, name: str = "x") -> Any:
    """A dictionary of tensors (or arrays) as `NamedInputs`; anything else unchanged.

    Args:
        value: Tensors (n, *leaf_shape) by name, or other inputs.
        name: Its name in errors.

    Raises:
        TypeError: A leaf is no array of numbers, or is named by something other than a string.
        ValueError: There is no leaf, or the leaves differ in the number of rows.

    Examples:
        >>> as_inputs({"ids": [[1, 2]], "mask": [[1, 1], [1, 0]]})
        Traceback (most recent call last):
        ValueError: the leaves of `x` must have the same number of rows; got 1 in 'ids', 2 in 'mask'
    """
    if isinstance(value, Tensor) or not isinstance(value, Mapping) or hasattr(value, "shape"):
        return value  # a mapping with a shape is one sparse matrix
    if not value:
        raise ValueError(f"`{name}` must name at least one tensor; got an empty dictionary")
    leaves: dict[str, Tensor] = {}
    for key, leaf in value.items():
        if not isinstance(key, str):
            raise TypeError(f"the leaves of `{name}` must be named by strings; got {key!r}")
        leaves[key] = _leaf(leaf, f"{name}[{key!r}]")
    lengths = {key: len(leaf) for key, leaf in leaves.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{count} in {key!r}" for key, count in lengths.items())
        raise ValueError(f"the leaves of `{name}` must have the same number of rows; got {found}")
    return NamedInputs(leaves)


def take(X: Any, rows: Any) -> Any:
    """Some rows of an array, a table, a tensor, a list, or of `Rows`, which stay unread.

    Args:
        X: n rows of anything.
        rows: Their positions (m,).

    Examples:
        >>> take([10, 20, 30], [2, 0])
        [30, 10]
    """
    if isinstance(X, Rows):
        return X.take(torch.as_tensor(rows))
    if isinstance(X, Tensor):
        return X[torch.as_tensor(rows)]
    from sklearn.utils import _safe_indexing

    return _safe_indexing(X, rows)


def one_tensor(x: Any) -> Tensor:
    """Inputs in memory as one tensor, for a function that takes no other.

    Raises:
        TypeError: The inputs are several named tensors.

    Examples:
        >>> one_tensor(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    x = as_inputs(x)[:]
    if isinstance(x, NamedInputs):
        raise TypeError(
            f"One table of inputs, (n, d), is what a Gaussian process takes; got tensors named {list(x.leaves)}. Join "
            "them into one, or use a method of `bayeskit.bnn` with a network that takes them."
        )
    return x


def parts(x: Batch) -> tuple[Tensor, ...]:
    """The tensors that inputs are made of.

    Examples:
        >>> [part.shape for part in parts(NamedInputs({"a": torch.zeros(2, 3), "b": torch.zeros(2)}))]
        [torch.Size([2, 3]), torch.Size([2])]
    """
    return (x,) if isinstance(x, Tensor) else tuple(x.leaves.values())


def _leaf(value: Any, name: str) -> Tensor:
    if value is None or isinstance(value, str | Mapping | NamedInputs):
        raise TypeError(f"`{name}` must be a tensor or an array of numbers; got {type(value).__name__}")
    leaf = checks.tensor(value, name=name)
    if leaf.ndim == 0:
        raise ValueError(f"`{name}` must have a row for every input, (n, ...); got a single number")
    return leaf


def _moved(value: Tensor, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
