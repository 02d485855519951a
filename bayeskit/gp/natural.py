"""Gaussians over whitened inducing values by their natural parameters, and steps along the natural gradient.

q(v) = N(q, S) has the natural parameters S^-1 q and S^-1. Of a bound E(q, S) - KL[q(v) || N(0, I)], a natural-gradient
step of length t is

    S^-1   <-  (1 - t) S^-1   + t (I - 2 dE/dS),
    S^-1 q <-  (1 - t) S^-1 q + t (dE/dq - 2 dE/dS q),

which for E = sum_i w_i E_q[log p(y_i | f(x_i))] is a step towards I + sum_i w_i b_i A_i A_i' and
sum_i w_i (a_i + b_i A_i' q) A_i, with a_i and -b_i the expected first and second derivatives of log p(y_i | f).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.operators import blocks, factorize


@dataclass(frozen=True, eq=False)
class Natural:
    """The natural parameters of k Gaussians, in float64.

    Args:
        precision: S^-1, (k, m, m).
        shift: S^-1 q, (k, m).

    Examples:
        >>> natural = Natural.prior(1, torch.zeros(2, 3, dtype=torch.float64))
        >>> natural.root()[1].tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """

    precision: Tensor
    shift: Tensor

    @classmethod
    def prior(cls, num_outputs: int, z: Tensor) -> "Natural":
        """N(0, I) at inducing points (m, d)."""
        shift = z.new_zeros(num_outputs, len(z))
        return cls(torch.diag_embed(torch.ones_like(shift)), shift)

    @classmethod
    def of_root(cls, mean: Tensor, root: Tensor) -> "Natural":
        """N(q, R R') for q (k, m) and an upper-triangular R (k, m, m)."""
        inverse = blocks.lower_inverse(root.mT).mT
        precision = inverse.mT @ inverse
        return cls(precision, (precision @ mean.unsqueeze(-1)).squeeze(-1))

    def root(self) -> tuple[Tensor, Tensor]:
        """The mean (k, m) and an upper-triangular R (k, m, m) with R R' = S."""
        factor = factorize(self.precision, name="precision of q(v)")
        return factor.solve(self.shift.unsqueeze(-1)).squeeze(-1), blocks.lower_inverse(factor.tril).mT

    def toward(self, target: "Natural", length: float) -> "Natural":
        """(1 - length) of these parameters plus length of those."""
        precision = torch.lerp(self.precision, target.precision, length)
        return Natural(precision, torch.lerp(self.shift, target.shift, length))

    def target(self, mean: Tensor, grad_mean: Tensor, grad_covariance: Tensor) -> "Natural":
        """Where a full step leads: I - 2 dE/dS and dE/dq - 2 dE/dS q, from the derivatives at mean q."""
        precision = -2 * grad_covariance.to(self.precision)
        shift = grad_mean.to(self.shift) + (precision @ mean.to(self.shift).unsqueeze(-1)).squeeze(-1)
        precision.diagonal(dim1=-2, dim2=-1).add_(1)
        return Natural(precision, shift)


class NaturalGradient(torch.optim.Optimizer):
    """Natural-gradient steps on q(v) = N(q, S) as an optimizer of the two tensors q and S.

    What it steps on is a loss per row, as everywhere in torch; the divergence from N(0, I) is known to it and is *not*
    part of that loss: -1/n sum_i w_i E_q[log p(y_i | f(x_i))].

    Args:
        mean: q, (k, m), changed in place by `step`.
        covariance: S, (k, m, m), changed in place; symmetric.
        num_rows: n.
        lr: Length of a step, at most 1, which is the optimum at once where E is quadratic in q and the batch is all
            the rows. With batches of b rows it averages over about n / b / lr of them.

    References:
        Khan and Lin (2017), "Conjugate-Computation Variational Inference", section 3.

    Examples:
        >>> mean, covariance = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1, 1, requires_grad=True)
        >>> optimizer = NaturalGradient(mean, covariance, num_rows=1, lr=1.0)
        >>> loss = 0.5 * ((2 - mean).square().sum() + covariance.sum())  # one observation 2 of v, with noise 1
        >>> loss.backward()
        >>> _ = optimizer.step()
        >>> mean.item(), round(covariance.item(), 6)
        (1.0, 0.5)
    """

    def __init__(self, mean: Tensor, covariance: Tensor, *, num_rows: int, lr: float):
        super().__init__([mean, covariance], {"lr": lr})
        self.mean, self.covariance, self.num_rows = mean, covariance, num_rows
        half = factorize(covariance.detach(), name="covariance of q(v)")
        eye = torch.eye(mean.shape[-1], dtype=half.tril.dtype, device=mean.device).expand(half.tril.shape)
        precision = half.solve(eye)
        shift = half.solve(mean.detach().to(precision).unsqueeze(-1)).squeeze(-1)
        self.natural = Natural(precision, shift)
        self.divergence = precision.new_zeros(())  # sum_j KL[q(v_j) || N(0, I)]
        self._write(self.natural)

    @property
    def memory(self) -> list[Tensor]:
        """What lives from step to step besides q and S."""
        return [self.natural.precision, self.natural.shift, self.divergence]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of length `lr` from the gradients of the loss; what `closure` returns, if there is one."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        assert self.mean.grad is not None and self.covariance.grad is not None
        n = self.num_rows
        target = self.natural.target(self.mean, -n * self.mean.grad, -n * self.covariance.grad)
        self._write(self.natural.toward(target, self.param_groups[0]["lr"]))
        return value

    @torch.no_grad()
    def _write(self, natural: Natural) -> None:
        """Put q and S where the natural parameters say."""
        self.natural.precision.copy_(natural.precision)
        self.natural.shift.copy_(natural.shift)
        factor = factorize(natural.precision, name="precision of q(v)")
        mean = factor.solve(natural.shift.unsqueeze(-1)).squeeze(-1)
        root = blocks.lower_inverse(factor.tril.to(self.covariance.dtype)).mT
        self.mean.copy_(mean)
        self.covariance.copy_(blocks.upper_square(root))
        trace = self.covariance.diagonal(dim1=-2, dim2=-1).sum().double()
        self.divergence.copy_(0.5 * (trace + mean.square().sum() - mean.numel() + factor.logdet().sum()))
