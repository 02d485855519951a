"""The covariance of a Kronecker-factored precision, kept in the eigenbasis of its factors."""

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.core import generators
from bayeskit.core.operators.algebra import draw_rule, half_rule, logdet_rule, quadratic_rule, solve_rule


class KroneckerInverse(LinearOperator):
    """The inverse of `A (x) G + shift I` for symmetric A and G given by their eigendecompositions.

    With `A = Q_a diag(l_a) Q_a'` and `G = Q_g diag(l_g) Q_g'`, the covariance is
    `(Q_a (x) Q_g) diag(1 / (l_a (x) l_g + shift)) (Q_a (x) Q_g)'`: diagonal in a Kronecker basis, although not itself
    a Kronecker product. Row `i * g + j` pairs row i of A with row j of G.

    Args:
        vectors_a: Q_a, (*b, a, a).
        values_a: l_a, (*b, a), not negative.
        vectors_g: Q_g, (*b, g, g).
        values_g: l_g, (*b, g), not negative.
        shift: Positive, (*b,) or one number.

    References:
        George et al., Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis, 2018, section 3.

    Examples:
        >>> eye, values = torch.eye(2), torch.tensor([0.0, 1.0])
        >>> KroneckerInverse(eye, values, eye, values, torch.tensor(1.0)).diagonal().tolist()
        [1.0, 1.0, 1.0, 0.5]
    """

    semidefinite = True

    def __init__(self, vectors_a: Tensor, values_a: Tensor, vectors_g: Tensor, values_g: Tensor, shift: Tensor | float):
        shift = torch.as_tensor(shift, dtype=values_a.dtype, device=values_a.device)
        batch = torch.broadcast_shapes(
            vectors_a.shape[:-2], values_a.shape[:-1], vectors_g.shape[:-2], values_g.shape[:-1], shift.shape
        )
        parts = tuple(
            _expanded(part, batch, inner)
            for part, inner in ((vectors_a, 2), (values_a, 1), (vectors_g, 2), (values_g, 1), (shift, 0))
        )
        super().__init__(*parts)
        self.vectors_a, self.values_a, self.vectors_g, self.values_g, self.shift = parts

    def eigenvalues(self) -> Tensor:
        """Those of the covariance in the order of its basis, (*b, a, g)."""
        products = self.values_a.unsqueeze(-1) * self.values_g.unsqueeze(-2)
        return 1 / (products + self.shift[..., None, None])

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        return self.basis(self.eigenvalues().flatten(-2).unsqueeze(-1) * self.coordinates(rhs))

    def _size(self) -> torch.Size:
        size = self.vectors_a.shape[-1] * self.vectors_g.shape[-1]
        return torch.Size((*self.vectors_a.shape[:-2], size, size))

    def _transpose_nonbatch(self) -> "KroneckerInverse":
        return self

    def _diagonal(self) -> Tensor:
        halves = self.vectors_a.square() @ self.eigenvalues() @ self.vectors_g.square().mT  # (*b, a, g)
        return halves.flatten(-2)

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "KroneckerInverse":
        batch = tuple(batch_shape)
        return KroneckerInverse(
            self.vectors_a.expand(*batch, *self.vectors_a.shape[-2:]),
            self.values_a,
            self.vectors_g,
            self.values_g,
            self.shift,
        )

    def coordinates(self, rhs: Tensor) -> Tensor:
        """`(Q_a (x) Q_g)' rhs` for rhs (*b, a*g, c)."""
        return self._rotate(self.vectors_a.mT, self.vectors_g.mT, rhs)

    def basis(self, rhs: Tensor) -> Tensor:
        """`(Q_a (x) Q_g) rhs` for rhs (*b, a*g, c)."""
        return self._rotate(self.vectors_a, self.vectors_g, rhs)

    def _rotate(self, left: Tensor, right: Tensor, rhs: Tensor) -> Tensor:
        columns = rhs.mT.unflatten(-1, (left.shape[-1], right.shape[-1]))  # (*b, c, a, g)
        return (left.unsqueeze(-3) @ (columns @ right.mT.unsqueeze(-3))).flatten(-2).mT


@solve_rule.register
def _(op: KroneckerInverse, rhs: Tensor) -> Tensor:
    return op.basis(op.coordinates(rhs) / op.eigenvalues().flatten(-2).unsqueeze(-1))


@quadratic_rule.register
def _(op: KroneckerInverse, columns: Tensor) -> Tensor:
    return (op.coordinates(columns).square() / op.eigenvalues().flatten(-2).unsqueeze(-1)).sum(-2)


@logdet_rule.register
def _(op: KroneckerInverse) -> Tensor:
    return op.eigenvalues().log().sum((-1, -2))


@draw_rule.register
def _(op: KroneckerInverse, num_samples: int, generator: torch.Generator) -> Tensor:
    scale = op.eigenvalues().flatten(-2).sqrt()  # (*b, a*g)
    noise = generators.normal((num_samples, *scale.shape), like=scale, generator=generator)
    return op.basis((scale * noise).movedim(0, -1)).movedim(-1, 0)


@half_rule.register
def _(op: KroneckerInverse, rhs: Tensor) -> Tensor:
    return op.eigenvalues().flatten(-2).sqrt().unsqueeze(-1) * op.coordinates(rhs)


def _expanded(part: Tensor, batch: torch.Size, inner: int) -> Tensor:
    """The part with all the batch axes, since the base class treats those of every argument alike.

    The base class rebuilds operators inside `no_grad` and asks the arguments whether they require a gradient, so a
    view must repeat the answer.
    """
    shape = (*batch, *part.shape[part.dim() - inner :])
    return part if part.shape == shape else part.expand(shape).requires_grad_(part.requires_grad)
