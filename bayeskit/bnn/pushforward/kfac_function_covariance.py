"""The covariance of functions of weights with Kronecker factors or none, from what enters and leaves each layer.

The gradient of an output in a layer's weights is `s a'`, of rank one, so in the eigenbasis of the layer's factors
its coordinates are `(Q_g' s) (Q_a' a)'`: a rotation of two vectors in place of one of a whole matrix.

References:
    Immer, Korzepa, Bauer. Improving predictions of Bayesian neural nets via local linearization. AISTATS 2021,
    appendix B.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bayeskit.bnn.curvature.ggn import kronecker_order, with_one
from bayeskit.bnn.curvature.ntk import known_sides
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.pushforward.function_covariance_base import ValuesByWeights
from bayeskit.bnn.weights.layer_block_covariance import LayerBlocks
from bayeskit.core import operators
from bayeskit.core.inputs import Batch


class KroneckerValues(ValuesByWeights):
    """`J S J'` for a network of linear layers whose weights are independent, those of each with Kronecker factors.

        cov(f_c(x), f_d(x2)) = sum_l sum_oi u_co u2_do V_oi v_i v2_i,      u = Q_g' s,  v = Q_a' D a,

    V the eigenvalues of the layer's covariance and D the prior's scales around it. Products, draws and halves go
    through the weights.

    Args:
        values: The same covariance by way of the weights.
    """

    def blocks(self) -> Tensor:
        """The covariance of the outputs at each input, (n, k, k)."""
        x, k, pieces = self.values.x, self.values.num_outputs, []
        width = self.values.weight_covariance.shape[-1] ** 0.5
        for points in operators.chunks(len(x), int(16 * k * width)):
            total = torch.zeros((), dtype=torch.float64, device=x.device)
            for left, entered, variances in self._coordinates(x[points]):
                total = total + (left * (entered.square() @ variances.mT)[:, None]) @ left.mT
            pieces.append(total)
        return torch.cat(pieces).to(self.dtype)

    def to_dense(self) -> Tensor:
        """The matrix, (n*k, n*k), summed over the outputs of each layer a few at a time."""
        n, k = len(self.values.x), self.values.num_outputs
        total = torch.zeros(n, k, n, k, dtype=torch.float64, device=self.device)
        for left, entered, variances in self._coordinates(self.values.x):
            for part in operators.chunks(len(variances), n * (n + entered.shape[-1])):
                between = (entered * variances[part, None]) @ entered.mT  # (c, n, n)
                total += torch.einsum("xco,ydo,oxy->xcyd", left[..., part], left[..., part], between)
        return total.flatten(2).flatten(0, 1).to(self.dtype)

    def _coordinates(self, x: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each layer u (n, k, a), v (n, b) and V (a, b), float64."""
        sides = known_sides(self.values, x)
        orders = {name: kronecker_order(self._function, name) for name in sides}
        for block, index, scale in _layer_blocks(self.values):
            name = next(n for n, order in orders.items() if torch.equal(order.flatten(), index))
            entered, left = sides[name]
            outputs, inputs = block.vectors_a.double(), block.vectors_g.double()
            scaled = with_one(entered, len(inputs)) * scale[: len(inputs)].double()
            yield left @ outputs, scaled @ inputs, block.eigenvalues().double()

    @property
    def _function(self) -> NetworkFunction:
        assert isinstance(self.values.function, NetworkFunction)
        return self.values.function


class DiagonalValues(KroneckerValues):
    """The same for independent weights: V holds their variances, and nothing is rotated.

    Args:
        values: The same covariance by way of the weights, those of each layer with its biases or without.
    """

    def _coordinates(self, x: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each layer s (n, k, a), a (n, b) and the variances (a, b), float64."""
        variances = self.values.weight_covariance.diagonal().double()
        for name, (entered, left) in known_sides(self.values, x).items():
            order = kronecker_order(self._function, name)
            yield left, with_one(entered, order.shape[1]), variances[order]


def _layer_blocks(values: operators.Linearized) -> list[tuple[operators.KroneckerInverse, Tensor, Tensor]]:
    assert isinstance(values.weight_covariance, LayerBlocks)
    return values.weight_covariance.blocks  # type: ignore[return-value]
