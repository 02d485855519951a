"""Run a kernel and keep its draws."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from os import PathLike
from typing import Any, NoReturn

import torch
from torch import Tensor

from bayeskit.core import checks, progress
from bayeskit.core.checkpoint import Checkpoint, digest
from bayeskit.mcmc.collect import Collector, Memory
from bayeskit.mcmc.density import LogDensity, Position
from bayeskit.mcmc.kernel import AdaptiveKernel, Info, Stream, TransitionKernel
from bayeskit.mcmc.monitor import Monitor


@dataclass(frozen=True, eq=False)
class Chain:
    """The draws of c chains.

    Args:
        samples: Leaves (c, num_samples, *shape).
        info: What the kernel reported, (c, num_samples) each, averaged over the steps that a draw took.
        kernel: The kernel as it was tuned.
        state: Where the chains ended.
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
    """Draw from a law by running many chains of a Markov kernel.

    Args:
        kernel: The kernel; one that can be tuned is tuned during the burn-in.
        log_density: Maps leaves (c, *shape) to (c,), up to a constant; or an iterable of such functions, each an
            estimate from a mini-batch, gone through again and again.
        position: Where the c chains start, leaves (c, *shape).
        num_samples: Draws to keep of each chain.
        burn_in: Steps before the first of them.
        thin: Steps per draw.
        generator: Source of all randomness.
        checkpoint: A file to write the run to now and then, and on an interrupt by the keyboard. A run that finds its
            own file goes on from there, and ends with the same bits (if an iterable of densities draws what it draws
            from `generator` at the start of each pass).
        collector: Where the draws go, such as `Disk(folder)`, with which memory does not grow; None for memory.
        description: A few words for the progress bar, which shows R-hat and effective draws so far.

    Returns:
        The draws and what the kernel reported.

    Raises:
        FloatingPointError: A chain left the finite numbers; the message names the step and the chain.
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
        loop = _Loop.begin(kernel, position, stream, collector, burn_in=burn_in, generator=generator)
    else:
        loop = _Loop.resume(saved, kernel, position, stream, collector)
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
                bar.update(loop.count - before, log_density=loop.level, **shown)
                if file is not None and mark:
                    file.save({"identity": identity, **loop.saved})
        except KeyboardInterrupt:
            if file is not None:
                file.save({"identity": identity, **loop.saved})
            raise
    samples, info = collector.result(num_samples)
    return Chain(samples, info, loop.kernel, loop.state)


class _Loop:
    """The chains on their way: between two draws `saved` holds all that a resumed run needs."""

    def __init__(self, kernel: TransitionKernel, state: Any, stream: Stream, collector: Collector, count: int):
        self.kernel, self.state, self.stream, self.collector, self.count = kernel, state, stream, collector, count
        self.kept = 0
        self.level = float("nan")

    @classmethod
    def begin(
        cls,
        kernel: TransitionKernel,
        position: Position,
        stream: Stream,
        collector: Collector,
        *,
        burn_in: int,
        generator: torch.Generator,
    ) -> "_Loop":
        """Start the chains; a kernel that tunes itself does its whole burn-in here."""
        if isinstance(kernel, AdaptiveKernel):
            tuned, state = kernel.adapt(position, stream, num_steps=burn_in, generator=generator)
            loop = cls(tuned, state, stream, collector, burn_in)
        else:
            loop = cls(kernel, kernel.init(position, next(stream), generator=generator), stream, collector, 0)
        loop._check()
        loop._remember()
        return loop

    @classmethod
    def resume(
        cls,
        saved: Mapping[str, Any],
        kernel: TransitionKernel,
        position: Position,
        stream: Stream,
        collector: Collector,
    ) -> "_Loop":
        """Take up a run from what it saved; random numbers drawn on the way there are of no consequence."""
        blank = kernel.init(position, next(stream), generator=stream.generator)
        device = next(iter(position.values())).device
        tuned, state = _unpack(kernel, saved["kernel"], device), _unpack(blank, saved["state"], device)
        loop = cls(tuned, state, stream, collector, saved["count"])
        collector.restore(saved["draws"], device)
        loop.kept = saved["kept"]
        stream.move(saved["start"], saved["used"])
        stream.generator.set_state(saved["generator"])
        loop._remember()
        return loop

    def advance(self, num_steps: int, *, keep: bool) -> None:
        """Take some steps and, if asked to, keep the last position with the average of what was reported."""
        reports = []
        state, count = self.state, self.count
        while len(reports) < num_steps:
            state, info = self.kernel.step(state, next(self.stream), generator=self.stream.generator)
            if not keep or self.kernel.samples(count):  # a cyclical kernel may have to find another mode first
                reports.append(info)
            count += 1
        if _strays(state.position):
            self._raise(count - self.count)
        self.state, self.count = state, count
        self.level = reports[-1]["log_density"].mean().item() if "log_density" in reports[-1] else float("nan")
        if keep:
            report = {name: torch.stack([r[name] for r in reports]).mean(0) for name in reports[0]}
            self.collector.add(state.position, report)
            self.kept += 1
        self._remember()

    def _remember(self) -> None:
        """Note the present as what to save: states are never changed in place, so references do."""
        start, used, generator = self.stream.start, self.stream.used, self.stream.generator.get_state()
        self._known = (self.state, self.count, self.kept, start, used, generator)

    @property
    def saved(self) -> dict[str, Any]:
        """What a resumed run needs, as of the last draw."""
        state, count, kept, start, used, generator = self._known
        return {
            "kernel": _pack(self.kernel),
            "state": _pack(state),
            "count": count,
            "kept": kept,
            "draws": self.collector.saved(kept),
            "start": start,
            "used": used,
            "generator": generator,
        }

    def _check(self) -> None:
        if _strays(self.state.position):
            self._raise(0)

    def _raise(self, num_steps: int) -> NoReturn:
        """Say where the chains left the finite numbers: up to `num_steps` are taken again, one by one, to find out."""
        state, count = self.state, self.count
        if num_steps:
            *_, start, used, generator = self._known
            self.stream.move(start, used)
            self.stream.generator.set_state(generator)
        while not _strays(state.position) and count < self.count + num_steps:
            state, _ = self.kernel.step(state, next(self.stream), generator=self.stream.generator)
            count += 1
        name, chain = next(iter(_strays(state.position).items()), ("the position", 0))
        raise FloatingPointError(
            f"{type(self.kernel).__name__}: `{name}` is no longer finite after step {count} in chain {chain}. Lower "
            "the step size, or start nearer to a mode."
        )


def _strays(position: Position) -> dict[str, int]:
    """The leaves that are not finite, and the first chain where."""
    found = {}
    for name, leaf in position.items():
        bad = ~torch.isfinite(leaf.reshape(len(leaf), -1)).all(-1)
        if bad.any():
            found[name] = int(bad.nonzero()[0])
    return found


def _length(kernel: TransitionKernel, burn_in: int, num_steps: int) -> int:
    """The number of steps until `num_steps` of those after the burn-in have drawn from the law."""
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
    """What a run must share with the one whose file it takes up; `num_samples` may have grown."""
    values = _flat(_pack(kernel))
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
    """What is in a nest of dicts, by path: units of several leaves, and kernels within kernels, count too."""
    found: dict[str, Any] = {}
    for name, value in nest.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _pack(record: Any) -> dict[str, Any]:
    """A dataclass as a dict of what can be written to a file: tensors, numbers, dicts of them, and dataclasses."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: _pack(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in values.items()
        if not callable(value)
    }


def _unpack(template: Any, saved: Mapping[str, Any], device: torch.device) -> Any:
    """The dataclass `template` with the values of `_pack` put in."""
    values = {
        name: _unpack(getattr(template, name), value, device)
        if is_dataclass(getattr(template, name)) and isinstance(value, Mapping)
        else _to(value, device)
        for name, value in saved.items()
    }
    return replace(template, **values)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    return [_to(item, device) for item in value] if isinstance(value, list) else value
