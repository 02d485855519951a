"""MCMC over the weights of a network, with any transition kernel of `bayeskit.mcmc`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeskit.bnn.networks.batch_norm import estimate_statistics
from bayeskit.bnn.networks.functional import evaluate, frozen
from bayeskit.bnn.networks.layers import batch_norms, check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, MonteCarlo
from bayeskit.bnn.training.log_posterior import LogPosterior, MiniBatches, Model
from bayeskit.bnn.training.map_training import prepare
from bayeskit.bnn.weights.weight_posterior import SampledWeights
from bayeskit.core import checks, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.mcmc import NUTS, Chain, Position, Structured, TransitionKernel, agreement, run

FULL_BATCH = 2_000
"""Observations up to which a stochastic-gradient kernel uses all at each step, as their gradient is inexpensive."""

BATCH_SIZE = 500
"""Observations in a mini-batch beyond that, if `batch_size` is None: a quarter of the largest full batch."""

PROBES = 100
"""Training inputs at which R-hat of the function is computed."""


@dataclass(frozen=True)
class Budget:
    """The length of a run.

    Args:
        num_chains: Chains c.
        num_samples: Draws stored of each.
        burn_in: Steps before the first draw.
        thin: Steps per draw.
    """

    num_chains: int
    num_samples: int
    burn_in: int
    thin: int


EXACT = Budget(num_chains=2, num_samples=60, burn_in=60, thin=1)
"""For kernels of the full density (NUTS): some 20 seconds for 3,000 weights and 350 observations on one thread."""

STOCHASTIC = Budget(num_chains=4, num_samples=100, burn_in=300, thin=12)
"""For stochastic-gradient kernels (SGLD): some 5 seconds for the same."""

PARTICLES = Budget(num_chains=20, num_samples=1, burn_in=500, thin=1)
"""For kernels whose chains interact (SVGD): the draws are the final particles."""


@dataclass(eq=False, repr=False)
class MCMC(Inference):
    """Posterior draws of the weights, and of the likelihood's own parameters, by a Markov chain.

    The log density is `sum_i w_i log p(y_i | f(x_i; w)) + log p(w)`, on the scale of the full data. A likelihood's
    learnable parameters (all of them logs, such as a log noise variance) are sampled too, with independent normal
    priors of standard deviation 2 about the given values; the fitted likelihood holds their posterior means.

    Every chain starts at its own draw from the prior, moved towards a mode by L-BFGS, so that a short burn-in
    suffices, with a diagonal preconditioner from the curvature there. Convergence is measured for *functions*
    (`diagnostics["R-hat"]`, the largest over training inputs): weights need not agree between chains, because hidden
    units can be permuted.

    Args:
        kernel: Any kernel of `bayeskit.mcmc`; None for `NUTS(max_tree_depth=6)`.
        num_chains: Chains; None for 2 with a kernel of the full density, 4 with a stochastic-gradient one, 20 with one
            of particles.
        num_samples: Draws of each; None for 60, or 100, or 1.
        burn_in: Steps before the first draw; None for 60, or 300, or 500.
        thin: Steps per draw; None for 1, or 12.
        batch_size: Observations in a step of a stochastic-gradient kernel; None for all up to 2,000, 500 beyond.
        start_steps: L-BFGS steps towards a mode before the chain starts.
        variables: Leaves of the chain used as draws of the weights: ("weights",), or with `EntropySGLD` also
            "weights.anchor", alone or in addition.
        checkpoint: File to write the run to and to resume it from, or None.

    References:
        Neal (1996), Bayesian learning for neural networks, chapter 3; Izmailov, Vikram, Hoffman and Wilson (2021), What
        are Bayesian neural network posteriors really like?, section 4, for R-hat in function space.

    Examples:
        >>> from bayeskit.bnn import gaussian_prior
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.mcmc import SGLD
        >>> x = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
        >>> method = MCMC(SGLD(), num_samples=10, burn_in=20, thin=1)
        >>> prior = gaussian_prior(nn.Linear(1, 1, dtype=torch.float64))
        >>> fit = method.infer(prior, Gaussian(), Data(x, 2 * x), generator=torch.Generator().manual_seed(0))
        >>> fit.posterior(x).draws.shape
        torch.Size([40, 30, 1])
    """

    kernel: TransitionKernel | None = None
    num_chains: int | None = None
    num_samples: int | None = None
    burn_in: int | None = None
    thin: int | None = None
    batch_size: int | None = None
    start_steps: int = 100
    variables: tuple[str, ...] = ("weights",)
    checkpoint: str | PathLike[str] | None = None

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "draws"
    quick: ClassVar[Mapping[str, Any]] = {"num_chains": 1, "num_samples": 5, "burn_in": 5, "start_steps": 10}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Run the chains; the posterior is the uniform distribution over their draws."""
        self.check(prior, likelihood, data)
        checks.positive(self.start_steps, name="start_steps", integer=True)
        kernel = NUTS(max_tree_depth=6) if self.kernel is None else self.kernel
        budget = self._budget(kernel)
        with operators.recording() as notes:
            weights, network, data = prepare(prior, data)
            network = _with_statistics(network, data)
            model = Model(network, weights, likelihood)
            position = model.start(data, budget.num_chains, self.start_steps, generator=generator)
            kernel, density = self._steps(kernel, model, position, data, generator=generator)
            chain = run(
                kernel,
                density,
                position,
                num_samples=budget.num_samples,
                burn_in=budget.burn_in,
                thin=budget.thin,
                generator=generator,
                checkpoint=self.checkpoint,
            )
            weights = self._draws(chain)
            diagnostics = {**_convergence(chain, model, weights, data), **notes}
            draws = model.params(weights.flatten(0, 2))
        posterior = BayesNet(network, SampledWeights(draws), MonteCarlo())
        history = {"log_density": chain.info["log_density"].mean(0).tolist()}
        return Fit(posterior, model.fitted(chain.samples), history=history, diagnostics=diagnostics)

    def _budget(self, kernel: TransitionKernel) -> Budget:
        default = PARTICLES if kernel.interacting else STOCHASTIC if kernel.mini_batches else EXACT
        given = {name: getattr(self, name) for name in ("num_chains", "num_samples", "burn_in", "thin")}
        budget = replace(default, **{name: value for name, value in given.items() if value is not None})
        checks.positive(budget.num_chains, name="num_chains", integer=True)
        return budget

    def _draws(self, chain: Chain) -> Tensor:
        """The draws of the weights, (variables, c, s, p)."""
        options = [leaf for leaf in chain.samples if leaf.startswith("weights")]
        if not self.variables:
            raise ValueError(f"`variables` must name at least one of {options}")
        for name in self.variables:
            checks.choice(name, name="variables", options=options)
        return torch.stack([chain.samples[name] for name in self.variables])

    def _steps(
        self, kernel: TransitionKernel, model: Model, position: Position, data: Data, *, generator: torch.Generator
    ) -> tuple[TransitionKernel, LogPosterior | MiniBatches]:
        """The kernel with its step size, and its target: the full log density, or mini-batch estimates."""
        if isinstance(kernel, Structured):  # groups of the network's parameters, which are one leaf here
            kernel = replace(kernel, groups=model.labels(kernel.groups))
        size = self.batch_size or (len(data) if len(data) <= FULL_BATCH else BATCH_SIZE)
        if not kernel.mini_batches or size >= len(data):
            density = first = LogPosterior(model, replace(data, x=data.x[:]))
        else:
            density = MiniBatches(model, data, size, generator)
            first = next(iter(density))
        share = min(1.0, size / len(data))
        return kernel.prepared(first, _stiffest(position), share=share, generator=generator), density


def _stiffest(position: Position) -> Position:
    """Positions that the chains may reach from `position`, at which a step size must be stable too.

    Two preconditioner units to either side in the likelihood's own parameters: with few data the noise may become much
    smaller than at the start, and the curvature in the weights much larger.
    """
    if "likelihood" not in position:
        return position
    moves = (0.0, -2.0, 2.0)
    return {
        name: torch.cat([leaf + move * (name == "likelihood") for move in moves]) for name, leaf in position.items()
    }


def _with_statistics(network: nn.Module, data: Data) -> nn.Module:
    """The network in evaluation mode: without dropout, and with fixed BatchNorm statistics.

    A BatchNorm layer without statistics gets those of one pass over the data (at most `FULL_BATCH`).
    """
    check_frozen(network)
    fresh = [layer for layer in batch_norms(network).values() if getattr(layer, "num_batches_tracked", None) == 0]
    if fresh:
        estimate_statistics(network, fresh, [data.x[:FULL_BATCH]])  # trained layers keep theirs
    return frozen(network)


def _convergence(chain: Chain, model: Model, weights: Tensor, data: Data) -> dict[str, Any]:
    """Acceptance, divergences, and R-hat and ESS of the function at some training inputs.

    Args:
        chain: The result of the run.
        model: The model sampled.
        weights: (variables, c, s, p); R-hat is the largest and ESS the smallest over variables.
        data: The training data.
    """
    found: dict[str, Any] = {}
    if "acceptance" in chain.info:
        found["acceptance"] = chain.info["acceptance"].mean().item()
    if "divergent" in chain.info:
        found["divergences"] = int((chain.info["divergent"] > 0).sum())
    if "clipped" in chain.info and chain.info["clipped"].any():
        found["clipped gradients"] = chain.info["clipped"].mean().item()
    if "step_size" in chain.info:
        found["step size"] = chain.info["step_size"].mean().item()
    variables, chains, number, _ = weights.shape
    if number >= 4 and not chain.kernel.interacting:
        rows = data.x[torch.linspace(0, len(data) - 1, min(PROBES, len(data))).round().long()]
        values = evaluate(model.network, model.params(weights.flatten(0, 2)), rows).detach()
        values = values.reshape(variables, chains, number, -1).movedim(0, -1)
        numbers = agreement(values)
        found |= {"R-hat": numbers["R-hat"], "effective draws": numbers["ESS"]}
    return found
