"""Correlated outputs as one output over pairs (input, output).

A kernel that gives a k x k matrix for two inputs, as gpytorch's multitask kernels do, is an ordinary kernel over pairs:
K((x, i), (x', j)) is one entry of that matrix. Inputs (n, d) with all outputs are the n*k rows (x_1, 1), (x_1, 2), ...:
point-major.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel, LCMKernel, MultitaskKernel
from gpytorch.means import Mean
from torch import Tensor

from bayeskit.core.operators import semidefinite_root


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


def multitask_terms(kernel: Kernel) -> list[tuple[Kernel, Tensor]]:
    """The terms of a kernel over several outputs: each a kernel of inputs and a covariance (k, k) of outputs.

    Raises:
        ValueError: The kernel is no such sum.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> [(type(data).__name__, len(term)) for data, term in multitask_terms(MultitaskKernel(RBFKernel(), 2))]
        [('RBFKernel', 2)]
    """
    terms = []
    for part in list(kernel.covar_module_list) if type(kernel) is LCMKernel else [kernel]:
        if type(part) is not MultitaskKernel or part.data_covar_module.active_dims is not None:
            raise ValueError(
                f"functions cannot be drawn from a {type(part).__name__}, which is not a kernel of all inputs times a "
                "covariance of outputs; draw values at inputs instead, by `posterior(x).sample(...)`"
            )
        covariance: Any = part.task_covar_module.covar_matrix
        terms.append((part.data_covar_module, covariance.to_dense().detach()))
    return terms


def mixed(base: Callable[[Tensor], Tensor], kernel: PairKernel, covariance: Tensor) -> "_Mixed":
    """Functions over pairs, f_i(x) = sum_j C_ij g_j(x) with C C' the covariance of the outputs, (s, 1, pairs).

    Args:
        base: Independent functions g, from (n, d) to (s, k, n).
        kernel: Over the pairs.
        covariance: (k, k).
    """
    return _Mixed(base, kernel, semidefinite_root(covariance, name="covariance of the outputs"))


@dataclass(frozen=True, eq=False)
class _Mixed:
    base: Callable[[Tensor], Tensor]
    kernel: PairKernel
    root: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        points, position = self.kernel.points(x)
        values = torch.einsum("ij,sjn->sni", self.root, self.base(points))  # (s, points, k)
        return values.flatten(-2)[..., position].unsqueeze(1)
