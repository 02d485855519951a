"""Any number of classes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.likelihood import expectations
from bayeskit.core.likelihood.likelihood import SMALLEST_PRECISION, Likelihood
from bayeskit.core.operators.chunking import chunks
from bayeskit.core.predictive.quadrature import NUM_DRAWS


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

    @property
    def has_logits(self) -> bool:
        """Always."""
        return True

    def num_latents(self, y: Tensor) -> int:
        """One per class."""
        return self.num_classes

    def distribution(self, f: Tensor) -> td.Distribution:
        """Categorical distribution of each label, batch (*b, n)."""
        return td.Categorical(logits=f, validate_args=False)

    def expected_log_prob_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """E f_y - E log sum_j exp f_j, the first term exact, the second by fixed Sobol draws; (*b, n)."""
        chosen = mean.gather(-1, y.long().expand(mean.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        value: Any = _ExpectedLogSumExp.apply(mean, variance)
        return chosen - value

    def site_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_j = 1[y = j] - E p_j and beta_j = E p_j (1 - p_j) by fixed Sobol draws, each (n, c)."""
        expected, curved = torch.empty_like(mean), torch.empty_like(mean)
        for part in _parts(mean):
            probs, _, _ = _softmax(mean[part], variance[part])  # (c, q, n)
            expected[part] = probs.mean(1).mT
            curved[part] = expected[part] - probs.square_().mean(1).mT
        alpha = torch.nn.functional.one_hot(y.long(), self.num_classes) - expected
        return alpha, curved.clamp(min=SMALLEST_PRECISION)

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """diag(p) - p p', (n, c, c)."""
        p = f.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)

    def curvature_root(self, f: Tensor, y: Tensor) -> Tensor:
        """diag(s) - p s' with s the square roots of p, (n, c, c), as s' s = 1."""
        p = f.softmax(-1)
        root = p.sqrt()
        return torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)

    def extra_repr(self) -> str:
        """The number of classes, for printing."""
        return str(self.num_classes)


class _ExpectedLogSumExp(torch.autograd.Function):
    """E log sum_j exp f_j at fixed Sobol draws of f, with its derivatives by hand.

    With p = softmax(f) and f = mean + std z, the derivative in mean_j is E p_j, and that in variance_j is
    E[p_j z_j] / (2 std_j), or its limit p_j (1 - p_j) / 2 where there is no variance. Nothing of the size of the draws
    is kept.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        """From (*b, n, c) to (*b, n)."""
        shape, wanted = mean.shape, any(ctx.needs_input_grad)
        mean, variance = mean.reshape(-1, shape[-1]), variance.reshape(-1, shape[-1])
        value, by_mean, by_variance = torch.empty_like(mean[:, 0]), torch.empty_like(mean), torch.empty_like(mean)
        for part in _parts(mean):
            probs, logsumexp, z = _softmax(mean[part], variance[part])
            value[part] = logsumexp.mean(0)
            if wanted:
                by_mean[part] = probs.mean(1).mT
                by_variance[part] = torch.bmm(z.unsqueeze(1) / z.shape[1], probs).squeeze(1).mT
        if wanted:
            small = variance <= torch.finfo(variance.dtype).eps
            by_variance /= torch.where(small, 1, variance).sqrt()
            by_variance = torch.where(small, by_mean * (1 - by_mean), by_variance) / 2
            ctx.save_for_backward(by_mean.reshape(shape), by_variance.reshape(shape))
        return value.reshape(shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in mean and variance, (*b, n, c)."""
        by_mean, by_variance = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * by_mean, grads[0].unsqueeze(-1) * by_variance


def _parts(mean: Tensor) -> Iterator[slice]:
    """Slices of the n rows of (n, c) for which all draws of f stay in the cache."""
    return chunks(len(mean), NUM_DRAWS * mean.shape[-1], cached=True)


def _softmax(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(f) (c, q, n) at Sobol points z (c, q), and log sum_j exp f_j, (q, n), from (n, c).

    Classes come first, where a sum over them is several times faster, and the large array is changed in place.
    """
    points, _ = expectations.points(mean, shared=False)  # (q, 1, c)
    z = points.movedim(-1, 0).contiguous()  # (c, q, 1)
    f = torch.addcmul(mean.mT.unsqueeze(1), variance.sqrt().mT.unsqueeze(1), z)
    top = f.amax(0)
    f.sub_(top).exp_()
    total = f.sum(0)
    return f.div_(total), top + total.log(), z.squeeze(-1)
