"""Checkpoints of long computations.

A state is a nest of dicts and lists of tensors, numbers and strings. The file is replaced atomically, so a run killed
while writing leaves the previous state; reading never runs code from the file.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "bayeskit checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds the latest state of a run.

    Args:
        path: Where the file is, or will be; its folder is made if missing.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> checkpoint = Checkpoint(folder.name + "/run.ckpt")
        >>> checkpoint.load() is None
        True
        >>> checkpoint.save({"step": 3, "x": torch.ones(2)})
        >>> checkpoint.load()["step"]
        3
        >>> folder.cleanup()
    """

    path: str | os.PathLike[str]

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state` beside the file and move it into place in one step."""
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save({"format": FORMAT, "version": VERSION, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def load(self) -> dict[str, Any] | None:
        """The state last saved, with tensors on the CPU, or None where there is no file yet.

        Raises:
            ValueError: The file is not one of ours, or was written by a later version.
        """
        target = Path(self.path)
        if not target.exists():
            return None
        advice = "Delete it, or name another file in `checkpoint`."
        try:
            content = torch.load(target, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{target} is not a bayeskit checkpoint ({type(error).__name__} on reading). {advice}"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{target} is not a bayeskit checkpoint. {advice}")
        if content["version"] > VERSION:
            raise ValueError(
                f"{target} has version {content['version']}; this bayeskit reads up to {VERSION}. {advice}"
            )
        return content["state"]

    def resume(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """`load`, refusing the state of another run.

        Args:
            identity: What makes a run this run (settings, `digest` of the data ...), compared with `state["identity"]`.

        Raises:
            ValueError: The file belongs to a run that differs; the message says in what.
        """
        state = self.load()
        if state is None:
            return None
        found = state.get("identity", {})
        differing = sorted(key for key in {*identity, *found} if identity.get(key) != found.get(key))
        if differing:
            raise ValueError(
                f"the checkpoint {self.path} belongs to another run: it differs in {', '.join(differing)}. To continue "
                "it, give the same data, settings and seed; to start afresh, delete it or name another file."
            )
        return state


def snapshot(state: Any) -> Any:
    """A copy of a nest of dicts, lists and tensors that later in-place changes do not touch."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [snapshot(value) for value in state]
    return state


def digest(*tensors: Tensor | None) -> str:
    """A short fingerprint of the values, types and shapes of some tensors; None counts as its own value."""
    total = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            total.update(b"none")
        else:
            values = tensor.detach().cpu().contiguous()
            total.update(f"{values.dtype}{tuple(values.shape)}".encode())
            total.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
