"""The covariance of a linearized network whose weights were conditioned on few data, in function space."""

import torch
from torch import Tensor

from bayeskit.bnn.curvature.ntk import LayerGradients, gram, known_layer_gradients, pointwise_gram, shared_variances
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.pushforward.function_covariance_base import FunctionCovariance
from bayeskit.bnn.weights.low_rank_update import ConditionedWeights
from bayeskit.core import operators
from bayeskit.core.types import Params


class ConditionedFunctionCovariance(FunctionCovariance):
    """`J S J'` for `S = (S0^-1 + A'A)^-1`, as the covariance of a Gaussian process after data.

    With k = J S0 J' of the inputs x, C that between them and the data, and `R' K R = U diag(v) U'`,

        J S J' = k - T T',      T = C R U diag(1 + v)^-1/2,

    a difference, and so formed in float64, the network included.

    Args:
        values: The same covariance in weight space, whose S is `ConditionedWeights`.

    References:
        Rasmussen & Williams. Gaussian Processes for Machine Learning. 2006, equation 2.26.
    """

    def blocks(self) -> Tensor:
        """The covariance of the outputs at each input, (n, k, k)."""
        data, variances = self._data()
        pieces, x = [], self.values.x
        width = len(self.weights.values) + 64 * sum(s.shape[-1] + a.shape[-1] for a, s in data.values())
        for points in operators.chunks(len(x), self.values.num_outputs * width):
            own = known_layer_gradients(self.values, x[points])
            explained = self._explained(own, data, variances).unflatten(0, (-1, self.values.num_outputs))
            pieces.append(floored(pointwise_gram(own, variances), explained @ explained.mT))
        return torch.cat(pieces).to(self.dtype)

    def to_dense(self) -> Tensor:
        """The matrix, (n*k, n*k)."""
        data, variances = self._data()
        own = known_layer_gradients(self.values, self.values.x)
        explained = self._explained(own, data, variances)
        before = gram(own, own, variances)[0]
        return (before - explained @ explained.mT).to(self.dtype)

    @property
    def weights(self) -> ConditionedWeights:
        """S."""
        assert isinstance(self.values.weight_covariance, ConditionedWeights)
        return self.values.weight_covariance

    def _data(self) -> tuple[LayerGradients, Params]:
        """The layer gradients at the data that were conditioned on, and the variances before them."""
        before = self.weights.before
        assert isinstance(before.function, NetworkFunction)
        variances = shared_variances(before.function, before.weight_covariance)
        assert variances is not None
        return known_layer_gradients(before, before.x), variances

    def _explained(self, own: LayerGradients, data: LayerGradients, variances: Params) -> Tensor:
        """T, (n*k, q)."""
        weights = self.weights
        cross = gram(own, data, variances)[0].unflatten(-1, weights.root.shape[:2])
        seen = torch.einsum("xia,iab->xib", cross, weights.root).flatten(1)
        return (seen @ weights.vectors) * (1 + weights.values).rsqrt()


def floored(before: Tensor, explained: Tensor) -> Tensor:
    """`before - explained`, (n, k, k), the diagonal floored at rounding level; the largest shift is noted."""
    value, scale = before - explained, before.diagonal(dim1=-2, dim2=-1)
    least = torch.finfo(scale.dtype).eps * scale
    shift = (least - value.diagonal(dim1=-2, dim2=-1)).clamp_min(0)
    if shift.any():
        relative = float((shift / scale.clamp_min(torch.finfo(scale.dtype).tiny)).max())
        operators.note("variances floored at rounding, largest shift relative to the prior variance", relative)
    return value + torch.diag_embed(shift)
