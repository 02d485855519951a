"""The covariance of many weights after few observations, as a low-rank update: nothing of size p x p is formed."""

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.core import generators, operators
from bayeskit.core.operators.algebra import draw_rule, half_rule, logdet_rule, product, solve_rule
from bayeskit.core.operators.chunking import chunks


class ConditionedWeights(LinearOperator):
    """`S = (S0^-1 + A'A)^-1` for p weights of covariance S0, given q observations `A = R'J` of a linearized function.

    With `A S0 A' = U diag(v) U'` (q, q) and Woodbury's identity

        S = S0 - S0 A' U diag(1 / (1 + v)) U' A S0 = T' T,      T = S0^1/2 (I - A' W A S0),
        W = U diag((1 - (1 + v)^-1/2) / v) U',

    so that a product is one with S0 and a forward and a backward pass over the data. Variances are sums of squares in
    weight space: no difference of large numbers is taken.

    Args:
        before: The linearized function at the data x, whose weights have covariance S0: `J S0 J'`, (n*k, n*k).
        root: R at each data point, (n, k, k), float64, `R R'` being the precision of its k observed outputs.
        vectors: U, (q, q), float64, with q = n*k.
        values: v, (q,), float64.

    References:
        Rasmussen & Williams. Gaussian Processes for Machine Learning. 2006, section 3.4.3 and equation A.9.

    >>> from bayeskit.core.operators import Linearized
    >>> x, one = torch.tensor([[1.0], [1.0]]).double(), torch.ones(2, 1, 1).double()
    >>> before = Linearized(torch.zeros(1).double(), torch.ones(1, 1).double(), x, function=lambda w, x: w * x)
    >>> round(conditioned(before, one).to_dense().item(), 6)  # one weight, seen twice with noise 1
    0.333333
    """

    semidefinite = True

    def __init__(self, before: operators.Linearized, root: Tensor, vectors: Tensor, values: Tensor):
        super().__init__(before, root, vectors, values)
        self.before, self.root, self.vectors, self.values = before, root, vectors, values

    @property
    def weights_before(self) -> LinearOperator:
        """S0, (p, p)."""
        return self.before.weight_covariance

    def _size(self) -> torch.Size:
        return self.weights_before.shape

    def _transpose_nonbatch(self) -> "ConditionedWeights":
        return self

    def observe(self, weights: Tensor) -> Tensor:
        """`A weights` for weights (p, c), (q, c) in float64."""
        values = self.before.push(weights, self.before.x).to(self.root).unflatten(0, self.root.shape[:2])  # (n, k, c)
        return (self.root.mT @ values).flatten(0, 1)

    def spread(self, values: Tensor) -> Tensor:
        """`A' values` for values (q, c), (p, c)."""
        dual = (self.root @ values.unflatten(0, self.root.shape[:2])).flatten(0, 1)
        return self.before.pull(dual.to(self.before.mean), self.before.x)

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        prior = product(self.weights_before, rhs)
        return prior - product(
            self.weights_before, self.spread(self.middle(self.observe(prior), 1 / (1 + self.values)))
        )

    def middle(self, values: Tensor, scale: Tensor) -> Tensor:
        """`U diag(scale) U' values` for values (q, c)."""
        return self.vectors @ (scale.unsqueeze(-1) * (self.vectors.mT @ values))

    def halved(self, rhs: Tensor) -> Tensor:
        """`T rhs` for rhs (p, c)."""
        scale = (1 + self.values).sqrt()
        seen = self.middle(self.observe(product(self.weights_before, rhs)), 1 / (scale * (1 + scale)))
        return half_rule(self.weights_before, rhs - self.spread(seen))

    def _diagonal(self) -> Tensor:
        """Sums of squares of the halves of unit vectors, some at a time."""
        p, pieces = self.shape[-1], []
        for part in chunks(p, p):
            columns = torch.zeros(p, part.stop - part.start, dtype=self.dtype, device=self.device)
            columns[torch.arange(part.start, part.stop), torch.arange(columns.shape[1])] = 1
            pieces.append(self.halved(columns).square().sum(0))
        return torch.cat(pieces)

    def to_dense(self) -> Tensor:
        """The matrix, (p, p)."""
        half = self.halved(torch.eye(self.shape[-1], dtype=self.dtype, device=self.device))
        return half.mT @ half


def conditioned(before: operators.Linearized, root: Tensor, kernel: Tensor | None = None) -> ConditionedWeights:
    """The covariance of the weights of `before` after observations of its values with precision `R R'`.

    Args:
        before: The linearized function at n inputs, `J S0 J'`.
        root: R at each input, (n, k, k).
        kernel: The matrix `J S0 J'`, (n*k, n*k), if it is known.
    """
    root = root.double()
    kernel = before.to_dense() if kernel is None else kernel
    values, vectors = torch.linalg.eigh(between_roots(kernel.double(), root))
    return ConditionedWeights(before, root, vectors, values.clamp_min(0))


def between_roots(kernel: Tensor, root: Tensor) -> Tensor:
    """`R' K R` for a kernel (*g, n*k, n*k) and roots (n, k, k) of the precisions of the data."""
    n, k = root.shape[:2]
    blocks = kernel.unflatten(-1, (n, k)).unflatten(-3, (n, k))  # (*g, n, k, n, k)
    return torch.einsum("iab,...iajc,jcd->...ibjd", root, blocks, root).flatten(-2).flatten(-3, -2)


class Precision(LinearOperator):
    """The inverse of a covariance that can be solved for without being formed.

    Args:
        covariance: S, (p, p).

    >>> from linear_operator.operators import DiagLinearOperator
    >>> (Precision(DiagLinearOperator(torch.tensor([2.0, 4.0]))) @ torch.ones(2)).tolist()
    [0.5, 0.25]
    """

    def __init__(self, covariance: LinearOperator):
        super().__init__(covariance)
        self.covariance = covariance

    def _matmul(self, rhs: Tensor) -> Tensor:
        return operators.solve(self.covariance, rhs)

    def _size(self) -> torch.Size:
        return self.covariance.shape

    def _transpose_nonbatch(self) -> "Precision":
        return self


@solve_rule.register
def _(op: ConditionedWeights, rhs: Tensor) -> Tensor:
    return solve_rule(op.weights_before, rhs) + op.spread(op.observe(rhs))


@logdet_rule.register
def _(op: ConditionedWeights) -> Tensor:
    return logdet_rule(op.weights_before) - torch.log1p(op.values).sum().to(op.dtype)


@half_rule.register
def _(op: ConditionedWeights, rhs: Tensor) -> Tensor:
    return op.halved(rhs)


@draw_rule.register
def _(op: ConditionedWeights, num_samples: int, generator: torch.Generator) -> Tensor:
    """Matheron's rule: draws of the prior, corrected by their simulated noisy observations."""
    before = draw_rule(op.weights_before, num_samples, generator)  # (s, p)
    noise = generators.normal((num_samples, len(op.values)), like=op.values, generator=generator)
    seen = op.middle(op.observe(before.mT) + noise.mT, 1 / (1 + op.values))
    return before - product(op.weights_before, op.spread(seen)).mT
