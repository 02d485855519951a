"""What changes during a training run: tensors, optimizers, the epoch and the training curves."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.optimize import distributed
from bayeskit.core.optimize.training_settings import SCHEDULES, Training, optimizer
from bayeskit.core.types import History

SHORTER = 0.25
"""What all steps are multiplied by after the loss, or what is trained, ceased to be finite: a learning rate ten times
too large needs two returns."""


class TrainingRun:
    """The state of a run, and one step of it.

    Args:
        training: The settings.
        parameters: Leaf tensors; those that need no gradient are left out.
        buffers: Further tensors that are changed in place.
        second_optimizer: Steps tensors of its own.
        generator: Source of all randomness.
        description: A few words for errors.
    """

    def __init__(
        self,
        training: Training,
        parameters: Iterable[Tensor],
        *,
        buffers: Iterable[Tensor],
        second_optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        description: str,
    ):
        self.training, self.generator, self.description = training, generator, description
        self.parameters = [p for p in parameters if p.requires_grad]
        # All may be stepped by the second optimizer; torch builds no optimizer of nothing.
        self.optimizer = optimizer(training, self.parameters or [torch.zeros(())])
        self.second_optimizer, groups = (
            second_optimizer,
            [] if second_optimizer is None else second_optimizer.param_groups,
        )
        self.second_rates = [(group, group["lr"]) for group in groups]
        self.moved = [*self.parameters, *(p for group in groups for p in group["params"])]
        self.tensors = [*self.moved, *buffers]
        self.epoch, self.num_steps = 0, 0
        self.history: History = {"loss": []}
        self.returns: list[int] = []  # epochs from which the run went back

    def set_learning_rate(self, elapsed: float) -> None:
        """The scheduled learning rate after the share `elapsed` of all steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._shorter * self.training.lr * SCHEDULES[self.training.schedule](elapsed)

    def backward(self, loss: Callable[[], Tensor], *, step: int) -> float:
        """Put the gradient, averaged over ranks and clipped, where the optimizers look for it; return the loss."""
        with torch.enable_grad():
            value = loss()
        gradients = torch.autograd.grad(value, self.moved, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(self.moved, gradients, strict=True)]
        averaged = distributed.average([value.detach().reshape(1), *filled])
        number = self.finite(averaged[0].item(), "loss", step)
        for parameter, gradient in zip(self.moved, averaged[1:], strict=True):
            parameter.grad = gradient
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        return number

    def step(self) -> None:
        """One step of each optimizer."""
        self.optimizer.step()
        if self.second_optimizer is not None:
            self.second_optimizer.step()
        self.num_steps += 1

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Give all ranks the average of their running statistics, each of which saw its own data points."""
        statistics = [t for t in self.tensors[len(self.parameters) :] if t.is_floating_point()]
        for tensor, shared in zip(statistics, distributed.average(statistics) if statistics else [], strict=True):
            tensor.copy_(shared)

    def finite(self, number: float, what: str, step: int) -> float:
        """`number`, if it is finite."""
        if not math.isfinite(number):
            raise FloatingPointError(
                f"{self.description}: the {what} is {number} in epoch {self.epoch + 1}, step {step}. {self._remedy}"
            )
        return number

    def check_parameters(self) -> None:
        """Raise if what is trained is not finite: the loss would tell only at the next step."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.moved):
            raise FloatingPointError(
                f"{self.description}: a parameter is no longer finite after epoch {self.epoch}. {self._remedy}"
            )

    def clear_gradients(self) -> None:
        """Release the gradients of `parameters`."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def write_back(self, values: list[Tensor]) -> None:
        """Copy values into all tensors."""
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.copy_(value)

    def state(self) -> dict[str, Any]:
        """All of it, not copied."""
        return {
            "epoch": self.epoch,
            "history": self.history,
            "returns": self.returns,
            "tensors": self.tensors,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any], returns: list[int]) -> None:
        """All of a state but the generator's: a second attempt uses other mini-batches."""
        self.epoch, self.history, self.returns = state["epoch"], state["history"], returns
        if returns:
            self.history["returns"] = [float(epoch) for epoch in returns]
        self.write_back(state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, lr in self.second_rates:
            group["lr"] = self._shorter * lr

    @property
    def _shorter(self) -> float:
        return SHORTER ** len(self.returns)

    @property
    def _remedy(self) -> str:
        return f"Standardize inputs and targets, lower `lr` (now {self.training.lr:g}) or set `clip_norm`."


def _nothing(run: TrainingRun) -> None:
    pass


@dataclass(frozen=True)
class Callback:
    """Functions that `minimize` calls with the `TrainingRun`.

    Args:
        after_step: After each step. It may replace in place what is trained and the memory of `run.optimizer` of it.
        after_epoch: After the steps of each epoch. It may write to the buffers of the run.
    """

    after_step: Callable[[TrainingRun], None] = _nothing
    after_epoch: Callable[[TrainingRun], None] = _nothing
