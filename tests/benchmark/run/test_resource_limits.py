"""Time limit and peak memory of a trial."""

import signal
import time

import numpy as np
import pytest

from bayeskit.benchmark.run import resource_limits


def test_the_limit_interrupts():
    started = time.perf_counter()
    with pytest.raises(resource_limits.TimeLimit), resource_limits.seconds(0.05):
        time.sleep(5)
    assert time.perf_counter() - started < 2


def test_code_within_the_limit_is_not_interrupted_and_the_timer_is_restored():
    before = signal.getitimer(signal.ITIMER_REAL)
    with resource_limits.seconds(30.0):
        pass
    after = signal.getitimer(signal.ITIMER_REAL)
    assert (before[0] > 0) == (after[0] > 0)
    with resource_limits.seconds(None):
        pass


def test_the_limit_is_not_an_exception_that_methods_catch():
    assert not issubclass(resource_limits.TimeLimit, Exception)


def test_peak_memory_includes_freed_memory():
    row = {}
    with resource_limits.memory(row):
        block = np.ones(64 * 2**17)  # 64 MB
        del block
    assert row["peak_memory_mb"] - row["start_memory_mb"] > 60
    with resource_limits.memory(row):
        pass
    assert row["peak_memory_mb"] - row["start_memory_mb"] < 30  # the mark was reset
