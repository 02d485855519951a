"""The division of rows into training and test rows: by groups, by time, in folds."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Split = tuple[np.ndarray, np.ndarray]
"""Training and test rows."""

TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class Division:
    """How each seed divides the rows; `dataset.division`.

    Args:
        folds: Number of folds, of which seed s holds out fold s mod `folds`; None for one test set of a fifth per seed.
        by: "rows", "groups" (rows of one group are on one side) or "time" (test rows are later than training rows).
        codes: The group of each row, or the rank of its time, (n,); empty for "rows".
        column: Name of the column of groups or times.
    """

    folds: int | None
    by: Literal["rows", "groups", "time"] = "rows"
    codes: np.ndarray | None = None
    column: str = ""

    def split(self, y: np.ndarray, labels: bool, seed: int) -> Split:
        """Training and test rows of a seed.

        Args:
            y: Targets, by which classes are stratified.
            labels: Whether these are class codes.
            seed: A number from 0.
        """
        if self.by == "time":
            return self._by_time(seed)
        from sklearn import model_selection

        count = self.folds or round(1 / TEST_FRACTION)
        if self.by == "groups":
            assert self.codes is not None
            count = min(count, len(np.unique(self.codes)))
            make: Any = model_selection.StratifiedGroupKFold if labels else model_selection.GroupKFold
        else:
            make = model_selection.StratifiedKFold if labels else model_selection.KFold
        repetition, fold = (seed, 0) if self.folds is None else divmod(seed, self.folds)
        splits = make(count, shuffle=True, random_state=repetition).split(y, y if labels else None, self.codes)
        return list(splits)[fold]

    def sentence(self, seeds: int) -> str:
        """How the rows are divided, for the terminal and the report."""
        share, fold = f"{100 * TEST_FRACTION:.0f} %", f"one of {self.folds} folds" if self.folds else ""
        if self.by == "time":
            what = f"the rows are in the order of {self.column}, and each test set is later than its training set"
            if self.folds:
                return f"Seed by seed {what}: of {self.folds + 1} blocks of time, one of the last {self.folds} in turn."
            return f"The test set is the last {share} of the rows by {self.column}, the same for every seed."
        if self.by == "groups":
            assert self.codes is not None
            groups = f"rows of one group of {self.column} ({len(np.unique(self.codes))} groups) are never on both sides"
            return f"Each seed holds out {fold or f'about {share} of the data at random'} as a test set, and {groups}."
        again = "" if not self.folds or seeds <= self.folds else ", which are drawn anew once all were used"
        return f"Each seed holds out {fold} as a test set in turn{again}."

    def _by_time(self, seed: int) -> Split:
        """Cuts between different times next to the ends of equal blocks of rows."""
        assert self.codes is not None
        n, order = len(self.codes), np.sort(self.codes)
        if self.folds is None:
            start, end = order[min(int((1 - TEST_FRACTION) * n), n - 1)], order[-1] + 1
            start = max(start, order[0] + 1)
        else:
            edges = [int(n * (k + 1) / (self.folds + 1)) for k in range(self.folds)]
            cuts = np.unique(np.maximum(order[edges], order[0] + 1))
            cuts = [*cuts, order[-1] + 1]
            fold = seed % self.folds % (len(cuts) - 1)
            start, end = cuts[fold], cuts[fold + 1]
        return np.flatnonzero(self.codes < start), np.flatnonzero((self.codes >= start) & (self.codes < end))
