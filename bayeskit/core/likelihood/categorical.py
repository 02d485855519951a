"""Any number of classes."""

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.likelihood import expectations
from bayeskit.core.likelihood.base import SMALLEST_PRECISION, Likelihood


class Categorical(Likelihood):
    """c classes on c latents, P(y = j | f) = softmax(f)_j; codes 0 .. c - 1.

    Args:
        num_classes: c.

    Example:
        >>> Categorical(4).distribution(torch.zeros(1, 4)).probs
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    target = "classes"

    def __init__(self, num_classes: int):
        super().__init__()
        checks.positive(num_classes, name="num_classes", integer=True)
        self.num_classes = num_classes

    def num_latents(self, y: Tensor) -> int:
        """One per class."""
        return self.num_classes

    def distribution(self, f: Tensor) -> td.Distribution:
        """Categorical law of each label, batch (*b, n)."""
        return td.Categorical(logits=f, validate_args=False)

    def site_gradients(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_j = 1[y = j] - E p_j and beta_j = E p_j (1 - p_j) by fixed Sobol draws, each (n, c)."""
        z, weights = expectations.points(mean, shared=False)
        probs = (mean + variance.sqrt() * z).softmax(-1)  # (q, n, c)
        alpha = torch.nn.functional.one_hot(y.long(), self.num_classes) - torch.einsum("q,q...->...", weights, probs)
        beta = torch.einsum("q,q...->...", weights, probs * (1 - probs))
        return alpha, beta.clamp(min=SMALLEST_PRECISION)

    def curvature(self, f: Tensor, y: Tensor) -> Tensor:
        """diag(p) - p p', (n, c, c)."""
        p = f.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)

    def extra_repr(self) -> str:
        """The number of classes, for printing."""
        return str(self.num_classes)
