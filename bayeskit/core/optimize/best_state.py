"""Early stopping, and the state of the best epoch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.checkpoint import snapshot
from bayeskit.core.optimize import distributed
from bayeskit.core.optimize.training_run import TrainingRun
from bayeskit.core.optimize.training_settings import Training


class BestState:
    """A copy of all tensors at the lowest loss watched, and the number of epochs without improvement.

    Args:
        training: `patience` and `tolerance`; without validation the training loss is watched if there is a patience.
        validation: The validation loss per data point, or None.
    """

    def __init__(self, training: Training, validation: Callable[[], Tensor] | None):
        self.validation, self.patience, self.tolerance = validation, training.patience, training.tolerance
        self.lowest, self.num_stale, self.tensors = math.inf, 0, None

    @property
    def out_of_patience(self) -> bool:
        """Whether too many epochs brought no improvement."""
        return self.patience is not None and self.num_stale >= self.patience

    def judge_training(self, run: TrainingRun, value: float) -> None:
        """Watch the training loss, where there is no validation loss and training may stop early."""
        if self.validation is None and self.patience is not None:
            self._judge(run, value)

    def judge_validation(self, run: TrainingRun, step: int) -> None:
        """Compute, record and watch the validation loss, if there is one."""
        if self.validation is not None:
            with torch.no_grad():
                value = distributed.average([self.validation().detach().reshape(1)])[0].item()
            run.history.setdefault("validation", []).append(run.finite(value, "validation loss", step))
            self._judge(run, value)

    def restore(self, run: TrainingRun) -> None:
        """Put back the best state, if a loss was watched."""
        if self.tensors is not None:
            run.write_back(self.tensors)

    def state(self) -> dict[str, Any]:
        """All of it, not copied."""
        return {"stale": self.num_stale, "lowest": self.lowest, "best": self.tensors}

    def load(self, state: Mapping[str, Any]) -> None:
        """What `state` returned."""
        self.num_stale, self.lowest, self.tensors = state["stale"], state["lowest"], state["best"]

    def _judge(self, run: TrainingRun, value: float) -> None:
        self.num_stale = 0 if value < self.lowest - self.tolerance else self.num_stale + 1
        if value < self.lowest:
            self.lowest, self.tensors = value, snapshot(run.tensors)
