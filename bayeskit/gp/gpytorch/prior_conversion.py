"""The prior process of a gpytorch model."""

from typing import Any

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import AdditiveKernel, Kernel, LCMKernel, MultitaskKernel
from gpytorch.means import Mean, MultitaskMean
from torch import Tensor, nn

from bayeskit.core.operators import semidefinite_root
from bayeskit.gp.gpytorch.model_conversion import values_of
from bayeskit.gp.kernels.coregionalization import MeanRows, OutputKernel, OutputMean
from bayeskit.gp.model.multitask import StackedProcess
from bayeskit.gp.process.gaussian_process import GaussianProcess

ROWS = 8
"""Inputs at which a prior is compared with the model's `forward`; a difference shows at any few of them."""


def prior_of(model: Any, x: Tensor) -> GaussianProcess | StackedProcess | None:
    """The process that the model's `forward` describes, in float64; None where it describes none.

    It has `mean_module` and `covar_module` if these agree with `forward` at some inputs. Otherwise mean and kernel call
    `forward` itself, which keeps features, warped inputs and sums formed there; for correlated tasks there is a process
    only where `covar_module` is a kernel of inputs times a covariance of tasks.

    Args:
        model: A gpytorch model in float64, in evaluation mode.
        x: Inputs (n, d) of the model.
    """
    x = x[:ROWS]
    normal = model.forward(x)
    if not isinstance(normal, MultivariateNormal):
        return None
    multitask = isinstance(normal, MultitaskMultivariateNormal)
    if len(normal.batch_shape) > (0 if multitask else 1):
        return None
    k = normal.event_shape[-1] if multitask else normal.batch_shape.numel()
    mean, kernel = getattr(model, "mean_module", None), getattr(model, "covar_module", None)
    if isinstance(mean, Mean) and isinstance(kernel, Kernel):
        plain = _of_modules(mean, kernel, x, k)
        if plain is not None and _same(plain(x), values_of(normal)):
            return plain
    return None if multitask else GaussianProcess(ForwardMean(model), ForwardKernel(model, normal.batch_shape), k)


class ForwardKernel(Kernel):
    """The covariance that a model's `forward` gives.

    Args:
        model: A gpytorch model.
        batch: Batch shape of its distribution.
    """

    def __init__(self, model: nn.Module, batch: torch.Size):
        super().__init__(batch_shape=batch)
        self.model = model

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (*b, n1, n2), or their diagonal with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("a ForwardKernel does not support `last_dim_is_batch=True`")
        normal: Any = self.model.forward(torch.cat([x1, x2], dim=-2))
        cut = x1.shape[-2]
        block = normal.lazy_covariance_matrix[..., :cut, cut:]
        return block.diagonal(dim1=-1, dim2=-2) if diag else block.to_dense()


class ForwardMean(Mean):
    """The mean that a model's `forward` gives.

    Args:
        model: A gpytorch model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Means (*b, n)."""
        normal: Any = self.model.forward(x)
        return normal.mean


def _of_modules(mean: Mean, kernel: Kernel, x: Tensor, k: int) -> GaussianProcess | StackedProcess | None:
    """The process of a mean and a kernel with k outputs; None where they are not of that shape."""
    values: Any = mean(x)
    if kernel.num_outputs_per_input(x, x) > 1:
        terms = _terms(kernel)
        if not terms or kernel.batch_shape or type(mean) is not MultitaskMean or values.shape != (len(x), k):
            return None
        tasks = OutputMean(MeanRows(mean.base_means), torch.eye(k, dtype=torch.float64, device=x.device))
        return StackedProcess(GaussianProcess(tasks, AdditiveKernel(*terms)), k)
    if kernel.batch_shape not in (torch.Size(), torch.Size([k])) or values.shape not in ((len(x),), (k, len(x))):
        return None
    return GaussianProcess(mean, kernel, k)


def _terms(kernel: Kernel) -> list[OutputKernel]:
    """The terms of a kernel over correlated tasks: a kernel of inputs times a covariance of tasks; [] for no such sum.

    gpytorch's multitask kernels ignore the `active_dims` of their parts; the comparison with `forward` detects it.
    """
    parts: list[Any] = list(kernel.covar_module_list) if type(kernel) is LCMKernel else [kernel]
    if not all(type(part) is MultitaskKernel for part in parts):
        return []
    covariances = [part.task_covar_module.covar_matrix.to_dense() for part in parts]
    roots = [semidefinite_root(covariance, name="covariance of the tasks") for covariance in covariances]
    return [OutputKernel(part.data_covar_module, root) for part, root in zip(parts, roots, strict=True)]


def _same(first: Any, second: Any) -> bool:
    """Whether two distributions agree, within tolerances far below the difference of any other prior."""
    joint = first.covariance.to_dense(), second.covariance.to_dense()
    return torch.allclose(first.mean, second.mean, rtol=1e-7, atol=1e-9) and torch.allclose(
        *joint, rtol=1e-7, atol=1e-9 * float(joint[1].abs().max())
    )
