"""Chains on their way through the burn-in and from draw to draw, and what it takes to go on another day."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.state_io import pack, unpack
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel, BurnIn, Stream, TransitionKernel
from bayeskit.mcmc.sampling.storage import Collector


class Loop:
    """The chains on their way: between two draws `saved` holds all that a resumed run needs."""

    def __init__(
        self,
        kernel: TransitionKernel,
        state: Any,
        stream: Stream,
        collector: Collector,
        *,
        count: int,
        burning: BurnIn | None = None,
    ):
        self.kernel, self.state, self.stream, self.collector, self.count = kernel, state, stream, collector, count
        self.burning, self.kept = burning, 0
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
    ) -> "Loop":
        """Start the chains; a kernel that tunes itself, but not step by step, does its whole burn-in here."""
        burning = _burning(kernel, position, stream, burn_in)
        if burning is None and isinstance(kernel, AdaptiveKernel):
            tuned, state = kernel.adapt(position, stream, num_steps=burn_in, generator=generator)
            loop = cls(tuned, state, stream, collector, count=burn_in)
        elif burning is None:
            loop = cls(kernel, kernel.init(position, next(stream), generator=generator), stream, collector, count=0)
        else:
            loop = cls(kernel, burning.result()[1], stream, collector, count=0, burning=burning)
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
        *,
        burn_in: int,
    ) -> "Loop":
        """Take up a run from what it saved; random numbers drawn on the way there are of no consequence."""
        device = next(iter(position.values())).device
        burning = None if saved.get("burning") is None else _burning(kernel, position, stream, burn_in)
        if burning is None:
            blank = kernel.init(position, next(stream), generator=stream.generator)
            kernel, state = unpack(kernel, saved["kernel"], device), unpack(blank, saved["state"], device)
        else:
            burning.restore(saved["burning"], device)
            state = burning.result()[1]
        loop = cls(kernel, state, stream, collector, count=saved["count"], burning=burning)
        collector.restore(saved["draws"], device)
        loop.kept = saved["kept"]
        stream.move(saved["start"], saved["used"])
        stream.generator.set_state(saved["generator"])
        loop._remember()
        return loop

    def advance(self, num_steps: int, *, keep: bool) -> None:
        """Take some steps and, if asked to, keep the last position with the average of what was reported."""
        if self.burning is not None:
            return self._burn(self.burning)
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

    def _burn(self, burning: BurnIn) -> None:
        """A step of a burn-in that tunes the kernel; after the last one it is tuned."""
        burning.advance()
        self.count, self.level = self.count + 1, burning.mean_log_density
        tuned, self.state = burning.result()
        if burning.finished:
            self.kernel, self.burning = tuned, None
            self._check()
        self._remember()

    def _remember(self) -> None:
        """Note the present as what to save: states are never changed in place, so references do."""
        start, used, generator = self.stream.start, self.stream.used, self.stream.generator.get_state()
        burning = None if self.burning is None else self.burning.saved
        self._known = (self.state, burning, self.count, self.kept, start, used, generator)

    @property
    def saved(self) -> dict[str, Any]:
        """What a resumed run needs, as of the last draw."""
        state, burning, count, kept, start, used, generator = self._known
        return {
            "kernel": pack(self.kernel),
            "state": pack(state),
            "burning": burning,
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


def _burning(kernel: TransitionKernel, position: Position, stream: Stream, burn_in: int) -> BurnIn | None:
    """The burn-in of a kernel that can be tuned step by step, if there is one."""
    if not isinstance(kernel, AdaptiveKernel) or burn_in == 0:
        return None
    return kernel.burn_in(position, stream, num_steps=burn_in, generator=stream.generator)


def _strays(position: Position) -> dict[str, int]:
    """The leaves that are not finite, and the first chain where."""
    found = {}
    for name, leaf in position.items():
        bad = ~torch.isfinite(leaf.reshape(len(leaf), -1)).all(-1)
        if bad.any():
            found[name] = int(bad.nonzero()[0])
    return found
