"""Posteriors that evaluate a gpytorch model itself."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import GridInterpolationKernel, InducingPointKernel
from gpytorch.models import IndependentModelList
from gpytorch.models.deep_gps import DeepGP
from gpytorch.variational import AdditiveGridInterpolationVariationalStrategy
from gpytorch.variational._variational_strategy import _BaseExactGP
from linear_operator import LinearOperator
from linear_operator.operators import BlockInterleavedLinearOperator, DenseLinearOperator
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bayeskit.core.inputs import one_tensor
from bayeskit.core.posterior import Functions, GaussianValues, Posterior
from bayeskit.core.types import Inputs

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=Posterior)


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
        for value in pytree.tree_leaves(list(vars(part).values())):  # tensors with a graph cannot be copied
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        for name in _caches(part):  # nor can these
            kept = vars(part)[name]
            if kept is not None:
                memo[id(kept)] = {} if name == "_memoize_cache" else None
    result = copy.deepcopy(module, memo)
    for part in list(result.modules()):
        if isinstance(part, InducingPointKernel):  # its own `__deepcopy__` keeps the likelihood of the original
            part.likelihood = copy.deepcopy(part.likelihood, memo)
        for name in _caches(part):
            if name.startswith("_cached"):
                delattr(part, name)
    return result.eval().requires_grad_(False)


def _caches(part: nn.Module) -> list[str]:
    """The attributes of a module in which gpytorch keeps what it computed."""
    return [name for name in vars(part) if name in ("_memoize_cache", "prediction_strategy") or "_cached" in name[:7]]


def in_double(model: Any) -> Any:
    """The model in float64 with the jitters of its own type, without which whitened values mean something else."""
    for part in model.modules():
        if isinstance(getattr(part, "inducing_points", None), Tensor) and "_jitter_val" in vars(part):
            part._jitter_val = part.jitter_val
    return model.double()


def has_moving_grid(model: nn.Module) -> bool:
    """Whether a kernel lays a grid over the inputs of each call, so that it is no one function of two inputs.

    gpytorch does so for a `GridInterpolationKernel` without `grid_bounds`.
    """
    return any(isinstance(part, GridInterpolationKernel) and part.grid_is_dynamic for part in model.modules())


def check_convertible(model: nn.Module) -> None:
    """Raise if a model has no joint distribution of one function at inputs (n, d).

    Raises:
        ValueError: It has none; the message names its class and says what to do.
    """
    name = type(model).__name__
    if isinstance(model, DeepGP):
        raise ValueError(
            f"`model` of type {name} is a DeepGP, which returns samples of its hidden layers and not one distribution: "
            "use `model(x)` itself"
        )
    if getattr(model, "_is_ensemble", False):
        raise ValueError(
            f"`model` of type {name} is a mixture over its members, which is not Gaussian: use it in BoTorch"
        )
    if isinstance(model, IndependentModelList):
        raise ValueError(f"`model` of type {name} is a list of models: convert each of `model.models`")
    if isinstance(model, _BaseExactGP):
        raise ValueError(
            "`model` is a fantasy of a variational model, whose factor is in a cache of gpytorch alone: convert the "
            "variational model, and condition it on the new data by `gp.Exact().infer`"
        )
    untrained = (part for part in model.modules() if "variational_params_initialized" in part._buffers)
    if not all(bool(part.variational_params_initialized) for part in untrained):
        raise ValueError(
            f"`model` of type {name} has never been called, so its variational distribution has no values: train it "
            "first"
        )
    inputs: Any = getattr(model, "train_inputs", None) or ()
    if len(inputs) > 1:
        raise ValueError(
            f"`model` of type {name} takes {len(inputs)} inputs, and a posterior takes one array (n, d): "
            "put them side by side as columns, and take them apart in its `forward`"
        )


def fits(posterior: Posterior, model: Any) -> bool:
    """Whether a converted posterior can be evaluated; some kernels can in a product that gpytorch never forms."""
    try:
        tried(posterior, model)
    except ValueError:
        return False
    return True


def tried(posterior: P, model: Any) -> P:
    """The posterior, after a call at some inputs of the model, where any are known, that shows that it works.

    Raises:
        ValueError: It does not give the joint distribution of one function; the message names the class of the model.
    """
    x = _some_inputs(model)
    if x is not None:
        try:
            _ = posterior(x).variance
        except Exception as error:
            raise ValueError(
                f"`model` of type {type(model).__name__} gives no joint distribution of one function at inputs (n, d): "
                f"{error}"
            ) from error
    return posterior


def _some_inputs(model: Any) -> Tensor | None:
    """A few inputs that a model takes: of its training data or its inducing points; None where it has neither."""
    strategy = getattr(model, "variational_strategy", None)
    strategy = getattr(strategy, "base_variational_strategy", strategy)
    if isinstance(strategy, AdditiveGridInterpolationVariationalStrategy):  # its grid is that of one column
        return None
    given = getattr(model, "train_inputs", None) or (getattr(strategy, "inducing_points", None),)
    x = given[0]
    return None if x is None or x.dim() < 2 else x.detach().reshape(-1, *x.shape[-2:])[0, :2]


def _point_major(covariance: LinearOperator, mean: Tensor) -> LinearOperator:
    """From all inputs of one task after the other to all tasks of one input after the other."""
    n, k = mean.shape
    order = torch.arange(n * k, device=mean.device).reshape(k, n).mT.flatten()
    return DenseLinearOperator(covariance.to_dense()[order][:, order])
