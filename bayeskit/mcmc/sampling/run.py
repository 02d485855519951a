"""Sampling: run a kernel and collect its draws."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks, progress
from bayeskit.core.checkpoint import Checkpoint, digest
from bayeskit.mcmc.base.log_density import LogDensity, Position
from bayeskit.mcmc.base.state_io import pack
from bayeskit.mcmc.base.transition_kernel import Info, Stream, TransitionKernel
from bayeskit.mcmc.sampling.chain_loop import Loop
from bayeskit.mcmc.sampling.progress_monitor import Monitor
from bayeskit.mcmc.sampling.storage import Collector, Memory


@dataclass(frozen=True, eq=False)
class Chain:
    """The draws of c chains.

    Args:
        samples: Leaves (c, num_samples, *shape).
        info: Diagnostics of the kernel, (c, num_samples) each, averaged over the steps of a draw.
        kernel: The tuned kernel.
        state: The final state of the chains.
    """

    samples: Position
    info: Info
    kernel: TransitionKernel
    state: Any


def run(
    kernel: TransitionKernel,
    log_density: LogDensity | Iterable[LogDensity],
    position: Position,
    *,
    num_samples: int,
    burn_in: int,
    thin: int = 1,
    generator: torch.Generator,
    checkpoint: str | PathLike[str] | None = None,
    collector: Collector | None = None,
    description: str = "sampling",
) -> Chain:
    """Sample from a density by running many chains of a Markov kernel.

    Args:
        kernel: The kernel; one that can be tuned is tuned during the burn-in.
        log_density: Maps leaves (c, *shape) to (c,), up to a constant; or an iterable of such functions, each an
            estimate from a mini-batch, which is cycled through.
        position: Starting positions of the c chains, leaves (c, *shape).
        num_samples: Number of draws of each chain.
        burn_in: Steps before the first of them.
        thin: Steps per draw.
        generator: Source of all randomness.
        checkpoint: A file to which the run is saved periodically, and on a keyboard interrupt. A run that finds its own
            file is resumed, with bitwise the same result (if an iterable of densities draws from `generator` only at
            the start of each pass).
        collector: Storage of the draws, such as `Disk(folder)` for constant memory; None for memory.
        description: Title of the progress bar, which shows R-hat and the effective sample size so far.

    Returns:
        The draws and the diagnostics of the kernel.

    Raises:
        FloatingPointError: A chain became non-finite; the message names the step and the chain.
        ValueError: A setting is out of range, or the checkpoint belongs to another run.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> chain = run(
        ...     mcmc.SGLD(), lambda q: -q["x"].square(), {"x": torch.zeros(4)}, num_samples=6, burn_in=2, generator=g
        ... )
        >>> chain.samples["x"].shape
        torch.Size([4, 6])
    """
    _check(position, num_samples=num_samples, burn_in=burn_in, thin=thin)
    stream = Stream(kernel, log_density, generator)
    file = None if checkpoint is None else Checkpoint(checkpoint)
    collector = Memory() if collector is None else collector
    identity = {} if file is None else _identity(kernel, position, burn_in, thin, generator)
    identity["the collector"] = type(collector).__name__
    saved = None if file is None else file.resume(identity)
    if saved is None:
        collector.begin()
        loop = Loop.begin(kernel, position, stream, collector, burn_in=burn_in, generator=generator)
    else:
        loop = Loop.resume(saved, kernel, position, stream, collector, burn_in=burn_in)
    total = _length(kernel, burn_in, num_samples * thin)
    every = max(1, total // 20)
    monitor, shown = Monitor(), {}
    with progress.track(total, description) as bar:
        bar.update(loop.count)
        try:
            while loop.count < total:
                before, keep = loop.count, loop.count >= burn_in
                loop.advance(thin if keep else 1, keep=keep)
                mark = before // every < loop.count // every or loop.count == total
                if bar.visible and keep:
                    monitor.add(loop.state.position)
                    shown = monitor.numbers() if mark else shown
                bar.update(loop.count - before, log_density=loop.mean_log_density, **shown)
                if file is not None and mark:
                    file.save({"identity": identity, **loop.saved})
        except KeyboardInterrupt:
            if file is not None:
                file.save({"identity": identity, **loop.saved})
            raise
    samples, info = collector.result(num_samples)
    return Chain(samples, info, loop.kernel, loop.state)


def _length(kernel: TransitionKernel, burn_in: int, num_steps: int) -> int:
    """The number of steps until `num_steps` steps after the burn-in have sampled."""
    count = burn_in
    while num_steps:
        num_steps -= kernel.samples(count)
        count += 1
    return count


def _check(position: Position, *, num_samples: int, burn_in: int, thin: int) -> None:
    checks.positive(num_samples, name="num_samples", integer=True)
    checks.positive(thin, name="thin", integer=True)
    if not isinstance(burn_in, int) or burn_in < 0:
        raise ValueError(f"`burn_in` must be an integer of at least 0; got {burn_in!r}")
    lengths = {name: leaf.shape[0] if leaf.ndim else 0 for name, leaf in position.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"`position` must hold tensors with one leading axis of chains in common; got {lengths}")
    for name, leaf in position.items():
        checks.finite(leaf, name=f"position[{name!r}]")


def _identity(
    kernel: TransitionKernel, position: Position, burn_in: int, thin: int, generator: torch.Generator
) -> dict[str, Any]:
    """What a resumed run must have in common with the saved one; `num_samples` may have grown."""
    values = _flat(pack(kernel))
    settings = {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    return {
        "the kernel": f"{type(kernel).__name__} {settings} {digest(*tensors)}",
        "the starting position": digest(*position.values()),
        "the seed": digest(generator.get_state()),
        "burn_in": burn_in,
        "thin": thin,
    }


def _flat(nest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by path, such as preconditioners of several leaves and inner kernels."""
    found: dict[str, Any] = {}
    for name, value in nest.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
