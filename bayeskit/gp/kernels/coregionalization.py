"""Correlated outputs as one function h of an input and an output index: f_j(x) = h([x, j]).

With f = W g the mean and the kernel of h follow from those of the q latent functions:

    E h([x, j]) = sum_p W_jp m_p(x),        cov(h([x, i]), h([x', j])) = sum_p W_ip W_jp k_p(x, x').

There need not be a row [x, j] for every output, so outputs may be observed at different inputs.
"""

from collections.abc import Iterable
from typing import cast

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from gpytorch.priors import NormalPrior
from torch import Tensor, nn

from bayeskit.gp.kernels.evaluate import gram, gram_pairs, mean_rows
from bayeskit.gp.kernels.mixed_likelihood import MIXING_SPREAD


class OutputKernel(Kernel):
    """The covariance `sum_p W_ip W_jp k_p(x, x')` of outputs i at x and j at x', for inputs [x, i] and [x', j].

    Args:
        base: The kernel of the q latent functions, of batch shape () or (q,).
        mixing: W, (k, q), learned if it requires a gradient, under a normal prior around zero.

    References:
        Bonilla, Chai and Williams (2007), "Multi-task Gaussian Process Prediction", equation 1, for one kernel.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel = OutputKernel(RBFKernel(), torch.tensor([[1.0], [2.0]])).requires_grad_(False)
        >>> gram(kernel, torch.tensor([[0.3, 0.0], [0.3, 1.0]]), torch.tensor([[0.3, 1.0]])).tolist()
        [[2.0], [4.0]]
    """

    def __init__(self, base: Kernel, mixing: Tensor):
        super().__init__()
        self.base = base
        self.mixing = mixing if isinstance(mixing, nn.Parameter) else nn.Parameter(mixing, requires_grad=False)
        zero = torch.zeros((), dtype=torch.float64, device=mixing.device)
        self.register_prior("mixing_prior", NormalPrior(zero, zero + MIXING_SPREAD), _mixing_of)

    @property
    def batch_shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(): the kernels of the latent functions are summed."""
        return torch.Size()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (n1, n2), or of pairs (n,) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("an OutputKernel does not support `last_dim_is_batch=True`")
        same = x1 is x2
        first, w1 = split_output_index(x1, self.mixing)
        second, w2 = (first, w1) if same else split_output_index(x2, self.mixing)
        if diag:
            values = gram_pairs(self.base, first, second)  # (n,) or (q, n)
            return (w1 * w2).sum(-1) * values if values.dim() == 1 else ((w1 * w2).mT * values).sum(-2)
        values = gram(self.base, first, second)  # (n1, n2) or (q, n1, n2)
        return w1 @ w2.mT * values if values.dim() == 2 else torch.einsum("ip,pij,jp->ij", w1, values, w2)


class OutputMean(Mean):
    """The mean `sum_p W_jp m_p(x)` of output j at x, for inputs [x, j].

    Args:
        base: The mean of the q latent functions, of batch shape () or (q,).
        mixing: W, (k, q); the same parameter as that of the kernel, if it is learned.

    Examples:
        >>> from gpytorch.means import ConstantMean
        >>> mean = OutputMean(ConstantMean(), torch.tensor([[1.0], [2.0]]))
        >>> mean(torch.tensor([[0.3, 1.0]])).tolist()
        [0.0]
    """

    def __init__(self, base: Mean, mixing: Tensor):
        super().__init__()
        self.base = base
        self.mixing = mixing if isinstance(mixing, nn.Parameter) else nn.Parameter(mixing, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Means (n,) at inputs (n, d + 1)."""
        inputs, weights = split_output_index(x, self.mixing)
        return (weights.mT * mean_rows(self.base, inputs, self.mixing.shape[-1])).sum(-2)


class MeanRows(Mean):
    """The means of q separate functions as one mean of batch shape (q,).

    Args:
        parts: A mean of one function each.

    Examples:
        >>> from gpytorch.means import ConstantMean, ZeroMean
        >>> MeanRows([ZeroMean(), ConstantMean()])(torch.zeros(3, 1)).shape
        torch.Size([2, 3])
    """

    def __init__(self, parts: Iterable[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Means (q, n) at inputs (n, d), in float64."""
        return torch.cat([mean_rows(cast(Mean, part), x, 1) for part in self.parts])


def split_output_index(x: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and the rows of W of their outputs (n, q), in float64, from inputs [x, j] of shape (n, d + 1)."""
    return x[..., :-1].double(), mixing.double()[x[..., -1].round().long()]


def _mixing_of(kernel: OutputKernel) -> Tensor:
    """W; a module-level function, because a kernel is pickled together with the closures of its priors."""
    return kernel.mixing
