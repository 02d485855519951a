"""Expected log likelihoods of labels under Gaussian logits, bounded from below in closed form.

For logits `f ~ N(m, diag v)`, `E log p(y | f) = m_y - E log sum_k exp f_k`, and the last term is bounded from above by

    Jensen           log sum_k exp(m_k + v_k / 2)
    Knowles-Minka    sum_k a_k^2 v_k / 2 + log sum_k exp(m_k + (1 - 2 a_k) v_k / 2)    for any a

Jensen is the case a = 0, and holds for dependent logits too. Knowles-Minka needs logits that are independent across
classes: two logits f and -f with variance 4 have E log sum exp = 1.750, and the formula gives 1.693.

References:
    Knowles, Minka. Non-conjugate variational message passing for multinomial and binary regression. NeurIPS 2011,
    section 5.
"""

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.likelihood import Likelihood

BOUNDS = ("jensen", "knowles_minka", "expectation")

STEPS = 3
"""Newton steps for the best a of each data point: within 1e-10 nats for variances up to 5, nearly so beyond."""

LARGE = 6.0
"""A variance beyond which Newton's method may not converge."""


def jensen(mean: Tensor, variance: Tensor) -> Tensor:
    """Jensen's upper bound on `E log sum_k exp f_k`.

    Args:
        mean: (n, k).
        variance: (n, k), or covariances (n, k, k), of which only the diagonal matters.

    Returns:
        (n,).

    >>> jensen(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([0.6931])
    """
    if variance.ndim > mean.ndim:
        variance = variance.diagonal(dim1=-2, dim2=-1)
    return (mean + variance / 2).logsumexp(-1)


def knowles_minka(mean: Tensor, variance: Tensor) -> Tensor:
    """The bound of Knowles and Minka on `E log sum_k exp f_k` at the best a of each data point: at most `jensen`.

    Args:
        mean: (n, k).
        variance: (n, k), or covariances (n, k, k) that are diagonal.

    Returns:
        (n,).

    Raises:
        ValueError: The logits are correlated across classes.

    >>> bool(knowles_minka(torch.zeros(1, 2), torch.ones(1, 2)) < jensen(torch.zeros(1, 2), torch.ones(1, 2)))
    True
    """
    if variance.ndim > mean.ndim:
        diagonal = variance.diagonal(dim1=-2, dim2=-1)
        if not torch.equal(torch.diag_embed(diagonal), variance):
            raise ValueError(
                "`knowles_minka` bounds the expectation only where the logits are independent across classes; "
                "`variance` has covariances between them. Use `jensen`, which holds for any."
            )
        variance = diagonal
    m, v = _classes_first(mean, variance)
    return _at(m, v, _best_tilt(m, v))


def best_tilt(mean: Tensor, variance: Tensor) -> Tensor:
    """The a of each data point that nearly minimizes the bound of Knowles and Minka, (n, k); 0 where 0 is as good.

    The bound is convex in a, with gradient `v (a - p)` for `p = softmax(m + (1 - 2a) v / 2)`, which Newton's method
    sets to zero. At large variances its steps are too long, and those of the diagonal alone are taken.
    """
    return _best_tilt(*_classes_first(mean, variance)).mT


@torch.no_grad()
def _best_tilt(m: Tensor, v: Tensor) -> Tensor:
    """`best_tilt` with the classes first, (k, n)."""
    top, tilt, long = m + v / 2, m.softmax(0), v.amax(0) > LARGE
    for _ in range(STEPS):
        probs = torch.addcmul(top, tilt, v, value=-1).softmax(0)
        gap = tilt - probs
        diagonal = 1 + probs * v  # the Jacobian of the gap is diag(1 + p v) - p (p v)', whose p sum to 1
        step, share = gap / diagonal, probs / diagonal
        coupled = ((gap.sum(0) - step.sum(0)) / share.sum(0)).masked_fill(long, 0)
        tilt = (tilt - torch.addcmul(step, share, coupled)).clamp(0, 1)
    return tilt.masked_fill(~(_at(m, v, tilt) < top.logsumexp(0)), 0)


class Expectation:
    """`E log p(y | f)` for independent Gaussian latents, and its derivatives: exact, by quadrature, or a bound.

    Args:
        likelihood: Of y given f; not copied.
        bound: "jensen" or "knowles_minka" for labels, or "expectation" for the likelihood's own quadrature.

    Raises:
        ValueError: The bound is for logits, and the likelihood has none.

    >>> from bayeskit.core.likelihood import Categorical
    >>> Expectation(Categorical(3), "jensen").value(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 2]))
    tensor([-1.0986, -1.0986])
    """

    def __init__(self, likelihood: Likelihood, bound: str = "expectation"):
        checks.choice(bound, name="bound", options=BOUNDS)
        if bound != "expectation" and not likelihood.has_logits:
            raise ValueError(
                f"`bound={bound!r}` is for labels whose logits are independent across classes; "
                f"{type(likelihood).__name__} has none. Leave `bound` out."
            )
        self.likelihood, self.bound = likelihood, bound

    def value(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """The expectation or its lower bound, (n,), for latents (n, k)."""
        if self.bound == "expectation":
            return self.likelihood.expected_log_prob(mean, variance, y)
        mean, variance = _all_logits(mean, variance)
        chosen = mean.gather(-1, y.long().reshape(-1, 1)).squeeze(-1)
        return chosen - (jensen if self.bound == "jensen" else knowles_minka)(mean, variance)

    def sites(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha = dE / d mean` and `beta = -2 dE / d variance`, each (n, k), beta not negative."""
        if self.bound == "expectation":
            return self.likelihood.site_gradients(mean, variance, y)
        logits, spread = _all_logits(mean, variance)
        tilt = torch.zeros_like(logits) if self.bound == "jensen" else best_tilt(logits, spread)
        probs = (logits + (1 - 2 * tilt) * spread / 2).softmax(-1)
        labels = torch.nn.functional.one_hot(y.long(), logits.shape[-1])
        beta = (tilt - probs).square() + probs * (1 - probs)
        k = mean.shape[-1]
        return (labels - probs)[:, -k:], beta[:, -k:]


def _classes_first(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (k, n): torch's softmax over a short last axis takes ten times as long."""
    return mean.mT.contiguous(), variance.mT.contiguous()


def _at(m: Tensor, v: Tensor, tilt: Tensor) -> Tensor:
    """The bound of Knowles and Minka for (k, n), (n,)."""
    return (tilt.square() * v).sum(0) / 2 + torch.addcmul(m, 0.5 - tilt, v).logsumexp(0)


def _all_logits(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Of two classes on one latent, the logits 0 and f."""
    if mean.shape[-1] > 1:
        return mean, variance
    return torch.nn.functional.pad(mean, (1, 0)), torch.nn.functional.pad(variance, (1, 0))
