"""One posterior from several that were learnt separately."""

from collections.abc import Sequence

import torch
from linear_operator.operators import DiagLinearOperator

from bayeskit.bnn.networks.functional import flatten, unflatten
from bayeskit.bnn.weights.weight_posterior import GaussianWeights


def merge(posteriors: Sequence[GaussianWeights], prior: GaussianWeights) -> GaussianWeights:
    """The posterior given the data of all, from the posteriors given the data of each under the same prior.

    Up to a constant `q = q_1 ... q_T / prior^(T - 1)`, which for diagonal Gaussians is, weight by weight,

        1/v = sum_t 1/v_t - (T - 1)/v_0,    m/v = sum_t m_t/v_t - (T - 1) m_0/v_0:

    an average weighted by precision. Exact where the posteriors are. Networks that started from different weights are
    in different modes and cannot be merged: train them from the same start.

    Args:
        posteriors: Diagonal Gaussians over the same weights, as of `IVON` or `IVONOptimizer.posterior()`.
        prior: The diagonal Gaussian that each started from.

    Returns:
        A diagonal Gaussian.

    Raises:
        TypeError: A covariance is not diagonal.
        ValueError: The Gaussians are over different weights, or a precision is not positive: some posteriors have a
            larger variance than the prior.

    References:
        Daheim, Möllenhoff, Ponti, Gurevych, Khan. Model merging by uncertainty-based gradient matching. ICLR 2024,
        section 3.

    >>> def gaussian(mean, variance):
    ...     return GaussianWeights({"w": torch.tensor([mean])}, DiagLinearOperator(torch.tensor([variance])))
    >>> both = merge([gaussian(1.0, 0.5), gaussian(3.0, 0.5)], prior=gaussian(0.0, 1.0))
    >>> both.mean["w"], both.covariance.diagonal()  # two observations, 2 and 6, of noise 1
    (tensor([2.6667]), tensor([0.3333]))
    """
    gaussians = [*posteriors, prior]
    for q in gaussians:
        if not isinstance(q.covariance, DiagLinearOperator):
            raise TypeError(f"`merge` takes diagonal covariances; got {type(q.covariance).__name__}")
        if {name: value.shape for name, value in q.mean.items()} != {n: v.shape for n, v in prior.mean.items()}:
            raise ValueError("`merge` takes Gaussians over the same weights; names or shapes differ.")
    shares = torch.ones(len(gaussians), dtype=torch.float64).unsqueeze(-1)
    shares[-1] = 1 - len(posteriors)
    precisions = torch.stack([1 / q.covariance.diagonal().double().cpu() for q in gaussians])  # (T + 1, p)
    means = torch.stack([flatten(q.mean, prior.mean).double().cpu() for q in gaussians])
    total = (shares * precisions).sum(0)
    if not (total > 0).all():
        raise ValueError(
            f"{int((total <= 0).sum())} weights would have no positive precision: some posteriors have a larger "
            "variance than `prior` there. Pass the prior that they were learnt under, or train longer."
        )
    center = prior.flat_mean
    mean = ((shares * precisions * means).sum(0) / total).to(center)
    return GaussianWeights(unflatten(mean, prior.mean), DiagLinearOperator((1 / total).to(center)))
