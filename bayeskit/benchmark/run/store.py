"""The folder of a comparison, from which an interrupted run resumes.

    settings.json    data, task and out-of-distribution data; other settings are refused
    results.jsonl    one line for each trial, appended on completion
    trials/          one .npz for each trial, with the arrays that the report draws

A trial's arrays are in place before its line is written, and a line is one write, so every complete line that a killed
run leaves is valid.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bayeskit.benchmark.run.trial import TrialResult

Key = tuple[str, int]  # method and seed


class Store:
    """Reads and writes the folder of one comparison.

    Args:
        folder: Path, created if missing.
        settings: Plain values that identify the comparison.

    Raises:
        ValueError: The folder holds a comparison with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        try:
            (folder / "trials").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"`out` must be a folder that can be written; {folder}: {error.strerror}") from None
        self._check(settings)
        self.rows: dict[Key, dict[str, Any]] = {}
        for row in _lines(self._results):
            self.rows[row["method"], row["seed"]] = row  # the last line of a trial counts

    def add(self, result: TrialResult) -> None:
        """Store a trial: its arrays first, then its line."""
        key = result.row["method"], result.row["seed"]
        if result.arrays:
            path = self._path(key)
            with open(path.with_suffix(".partial"), "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **result.arrays)
            os.replace(path.with_suffix(".partial"), path)
        line = json.dumps(result.row, ensure_ascii=False) + "\n"
        with open(self._results, "ab") as file:
            file.write((("" if _ends_whole(self._results) else "\n") + line).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = result.row

    def arrays(self, key: Key) -> dict[str, np.ndarray]:
        """The arrays of a trial, empty if it has none."""
        path = self._path(key)
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def whole(self, key: Key) -> bool:
        """Whether a trial's arrays are there and can be read."""
        return self._path(key).exists() and zipfile.is_zipfile(self._path(key))

    @property
    def _results(self) -> Path:
        return self.folder / "results.jsonl"

    def _path(self, key: Key) -> Path:
        return self.folder / "trials" / f"{key[0].replace('/', '_')}-{key[1]}.npz"

    def _check(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            path.with_suffix(".partial").write_text(json.dumps(settings, indent=1))
            os.replace(path.with_suffix(".partial"), path)
            return
        try:
            before = json.loads(path.read_text())
        except ValueError:
            raise ValueError(f"{path} cannot be read; delete the folder or give another `out`") from None
        for name, value in settings.items():
            if before.get(name) != value:
                change = f"with {name} {before.get(name)!r} and not {value!r}"
                what = "of data that have changed since" if name == "content" else change
                raise ValueError(
                    f"`out` folder {self.folder} holds a comparison {what}; give another `out`, or delete the folder"
                )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file of JSON lines; a line truncated by a crash is left out."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"method", "seed", "status"} <= row.keys():
            rows.append(row)
    return rows


def _ends_whole(path: Path) -> bool:
    """Whether the next line can be appended as it is: the file is empty, missing, or ends with a line break."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
