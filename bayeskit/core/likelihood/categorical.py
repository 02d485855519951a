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

    Examples:
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

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """E f_y - E log sum_j exp f_j, the first term exact, the second by fixed Sobol draws; (*b, n)."""
        chosen = mean.gather(-1, y.long().expand(mean.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return chosen - self._draws(mean, variance).logsumexp(0).mean(0)

    def site_gradients(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_j = 1[y = j] - E p_j and beta_j = E p_j (1 - p_j) by fixed Sobol draws, each (n, c)."""
        probs = self._draws(mean, variance).softmax(0)  # (c, q, n)
        expected = probs.mean(1)
        alpha = torch.nn.functional.one_hot(y.long(), self.num_classes) - expected.movedim(0, -1)
        beta = (expected - probs.square_().mean(1)).movedim(0, -1)
        return alpha, beta.clamp(min=SMALLEST_PRECISION)

    def _draws(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Latents at the Sobol points, (c, q, *b, n): classes first, where a sum over them is several times faster."""
        z, _ = expectations.points(mean, shared=False)  # (q, 1, ..., 1, c)
        mean, scale = mean.movedim(-1, 0).unsqueeze(1), variance.sqrt().movedim(-1, 0).unsqueeze(1)
        return mean + scale * z.movedim(-1, 0)

    def curvature(self, f: Tensor, y: Tensor) -> Tensor:
        """diag(p) - p p', (n, c, c)."""
        p = f.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)

    def extra_repr(self) -> str:
        """The number of classes, for printing."""
        return str(self.num_classes)
