"""The covariance of a linearized network's functions, in weight or function space, whichever costs less."""

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from bayeskit.bnn.curvature.ntk import is_pointwise, separates, shared_variances
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.pushforward.kfac_function_covariance import DiagonalFunctionCovariance, KroneckerFunctionCovariance
from bayeskit.bnn.pushforward.low_rank_function_covariance import ConditionedFunctionCovariance
from bayeskit.bnn.weights.layer_block_covariance import has_factors
from bayeskit.bnn.weights.low_rank_update import ConditionedWeights
from bayeskit.core import operators


def in_function_space(values: operators.Linearized) -> LinearOperator:
    """The same covariance without Jacobians, if all layers are linear and S has one of three forms.

    S may be diagonal, have Kronecker factors, or be conditioned on data. Where a gradient is to reach the inputs or
    the weights' mean, and for other layers and other S, it is `values`.
    """
    covariance, function = values.weight_covariance, values.function
    if not isinstance(function, NetworkFunction) or not len(values.x) or _differentiable(values):
        return values
    if isinstance(covariance, ConditionedWeights):
        known = shared_variances(function, covariance.weights_before) is not None
        return ConditionedFunctionCovariance(values) if known and _linear(values, function) else values
    if isinstance(covariance, DiagLinearOperator):
        apart = _whole(function) and is_pointwise(function, values.mean, values.x)
        return DiagonalFunctionCovariance(values) if apart and _linear(values, function) else values
    return KroneckerFunctionCovariance(values) if has_factors(covariance) and _linear(values, function) else values


def _linear(values: operators.Linearized, function: NetworkFunction) -> bool:
    return separates(function, values.mean, values.x)


def _whole(function: NetworkFunction) -> bool:
    """Whether every layer with biases among the weights has its weight matrix there too."""
    layers = {name.rpartition("bias")[0] for name in function.like if name.rpartition(".")[2] == "bias"}
    return all(f"{layer}weight" in function.like for layer in layers)


def _differentiable(values: operators.Linearized) -> bool:
    inputs = isinstance(values.x, Tensor) and values.x.requires_grad
    return torch.is_grad_enabled() and (inputs or values.mean.requires_grad)
