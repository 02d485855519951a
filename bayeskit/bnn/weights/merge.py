"""One posterior from several that were learnt apart."""

from collections.abc import Sequence

import torch
from linear_operator.operators import DiagLinearOperator

from bayeskit.bnn.networks.functional import flatten, unflatten
from bayeskit.bnn.weights.weight_posterior import GaussianWeights


def merge(posteriors: Sequence[GaussianWeights], prior: GaussianWeights) -> GaussianWeights:
    """The posterior given the data of all, from the posteriors given the data of each under the same prior.

    Up to a constant `q = q_1 ... q_T / prior^(T - 1)`, which for diagonal Gaussians is, weight by weight,

        1/v = sum_t 1/v_t - (T - 1)/v_0,    m/v = sum_t m_t/v_t - (T - 1) m_0/v_0:

    an average weighted by how sure each is. Exact where the posteriors are. Networks that started from different
    weights stand in different modes and cannot be merged: train them from the same start.

    Args:
        posteriors: Diagonal Gaussians over the same weights, as of `IVON` or `IVONOptimizer.posterior()`.
        prior: The diagonal Gaussian that each started from.

    Returns:
        A diagonal Gaussian.

    Raises:
        TypeError: A covariance is not diagonal.
        ValueError: The laws are over different weights, or a precision is not positive: posteriors that know less than
            the prior cannot all have come from it.

    References:
        Daheim, Möllenhoff, Ponti, Gurevych, Khan. Model merging by uncertainty-based gradient matching. ICLR 2024,
        section 3.

    >>> def law(mean, variance):
    ...     return GaussianWeights({"w": torch.tensor([mean])}, DiagLinearOperator(torch.tensor([variance])))
    >>> both = merge([law(1.0, 0.5), law(3.0, 0.5)], prior=law(0.0, 1.0))
    >>> both.mean["w"], both.covariance.diagonal()  # two observations, 2 and 6, of noise 1
    (tensor([2.6667]), tensor([0.3333]))
    """
    laws = [*posteriors, prior]
    for law in laws:
        if not isinstance(law.covariance, DiagLinearOperator):
            raise TypeError(f"`merge` takes diagonal covariances; got {type(law.covariance).__name__}")
        if {name: value.shape for name, value in law.mean.items()} != {n: v.shape for n, v in prior.mean.items()}:
            raise ValueError("`merge` takes laws over the same weights; names or shapes differ.")
    shares = torch.ones(len(laws), dtype=torch.float64).unsqueeze(-1)
    shares[-1] = 1 - len(posteriors)
    precisions = torch.stack([1 / law.covariance.diagonal().double().cpu() for law in laws])  # (T + 1, p)
    means = torch.stack([flatten(law.mean, prior.mean).double().cpu() for law in laws])
    total = (shares * precisions).sum(0)
    if not (total > 0).all():
        raise ValueError(
            f"{int((total <= 0).sum())} weights would have no positive precision: some posteriors are wider than "
            "`prior` there. Pass the prior that they were learnt under, or train longer."
        )
    center = prior.flat_mean
    mean = ((shares * precisions * means).sum(0) / total).to(center)
    return GaussianWeights(unflatten(mean, prior.mean), DiagLinearOperator((1 / total).to(center)))
