"""Cyclical stochastic-gradient MCMC: any kernel with a schedule that goes from mode to mode. Here are two of them."""

from bayeskit.mcmc.base.schedules import cosine_cycles
from bayeskit.mcmc.sgmcmc.sghmc import SGHMC
from bayeskit.mcmc.sgmcmc.sgld import SGLD


def cyclical_sgld(
    length: int = 200, exploration: float = 0.5, *, lr: float | None = None, temperature: float = 1.0
) -> SGLD:
    """SGLD in cycles of `length` steps: large steps at temperature 0 to find a mode, small ones to sample it.

    Args:
        length: Steps in a cycle.
        exploration: Share of a cycle at temperature 0, from which no draws are taken. Whatever is sampled is that of a
            mode as far as the rest of the cycle has time to spread out from it.
        lr: Step size at the start of a cycle, for the log density of the full data; None for one over the largest
            curvature where the chains start, half of what is stable.
        temperature: That of the rest of a cycle.

    References:
        Zhang, Li, Zhang, Chen and Wilson (2020), Cyclical stochastic gradient MCMC for Bayesian deep learning.

    Examples:
        >>> cyclical_sgld(100).schedule
        cosine_cycles(length=100, exploration=0.5, floor=0.0)
    """
    return SGLD(lr, temperature, cosine_cycles(length, exploration), relative_lr=1.0)


def cyclical_sghmc(
    length: int = 200,
    exploration: float = 0.5,
    *,
    lr: float | None = None,
    momentum: float = 0.8,
    temperature: float = 1.0,
) -> SGHMC:
    """SGHMC in cycles of `length` steps; the arguments are those of `cyclical_sgld`, and SGHMC's momentum.

    The schedule scales time: where the step size is a fourth, a step loses half the momentum that it would. A cycle
    has little of it, so friction is more than that of `SGHMC`: with 0.9 the momenta, which are still when the search
    ends, would not be warm before the next one.

    Examples:
        >>> cyclical_sghmc().momentum
        0.8
    """
    return SGHMC(lr, momentum, temperature, cosine_cycles(length, exploration), relative_lr=1.0)
