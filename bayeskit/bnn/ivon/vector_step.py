"""IVON's steps on a vector of weights standardized by the prior, for the library's own training loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayeskit.bnn.ivon.update_rule import update_
from bayeskit.core import generators


class Steps(torch.optim.Optimizer):
    """IVON steps on `q(u) = N(mean, diag(variance))` with the prior N(0, I), as an optimizer of two tensors.

    It also owns `spread`, always zero: a draw is `mean + noise (1 + spread)`, so that for any loss of draws the two
    gradients are the averages that a step needs, of the gradient and of gradient times noise.

    Args:
        mean: Initial mean, (p,).
        lr: Length of a step as a share of the Newton step.
        betas: Decay of the averages.
    """

    def __init__(self, mean: Tensor, *, lr: float, betas: tuple[float, float]):
        self.mean = mean.detach().clone().requires_grad_()
        self.spread = torch.zeros_like(mean).requires_grad_()
        super().__init__([self.mean, self.spread], {"lr": lr})
        self.betas = betas
        self.momentum, self.hessian = torch.zeros_like(mean), torch.zeros_like(mean)
        self.count, self.rows = (torch.zeros((), dtype=torch.float64) for _ in range(2))

    def begin(self, num_data: float, hess_init: Tensor, schedule: Callable[[float], float], num_steps: int) -> None:
        """Initialize for n observations at the variances 1 / (1 + hess_init), with a rate that follows `schedule`."""
        self.schedule, self.num_steps = schedule, num_steps
        self.rows.fill_(num_data)
        self.hessian.copy_(hess_init / num_data)

    @property
    def memory(self) -> list[Tensor]:
        """The state besides the mean."""
        return [self.momentum, self.hessian, self.count, self.rows]

    @property
    def variance(self) -> Tensor:
        """The variance of each weight, (p,)."""
        return 1 / (float(self.rows) * self.hessian + 1)

    def draw(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Reparameterized draws, (s, p)."""
        noise = generators.normal((num_draws, len(self.mean)), like=self.hessian, generator=generator)
        return self.mean + noise * self.variance.sqrt() * (1 + self.spread)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step by the gradients of the loss per observation in `mean` and `spread`."""
        assert closure is None and self.mean.grad is not None and self.spread.grad is not None
        elapsed = min(1.0, float(self.count) / self.num_steps)
        self.count += 1
        update_(
            [self.mean],
            [self.momentum],
            [self.hessian],
            [self.mean.grad],
            [self.spread.grad],
            n=float(self.rows),
            decay=1 / float(self.rows),
            step_size=self.param_groups[0]["lr"] * self.schedule(elapsed),
            betas=self.betas,
            bias=1 - self.betas[0] ** float(self.count),
        )
