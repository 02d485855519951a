"""How much memory one chunk may take: whatever grows with the number of inputs is worked through in such chunks."""

from collections.abc import Iterator
from typing import Any

CHUNK_ELEMENTS = 2**24
"""Numbers alive in one chunk of work: 64 MiB in float32, 128 MiB in float64."""

CACHE_ELEMENTS = 2**20
"""The same for work that is bound by memory traffic and runs several times faster where the cache holds it."""


def chunks(total: int, cost: int, *, cached: bool = False, elements: int | None = None) -> Iterator[slice]:
    """Consecutive slices covering `range(total)`, each of so many items as the budget holds, never fewer than one.

    Args:
        total: How many items there are.
        cost: Numbers held in memory for one item.
        cached: Whether the budget is `CACHE_ELEMENTS` rather than `CHUNK_ELEMENTS`.
        elements: Another budget.

    Examples:
        >>> list(chunks(5, CHUNK_ELEMENTS // 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    budget = elements or (CACHE_ELEMENTS if cached else CHUNK_ELEMENTS)
    step = max(1, budget // max(1, cost))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def pieces(x: Any, cost: int, *, dim: int = 0, cached: bool = False, elements: int | None = None) -> Iterator[Any]:
    """`x` cut along one axis into `chunks`; a single empty piece where it is empty.

    Args:
        x: A tensor, or any inputs that a slice cuts along their first axis.
        cost: Numbers held in memory for one item.
        dim: The axis, 0 unless `x` is a tensor.
        cached: As in `chunks`.
        elements: As in `chunks`.

    Examples:
        >>> import torch
        >>> [piece.shape[-2] for piece in pieces(torch.zeros(3, 5, 1), 2, dim=-2, elements=4)]
        [2, 2, 1]
    """
    total = len(x) if dim == 0 else x.shape[dim]
    for part in chunks(total, cost, cached=cached, elements=elements) if total else (slice(0, 0),):
        yield x[part] if dim == 0 else x.narrow(dim, part.start, part.stop - part.start)


def fits(elements: int) -> bool:
    """Whether so many numbers may be alive at once.

    Examples:
        >>> fits(1000)
        True
    """
    return elements <= CHUNK_ELEMENTS
