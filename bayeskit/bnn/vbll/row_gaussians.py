"""Variational distributions of the weights of a last layer: `w_o ~ N(m_o, S_o)`, independent for the outputs o.

Every family writes its covariances as `S_o = F_o F_o' + diag(v_o)`, with either part left out:

    diagonal         v = exp(2 r)
    dense            F = L = diag(exp r) (I + strictly lower)
    dense_precision  F = L^-T, of the same L: `S^-1 = L L'`
    low_rank         F (d x rank) and v = exp(2 r)

The lower parts are relative to the diagonal, so that an optimizer's step changes them in proportion to its scale.
"""

from abc import ABC, abstractmethod

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator, RootLinearOperator
from torch import Tensor, nn

from bayeskit.core import checks, operators
from bayeskit.core.optimize import minimize_lbfgs

SCALES = (-20.0, 10.0)
"""Log scales are kept within these, so that no scale is zero or infinite in any floating type."""

COVARIANCES = ("diagonal", "dense", "low_rank", "dense_precision")

SMALLEST_SHARE = 1e-6
"""The least share of a weight's variance given the others that "low_rank" keeps in its diagonal."""


class Rows(nn.Module, ABC):
    """k independent Gaussians over the d weights of an output.

    Args:
        mean: m, (k, d), where it starts; copied.
    """

    def __init__(self, mean: Tensor):
        super().__init__()
        self.mean = nn.Parameter(mean.detach().clone())

    @abstractmethod
    def parts(self) -> tuple[Tensor | None, Tensor | None]:
        """F (k, d, r), triangular if r = d, and v (k, d), such that `S = F F' + diag(v)`."""

    @abstractmethod
    def assign(self, mean: Tensor, precision: Tensor) -> None:
        """Set the member of the family with the smallest Kullback-Leibler divergence to `N(mean, precision^-1)`.

        Args:
            mean: (k, d).
            precision: (k, d, d), positive definite.
        """

    def means(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """`phi' m_o + c_o`, (n, k), for constants c (k,) if there are any."""
        mean = features @ self.mean.mT
        return mean if offset is None else mean + offset

    def moments(self, features: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means and variances of the outputs, each (n, k)."""
        return self.means(features, offset), self.variance(features)

    def variance(self, features: Tensor) -> Tensor:
        """`phi' S_o phi` as sums of squares, (n, k)."""
        factor, diagonal = self.parts()
        total = features.new_zeros(len(features), len(self.mean))
        if factor is not None:
            columns = factor.movedim(0, 1).flatten(1)  # (d, k * r): one product for all the outputs
            pieces = operators.pieces(features, columns.shape[1])
            total = torch.cat([(part @ columns).unflatten(-1, (len(factor), -1)).square().sum(-1) for part in pieces])
        if diagonal is not None:
            total = total + features.square() @ diagonal.mT
        return total

    def root(self, features: Tensor) -> Tensor:
        """R with `cov(f_io, f_jo) = R_io . R_jo`, (n, k, r)."""
        factor, diagonal = self.parts()
        pieces = []
        if factor is not None:
            columns = factor.movedim(0, 1).flatten(1)
            pieces.append((features @ columns).unflatten(-1, (factor.shape[0], -1)))
        if diagonal is not None:
            pieces.append(features.unsqueeze(1) * diagonal.sqrt())
        return torch.cat(pieces, dim=-1)

    def trace(self, precision: Tensor) -> Tensor:
        """`tr(P_o S_o)`, (k,), for P of shape (k, d), diagonal, or (k, d, d)."""
        factor, diagonal = self.parts()
        own = precision if precision.ndim == 2 else precision.diagonal(dim1=-2, dim2=-1)
        total = torch.zeros_like(own[:, 0])
        if factor is not None and precision.ndim == 2:
            total = (own * factor.square().sum(-1)).sum(-1)
        elif factor is not None:
            total = (factor * (precision @ factor)).sum((-2, -1))
        return total if diagonal is None else total + (own * diagonal).sum(-1)

    def logdet(self) -> Tensor:
        """`log det S_o`, (k,)."""
        factor, diagonal = self.parts()
        if diagonal is None:
            assert factor is not None
            return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if factor is None:
            return diagonal.log().sum(-1)
        white = factor / diagonal.sqrt().unsqueeze(-1)
        inner = torch.eye(white.shape[-1], dtype=white.dtype, device=white.device) + white.mT @ white
        return diagonal.log().sum(-1) + operators.factorize(inner, name="I + F'F").logdet().to(white.dtype)

    def operator(self) -> LinearOperator:
        """The covariances S, (k, d, d)."""
        return covariance(*self.parts())


class DiagonalRows(Rows):
    """Independent weights.

    Args:
        mean: m, (k, d).
        log_scale: r, (k, d), where the log standard deviations start.

    >>> DiagonalRows(torch.zeros(1, 2), torch.zeros(1, 2)).variance(torch.tensor([[1.0, 2.0]]))
    tensor([[5.]], grad_fn=<AddBackward0>)
    """

    def __init__(self, mean: Tensor, log_scale: Tensor):
        super().__init__(mean)
        self.log_scale = nn.Parameter(log_scale.detach().clone())

    def parts(self) -> tuple[None, Tensor]:
        """Nothing, and exp(2 r)."""
        return None, (2 * self.log_scale.clamp(*SCALES)).exp()

    @torch.no_grad()
    def assign(self, mean: Tensor, precision: Tensor) -> None:
        """The variances are one over the diagonal of the precision."""
        self.mean.copy_(mean)
        self.log_scale.copy_(-precision.diagonal(dim1=-2, dim2=-1).log() / 2)


class TriangularRows(Rows):
    """Families of a triangular matrix `L = diag(exp r) (I + strictly lower)`.

    Args:
        mean: m, (k, d).
        log_scale: r, (k, d), where the logs of the diagonal of L start.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor):
        super().__init__(mean)
        self.log_scale = nn.Parameter(log_scale.detach().clone())
        self.lower = nn.Parameter(torch.zeros(*mean.shape, mean.shape[1], dtype=mean.dtype, device=mean.device))

    def tril(self) -> Tensor:
        """L, (k, d, d)."""
        identity = torch.eye(self.lower.shape[-1], dtype=self.lower.dtype, device=self.lower.device)
        return self.log_scale.clamp(*SCALES).exp().unsqueeze(-1) * (self.lower.tril(-1) + identity)

    def write(self, mean: Tensor, tril: Tensor) -> None:
        """Set m and L."""
        diagonal = tril.diagonal(dim1=-2, dim2=-1)
        self.mean.copy_(mean)
        self.log_scale.copy_(diagonal.log())
        self.lower.copy_((tril / diagonal.unsqueeze(-1)).tril(-1))


class DenseRows(TriangularRows):
    """Covariances by their Cholesky factors: `S = L L'`."""

    def parts(self) -> tuple[Tensor, None]:
        """L, and nothing."""
        return self.tril(), None

    @torch.no_grad()
    def assign(self, mean: Tensor, precision: Tensor) -> None:
        """The Gaussian itself: the factor of P with its rows and columns in reverse order has L for an inverse."""
        backwards = operators.factorize(precision.flip(-2, -1), name="the precision of the last layer").tril
        upper = backwards.flip(-2, -1)  # U U' = P with U upper triangular, so that S = U^-T U^-1
        identity = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device).expand(upper.shape)
        self.write(mean, torch.linalg.solve_triangular(upper, identity, upper=True).mT)


class PrecisionRows(TriangularRows):
    """Covariances by the Cholesky factors of their inverses: `S = (L L')^-1`."""

    def parts(self) -> tuple[Tensor, None]:
        """`L^-T`, and nothing."""
        tril = self.tril()
        identity = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
        return torch.linalg.solve_triangular(tril, identity.expand(tril.shape), upper=False).mT, None

    @torch.no_grad()
    def assign(self, mean: Tensor, precision: Tensor) -> None:
        """The Gaussian itself."""
        self.write(mean, operators.factorize(precision, name="the precision of the last layer").tril)


class LowRankRows(Rows):
    """A few directions on top of independent weights: `S = F F' + diag(exp 2 r)`.

    Args:
        mean: m, (k, d).
        log_scale: r, (k, d), where the log standard deviations start.
        factor: F, (k, d, rank), where it starts; not zero, from where no gradient leads away.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, factor: Tensor):
        super().__init__(mean)
        self.log_scale = nn.Parameter(log_scale.detach().clone())
        self.factor = nn.Parameter(factor.detach().clone())

    def parts(self) -> tuple[Tensor, Tensor]:
        """F and exp(2 r)."""
        return self.factor, (2 * self.log_scale.clamp(*SCALES)).exp()

    def assign(self, mean: Tensor, precision: Tensor) -> None:
        """By L-BFGS on `tr(P S) - log det S`, from the present S or from the directions of the largest variance."""

        def loss() -> Tensor:
            return (self.trace(precision) - self.logdet()).sum() / 2

        with torch.no_grad():
            self.mean.copy_(mean)
            here, own = loss(), [self.factor.clone(), self.log_scale.clone()]
            rank = self.factor.shape[-1]
            values, vectors = torch.linalg.eigh(precision)  # ascending: the first have the largest variance
            rest = (vectors.square() / values.unsqueeze(-2))[..., rank:].sum(-1)
            self.factor.copy_(vectors[..., :rank] / values[..., :rank].sqrt().unsqueeze(-2))
            self.log_scale.copy_(rest.clamp_min(1e-12 / values.amax(-1, keepdim=True)).log() / 2)
            if here < loss():
                self.factor.copy_(own[0])
                self.log_scale.copy_(own[1])
        minimize_lbfgs(loss, [self.factor, self.log_scale], tolerance=1e-11, description="low rank")
        with torch.no_grad():  # where F alone explains a weight, v may fall to zero, and S would be singular
            conditional = 1 / precision.diagonal(dim1=-2, dim2=-1)
            self.log_scale.clamp_(min=(SMALLEST_SHARE * conditional).log() / 2)


def covariance(factor: Tensor | None, diagonal: Tensor | None) -> LinearOperator:
    """`F F' + diag(v)` as an operator (k, d, d), for F (k, d, r) and v (k, d), one of which may be left out."""
    if diagonal is None:
        assert factor is not None
        return RootLinearOperator(factor)
    return DiagLinearOperator(diagonal) if factor is None else operators.low_rank_plus_diagonal(factor, diagonal)


def build(family: str, mean: Tensor, scale: Tensor, *, rank: int = 8) -> Rows:
    """The family of a name, started at independent weights.

    Args:
        family: "diagonal", "dense", "low_rank" or "dense_precision".
        mean: (k, d), where the means start.
        scale: (k, d), where the standard deviations start.
        rank: Columns of F for "low_rank".

    Raises:
        ValueError: There is no such family, or the rank is not a positive integer.

    >>> build("dense", torch.zeros(3, 4), torch.ones(3, 4)).operator().shape
    torch.Size([3, 4, 4])
    """
    checks.choice(family, name="covariance", options=COVARIANCES)
    checks.positive(rank, name="rank", integer=True)
    if family == "low_rank":
        factor = torch.randn(*mean.shape, min(rank, mean.shape[1]), dtype=mean.dtype, device=mean.device)
        return LowRankRows(mean, scale.log(), 0.1 * scale.unsqueeze(-1) * factor)
    if family == "dense_precision":
        return PrecisionRows(mean, -scale.log())
    return (DenseRows if family == "dense" else DiagonalRows)(mean, scale.log())


def precision_of(covariances: LinearOperator) -> Tensor:
    """The inverses of the covariances of rows, (k, d, d)."""
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    identity = identity.expand(covariances.shape)
    if isinstance(covariances, RootLinearOperator):  # through the root, whose condition is the square root of S's
        half = torch.linalg.solve(covariances.root.to_dense(), identity)
        return half.mT @ half
    precision = operators.solve(covariances, identity)
    return (precision + precision.mT) / 2
