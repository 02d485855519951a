"""C functions beside a module: compiled when first needed, where there is a compiler, and kept for later."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")

VECTORS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""Flags by what torch has found the processor to be able to do."""

PATIENCE = 30
"""Seconds after which a compiler is stopped; it takes about one."""

FAILURES = (OSError, subprocess.SubprocessError)
"""What `library` raises where there is no compiler, or none that works."""


def library(source: Path) -> ctypes.CDLL:
    """The compiled functions of a C file.

    Raises:
        OSError, subprocess.SubprocessError: There is no compiler, or none that works.
    """
    return ctypes.CDLL(str(_compiled(source)))


def _compiled(source: Path) -> Path:
    """The shared library of this source, these flags and this compiler; compiled if it is not there yet."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    flags = [*FLAGS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())]
    identity = [source.read_text(), compiler, str(Path(compiler).stat().st_mtime), *flags, platform.platform()]
    name = f"{source.stem}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    folder = _folder()
    if not (folder / name).exists():
        handle, scratch = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        command = [compiler, *flags, str(source), "-o", scratch, "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            os.replace(scratch, folder / name)  # at once, whoever else is compiling
        finally:
            Path(scratch).unlink(missing_ok=True)
    return folder / name


def _folder() -> Path:
    """A folder of the user's own that lasts, or else one for this process."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayeskit"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(home, os.W_OK) and home.stat().st_uid == os.getuid():
            return home
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="bayeskit-"))
