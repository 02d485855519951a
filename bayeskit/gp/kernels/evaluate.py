"""Evaluation of kernel matrices and mean vectors, for any gpytorch kernel.

Scaled RBF and Matern kernels use the fused path of `kernels.stationary`.
"""

from typing import Any, cast

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from gpytorch.means import ConstantMean, Mean
from torch import Tensor

from bayeskit.gp.kernels.deep import DeepKernel
from bayeskit.gp.kernels.stationary import stationary, stationary_gram, stationary_grams


def gram(kernel: Kernel, x1: Tensor, x2: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The dense matrix of covariances between two sets of inputs.

    Distances are formed in float64; the kernel's function of the distance is evaluated in `dtype`.

    Args:
        kernel: A kernel of batch shape *b.
        x1: (n1, d), or (*b, n1, d) with one set of inputs for each kernel of the batch.
        x2: (n2, d) or (*b, n2, d); the same object as `x1` gives a diagonal without rounding.
        dtype: Type of the matrix; float32 is for stochastic optimization steps only.

    Returns:
        (*b, n1, n2).

    Raises:
        ValueError: The two have different numbers of columns, or the kernel has lengthscales for another number.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> x = torch.zeros(3, 2)
        >>> gram(RBFKernel(), x, x).sum().item()
        9.0
    """
    same = x1 is x2
    check_columns(kernel, x1, x2)
    x1 = x1.double()
    x2 = x1 if same else x2.double()
    if isinstance(kernel, DeepKernel):
        first = kernel.features(x1)
        return gram(kernel.base_kernel, first, first if same else kernel.features(x2), dtype=dtype)
    known = stationary(kernel)
    if known is not None:
        return stationary_gram(known, x1, x2, dtype=dtype)
    parts = _parts(kernel)
    if parts is not None:
        # gpytorch adds a low-rank kernel to another through a Cholesky factor with jitter.
        matrices = torch.broadcast_tensors(*(gram(part, x1, x1 if same else x2, dtype=dtype) for part in parts))
        stacked = torch.stack(matrices)
        return stacked.sum(0) if isinstance(kernel, AdditiveKernel) else stacked.prod(0)
    if type(kernel) is ScaleKernel:
        dims = outer_dims(kernel)
        if dims is not None:
            x1 = x1.index_select(-1, dims)
            x2 = x1 if same else x2.index_select(-1, dims)
        scale = kernel.outputscale[..., None, None].to(dtype)
        return scale * gram(kernel.base_kernel, x1, x1 if same else x2, dtype=dtype)
    batch = kernel.batch_shape
    x1 = x1.expand(*batch, *x1.shape[-2:]) if x1.dim() == 2 else x1
    x2 = x1 if same else (x2.expand(*batch, *x2.shape[-2:]) if x2.dim() == 2 else x2)
    return kernel(x1, x2).to_dense().to(dtype)


def grams(kernel: Kernel, z: Tensor, x: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """k(z, z) in float64, k(z, x) in `dtype` and the variances k(x_i, x_i) in float64, at less cost than three calls.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> square, cross, diagonal = grams(RBFKernel(), torch.zeros(2, 1), torch.zeros(3, 1), dtype=torch.float32)
        >>> square.sum().item(), cross.sum().item(), diagonal.sum().item()
        (4.0, 6.0, 3.0)
    """
    check_columns(kernel, z, x)
    known = stationary(kernel)
    if known is None:
        return gram(kernel, z, z), gram(kernel, z, x, dtype=dtype), gram_diagonal(kernel, x)
    return stationary_grams(known, z.double(), x.double(), dtype=dtype)


def gram_diagonal(kernel: Kernel, x: Tensor) -> Tensor:
    """The variances k(x_i, x_i), (*b, n), in float64.

    Args:
        kernel: A kernel of batch shape *b.
        x: (n, d) or (*b, n, d).

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> gram_diagonal(RBFKernel(), torch.zeros(3, 2))
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    x = x.double()
    known = stationary(kernel)
    if known is not None:
        outputscale = torch.ones((), dtype=x.dtype, device=x.device) if known.scale is None else known.scale.to(x)
        batch = torch.broadcast_shapes(kernel.batch_shape, x.shape[:-2])
        return outputscale.unsqueeze(-1).expand(*batch, x.shape[-2])
    if isinstance(kernel, DeepKernel) and stationary(kernel.base_kernel) is None:
        return gram_diagonal(kernel.base_kernel, kernel.features(x))
    if isinstance(kernel, DeepKernel):
        return gram_diagonal(kernel.base_kernel, x)  # the same everywhere, whatever the features
    return gram_pairs(kernel, x, x)


def gram_pairs(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The covariances k(x1_i, x2_i) of inputs in pairs, (*b, n), in float64.

    Args:
        kernel: A kernel of batch shape *b.
        x1: (n, d) or (*b, n, d).
        x2: As x1.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> gram_pairs(RBFKernel().requires_grad_(False), torch.zeros(1, 1), torch.ones(1, 1)).round(decimals=2)
        tensor([0.3500], dtype=torch.float64)
    """
    check_columns(kernel, x1, x2)
    # A batched kernel needs batched inputs: with n inputs and n kernels gpytorch reads (n, n) as a matrix.
    batch = torch.broadcast_shapes(kernel.batch_shape, x1.shape[:-2])
    x1 = x1.double().expand(*batch, *x1.shape[-2:])
    x2 = x2.double().expand(*batch, *x2.shape[-2:])
    value: Any = kernel(x1, x2, diag=True)
    return value.double()


class Evaluated(Kernel):
    """A kernel whose values gpytorch and linear_operator obtain from `gram`.

    Args:
        base: Any kernel.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> x = torch.zeros(2, 1)
        >>> Evaluated(RBFKernel().requires_grad_(False))(x).to_dense().sum().item()
        4.0
    """

    def __init__(self, base: Kernel):
        super().__init__()
        self.base = base

    @property
    def batch_shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of `base`; gpytorch would include all nested kernels."""
        return self.base.batch_shape

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (*b, n1, n2), or of pairs (*b, n) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("an Evaluated kernel does not support `last_dim_is_batch=True`")
        return gram_pairs(self.base, x1, x2) if diag else gram(self.base, x1, x2)


def mean_rows(mean: Mean, x: Tensor, num_outputs: int) -> Tensor:
    """A mean function at inputs (n, d), one row per output, (k, n), in float64, shared by the outputs or not.

    Examples:
        >>> from gpytorch.means import ZeroMean
        >>> mean_rows(ZeroMean(), torch.zeros(3, 2), 2).shape
        torch.Size([2, 3])
    """
    if type(mean) is ConstantMean:  # skips gpytorch's checks, which dominate the time
        constant: Any = mean.constant
        return constant.unsqueeze(-1).double().expand(num_outputs, x.shape[-2])
    value: Any = mean(x.double())
    return value.double().expand(num_outputs, x.shape[-2])


def outer_dims(kernel: ScaleKernel) -> Tensor | None:
    """The columns that a scaled kernel selects for a base that selects none by itself; None for all.

    gpytorch copies `active_dims` from the base to the scaled kernel, never the other way.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> outer_dims(ScaleKernel(RBFKernel(), active_dims=[1])), outer_dims(ScaleKernel(RBFKernel(active_dims=[1])))
        (tensor([1]), None)
    """
    return kernel.active_dims if kernel.base_kernel.active_dims is None else None  # type: ignore[return-value]


def check_columns(kernel: Kernel, x1: Tensor, x2: Tensor) -> None:
    """Raise where inputs, or inputs and lengthscales, have different numbers of columns and would broadcast."""
    if x2.shape[-1] != x1.shape[-1]:
        raise ValueError(
            f"the inputs have {x2.shape[-1]} columns where those of the process have {x1.shape[-1]}: give all columns "
            "it was built for, in their order"
        )
    _check_lengthscales(kernel, x1.shape[-1])


def _check_lengthscales(kernel: Kernel, columns: int) -> None:
    if type(kernel) is ScaleKernel:
        dims = outer_dims(kernel)
        _check_lengthscales(kernel.base_kernel, columns if dims is None else len(dims))
    if isinstance(kernel.active_dims, Tensor):
        columns = len(kernel.active_dims)
    for part in _parts(kernel) or ():
        _check_lengthscales(part, columns)
    if kernel.has_lengthscale and kernel.ard_num_dims not in (None, 1, columns):
        raise ValueError(
            f"{type(kernel).__name__} has `ard_num_dims={kernel.ard_num_dims}`, and its inputs have {columns} columns: "
            f"use `ard_num_dims={columns}`, or choose columns by `active_dims`"
        )


def _parts(kernel: Kernel) -> list[Kernel] | None:
    """The terms of a sum or the factors of a product of kernels; None for all others."""
    if type(kernel) in (AdditiveKernel, ProductKernel) and kernel.active_dims is None:
        return list(cast(Any, kernel.kernels))
    return None
