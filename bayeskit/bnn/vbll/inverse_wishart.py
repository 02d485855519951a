"""A prior of noise variances."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InverseWishart:
    """`diag(s) ~ IW(dof, scale I)`: log density `-(dof + k + 1) / 2 sum log s - scale / 2 sum 1 / s`, up to a constant.

    Its mode is `s = scale / (dof + k + 1)`, which falls with the number k of outputs.

    Args:
        dof: Degrees of freedom.
        scale: Of the matrix.

    References:
        Harrison, Willes, Snoek. Variational Bayesian last layers. ICLR 2024.

    >>> float(InverseWishart(dof=1.0, scale=2.0).log_density(torch.ones(1)))
    -1.0
    """

    dof: float = 1.0
    scale: float = 1e-2

    def log_density(self, variances: Tensor) -> Tensor:
        """The log density of variances (k,), up to a constant, ()."""
        half = (self.dof + len(variances) + 1) / 2
        return -half * torch.log(variances).sum() - self.scale / 2 * (1 / variances).sum()
