"""The settings of the training loop, and what follows from them: the rows held out, the optimizer, an identity."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.checkpoint import digest
from bayeskit.core.inputs import Rows, parts
from bayeskit.core.types import Data
from bayeskit.core.validation_plan import division, form_of, grouped, planned

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda elapsed: 1.0,
    "cosine": lambda elapsed: 0.5 * (1 + math.cos(math.pi * elapsed)),
    "linear": lambda elapsed: 1 - elapsed,
}
"""Multiplier of the learning rate after the share `elapsed` of all steps."""


@dataclass(eq=False, repr=False)
class Training(BaseEstimator):
    """Settings of `minimize`; everything has a default.

    Args:
        lr: Learning rate, of the loss per row.
        max_epochs: Passes over the data at most.
        batch_size: Rows in a step; None takes all of them, unshuffled.
        optimizer: "adam", "adamw" (decoupled weight decay) or "sgd".
        momentum: Momentum of "sgd".
        weight_decay: Weight decay of the optimizer; 0 leaves regularization to the prior.
        schedule: "constant", "cosine" or "linear": how `lr` falls to zero over `max_epochs`.
        clip_norm: Largest norm of the gradient of the loss per row, or None.
        patience: Stop after this many epochs without improvement of the validation loss (of the training loss where
            there is none); None never stops early.
        validation_fraction: Share of the rows that `split` holds out at random; 0 holds out none.
        validation_split: What is held out instead: a share; a splitter of scikit-learn, whose last split counts (so
            `TimeSeriesSplit()` holds out the last rows); a boolean mask (n,) of the rows to hold out; or a validation
            set `(x, y)` in the units of the data. None for `validation_fraction`.
        tolerance: What counts as an improvement, in units of the loss per row.
        checkpoint: File to write the state to and to resume from, or None.
        checkpoint_every: Epochs between two writes; an interrupt by the keyboard writes too.
    """

    lr: float = 1e-2
    max_epochs: int = 200
    batch_size: int | None = 128
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    clip_norm: float | None = None
    patience: int | None = None
    validation_fraction: float = 0.0
    tolerance: float = 1e-4
    checkpoint: str | PathLike[str] | None = None
    checkpoint_every: int = 10
    validation_split: Any = None

    @classmethod
    def of_steps(cls, num_steps: int, num_rows: int, *, lr: float, batch_size: int) -> "Training":
        """As many epochs as make about `num_steps` steps whatever the number of rows, `lr` falling to zero by cosine.

        >>> Training.of_steps(400, 10_000, lr=0.05, batch_size=1000).max_epochs
        40
        """
        epochs = math.ceil(num_steps / math.ceil(num_rows / batch_size))
        return cls(lr=lr, max_epochs=epochs, batch_size=batch_size, schedule="cosine")

    def validate(self) -> None:
        """Raise one clear sentence if a setting is out of range; `minimize` calls it."""
        checks.positive(self.lr, name="lr")
        checks.positive(self.max_epochs, name="max_epochs", integer=True)
        checks.positive(self.checkpoint_every, name="checkpoint_every", integer=True)
        checks.choice(self.optimizer, name="optimizer", options=OPTIMIZERS)
        checks.choice(self.schedule, name="schedule", options=SCHEDULES)
        for name in ("batch_size", "patience"):
            if getattr(self, name) is not None:
                checks.positive(getattr(self, name), name=name, integer=True)
        if self.clip_norm is not None:
            checks.positive(self.clip_norm, name="clip_norm")
        if self.validation_fraction != 0:
            checks.fraction(self.validation_fraction, name="validation_fraction")
        form_of(self.validation_split)


def split(data: Data, training: Training, *, generator: torch.Generator) -> tuple[Data, Data | None]:
    """The rows to train on and the validation data, which are None where none are held out.

    What `data.validation` says goes before the settings. Of rows chosen at random, those of equal inputs or of one
    group stay on one side, and every class keeps a row to train on (`independent_folds`).

    Examples:
        >>> data = Data(torch.arange(10.0)[:, None], torch.zeros(10, 1))
        >>> train, held_out = split(data, Training(validation_fraction=0.2), generator=torch.Generator())
        >>> len(train), len(held_out)
        (8, 2)
    """
    data = planned(data, training.validation_split)
    found = division(data, training.validation_fraction, generator=generator)
    for kept, held_out in found:
        rest = found.source.rows(held_out)
        return replace(data.rows(kept), validation=None), replace(rest, validation=grouped(rest))
    return data, None


def optimizer(training: Training, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over `parameters`."""
    decay = training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.lr, momentum=training.momentum, weight_decay=decay)
    adam = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    # One pass over each tensor instead of one for each operation, where torch has it.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters) or None
    return adam(parameters, lr=training.lr, weight_decay=decay, fused=fused)


def identity(
    training: Training, parameters: list[Tensor], data: Data, generator: torch.Generator, description: str
) -> dict[str, Any]:
    """What a run must share with the one whose file it takes up; a constant schedule may be given more epochs."""
    free = {"checkpoint", "checkpoint_every", "validation_split"} | (
        {"max_epochs"} if training.schedule == "constant" else set()
    )
    settings = {name: value for name, value in training.get_params().items() if name not in free}
    return settings | {
        "the task": description,
        "the data": digest(*(() if isinstance(data.x, Rows) else parts(data.x)), data.y, data.weights),
        "the starting parameters": digest(*parameters),
        "the seed": digest(generator.get_state()),
    }
