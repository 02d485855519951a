"""Steps along the natural gradient of a Gaussian over whitened inducing values.

q(v) = N(q, S) has the natural parameters S^-1 q and S^-1. Of a bound E(q, S) - KL[q(v) || N(0, I)], a natural-gradient
step of length t is

    S^-1   <-  (1 - t) S^-1   + t (I - 2 dE/dS),
    S^-1 q <-  (1 - t) S^-1 q + t (dE/dq - 2 dE/dS q),

which for E = sum_i w_i E_q[log p(y_i | f(x_i))] is a step towards I + sum_i w_i b_i A_i A_i' and
sum_i w_i (a_i + b_i A_i' q) A_i, with a_i and -b_i the expected first and second derivatives of log p(y_i | f).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.operators import factorize
from bayeskit.gp.variational.whitened_gaussian import Sites, dense_moments


class NaturalGradient(torch.optim.Optimizer):
    """Natural-gradient steps on q(v) = N(q, S) as an optimizer of the two tensors q and S.

    The loss is a mean over data points, without the divergence from N(0, I), which the optimizer adds itself:
    -1/n sum_i w_i E_q[log p(y_i | f(x_i))].

    Args:
        mean: q, (k, m), changed in place by `step`.
        covariance: S, (k, m, m), changed in place; symmetric.
        num_rows: n.
        lr: Length of a step, at most 1, which is the optimum at once where E is quadratic in q and the batch is all
            the data. With mini-batches it averages over about 1 / lr of them.

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
        self.precision, self.shift = precision, shift  # S^-1 and S^-1 q, in float64
        self.divergence = precision.new_zeros(())  # sum_j KL[q(v_j) || N(0, I)]
        with torch.no_grad():
            self._write()

    @property
    def memory(self) -> list[Tensor]:
        """The tensors that a checkpoint needs besides q and S."""
        return [self.precision, self.shift, self.divergence]

    @property
    def sites(self) -> Sites:
        """The sites of q, in float64: q(v) is proportional to N(v; 0, I) times these."""
        eye = torch.eye(self.shift.shape[-1], dtype=self.shift.dtype, device=self.shift.device)
        return Sites(self.shift.clone(), self.precision - eye)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of length `lr` from the gradients of the loss; what `closure` returns, if there is one."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        assert self.mean.grad is not None and self.covariance.grad is not None
        length, n = self.param_groups[0]["lr"], self.num_rows
        slope = self.covariance.grad  # -dE/dS / n
        pull = (slope @ self.mean.unsqueeze(-1)).squeeze(-1).mul_(2).sub_(self.mean.grad)
        self.precision.mul_(1 - length).add_(slope, alpha=2 * n * length)
        self.precision.diagonal(dim1=-2, dim2=-1).add_(length)
        self.shift.mul_(1 - length).add_(pull, alpha=n * length)
        self._write()
        return value

    def _write(self) -> None:
        """Set q, S and the divergence from the natural parameters."""
        mean, covariance, divergence = dense_moments(self.precision, self.shift, dtype=self.covariance.dtype)
        self.mean.copy_(mean)
        self.covariance.copy_(covariance)
        self.divergence.copy_(divergence)
