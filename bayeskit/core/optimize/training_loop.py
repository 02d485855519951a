"""The only training loop of the library.

What is minimized is a loss on the scale of the *whole data set*; a mini-batch estimates it (`Data.total` rescales). The
loop divides by the number of rows, so a learning rate and a clipping norm mean the same for ten rows and ten million.
Nothing here knows what is trained.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from bayeskit.core import progress
from bayeskit.core.checkpoint import Checkpoint, snapshot
from bayeskit.core.optimize import distributed
from bayeskit.core.optimize.training_settings import SCHEDULES, Training, identity, optimizer
from bayeskit.core.types import Data, History

SHORTER = 0.25
"""What all steps are multiplied by after the loss, or what is trained, ceased to be finite."""

MOST_RETURNS = 5
"""How often a run goes back for that before it is an error."""

KEEP_STEPS = 20
"""Steps between two copies of the state to go back to, at least: a copy costs as much as a step of a small net."""


def minimize(
    loss: Callable[[Data], Tensor],
    parameters: Iterable[Tensor],
    data: Data,
    training: Training,
    *,
    generator: torch.Generator,
    description: str = "training",
    validation: Callable[[], Tensor] | None = None,
    buffers: Iterable[Tensor] = (),
    own: torch.optim.Optimizer | None = None,
    after_step: Callable[[torch.optim.Optimizer], None] | None = None,
    after_epoch: Callable[[], None] | None = None,
) -> History:
    """Minimize a loss over mini-batches, changing `parameters` in place.

    With `validation` or `training.patience` the parameters of the best epoch are put back at the end, otherwise the
    last ones stay. Where the loss or a parameter ceases to be finite, or a factorization fails, the run goes back to
    the last good state and on with steps a quarter as long, five times at most; history["returns"] has the epochs
    from which it did. With `training.checkpoint`, a run that was killed continues where the file stands, and ends with
    the same bits as one that was not: same data, settings and generator state are required and checked.

    Where `torch.distributed` is initialized, every rank is given the same data, takes its share of each mini-batch, and
    gradients are averaged: the result is that of a single process, to rounding.

    Args:
        loss: Maps a mini-batch to the loss on the scale of the full data, a scalar.
        parameters: Leaf tensors to change; those that need no gradient are left out.
        data: All the rows.
        training: The settings.
        generator: Shuffles the rows; the loss may draw from it too.
        description: A few words for the progress bar and for errors.
        validation: The loss to watch, a scalar per row of some held-out data (see `split`); smaller is better.
        buffers: Further tensors that the loss changes in place (running statistics), kept along with the parameters.
        own: A further optimizer, for tensors with steps of their own kind: it steps those it was built with, from
            their gradients of the same loss per row, unclipped and without the schedule. What it remembers between
            steps belongs into `buffers`.
        after_step: Called after each step with the optimizer of `parameters`: it may exchange what they stand for,
            values and the optimizer's memory of them, in place. What it remembers itself belongs into `buffers`.
        after_epoch: Called after the steps of each epoch, to collect something; it may write to `buffers`.

    Returns:
        {"loss": [...], "validation": [...]}: per epoch, the training loss per row averaged over its mini-batches, and
        the validation loss where there is one.

    Raises:
        FloatingPointError: The loss is no longer a finite number, with shorter steps neither.
        torch.linalg.LinAlgError: A factorization fails, with shorter steps too.
        ValueError: A setting is out of range, or the checkpoint belongs to another run.

    Examples:
        >>> x, w = torch.tensor([[1.0], [3.0]]), torch.zeros(1, requires_grad=True)
        >>> data = Data(x, torch.zeros(2, 1))
        >>> def loss(batch):
        ...     return batch.total((batch.x[:, 0] - w) ** 2)
        >>> history = minimize(loss, [w], data, Training(lr=0.1), generator=torch.Generator())
        >>> round(w.item(), 3)
        2.0
    """
    training.validate()
    leaves = [p for p in parameters if p.requires_grad]
    stepped = [] if own is None else [p for group in own.param_groups for p in group["params"]]
    tensors = [*leaves, *stepped, *buffers]
    distributed.agree(tensors, generator)
    loop = _Loop(training, leaves, tensors, generator, description, own=own, after_step=after_step)
    file = None if training.checkpoint is None else Checkpoint(training.checkpoint)
    if file is not None:
        loop.resume(file, identity(training, leaves, data, generator, description))
    loop.keep()
    with progress.track(training.max_epochs, description) as bar:
        bar.update(loop.epoch)
        try:
            while not loop.done:
                before = loop.epoch
                try:
                    loop.run_epoch(loss, data, validation)
                    if after_epoch is not None:
                        after_epoch()
                    if file is not None or loop.done or loop.steps >= KEEP_STEPS:
                        loop.check()
                        loop.keep()
                except (FloatingPointError, LinAlgError) as error:
                    loop.go_back(error)
                bar.update(loop.epoch - before, **{name: curve[-1] for name, curve in loop.history.items() if curve})
                if file is not None and (loop.done or loop.epoch % training.checkpoint_every == 0):
                    loop.write(file)
        except KeyboardInterrupt:
            if file is not None:
                loop.write(file)
            raise
    loop.restore_best()
    return loop.history


class _Loop:
    """The state of a run and one epoch of it."""

    def __init__(
        self,
        training: Training,
        parameters: list[Tensor],
        tensors: list[Tensor],
        generator: torch.Generator,
        description: str,
        *,
        own: torch.optim.Optimizer | None,
        after_step: Callable[[torch.optim.Optimizer], None] | None,
    ):
        self.training, self.parameters, self.tensors, self.own = training, parameters, tensors, own
        self.stepped = [] if own is None else [p for group in own.param_groups for p in group["params"]]
        self.generator, self.description, self.after_step = generator, description, after_step
        # All may be stepped by `own`; torch builds no optimizer of nothing.
        self.optimizer = optimizer(training, parameters or [torch.zeros(())])
        self.history: History = {"loss": []}
        self.epoch, self.stale = 0, 0
        self.lowest, self.best = math.inf, None
        self.kept: dict[str, Any] = {"identity": {}}
        self.own_lrs = [] if own is None else [group["lr"] for group in own.param_groups]
        self.returns: list[int] = []  # epochs from which the run went back
        self.error: Exception | None = None  # the first of them
        self.steps = 0  # since the state was kept

    @property
    def done(self) -> bool:
        """No epoch is left, or patience has run out."""
        patience = self.training.patience
        return self.epoch >= self.training.max_epochs or (patience is not None and self.stale >= patience)

    def run_epoch(self, loss: Callable[[Data], Tensor], data: Data, validation: Callable[[], Tensor] | None) -> None:
        """One pass over the data, and the judgement whether it improved anything."""
        size = self.training.batch_size or len(data)
        num_steps = math.ceil(len(data) / size)
        watched = validation is None and self.training.patience is not None
        mean = 0.0
        for i, batch in enumerate(distributed.batches(data, size, self.generator)):
            self._schedule((self.epoch + i / num_steps) / self.training.max_epochs)
            value = self._gradient(lambda part=batch: loss(part) / len(data), step=i + 1)
            if watched and num_steps == 1:  # a full batch: the loss belongs to the parameters before the step
                self._judge(value)
            self.optimizer.step()
            if self.own is not None:
                self.own.step()
            if self.after_step is not None:
                self.after_step(self.optimizer)
            self.steps += 1
            mean += value * min(size, len(data) - i * size) / len(data)
        self._share_statistics()
        self.history["loss"].append(mean)
        if validation is not None:
            with torch.no_grad():
                held_out = distributed.average([validation().detach().reshape(1)])[0].item()
            self.history.setdefault("validation", []).append(self._finite(held_out, "validation loss", num_steps))
            self._judge(held_out)
        elif watched and num_steps > 1:
            self._judge(mean)
        self.epoch += 1

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Give all ranks the average of their running statistics, each of which saw its own rows."""
        statistics = [t for t in self.tensors[len(self.parameters) :] if t.is_floating_point()]
        for tensor, shared in zip(statistics, distributed.average(statistics) if statistics else [], strict=True):
            tensor.copy_(shared)

    def _schedule(self, elapsed: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._shorter * self.training.lr * SCHEDULES[self.training.schedule](elapsed)

    @property
    def _shorter(self) -> float:
        return SHORTER ** len(self.returns)

    def _gradient(self, loss: Callable[[], Tensor], *, step: int) -> float:
        """Put the gradient, averaged over ranks and clipped, where the optimizer looks for it; return the loss."""
        with torch.enable_grad():
            value = loss()
        moved = [*self.parameters, *self.stepped]
        gradients = torch.autograd.grad(value, moved, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(moved, gradients, strict=True)]
        averaged = distributed.average([value.detach().reshape(1), *filled])
        number = self._finite(averaged[0].item(), "loss", step)
        for parameter, gradient in zip(moved, averaged[1:], strict=True):
            parameter.grad = gradient
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        return number

    def _finite(self, number: float, what: str, step: int) -> float:
        if not math.isfinite(number):
            raise FloatingPointError(
                f"{self.description}: the {what} is {number} in epoch {self.epoch + 1}, step {step}. Standardize "
                f"inputs and targets, lower `lr` (now {self.training.lr:g}) or set `clip_norm`."
            )
        return number

    def _judge(self, value: float) -> None:
        """Count epochs without improvement, and copy the parameters whenever the value is the lowest yet."""
        self.stale = 0 if value < self.lowest - self.training.tolerance else self.stale + 1
        if value < self.lowest:
            self.lowest, self.best = value, snapshot(self.tensors)

    def restore_best(self) -> None:
        """Put back the best parameters seen, where somebody watched."""
        if self.best is not None:
            _write_back(self.tensors, self.best)
        for parameter in self.parameters:
            parameter.grad = None

    def check(self) -> None:
        """Raise if what is trained is not finite: the loss would tell only at the next step."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in [*self.parameters, *self.stepped]):
            raise FloatingPointError(
                f"{self.description}: a parameter is no longer finite after epoch {self.epoch}. Standardize inputs and "
                f"targets, lower `lr` (now {self.training.lr:g}) or set `clip_norm`."
            )

    def go_back(self, error: Exception) -> None:
        """Take the state last kept again, with shorter steps; raise the first error where that did not help before."""
        self.error = self.error or error
        several_failed = isinstance(error, LinAlgError) and distributed.several()  # the other ranks do not know of it
        if len(self.returns) == MOST_RETURNS or several_failed:
            raise self.error
        returns = [*self.returns, self.epoch + 1]
        self._load(snapshot(self.kept))
        self.returns = returns
        self.history["returns"] = [float(epoch) for epoch in returns]
        self._shorten_own()

    def keep(self) -> None:
        """Copy the state between two epochs: what is written must never be half an update."""
        self.steps = 0
        self.kept = snapshot(
            {
                "identity": self.kept["identity"],
                "epoch": self.epoch,
                "stale": self.stale,
                "lowest": self.lowest,
                "best": self.best,
                "history": self.history,
                "returns": self.returns,
                "tensors": self.tensors,
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
            }
        )

    def write(self, file: Checkpoint) -> None:
        """Write the state last kept; of several ranks the first does."""
        if distributed.rank() == 0:
            file.save(self.kept)

    def resume(self, file: Checkpoint, identity: Mapping[str, Any]) -> None:
        """Continue from the file if there is one of this very run."""
        self.kept = {"identity": identity}
        state = distributed.from_first(file.resume(identity))
        if state is not None:
            self._load(state)
            self.generator.set_state(state["generator"])
            self._shorten_own()
        self.keep()

    def _load(self, state: Mapping[str, Any]) -> None:
        """All of a kept state but the generator's: a second attempt meets other mini-batches."""
        self.epoch, self.stale, self.history = state["epoch"], state["stale"], state["history"]
        self.lowest, self.best, self.returns = state["lowest"], state["best"], state["returns"]
        _write_back(self.tensors, state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _shorten_own(self) -> None:
        """The steps of the caller's own optimizer."""
        for group, lr in zip([] if self.own is None else self.own.param_groups, self.own_lrs, strict=True):
            group["lr"] = self._shorter * lr


def _write_back(tensors: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
