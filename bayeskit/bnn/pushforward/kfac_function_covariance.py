"""The covariance of a linearized network whose weights have Kronecker factors or are independent, layer by layer.

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
from bayeskit.bnn.curvature.ntk import known_layer_gradients
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.pushforward.function_covariance_base import FunctionCovariance
from bayeskit.bnn.weights.layer_block_covariance import factored_blocks
from bayeskit.core import operators
from bayeskit.core.inputs import Batch


class KroneckerFunctionCovariance(FunctionCovariance):
    """`J S J'` for a network of independent linear layers, each with Kronecker factors.

        cov(f_c(x), f_d(x2)) = sum_l sum_oi u_co u2_do V_oi v_i v2_i,      u = Q_g' s,  v = Q_a' D a,

    V the eigenvalues of the layer's covariance and D the prior's scales around it.

    Args:
        values: The same covariance in weight space.
    """

    def blocks(self) -> Tensor:
        """The covariance of the outputs at each input, (n, k, k)."""
        x, k, pieces = self.values.x, self.values.num_outputs, []
        width = self.values.weight_covariance.shape[-1] ** 0.5
        for points in operators.chunks(len(x), int(16 * k * width)):
            total = torch.zeros((), dtype=torch.float64, device=x.device)
            for slopes, inputs, variances in self._coordinates(x[points]):
                total = total + (slopes * (inputs.square() @ variances.mT)[:, None]) @ slopes.mT
            pieces.append(total)
        return torch.cat(pieces).to(self.dtype)

    def to_dense(self) -> Tensor:
        """The matrix, (n*k, n*k), summed over the outputs of each layer a few at a time."""
        n, k = len(self.values.x), self.values.num_outputs
        total = torch.zeros(n, k, n, k, dtype=torch.float64, device=self.device)
        for slopes, inputs, variances in self._coordinates(self.values.x):
            for part in operators.chunks(len(variances), n * (n + inputs.shape[-1])):
                between = (inputs * variances[part, None]) @ inputs.mT  # (c, n, n)
                total += torch.einsum("xco,ydo,oxy->xcyd", slopes[..., part], slopes[..., part], between)
        return total.flatten(2).flatten(0, 1).to(self.dtype)

    def _coordinates(self, x: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each layer u (n, k, a), v (n, b) and V (a, b), float64."""
        layers = known_layer_gradients(self.values, x)
        orders = {name: kronecker_order(self._function, name) for name in layers}
        for block, index, scale in factored_blocks(self.values.weight_covariance):
            name = next(n for n, order in orders.items() if torch.equal(order.flatten(), index))
            inputs, slopes = layers[name]
            q_g, q_a = block.vectors_a.double(), block.vectors_g.double()
            scaled = with_one(inputs, len(q_a)) * scale[: len(q_a)].double()
            yield slopes @ q_g, scaled @ q_a, block.eigenvalues().double()

    @property
    def _function(self) -> NetworkFunction:
        assert isinstance(self.values.function, NetworkFunction)
        return self.values.function


class DiagonalFunctionCovariance(KroneckerFunctionCovariance):
    """The same for independent weights: V holds their variances, and nothing is rotated.

    Args:
        values: The same covariance in weight space; of each layer the weights alone, or with its biases.
    """

    def _coordinates(self, x: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each layer s (n, k, a), a (n, b) and the variances (a, b), float64."""
        variances = self.values.weight_covariance.diagonal().double()
        for name, (inputs, slopes) in known_layer_gradients(self.values, x).items():
            order = kronecker_order(self._function, name)
            yield slopes, with_one(inputs, order.shape[1]), variances[order]
