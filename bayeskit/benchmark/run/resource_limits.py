"""Peak memory of a trial's process, and a limit on the trial's time."""

import gc
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class TimeLimit(BaseException):
    """Raised inside a trial that exceeds its time limit; not an `Exception`, so that methods do not catch it."""


@contextmanager
def seconds(limit: float | None) -> Iterator[None]:
    """Raise `TimeLimit` in the code inside once `limit` seconds have passed.

    The main thread of a Unix process is interrupted between two Python instructions, so one long matrix
    factorization ends first. Elsewhere the code runs to its end and `TimeLimit` is raised then.

    >>> with seconds(60.0):
    ...     done = True
    """
    started = time.perf_counter()
    interruptible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if limit is None or not interruptible:
        yield
    else:

        def stop(*_: Any) -> None:
            raise TimeLimit

        before = signal.signal(signal.SIGALRM, stop)
        left, _ = signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            yield
        finally:  # a timer set before is restored with its remaining time
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if left:
                signal.setitimer(signal.ITIMER_REAL, max(left - (time.perf_counter() - started), 1e-3))
    if limit is not None and time.perf_counter() - started > limit:
        raise TimeLimit


@contextmanager
def memory(row: dict[str, Any]) -> Iterator[None]:
    """Write the peak memory of this process during the code inside into `row`, in MB.

    `peak_memory_mb` is the largest resident memory of the whole process, `start_memory_mb` that before. On
    Linux the kernel's own high-water mark is reset first; elsewhere it is that of the life of the process.
    """
    gc.collect()
    _reset_peak()
    start = _status("VmRSS")
    try:
        yield
    finally:
        peak = _status("VmHWM")
        row["peak_memory_mb"] = _life_peak() if peak is None else peak
        row["start_memory_mb"] = start


def _reset_peak() -> None:
    """Return freed memory to the system and reset the high-water mark, where the system supports it."""
    try:
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # not Linux with glibc: the peak is then that of the life of the process
        return


def _status(key: str) -> float | None:
    """A line of /proc/self/status in MB, or None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":")), None)


def _life_peak() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
