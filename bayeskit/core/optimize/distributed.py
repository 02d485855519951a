"""What a data-parallel run shares between its processes; with one process all of this does nothing.

Every rank holds the same data and the same generator, and takes its share of each mini-batch. A rank's loss is scaled
so that the *average* over ranks is the loss of the whole mini-batch: averaging gradients then gives what a single
process computes, whatever the prior term.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bayeskit.core.types import Data


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if several() else 0


def batches(data: Data, size: int, generator: torch.Generator) -> Iterator[Data]:
    """One pass over this rank's share of the mini-batches; a batch of everything is neither copied nor shuffled.

    Args:
        data: All the rows.
        size: Rows in a mini-batch, over all ranks together.
        generator: Shuffles; the same on all ranks.

    Yields:
        Rows whose `scale` makes the average of the ranks' sums the mini-batch estimate of the full sum.
    """
    number = dist.get_world_size() if several() else 1
    if number == 1:
        yield from [data] if size >= len(data) else data.batches(size, generator=generator)
        return
    positions = Data(torch.arange(len(data)), torch.arange(len(data), device=data.y.device), scale=data.scale)
    for batch in positions.batches(size, generator=generator if size < len(data) else None):
        if len(batch) < number:  # too few rows to share: every rank takes them all
            yield replace(data.rows(batch.y), scale=batch.scale)
        else:
            yield replace(data.rows(batch.y[rank() :: number]), scale=batch.scale * number)


def average(tensors: list[Tensor]) -> list[Tensor]:
    """The mean over ranks of each tensor, in one message."""
    if not several():
        return tensors
    flat = torch.cat([t.detach().double().reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    pieces = (flat / dist.get_world_size()).split([t.numel() for t in tensors])
    return [piece.reshape(t.shape).to(t.dtype) for piece, t in zip(pieces, tensors, strict=True)]


def agree(tensors: list[Tensor], generator: torch.Generator) -> None:
    """Give all ranks the first one's tensors and generator state."""
    if several():
        with torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)
        generator.set_state(from_first(generator.get_state()))


def from_first(value: Any) -> Any:
    """The first rank's `value`, on every rank."""
    if not several():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def several() -> bool:
    """Whether there are ranks besides this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
