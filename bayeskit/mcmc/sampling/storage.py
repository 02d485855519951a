"""Where draws go while a run is on its way: into memory, or to disk with memory that does not grow."""

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
"""Bytes kept free for the description at the head of a file, which is written anew as the file grows."""


class Collector(ABC):
    """Takes in draws one after the other and gives them back stacked. A run begins with `begin` or with `restore`."""

    @abstractmethod
    def begin(self) -> None:
        """Get ready for the first draw of a new run."""

    @abstractmethod
    def add(self, position: Position, info: Info) -> None:
        """Take in the draws of all chains, leaves (c, *shape), and what the kernel reported, (c,) each."""

    @abstractmethod
    def saved(self, kept: int) -> dict[str, Any]:
        """What a checkpoint has to hold so that `restore` comes back to the first `kept` draws."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go back to what `saved` told."""

    @abstractmethod
    def result(self, num_samples: int) -> tuple[Position, Info]:
        """The first draws, leaves (c, num_samples, *shape), and reports, (c, num_samples) each."""


class Memory(Collector):
    """All draws in memory; what `mcmc.run` uses if nothing is said."""

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        """Start with nothing."""
        self.samples: list[Position] = []
        self.infos: list[Info] = []

    def add(self, position: Position, info: Info) -> None:
        """Keep references: states are never changed in place."""
        self.samples.append(dict(position))
        self.infos.append(info)

    def saved(self, kept: int) -> dict[str, Any]:
        """The draws themselves."""
        return {"samples": self.samples[:kept], "infos": self.infos[:kept]}

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Take the draws back."""
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

    A few draws at a time are held in memory, and every file is readable at any time. `chain.samples` are then views
    of the files, read as they are asked for, on the CPU. With a checkpoint, a run that was stopped goes on in the same
    folder, and the checkpoint stays small.

    Args:
        folder: Where to write; made if missing.
        chunk: Draws to hold before they are written.

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
        """Make the folder; refuse one that holds draws of another run.

        Raises:
            ValueError: There are draws in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.glob("*.npy")):
            raise ValueError(
                f"{self.folder} holds draws already: name another folder, delete them, or continue their run by its "
                "`checkpoint`."
            )
        self.written, self.held = 0, Memory()

    def add(self, position: Position, info: Info) -> None:
        """Hold the draws, and write when enough are held."""
        self.held.add(position, info)
        if len(self.held.samples) >= self.chunk:
            self._write()

    def saved(self, kept: int) -> dict[str, Any]:
        """How many draws the files hold that count; they are on the disk before the checkpoint is."""
        self._write()
        for path in self.folder.glob("*.npy"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return {"kept": kept}

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Forget draws that were written after the checkpoint."""
        self.written, self.held = saved["kept"], Memory()

    def result(self, num_samples: int) -> tuple[Position, Info]:
        """The files as tensors, mapped and not read."""
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
    """Write draws (d, c, *shape) behind the first `before` of a NumPy file, whatever else is there."""
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
