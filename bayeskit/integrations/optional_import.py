"""Error messages for missing optional libraries."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(library: str, *, extra: str) -> Iterator[None]:
    """Import an optional library; if it is missing, say how to install it.

    Args:
        library: Its name.
        extra: The extra of bayeskit that brings it.

    Raises:
        ImportError: An import inside fails.

    >>> with needed("nothing", extra="nothing"):
    ...     import no_such_library
    Traceback (most recent call last):
    ImportError: this needs nothing; install it with `pip install 'bayeskit[nothing]'`
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"this needs {library}; install it with `pip install 'bayeskit[{extra}]'`") from error
