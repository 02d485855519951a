"""Conversion of draws to ArviZ."""

from typing import Any

from bayeskit.mcmc.sampling.run import Chain

STATISTICS = {"log_density": "lp", "acceptance": "acceptance_rate", "divergent": "diverging", "step_size": "step_size"}
"""Name of a diagnostic here -> its name in ArviZ."""


def inference_data(chain: Chain) -> Any:
    """The draws as an `arviz.InferenceData`, with the diagnostics of the kernel under ArviZ's names.

    Args:
        chain: The result of `mcmc.run`.

    Returns:
        Groups `posterior` (chains, draws, *shape) and `sample_stats`.

    Raises:
        ImportError: ArviZ is not installed; it comes with `bayeskit[arviz]`.

    Examples:
        >>> import torch
        >>> from bayeskit import mcmc
        >>> g, start = torch.Generator().manual_seed(0), {"x": torch.zeros(4, 2)}
        >>> density = lambda q: -q["x"].square().sum(-1)
        >>> chain = mcmc.run(mcmc.SGLD(lr=0.1), density, start, num_samples=6, burn_in=2, generator=g)
        >>> inference_data(chain).posterior["x"].shape  # doctest: +SKIP
        (4, 6, 2)
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError("`mcmc.inference_data` needs ArviZ: install `bayeskit[arviz]`.") from error
    posterior = {name: leaf.detach().cpu().numpy() for name, leaf in chain.samples.items()}
    statistics = {STATISTICS.get(name, name): value.cpu().numpy() for name, value in chain.info.items()}
    if "diverging" in statistics:
        statistics["diverging"] = statistics["diverging"] > 0
    return arviz.from_dict(posterior=posterior, sample_stats=statistics)
