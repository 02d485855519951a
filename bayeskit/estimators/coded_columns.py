"""The columns that a kernel reads as codes or in units of their own, so that nothing may rescale them."""

from typing import Any

from gpytorch.kernels import Kernel, ScaleKernel

AS_GIVEN = ("IndexKernel", "HammingIMQKernel", "CategoricalKernel", "CylindricalKernel")
"""Classes of GPyTorch and BoTorch whose inputs are row numbers, codes without an order, or points of the unit ball."""


def coded_columns(kernel: Kernel, num_columns: int) -> list[int]:
    """The columns that reach an `IndexKernel` or another kernel of `AS_GIVEN`, through any composition.

    Args:
        kernel: A kernel with its `active_dims`.
        num_columns: Of the inputs.

    Examples:
        >>> from gpytorch.kernels import IndexKernel, RBFKernel
        >>> coded_columns(RBFKernel(active_dims=[0, 2]) * IndexKernel(num_tasks=3, active_dims=[1]), 3)
        [1]
    """
    return sorted(set(_visited(kernel, list(range(num_columns)))))


def _visited(kernel: Any, columns: list[int], *, sliced: bool = False) -> list[int]:
    """Those of `columns` that are read as given; a kernel that its parent calls by `forward` is `sliced` already."""
    if kernel.active_dims is not None and not sliced:
        columns = [columns[i] for i in kernel.active_dims.tolist()]
    if any(base.__name__ in AS_GIVEN for base in type(kernel).__mro__):
        return columns
    parts = [part for part in kernel.children() if isinstance(part, Kernel)]
    parts += [part for group in kernel.children() if not isinstance(group, Kernel) for part in group.children()]
    scaled = isinstance(kernel, ScaleKernel)  # takes over the `active_dims` of its base
    return [c for part in parts if isinstance(part, Kernel) for c in _visited(part, columns, sliced=scaled)]
