"""The covariance of the functions of weights that were conditioned on rows, in the space of those functions."""

import torch
from torch import Tensor

from bayeskit.bnn.curvature.ntk import Sides, blocks, gram, known_sides, shared_variances
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.pushforward.function_covariance_base import ValuesByWeights
from bayeskit.bnn.weights.low_rank_update import ConditionedWeights
from bayeskit.core import operators
from bayeskit.core.types import Params


class ConditionedValues(ValuesByWeights):
    """`J S J'` for `S = (S0^-1 + A'A)^-1`, as the covariance of a Gaussian process after data.

    With k = J S0 J' of the inputs x, C that between them and the rows, and `R' K R = U diag(v) U'`,

        J S J' = k - T T',      T = C R U diag(1 + v)^-1/2,

    a difference, and so formed in float64, the network included. Products, draws and halves go through the weights.

    Args:
        values: The same covariance by way of the weights, whose S is `ConditionedWeights`.

    References:
        Rasmussen & Williams. Gaussian Processes for Machine Learning. 2006, equation 2.26.
    """

    def blocks(self) -> Tensor:
        """The covariance of the outputs at each input, (n, k, k)."""
        rows, variances = self._rows()
        pieces, x = [], self.values.x
        width = len(self.weights.values) + 64 * sum(s.shape[-1] + a.shape[-1] for a, s in rows.values())
        for points in operators.chunks(len(x), self.values.num_outputs * width):
            own = known_sides(self.values, x[points])
            explained = self._explained(own, rows, variances).unflatten(0, (-1, self.values.num_outputs))
            pieces.append(floored(blocks(own, variances), explained @ explained.mT))
        return torch.cat(pieces).to(self.dtype)

    def to_dense(self) -> Tensor:
        """The matrix, (n*k, n*k)."""
        rows, variances = self._rows()
        own = known_sides(self.values, self.values.x)
        groups = torch.zeros(len(self.values.mean), dtype=torch.long)
        explained = self._explained(own, rows, variances)
        before = gram(own, own, variances, groups=groups, count=1)[0]
        return (before - explained @ explained.mT).to(self.dtype)

    @property
    def weights(self) -> ConditionedWeights:
        """S."""
        assert isinstance(self.values.weight_covariance, ConditionedWeights)
        return self.values.weight_covariance

    def _rows(self) -> tuple[Sides, Params]:
        """What entered and left the layers at the rows that were conditioned on, and the variances before them."""
        before = self.weights.before
        assert isinstance(before.function, NetworkFunction)
        variances = shared_variances(before.function, before.weight_covariance)
        assert variances is not None
        return known_sides(before, before.x), variances

    def _explained(self, own: Sides, rows: Sides, variances: Params) -> Tensor:
        """T, (n*k, q)."""
        weights, groups = self.weights, torch.zeros(len(self.values.mean), dtype=torch.long)
        cross = gram(own, rows, variances, groups=groups, count=1)[0].unflatten(-1, weights.root.shape[:2])
        seen = torch.einsum("xia,iab->xib", cross, weights.root).flatten(1)
        return (seen @ weights.vectors) * (1 + weights.values).rsqrt()


def floored(before: Tensor, explained: Tensor) -> Tensor:
    """`before - explained`, (n, k, k), with a diagonal that is rounding or more; what was added is noted."""
    value, scale = before - explained, before.diagonal(dim1=-2, dim2=-1)
    least = torch.finfo(scale.dtype).eps * scale
    shift = (least - value.diagonal(dim1=-2, dim2=-1)).clamp_min(0)
    if shift.any():
        relative = float((shift / scale.clamp_min(torch.finfo(scale.dtype).tiny)).max())
        operators.note("variances floored at rounding, largest shift relative to the prior variance", relative)
    return value + torch.diag_embed(shift)
