"""The training loop of the library.

What is minimized is a loss on the scale of the *whole data set*; a mini-batch estimates it (`Data.total` rescales). The
loop divides by the number of data points, so a learning rate and a clipping norm mean the same for ten and for ten
million of them. Nothing here knows what is trained.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from bayeskit.core import progress
from bayeskit.core.optimize import distributed
from bayeskit.core.optimize.best_state import BestState
from bayeskit.core.optimize.recovery import Recovery
from bayeskit.core.optimize.training_run import Callback, TrainingRun
from bayeskit.core.optimize.training_settings import Training
from bayeskit.core.types import Data, History


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
    second_optimizer: torch.optim.Optimizer | None = None,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Minimize a loss over mini-batches, changing `parameters` in place.

    With `validation` or `training.patience` the parameters of the best epoch are restored at the end, otherwise the
    last ones stay. Where the loss or a parameter ceases to be finite, or a factorization fails, the run returns to the
    last good state and continues with steps a quarter as long, five times at most; history["returns"] has the epochs
    from which it did. With `training.checkpoint`, a run that was killed continues from the file, and ends with the same
    bits as one that was not: same data, settings and generator state are required and checked.

    Where `torch.distributed` is initialized, every rank is given the same data, takes its share of each mini-batch, and
    gradients are averaged: the result is that of a single process, to rounding.

    Args:
        loss: Maps a mini-batch to the loss on the scale of the full data, a scalar.
        parameters: Leaf tensors to change; those that need no gradient are left out.
        data: All the data points.
        training: The settings.
        generator: Shuffles the data; the loss may draw from it too.
        description: A few words for the progress bar and for errors.
        validation: The loss to watch, a scalar per data point of a validation set (see `split`); smaller is better.
        buffers: Further tensors that the loss changes in place (running statistics), kept along with the parameters.
        second_optimizer: For tensors with steps of another kind: it steps those it was built with, from their
            gradients of the same loss per data point, unclipped and without the schedule. What it remembers between
            steps belongs into `buffers`.
        callbacks: Called after steps and epochs. What they remember in tensors belongs into `buffers`.

    Returns:
        {"loss": [...], "validation": [...]}: per epoch, the training loss per data point averaged over its
        mini-batches, and the validation loss where there is one.

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
    run = TrainingRun(
        training,
        parameters,
        buffers=buffers,
        second_optimizer=second_optimizer,
        generator=generator,
        description=description,
    )
    distributed.agree(run.tensors, generator)
    best = BestState(training, validation)
    recovery = Recovery(run, best, data)
    with progress.track(training.max_epochs, description) as bar, recovery.writing_on_interrupt():
        bar.update(run.epoch)
        while not recovery.finished:
            before = run.epoch
            try:
                run_epoch(run, best, loss, data, callbacks)
                recovery.after_epoch()
            except (FloatingPointError, LinAlgError) as error:
                recovery.go_back(error)
            bar.update(run.epoch - before, **{name: curve[-1] for name, curve in run.history.items() if curve})
            recovery.write_if_due()
    best.restore(run)
    run.clear_gradients()
    return run.history


def run_epoch(
    run: TrainingRun, best: BestState, loss: Callable[[Data], Tensor], data: Data, callbacks: Sequence[Callback]
) -> None:
    """One pass over the data, and whether it improved the loss that is watched."""
    size = run.training.batch_size or len(data)
    num_steps = math.ceil(len(data) / size)
    mean = 0.0
    for i, batch in enumerate(distributed.batches(data, size, run.generator)):
        run.set_learning_rate((run.epoch + i / num_steps) / run.training.max_epochs)
        value = run.backward(lambda part=batch: loss(part) / len(data), step=i + 1)
        if num_steps == 1:
            best.judge_training(run, value)  # a full batch: the loss belongs to the parameters before the step
        run.step()
        for callback in callbacks:
            callback.after_step(run)
        mean += value * min(size, len(data) - i * size) / len(data)
    run.share_statistics()
    run.history["loss"].append(mean)
    if num_steps > 1:
        best.judge_training(run, mean)
    best.judge_validation(run, num_steps)
    run.epoch += 1
    for callback in callbacks:
        callback.after_epoch(run)
