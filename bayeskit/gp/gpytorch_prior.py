"""The prior inside a gpytorch model."""

from typing import Any

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor, nn

from bayeskit.gp.correlated import CorrelatedProcess
from bayeskit.gp.gpytorch_model import values_of
from bayeskit.gp.pairs import PairKernel, PairMean
from bayeskit.gp.process import GaussianProcess

ROWS = 8
"""Inputs at which a prior is held against what the model's `forward` says."""


def prior_of(model: Any, x: Tensor) -> GaussianProcess | CorrelatedProcess | None:
    """The process that the model's `forward` describes, in float64; None where it describes none.

    It is `mean_module` and `covar_module` where `forward` says at some inputs what these say. Otherwise mean and kernel
    are read off `forward` itself, so that features, warped inputs and sums made there are kept.

    Args:
        model: A gpytorch model in float64, in evaluation mode.
        x: Inputs (n, d) of the model.
    """
    x = x[:ROWS]
    law = model.forward(x)
    if not isinstance(law, MultivariateNormal):
        return None
    multitask = isinstance(law, MultitaskMultivariateNormal)
    if len(law.batch_shape) > (0 if multitask else 1):
        return None
    k = law.event_shape[-1] if multitask else law.batch_shape.numel()
    mean, kernel = getattr(model, "mean_module", None), getattr(model, "covar_module", None)
    if isinstance(mean, Mean) and isinstance(kernel, Kernel):
        plain = _of_modules(mean, kernel, x, k)
        if plain is not None and _same(plain(x), values_of(law)):
            return plain
    batch = torch.Size() if multitask else law.batch_shape
    read = ForwardMean(model), ForwardKernel(model, k if multitask else 1, batch)
    if multitask:
        return CorrelatedProcess(GaussianProcess(PairMean(read[0]), PairKernel(read[1], k)), k)
    return GaussianProcess(*read, num_outputs=k)


class ForwardKernel(Kernel):
    """The covariance that a model's `forward` gives.

    Args:
        model: A gpytorch model.
        tasks: Outputs of a multitask law, else 1.
        batch: Batch shape of the law.
    """

    def __init__(self, model: nn.Module, tasks: int, batch: torch.Size):
        super().__init__(batch_shape=batch)
        self.model, self.tasks = model, tasks

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (*b, n1 k, n2 k), or their diagonal with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("a ForwardKernel has no meaning with `last_dim_is_batch=True`")
        law: Any = self.model.forward(torch.cat([x1, x2], dim=-2))
        cut = x1.shape[-2] * self.tasks
        if isinstance(law, MultitaskMultivariateNormal) and not law._interleaved:
            law = MultitaskMultivariateNormal(law.mean, values_of(law).covariance)
        block = law.lazy_covariance_matrix[..., :cut, cut:]
        return block.diagonal(dim1=-1, dim2=-2) if diag else block.to_dense()

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """The tasks."""
        return self.tasks


class ForwardMean(Mean):
    """The mean that a model's `forward` gives.

    Args:
        model: A gpytorch model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Means (*b, n), or (n, k) of a multitask law."""
        law: Any = self.model.forward(x)
        return law.mean


def _of_modules(mean: Mean, kernel: Kernel, x: Tensor, k: int) -> GaussianProcess | CorrelatedProcess | None:
    """The process of a mean and a kernel with k outputs; None where they are not of that shape."""
    values: Any = mean(x)
    if kernel.num_outputs_per_input(x, x) > 1:
        if kernel.batch_shape or values.shape != (len(x), k):
            return None
        return CorrelatedProcess(GaussianProcess(PairMean(mean), PairKernel(kernel, k)), k)
    if kernel.batch_shape not in (torch.Size(), torch.Size([k])) or values.shape not in ((len(x),), (k, len(x))):
        return None
    return GaussianProcess(mean, kernel, k)


def _same(first: Any, second: Any) -> bool:
    """Whether two laws agree to far beyond what a different prior would."""
    joint = first.covariance.to_dense(), second.covariance.to_dense()
    return torch.allclose(first.mean, second.mean, rtol=1e-7, atol=1e-9) and torch.allclose(
        *joint, rtol=1e-7, atol=1e-9 * float(joint[1].abs().max())
    )
