"""Marginal means and variances of a function at some inputs, given a Gaussian over its inducing values.

With f(Z) = L v, L L' = k(Z, Z), v ~ N(q, S) and A = L^-1 k(Z, x):

    E f(x) - m(x) = A' q,        var f(x) = k(x, x) + A' (S - I) A.

The derivative is written by hand. It shares W = (S - I) A between the two passes, so that both together need four
products that grow with the number of inputs: with g, h the incoming gradients of mean and variance,

    dS = A diag(h) A',    dq = A g,    dA = 2 W diag(h) + q g',    dk(Z, x) = L^-T dA,

and the gradient through the Cholesky factor is a function of P = dA A' = 2 (S - I) dS + q dq', without another pass:

    dL = -tril(L^-T P),        dk(Z, Z) = -L^-T tril(P) L^-1    (half of P on the diagonal),

the second because the lower triangle of L' tril(X) is that of L' X. It is not made symmetric: k(Z, Z) is, so only its
symmetric part counts.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from bayeskit.core.operators import Factor, block_triangular, factorize
from bayeskit.gp.process.conditioned_kernel import floored

NUGGET = 1e-6
"""Added to k(Z, Z), in units of its mean diagonal, where the covariances with x are rounded to float32: they err by
6e-8, which a smaller eigenvalue would amplify into meaningless variances."""


Form = Literal["root", "triangular", "sites"]

_SQUARES: Mapping[Form, Callable[[Tensor], Tensor]] = {
    "root": lambda root: block_triangular.symmetric_product(root, root),
    "triangular": block_triangular.upper_square,
    "sites": Tensor.clone,
}
"""S from each form, as a new tensor."""


def marginals(tril: Tensor, cross: Tensor, before: Tensor, mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts of the mean and variances at n inputs, for k outputs, differentiable in every argument.

    Args:
        tril: L, (m, m) or (k, m, m).
        cross: k(Z, x), (m, n) or (k, m, n).
        before: k(x, x), (n,) or (k, n).
        mean: q, (k, m).
        root: R with R R' = S, (k, m, r).

    Returns:
        A' q and the variances, each (k, n), in the type of `cross`.

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> shift, variance = marginals(one, one / 2, one[0], one, one.unsqueeze(0))  # v ~ N(1, 1)
        >>> shift.item(), variance.item()
        (0.5, 1.0)
    """
    inverse = block_triangular.lower_inverse(tril.detach()).to(cross.dtype)
    return _Marginals.apply((inverse, "root", True), tril, cross, before, mean, root)  # type: ignore[return-value]


def marginals_of_grams(
    square: Tensor, cross: Tensor, before: Tensor, mean: Tensor, spread: Tensor, *, form: Form
) -> tuple[Tensor, Tensor]:
    """As `marginals`, from k(Z, Z) instead of L: the fastest way to a gradient in all of it.

    k(Z, Z) is factorized in float64. In float32 it carries `NUGGET`.

    Args:
        square: k(Z, Z) in float64, (m, m) or (k, m, m).
        cross: k(Z, x), (m, n) or (k, m, n); its type is that of all the products.
        before: k(x, x), (n,) or (k, n).
        mean: q, (k, m).
        spread: The covariance S of q(v), in one of these forms.
        form: "root" for R with R R' = S, (k, m, r); "triangular" for an upper-triangular one, whose derivative is
            triangular too; "sites" for S itself, (k, m, m), whose derivative of a loss leaves out inputs that would
            lower the precision of v: a likelihood that is not log-concave has such inputs, and a natural gradient
            with them may not lead to a Gaussian.

    Returns:
        A' q and the variances, each (k, n), in the type of `cross`.

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> shift, variance = marginals_of_grams(one, one / 2, one[0], one, one.unsqueeze(0), form="sites")
        >>> shift.item(), variance.item()
        (0.5, 1.0)
    """
    inverse = block_triangular.lower_inverse(inducing_factor(square.detach(), cross.dtype).tril).to(cross.dtype)
    return _Marginals.apply((inverse, form, False), square, cross, before, mean, spread)  # type: ignore[return-value]


def inducing_factor(square: Tensor, dtype: torch.dtype) -> Factor:
    """The factor of k(Z, Z) in float64 for products in `dtype`: in float32 it carries `NUGGET`.

    Examples:
        >>> [inducing_factor(torch.ones(1, 1), dtype).jitter for dtype in (torch.float64, torch.float32)]
        [0.0, 1e-06]
    """
    if dtype == torch.float64:
        return factorize(square, name="K_zz")
    return factorize(square, name="K_zz in single precision", least=NUGGET)


def projected(projection: Tensor, mean: Tensor) -> Tensor:
    """A' q for each output: (k, n) from A of shape (m, n) or (k, m, n) and q (k, m)."""
    if projection.dim() == 2:
        return mean @ projection
    return (mean.unsqueeze(-2) @ projection).squeeze(-2)


class _Marginals(torch.autograd.Function):
    """The equations at the top of the file; `base` is the matrix that the gradient is in, L or k(Z, Z)."""

    @staticmethod
    def forward(ctx: Any, plan: tuple[Tensor, Form, bool], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and variance, (k, n) each; `plan` is L^-1 in the type of `cross`, the form, and whether `base` is L."""
        inverse, form, _ = plan
        _, cross, before, mean, spread = tensors
        a, q, spread = block_triangular.lower_matmul(inverse, cross), mean.to(cross.dtype), spread.to(cross.dtype)
        excess = _SQUARES[form](spread)
        excess.diagonal(dim1=-2, dim2=-1).sub_(1)  # S - I
        w = excess @ a  # (k, m, n)
        before = before.to(a.dtype).expand(len(q), -1)
        raw = (w * a).sum(-2).add_(before)
        variance = floored(raw, before)
        ctx.save_for_backward(a, w, excess, q, spread, raw < variance)
        ctx.plan = plan
        return projected(a, q), variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in base, cross, before, mean and spread."""
        a, w, excess, q, spread, below = ctx.saved_tensors
        inverse, form, from_tril = ctx.plan
        g, h = grads[0], grads[1].masked_fill(below, 0)  # (k, n)
        shared = a.dim() == 2
        slope = weighted_square(a, h)
        grad_q = g @ a.mT if shared else (a @ g.unsqueeze(-1)).squeeze(-1)
        grad_base = grad_cross = None
        if ctx.needs_input_grad[2]:
            grad_a = (q.unsqueeze(-1) * g.unsqueeze(-2)).addcmul_(w, h.unsqueeze(-2), value=2)
            grad_cross = block_triangular.upper_matmul(inverse.mT, grad_a.sum(0) if shared else grad_a)
        if ctx.needs_input_grad[1]:
            product = (
                block_triangular.lower_product(excess, slope)
                .mul_(2)
                .add_((q.unsqueeze(-1) * grad_q.unsqueeze(-2)).tril_())
            )
            product = product.sum(0) if shared else product
            if from_tril:
                grad_base = block_triangular.upper_matmul(inverse.mT, product).tril_().neg_()
            else:
                grad_base = slope_of_square(inverse, product)
        if form == "sites":
            # An input whose variance was floored at rounding level keeps its site: the step of the mean needs it.
            sites = grads[1].clamp(min=0)
            grad_spread = slope if torch.equal(sites, h) else weighted_square(a, sites)
        else:
            grad_spread = (block_triangular.upper_part if form == "triangular" else torch.matmul)(slope, spread).mul_(2)
        return None, grad_base, grad_cross, h, grad_q, grad_spread


def weighted_square(a: Tensor, h: Tensor) -> Tensor:
    """A diag(h) A' for A of shape (m, n) or (k, m, n) and h (k, n): (k, m, m).

    Examples:
        >>> weighted_square(torch.ones(1, 2), torch.tensor([[1.0, 2.0]])).tolist()
        [[[3.0]]]
    """
    weighted = a * h.unsqueeze(-2)
    return block_triangular.symmetric_product(weighted, a.expand(weighted.shape))


def slope_of_square(inverse: Tensor, product: Tensor) -> Tensor:
    """-L^-T tril(P) L^-1 with half of P on the diagonal: the gradient in k(Z, Z), not made symmetric.

    Args:
        inverse: L^-1, (m, m) or (k, m, m).
        product: P = dA A' in its lower triangle, zero above, of the same shape; changed in place.

    Examples:
        >>> slope_of_square(2 * torch.eye(1), torch.tensor([[3.0]])).item()
        -6.0
    """
    product.diagonal(dim1=-2, dim2=-1).mul_(0.5)
    return block_triangular.upper_matmul(inverse.mT, block_triangular.lower_matmul(product, inverse)).neg_()
