"""Sides timed in turn, and a row of the table."""

import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds of processor time, a field that is None stays empty."""

    case: str
    ours: float | None = None
    beside: str = ""
    theirs: float | None = None
    ratio: float | None = None
    at_most: float | None = None
    note: str = ""

    def __str__(self):
        cells = [self.case, _short(self.ours), self.beside, _short(self.theirs)]
        cells += ["" if self.ratio is None else f"{self.ratio:.3f}" if self.ratio < 0.1 else f"{self.ratio:.2f}"]
        cells += ["" if self.at_most is None else f"{self.at_most:g}", self.note]
        return "| " + " | ".join(cells) + " |"


class Times:
    """Milliseconds of each side in every round."""

    def __init__(self, spent):
        self.spent = spent

    def median(self, name):
        return statistics.median(self.spent[name])

    def ratio(self, ours, theirs):
        return statistics.median(a / b for a, b in zip(self.spent[ours], self.spent[theirs], strict=True))

    def row(self, case, ours, theirs, at_most=None, note=""):
        ratio = self.ratio(ours, theirs)
        return Row(case, self.median(ours), theirs, self.median(theirs), ratio, at_most, note)


def interleaved(calls, rounds, repeats=1):
    """Time the calls in turn, `repeats` of each a round, after one whose memory is then warm.

    Args:
        calls: What to run, by name.
        rounds: So many rounds are kept; one before them is not.
        repeats: Calls that a time is the average of.
    """
    spent = {name: [] for name in calls}
    for k in range(rounds + 1):
        for name, call in calls.items():
            call()
            begin = time.process_time()
            for _ in range(repeats):
                call()
            if k:
                spent[name].append(1e3 * (time.process_time() - begin) / repeats)
    return Times(spent)


def _short(value):
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"
