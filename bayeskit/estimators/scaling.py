"""Standardization, learned from the training data alone."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Standardizer:
    """The affine map `z = (x - shift) / scale` of each column.

    Args:
        shift: Column means, (d,).
        scale: Column standard deviations, (d,); 1 for a column that does not vary.
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, x: Tensor, weights: Tensor | None = None) -> Self:
        """Weighted mean and standard deviation of each column of `x` (n, d), over its entries that are not NaN."""
        seen = ~x.isnan()
        w = seen.to(x) if weights is None else seen * weights[:, None]
        # Centering on a first entry before averaging keeps a column of tiny spread around a huge value exact.
        origin = x.gather(0, seen.to(torch.int8).argmax(0, keepdim=True))
        x = torch.where(seen, x, origin)
        shift = origin + ((x - origin) * w).sum(0) / w.sum(0)
        scale = (((x - shift) ** 2 * w).sum(0) / w.sum(0)).sqrt()
        # A spread below the rounding of the values themselves is no spread.
        constant = scale <= 10 * torch.finfo(x.dtype).eps * x.abs().amax(0)
        return cls(shift.reshape(-1), torch.where(constant, 1.0, scale).reshape(-1))

    @classmethod
    def identity(cls, columns: int) -> Self:
        """The map that changes nothing."""
        return cls(torch.zeros(columns, dtype=torch.float64), torch.ones(columns, dtype=torch.float64))

    def without(self, columns: list[int]) -> Self:
        """The same map, which leaves these columns as they are."""
        shift, scale = self.shift.clone(), self.scale.clone()
        shift[columns], scale[columns] = 0.0, 1.0
        return type(self)(shift, scale)

    def __call__(self, x: Tensor) -> Tensor:
        """Standardized values of `x` (n, d)."""
        return (x - self.shift.to(x.device)) / self.scale.to(x.device)
