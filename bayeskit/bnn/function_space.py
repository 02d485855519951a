"""The covariance of a linearized network's functions, in the space where it is cheap."""

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.bnn.blocks import has_factors
from bayeskit.bnn.conditioned import ConditionedWeights
from bayeskit.bnn.conditioned_values import ConditionedValues
from bayeskit.bnn.kronecker_values import KroneckerValues
from bayeskit.bnn.network import NetworkFunction
from bayeskit.bnn.tangent import shared_variances, sides
from bayeskit.core import operators


def in_function_space(values: operators.Linearized) -> LinearOperator:
    """The same covariance without rows of the Jacobian, if all layers are linear and S has Kronecker factors or rows.

    Where a gradient is to reach the inputs, and for other layers and other S, it is `values`.
    """
    covariance, function = values.weight_covariance, values.function
    if not isinstance(function, NetworkFunction) or not len(values.x) or _followed(values):
        return values
    if isinstance(covariance, ConditionedWeights):
        known = shared_variances(function, covariance.weights_before) is not None
        return ConditionedValues(values) if known and _linear(values, function) else values
    return KroneckerValues(values) if has_factors(covariance) and _linear(values, function) else values


def _linear(values: operators.Linearized, function: NetworkFunction) -> bool:
    return sides(function, values.mean, values.x[:1]) is not None


def _followed(values: operators.Linearized) -> bool:
    return torch.is_grad_enabled() and isinstance(values.x, Tensor) and values.x.requires_grad
