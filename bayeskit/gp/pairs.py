"""Correlated outputs as one output over pairs (input, output).

A kernel that gives a k x k matrix for two inputs, as gpytorch's multitask kernels do, is an ordinary kernel over pairs:
K((x, i), (x', j)) is one entry of that matrix. Inputs (n, d) with all outputs are the n*k rows (x_1, 1), (x_1, 2), ...:
point-major.
"""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor


class PairKernel(Kernel):
    """A kernel over pairs (x, i), rows of d + 1 numbers, from one that gives a k x k matrix for two inputs.

    Args:
        base: A gpytorch kernel whose `num_outputs_per_input` is k, interleaved as those of gpytorch are.
        num_outputs: k.

    Examples:
        >>> from gpytorch.kernels import MultitaskKernel, RBFKernel
        >>> kernel = PairKernel(MultitaskKernel(RBFKernel(), num_tasks=2).requires_grad_(False), 2)
        >>> kernel(torch.tensor([[0.5, 0.0], [0.5, 1.0]])).to_dense().shape
        torch.Size([2, 2])
    """

    def __init__(self, base: Kernel, num_outputs: int):
        super().__init__()
        self.base, self.num_outputs = base, num_outputs

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (n1, n2), or of pairs of rows (n,) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("a PairKernel has no meaning with `last_dim_is_batch=True`")
        if diag:
            return self._diagonal(x1, x2)
        first, rows = self.points(x1)
        second, columns = (first, rows) if x1 is x2 else self.points(x2)
        value: Any = self.base(first, second)
        return value.to_dense().index_select(-2, rows).index_select(-1, columns)

    def points(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of consecutive rows, each once, and where in their point-major matrix each row stands."""
        points, position = torch.unique_consecutive(x[..., :-1], dim=-2, return_inverse=True)
        return points, position * self.num_outputs + x[..., -1].long()

    def _diagonal(self, x1: Tensor, x2: Tensor) -> Tensor:
        joint, position = torch.unique_consecutive(
            torch.cat([x1[..., :-1], x2[..., :-1]], dim=-1), dim=-2, return_inverse=True
        )
        first, second = joint.unsqueeze(-2).chunk(2, dim=-1)  # (u, 1, d) each
        value: Any = self.base(first, second)
        return value.to_dense()[position, x1[..., -1].long(), x2[..., -1].long()]


class PairMean(Mean):
    """A mean over pairs (x, i) from one that gives k numbers for an input.

    Args:
        base: A gpytorch mean from (n, d) to (n, k).

    Examples:
        >>> from gpytorch.means import MultitaskMean, ZeroMean
        >>> PairMean(MultitaskMean(ZeroMean(), 2))(torch.tensor([[0.5, 0.0], [0.5, 1.0]]))
        tensor([0., 0.])
    """

    def __init__(self, base: Mean):
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """Means (n,) at rows (n, d + 1)."""
        values: Any = self.base(x[..., :-1])
        return values.gather(-1, x[..., -1:].long()).squeeze(-1)


def paired(x: Tensor, num_outputs: int) -> Tensor:
    """Inputs (n, d) with each of k outputs, point-major: (n*k, d + 1).

    Examples:
        >>> paired(torch.tensor([[0.5], [0.7]]), 2).tolist()
        [[0.5, 0.0], [0.5, 1.0], [0.699999988079071, 0.0], [0.699999988079071, 1.0]]
    """
    x = x.double()
    outputs = torch.arange(num_outputs, dtype=x.dtype, device=x.device).repeat(len(x))
    return torch.cat([x.repeat_interleave(num_outputs, dim=0), outputs.unsqueeze(-1)], dim=-1)
