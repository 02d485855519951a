"""What a model of posteriordb is here: a log density of unconstrained numbers, many positions at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Index = Tensor | slice


@dataclass(frozen=True)
class Model:
    """A log density of c positions (c, d), in parts, and the k parameters that a reference speaks of.

    Args:
        names: Of the k parameters.
        dimension: d.
        log_prior: (c, d) to (c,), up to a constant, Jacobians included; the whole log density where `num_rows` is 0.
        parameters: (c, d) to (c, k).
        positions: (s, k) to (s, d), the inverse.
        num_rows: Rows of the data that are independent given the position; 0 if there are no such.
        row_terms: (c, d) and the rows wanted to their log likelihoods (c, n).
    """

    names: tuple[str, ...]
    dimension: int
    log_prior: Callable[[Tensor], Tensor]
    parameters: Callable[[Tensor], Tensor]
    positions: Callable[[Tensor], Tensor]
    num_rows: int = 0
    row_terms: Callable[[Tensor, Index], Tensor] | None = None

    def log_density(self, q: Tensor, rows: Index = slice(None)) -> Tensor:
        """Log densities (c,) of positions (c, d); of some rows, scaled up to all, an unbiased estimate."""
        if self.row_terms is None:
            return self.log_prior(q)
        terms = self.row_terms(q, rows)
        return self.log_prior(q) + self.num_rows / terms.shape[-1] * terms.sum(-1)


def numbers(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}[{i + 1}]" for i in range(count))


def column(data, key: str) -> Tensor:
    return numbers(data[key])
