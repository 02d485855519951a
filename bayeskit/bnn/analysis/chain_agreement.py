"""Convergence of the chains of a network, measured for its functions."""

from typing import Any

from torch import Tensor

from bayeskit.bnn.pushforward.bayes_net import BayesNet
from bayeskit.core import checks
from bayeskit.core.posterior import SampledValues
from bayeskit.mcmc import ess, mcse, rhat, tail_ess


def mixing(posterior: BayesNet, x: Any, *, num_chains: int) -> dict[str, Tensor]:
    """R-hat, effective sample sizes and the Monte Carlo standard error of the function at each input.

    Hidden units can be permuted without changing the function, so chains of different weights may agree about the
    function, and only that matters for a prediction.

    Args:
        posterior: The posterior of `bnn.MCMC`: draws chain after chain.
        x: Inputs (n, d), in the posterior's units.
        num_chains: Number c of chains.

    Returns:
        "R-hat", "bulk ESS", "tail ESS" and "MCSE" (of the mean, in units of the function), (n, k) each.

    Raises:
        ValueError: The posterior does not consist of that many chains of at least four draws.

    References:
        Izmailov, Vikram, Hoffman and Wilson (2021), What are Bayesian neural network posteriors really like?,
        section 4.

    Examples:
        >>> import torch
        >>> from bayeskit import bnn, mcmc
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.core.types import Data
        >>> x, prior = torch.linspace(-1, 1, 30)[:, None], bnn.gaussian_prior(torch.nn.Linear(1, 1))
        >>> method = bnn.MCMC(mcmc.SGLD(), num_chains=2, num_samples=10, burn_in=20, thin=1)
        >>> fit = method.infer(prior, Gaussian(), Data(x, 2 * x), generator=torch.Generator().manual_seed(0))
        >>> mixing(fit.posterior, x[:5], num_chains=2)["R-hat"].shape
        torch.Size([5, 1])
    """
    checks.positive(num_chains, name="num_chains", integer=True)
    values = posterior(x)
    if not isinstance(values, SampledValues):
        raise ValueError(
            "`posterior` must hold draws of a Markov chain, such as those of `bnn.MCMC`; it holds a Gaussian."
        )
    draws = values.draws.detach()
    if len(draws) % num_chains or len(draws) < 4 * num_chains:
        raise ValueError(f"`num_chains`: {len(draws)} draws are not {num_chains} chains of at least 4 draws each.")
    by_chain = draws.unflatten(0, (num_chains, -1))
    measures = {"R-hat": rhat, "bulk ESS": ess, "tail ESS": tail_ess, "MCSE": mcse}
    return {name: measure(by_chain) for name, measure in measures.items()}
