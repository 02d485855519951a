"""Posteriors that evaluate a gpytorch model itself."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import InducingPointKernel
from linear_operator import LinearOperator
from linear_operator.operators import BlockInterleavedLinearOperator, DenseLinearOperator
from torch import Tensor, nn

from bayeskit.core.inputs import one_tensor
from bayeskit.core.posterior import Functions, GaussianValues, Posterior
from bayeskit.core.types import Inputs

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class GPyTorchModel(Posterior):
    """The posterior that a gpytorch model itself predicts, in its own floating type: `model(x)` in evaluation mode.

    For models that are no `GaussianProcess` of this library. It gives joint distributions at any inputs, by Cholesky
    factors and never by conjugate gradients, but no function samples.

    Args:
        model: A module whose call returns a `MultivariateNormal` or a `MultitaskMultivariateNormal`.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> class Prior(gpytorch.Module):
        ...     def forward(self, x):
        ...         return MultivariateNormal(ZeroMean()(x), RBFKernel()(x))
        >>> GPyTorchModel(Prior())(torch.zeros(3, 1)).variance.tolist()
        [[1.0], [1.0], [1.0]]
    """

    model: nn.Module

    def __call__(self, x: Inputs) -> GaussianValues:
        """Joint distribution of the function at inputs (n, d), as GaussianValues over n inputs and k outputs."""
        weights = [p for p in self.model.parameters() if p.is_floating_point()]
        rows = one_tensor(x)
        rows = rows.to(weights[0]) if weights else rows
        with exact_algebra(), torch.no_grad():
            return values_of(self.model(rows))

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """Not supported: the model gives joint distributions at given inputs only.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{type(self.model).__name__} gives joint distributions at given inputs and no functions: its variational "
            "family or its forward is not one that `gp.from_gpytorch` turns into a GaussianProcess. Sample values at "
            "all the inputs you need together, by `posterior(x).sample(...)`"
        )


def values_of(normal: Any) -> GaussianValues:
    """A gpytorch distribution as values over n inputs and k outputs; its batch axis is one of independent outputs.

    Args:
        normal: A `MultitaskMultivariateNormal` without batch, or a `MultivariateNormal` of batch shape () or (k,).

    Raises:
        TypeError: It is something else.

    Examples:
        >>> values_of(MultivariateNormal(torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3))).covariance.shape
        torch.Size([6, 6])
    """
    if not isinstance(normal, MultivariateNormal) or len(normal.batch_shape) > 1:
        shape = f" of batch shape {tuple(normal.batch_shape)}" if isinstance(normal, MultivariateNormal) else ""
        raise TypeError(
            "`model(x)` must be a gpytorch MultivariateNormal of batch shape () or (k,), or a "
            f"MultitaskMultivariateNormal without batch; got {type(normal).__name__}{shape}"
        )
    covariance: LinearOperator = normal.lazy_covariance_matrix
    if isinstance(normal, MultitaskMultivariateNormal):
        if normal.batch_shape:
            raise TypeError(f"`model(x)` must have no batch beside its tasks; got {tuple(normal.batch_shape)}")
        return GaussianValues(normal.mean, covariance if normal._interleaved else _point_major(covariance, normal.mean))
    if normal.batch_shape:
        each = covariance.expand(*normal.batch_shape, *covariance.shape[-2:])
        return GaussianValues(normal.mean.mT, BlockInterleavedLinearOperator(each))
    return GaussianValues(normal.mean.unsqueeze(-1), covariance)


@contextmanager
def exact_algebra() -> Iterator[None]:
    """Settings under which gpytorch uses Cholesky factors at any size, computes all variances and does not warn."""
    settings = (
        gpytorch.settings.max_cholesky_size(2**62),
        gpytorch.settings.fast_computations(False, False, False),
        gpytorch.settings.fast_pred_var(False),
        gpytorch.settings.skip_posterior_variances(False),
        gpytorch.settings.debug(False),
    )
    with ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting)
        yield


def copied(module: M) -> M:
    """A frozen copy in evaluation mode, without the prediction caches of gpytorch."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name in ("_memoize_cache", "prediction_strategy"):  # these hold tensors that cannot be copied
            kept = vars(part).get(name)
            if kept is not None:
                memo[id(kept)] = {} if name == "_memoize_cache" else None
    result = copy.deepcopy(module, memo)
    for part in list(result.modules()):
        if isinstance(part, InducingPointKernel):  # its own `__deepcopy__` keeps the likelihood of the original
            part.likelihood = copy.deepcopy(part.likelihood, memo)
    return result.eval().requires_grad_(False)


def _point_major(covariance: LinearOperator, mean: Tensor) -> LinearOperator:
    """From all inputs of one task after the other to all tasks of one input after the other."""
    n, k = mean.shape
    order = torch.arange(n * k, device=mean.device).reshape(k, n).mT.flatten()
    return DenseLinearOperator(covariance.to_dense()[order][:, order])
