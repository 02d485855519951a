"""Cyclical stochastic-gradient MCMC: SGLD and SGHMC with a cyclical schedule that visits several modes."""

from bayeskit.mcmc.base.schedules import cosine_cycles
from bayeskit.mcmc.sgmcmc.sghmc import SGHMC
from bayeskit.mcmc.sgmcmc.sgld import SGLD


def cyclical_sgld(
    length: int = 200, exploration: float = 0.5, *, lr: float | None = None, temperature: float = 1.0
) -> SGLD:
    """SGLD in cycles of `length` steps: large steps at temperature 0 to find a mode, small ones to sample it.

    Args:
        length: Steps in a cycle.
        exploration: Fraction of a cycle at temperature 0, from which no draws are taken. The rest samples around the
            mode that was found, as far as its length allows.
        lr: Step size at the start of a cycle, for the log density of the full data; None for one over the largest
            curvature where the chains start, half of what is stable.
        temperature: Temperature of the rest of a cycle.

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

    The schedule scales time: at a fourth of the step size, a step loses half as much momentum. The default friction is
    larger than that of `SGHMC`: with 0.9, momenta, which are zero when the search ends, would not reach equilibrium
    within a cycle.

    Examples:
        >>> cyclical_sghmc().momentum
        0.8
    """
    return SGHMC(lr, momentum, temperature, cosine_cycles(length, exploration), relative_lr=1.0)
