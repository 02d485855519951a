"""Progress bars for training, sampling and benchmarks.

Loops always report through `track`; bars are displayed inside `shown`, and only at a terminal. Loops without a bar
cost nothing and import nothing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_wanted: ContextVar[bool] = ContextVar("wanted", default=False)
_display: ContextVar[Any] = ContextVar("display", default=None)


class Tracker:
    """The progress of a loop: `update` advances its bar and shows its latest numbers.

    Args:
        display: The running `rich.progress.Progress`, or None to stay silent.
        task: The bar's number in that display.
    """

    def __init__(self, display: Any = None, task: Any = None):
        self._display, self._task = display, task

    @property
    def visible(self) -> bool:
        """Whether the bar is displayed; numbers for display alone need not be computed otherwise."""
        return self._display is not None

    def update(self, advance: int = 1, **numbers: float) -> None:
        """Move on by `advance` and show `numbers`, such as `loss=0.31`, behind the bar."""
        if self._display is not None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            self._display.update(self._task, advance=advance, numbers=text)


@contextmanager
def shown(verbose: bool) -> Iterator[None]:
    """Let the loops inside draw their progress if `verbose`; nothing is drawn unless stderr is a terminal.

    Examples:
        >>> with shown(False), track(3, "training") as bar:
        ...     for _ in range(3):
        ...         bar.update(1, loss=0.5)
    """
    token = _wanted.set(bool(verbose))
    try:
        yield
    finally:
        _wanted.reset(token)


@contextmanager
def track(total: int, description: str) -> Iterator[Tracker]:
    """A bar of `total` steps for the loop inside, below the bars of the loops around it.

    Args:
        total: How many steps the loop takes at most.
        description: A few words in front of the bar.

    Yields:
        The tracker whose `update` the loop calls.
    """
    outer = _display.get()
    if outer is not None:
        task = outer.add_task(description, total=total, numbers="")
        try:
            yield Tracker(outer, task)
        finally:
            outer.remove_task(task)
    elif _wanted.get() and sys.stderr.isatty():
        with _opened() as display:
            yield Tracker(display, display.add_task(description, total=total, numbers=""))
    else:
        yield Tracker()


@contextmanager
def _opened() -> Iterator[Any]:
    """A rich display on stderr that inner loops find and join: rich draws only one at a time."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as display:
        token = _display.set(display)
        try:
            yield display
        finally:
            _display.reset(token)
