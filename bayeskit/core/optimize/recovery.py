"""Copies of a training run's state: to return to after a step that was too long, and to write to a checkpoint.

The last two copies are kept, because the loss at a copy is known only after the next step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from bayeskit.core.checkpoint import Checkpoint, snapshot
from bayeskit.core.optimize import distributed
from bayeskit.core.optimize.best_state import BestState
from bayeskit.core.optimize.training_run import TrainingRun
from bayeskit.core.optimize.training_settings import identity
from bayeskit.core.types import Data

MAX_RETURNS = 5
"""Returns before the first error is raised: steps are then 1000 times shorter, which no longer is a matter of `lr`."""

COPY_STEPS = 20
"""Steps between two copies of the state, at least: a copy costs as much as a step of a small network."""


class Recovery:
    """The last good state of a run; with `training.checkpoint` it starts from the file and writes to it.

    Args:
        run: Continued from the checkpoint if there is one of this very run.
        best: Copied and restored along with it.
        data: What the run is trained on, for its identity.
    """

    def __init__(self, run: TrainingRun, best: BestState, data: Data):
        self.run, self.best, training = run, best, run.training
        self.file = None if training.checkpoint is None else Checkpoint(training.checkpoint)
        self.identity = {}
        self.error: Exception | None = None  # the first of them
        if self.file is not None:
            self.identity = identity(training, run.parameters, data, run.generator, run.description)
            state = distributed.from_first(self.file.resume(self.identity))
            if state is not None:
                run.load(state, state["returns"])
                best.load(state)
                run.generator.set_state(state["generator"])
        self._copy()
        self.earlier = self.kept

    def after_epoch(self) -> None:
        """Copy the state if it is finite and a copy is due: what is written must never be half an update."""
        if self.file is not None or self.finished or self.run.num_steps - self.copied_at >= COPY_STEPS:
            self.run.check_parameters()
            self.earlier = self.kept
            self._copy()

    def go_back(self, error: Exception) -> None:
        """Return to the copy, with shorter steps; raise the first error where that did not help before."""
        self.error = self.error or error
        # The other ranks do not know of a factorization that failed here.
        if len(self.run.returns) == MAX_RETURNS or (isinstance(error, LinAlgError) and distributed.several()):
            raise self.error
        if self.run.num_steps == self.copied_at:  # the last step before the copy was the one too long
            self.kept = self.earlier
        state = snapshot(self.kept)
        self.run.load(state, [*self.run.returns, self.run.epoch + 1])
        self.best.load(state)

    def write_if_due(self) -> None:
        """Write the copy to the checkpoint every `checkpoint_every` epochs and at the end."""
        if self.finished or self.run.epoch % self.run.training.checkpoint_every == 0:
            self._write()

    @contextmanager
    def writing_on_interrupt(self) -> Iterator[None]:
        """Write the copy to the checkpoint if the keyboard interrupts what is inside."""
        try:
            yield
        except KeyboardInterrupt:
            self._write()
            raise

    @property
    def finished(self) -> bool:
        """Whether no epoch is left, or patience has run out."""
        return self.run.epoch >= self.run.training.max_epochs or self.best.out_of_patience

    def _copy(self) -> None:
        self.copied_at = self.run.num_steps
        self.kept = snapshot({"identity": self.identity, **self.run.state(), **self.best.state()})

    def _write(self) -> None:
        if self.file is not None and distributed.rank() == 0:
            self.file.save(self.kept)
