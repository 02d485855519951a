"""Storage of draws during a run: in memory, or on disk with constant memory."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.transition_kernel import Info

HEADER = 256
"""Bytes reserved for the header of a file, which is rewritten as the file grows."""


class Collector(ABC):
    """Collects draws one after the other and returns them stacked. A run begins with `begin` or `restore`."""

    @abstractmethod
    def begin(self) -> None:
        """Prepare for a new run."""

    @abstractmethod
    def add(self, position: Position, info: Info) -> None:
        """Add the draws of all chains, leaves (c, *shape), and the diagnostics, (c,) each."""

    @abstractmethod
    def saved(self, kept: int) -> dict[str, Any]:
        """The content of a checkpoint from which `restore` recovers the first `kept` draws."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Return to the state `saved`."""

    @abstractmethod
    def result(self, num_samples: int) -> tuple[Position, Info]:
        """The first draws, leaves (c, num_samples, *shape), and their diagnostics, (c, num_samples) each."""


class Memory(Collector):
    """All draws in memory: the default of `mcmc.run`."""

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        """Start without draws."""
        self.samples: list[Position] = []
        self.infos: list[Info] = []

    def add(self, position: Position, info: Info) -> None:
        """Store references: states are never changed in place."""
        self.samples.append(dict(position))
        self.infos.append(info)

    def saved(self, kept: int) -> dict[str, Any]:
        """The draws themselves."""
        return {"samples": self.samples[:kept], "infos": self.infos[:kept]}

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Restore the draws."""
        self.samples, self.infos = (
            [{name: leaf.to(device) for name, leaf in record.items()} for record in saved[kind]]
            for kind in ("samples", "infos")
        )

    def result(self, num_samples: int) -> tuple[Position, Info]:
        """The draws stacked behind the chain axis."""

        def stack(records: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.stack([r[name] for r in records[:num_samples]], dim=1) for name in records[0]}

        return stack(self.samples), stack(self.infos)


class Disk(Collector):
    """Draws in a folder of NumPy files, `NAME.npy` and `info.NAME.npy`, each of shape (draws, c, *shape).

    A few draws at a time are buffered in memory, and every file is readable at any time. `chain.samples` are then
    memory-mapped views of the files, on the CPU. With a checkpoint, a stopped run is resumed in the same folder, and
    the checkpoint stays small.

    Args:
        folder: Folder of the files; created if missing.
        chunk: Number of draws that are buffered before they are written.

    Examples:
        >>> import tempfile
        >>> from bayeskit import mcmc
        >>> g, folder = torch.Generator().manual_seed(0), tempfile.TemporaryDirectory()
        >>> density, start = lambda q: -q["x"].square(), {"x": torch.zeros(4)}
        >>> chain = mcmc.run(
        ...     mcmc.SGLD(lr=0.1), density, start, num_samples=6, burn_in=0, generator=g, collector=Disk(folder.name)
        ... )
        >>> chain.samples["x"].shape, np.load(folder.name + "/x.npy").shape
        (torch.Size([4, 6]), (6, 4))
        >>> folder.cleanup()
    """

    def __init__(self, folder: str | os.PathLike[str], *, chunk: int = 100):
        self.folder, self.chunk = Path(folder), chunk
        self.written, self.held = 0, Memory()

    def begin(self) -> None:
        """Create the folder; refuse one with draws of another run.

        Raises:
            ValueError: The folder has draws already.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.glob("*.npy")):
            raise ValueError(
                f"{self.folder} holds draws already: name another folder, delete them, or continue their run by its "
                "`checkpoint`."
            )
        self.written, self.held = 0, Memory()

    def add(self, position: Position, info: Info) -> None:
        """Buffer the draws, and write when the buffer is full."""
        self.held.add(position, info)
        if len(self.held.samples) >= self.chunk:
            self._write()

    def saved(self, kept: int) -> dict[str, Any]:
        """The number of valid draws in the files, which are flushed to disk before the checkpoint is written."""
        self._write()
        for path in self.folder.glob("*.npy"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return {"kept": kept}

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Discard draws that were written after the checkpoint."""
        self.written, self.held = saved["kept"], Memory()

    def result(self, num_samples: int) -> tuple[Position, Info]:
        """The files as memory-mapped tensors."""
        self._write()
        found: tuple[Position, Info] = {}, {}
        for path in sorted(self.folder.glob("*.npy")):
            mapped = torch.from_numpy(np.load(path, mmap_mode="c"))[:num_samples].transpose(0, 1)
            is_info = path.name.startswith("info.")
            found[is_info][path.name.removeprefix("info.").removesuffix(".npy")] = mapped
        return found

    def _write(self) -> None:
        if not self.held.samples:
            return
        samples, infos = self.held.result(len(self.held.samples))
        for name, leaf in {**samples, **{f"info.{name}": value for name, value in infos.items()}}.items():
            _append(self.folder / f"{name}.npy", leaf.transpose(0, 1), self.written)
        self.written, self.held = self.written + len(self.held.samples), Memory()


def _append(path: Path, draws: Tensor, before: int) -> None:
    """Write draws (d, c, *shape) after the first `before` of a NumPy file, replacing any later ones."""
    values = np.ascontiguousarray(draws.detach().cpu().numpy())
    length = before + len(values)
    description = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False}
    text = repr({**description, "shape": (length, *values.shape[1:])})
    head = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"
    with path.open("r+b" if before else "wb") as file:
        file.seek(HEADER + before * values[0].nbytes)
        file.write(values.tobytes())
        file.truncate()
        file.seek(0)
        file.write(head)
