"""The sampling loop: burn-in, draws, and the state from which a run is resumed."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.state_io import pack, unpack
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel, BurnIn, Stream, TransitionKernel
from bayeskit.mcmc.sampling.storage import Collector


class Loop:
    """The state of a run; between two draws `saved` is everything that a resumed run needs."""

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
        self.mean_log_density = float("nan")

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
        """Start the chains; a kernel that is tuned, but not step by step, runs its whole burn-in here."""
        burning = _burning(kernel, position, stream, burn_in)
        if burning is None and isinstance(kernel, AdaptiveKernel):
            tuned, state = kernel.adapt(position, stream, num_steps=burn_in, generator=generator)
            loop = cls(tuned, state, stream, collector, count=burn_in)
        elif burning is None:
            loop = cls(kernel, kernel.init(position, next(stream), generator=generator), stream, collector, count=0)
        else:
            loop = cls(kernel, burning.result()[1], stream, collector, count=0, burning=burning)
        loop._check()
        loop._record()
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
        """Resume a run from what it saved, the state of the generator included."""
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
        loop._record()
        return loop

    def advance(self, num_steps: int, *, keep: bool) -> None:
        """Take some steps and, with `keep`, collect the last position with the averaged diagnostics."""
        if self.burning is not None:
            return self._burn(self.burning)
        reports = []
        state, count = self.state, self.count
        while len(reports) < num_steps:
            state, info = self.kernel.step(state, next(self.stream), generator=self.stream.generator)
            if not keep or self.kernel.samples(count):  # cyclical kernels first search for a mode
                reports.append(info)
            count += 1
        if _non_finite(state.position):
            self._raise(count - self.count)
        self.state, self.count = state, count
        self.mean_log_density = (
            reports[-1]["log_density"].mean().item() if "log_density" in reports[-1] else float("nan")
        )
        if keep:
            report = {name: torch.stack([r[name] for r in reports]).mean(0) for name in reports[0]}
            self.collector.add(state.position, report)
            self.kept += 1
        self._record()

    def _burn(self, burning: BurnIn) -> None:
        """A step of a burn-in with tuning; the last one sets the tuned kernel."""
        burning.advance()
        self.count, self.mean_log_density = self.count + 1, burning.mean_log_density
        tuned, self.state = burning.result()
        if burning.finished:
            self.kernel, self.burning = tuned, None
            self._check()
        self._record()

    def _record(self) -> None:
        """Record the current state for `saved`, by reference: states are never changed in place."""
        start, used, generator = self.stream.start, self.stream.used, self.stream.generator.get_state()
        burning = None if self.burning is None else self.burning.saved
        self._current = (self.state, burning, self.count, self.kept, start, used, generator)

    @property
    def saved(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as of the last draw."""
        state, burning, count, kept, start, used, generator = self._current
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
        if _non_finite(self.state.position):
            self._raise(0)

    def _raise(self, num_steps: int) -> NoReturn:
        """Report the step at which a chain became non-finite, by repeating up to `num_steps` steps one by one."""
        state, count = self.state, self.count
        if num_steps:
            *_, start, used, generator = self._current
            self.stream.move(start, used)
            self.stream.generator.set_state(generator)
        while not _non_finite(state.position) and count < self.count + num_steps:
            state, _ = self.kernel.step(state, next(self.stream), generator=self.stream.generator)
            count += 1
        name, chain = next(iter(_non_finite(state.position).items()), ("the position", 0))
        raise FloatingPointError(
            f"{type(self.kernel).__name__}: `{name}` is no longer finite after step {count} in chain {chain}. Lower "
            "the step size, or start nearer to a mode."
        )


def _burning(kernel: TransitionKernel, position: Position, stream: Stream, burn_in: int) -> BurnIn | None:
    """The burn-in of a kernel that is tuned step by step, or None."""
    if not isinstance(kernel, AdaptiveKernel) or burn_in == 0:
        return None
    return kernel.burn_in(position, stream, num_steps=burn_in, generator=stream.generator)


def _non_finite(position: Position) -> dict[str, int]:
    """The leaves that are not finite, with the first such chain."""
    found = {}
    for name, leaf in position.items():
        bad = ~torch.isfinite(leaf.reshape(len(leaf), -1)).all(-1)
        if bad.any():
            found[name] = int(bad.nonzero()[0])
    return found
