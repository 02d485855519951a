"""Diagnostics recorded by numerical code: jitter added, variances floored at rounding.

An inference wraps its work in `recording()` and puts the notes into the diagnostics of its fit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_innermost: ContextVar[dict[str, float] | None] = ContextVar("innermost recording", default=None)


@contextmanager
def recording() -> Iterator[dict[str, float]]:
    """Collect the notes left while the block runs; of two recordings, the inner one gets them.

    Yields:
        The notes: what was done, as a phrase, and the largest value it was done with.

    Examples:
        >>> import torch
        >>> from bayeskit.core.operators import factorize, recording
        >>> with recording() as notes:
        ...     _ = factorize(torch.eye(3), name="K_zz")
        >>> notes
        {'jitter of K_zz': 0.0}
    """
    notes: dict[str, float] = {}
    token = _innermost.set(notes)
    try:
        yield notes
    finally:
        _innermost.reset(token)


def note(key: str, value: float) -> None:
    """Record `key` in the innermost `recording()`, keeping the largest value; outside of one nothing happens.

    Args:
        key: A phrase a user understands, such as "variances floored at rounding".
        value: How much, or how many.

    Examples:
        >>> with recording() as notes:
        ...     note("variances floored at rounding", 3)
        ...     note("variances floored at rounding", 2)
        >>> notes
        {'variances floored at rounding': 3}
    """
    notes = _innermost.get()
    if notes is not None:
        notes[key] = max(value, notes.get(key, value))
