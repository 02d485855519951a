"""The Laplace approximation: a Gaussian at the most probable weights."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeskit.bnn.curvature.ntk_curvature import KERNEL_LIMIT
from bayeskit.bnn.curvature.prior_precision import FULL_LIMIT, bounded, check_setting, prior_precision, with_factor
from bayeskit.bnn.laplace_approximation.evidence_refit import refit
from bayeskit.bnn.laplace_approximation.log_joint import STRUCTURES, Problem
from bayeskit.bnn.laplace_approximation.refit_state import Refit
from bayeskit.bnn.laplace_approximation.subnetwork import by_parameter, most_uncertain, restricted
from bayeskit.bnn.networks.functional import flatten, parameters, size, unflatten, with_parameters
from bayeskit.bnn.networks.last_layer import last_layer
from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, Linearize
from bayeskit.bnn.training.map_training import DEFAULT_TRAINING, QUICK_TRAINING, Trained, prepare, train
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.core.validation_plan import planned


@dataclass(eq=False, repr=False)
class Laplace(Inference):
    """`N(w*, (H + P)^-1)` at the most probable weights w*: H the log-likelihood's curvature, P the prior precision.

    The network is trained (as `MAP` does), then the weights of `subset` get a Gaussian posterior, pushed forward
    through the network linearized about w*. H is the generalized Gauss-Newton matrix of any likelihood. The prior
    precision and a Gaussian noise variance are chosen by the evidence, and w* is refitted to them by Gauss-Newton
    steps on all data, validation data included: for the last layer this is Bayesian regression on learnt features,
    and for a linear network it is exact.

    Args:
        subset: "last_layer", "all", names of parameters (those of a layer together for structure "kronecker"), or
            how many single weights: those of largest marginal variance, the others fixed.
        structure: "auto": "full" up to 5,000 weights, else "kronecker" ("diagonal" for factors wider than that).
            "full"; "kernel", the same posterior by kernels between the data (for more weights than targets);
            "kronecker" (a product of two factors a layer); or "diagonal".
        prior_precision: A factor on the prior's precision, "evidence" to learn it (one a layer; a single one for
            structures "full" and "kernel"), or, for the structures that neglect terms, "bound": the lower bound of
            the evidence with all terms, from blocks of data. A mapping has one of these for each part of the network
            that it names: parameters, layers, or "" for the rest. While the network trains, validation data choose a
            factor as in `MAP`, and single weights keep that one. A prior that is the posterior of earlier data has
            no factor.
        training: Settings of the training loop; None for Adam with early stopping.
        pretrained: Skips the training and keeps the weights; only a linear last layer is refitted. Beyond that
            layer, structures "diagonal" and "kronecker" then set a Gaussian noise to the mean squared residual.

    References:
        MacKay. A practical Bayesian framework for backpropagation networks. Neural Computation 1992.
        Daxberger et al. Laplace redux: effortless Bayesian deep learning. NeurIPS 2021.
        Ritter, Botev, Barber. Online structured Laplace approximations for overcoming catastrophic forgetting. NeurIPS
        2018.
        Daxberger et al. Bayesian deep learning via subnetwork inference. ICML 2021.
        Immer et al. Stochastic marginal likelihood gradients using neural tangent kernels. ICML 2023.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> fit = Laplace().infer(gaussian_prior(nn.Linear(1, 1)), Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.log_evidence.kind, fit.posterior(x).covariance.shape
    ('Laplace', torch.Size([40, 40]))
    """

    subset: str | Sequence[str] | int = "last_layer"
    structure: str = "auto"
    prior_precision: float | str | Mapping[str, float | str] = "evidence"
    training: Training | None = None
    pretrained: bool = False

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {"training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train, refit the subset under the evidence, and invert its curvature."""
        self.check(prior, likelihood, data)
        self._validate()
        weights, network, data = prepare(prior, data)
        if self.training is not None:
            data = planned(data, self.training.validation_split)
        check_frozen(network)
        names = self._names(network, weights, data)
        structure = self._affordable(weights, names) if self.structure == "auto" else self.structure
        check_setting(self.prior_precision, structure)
        self._check_size(structure, weights, names, len(data) * likelihood.num_latents(data.y))
        precision = prior_precision(weights, names, structure, self.prior_precision)
        with operators.recording() as notes:
            trained = self._trained(prior, likelihood, data, generator=generator)
            settings = {"structure": structure, "precision": precision, "movable": not self.pretrained}
            problem = Problem.build(trained, weights, names, data, **settings)
            index, setting = None, self.prior_precision
            if isinstance(self.subset, int):  # the evidence of the least determined weights alone would be misleading
                index = most_uncertain(problem, self.subset, trained.precision)
                setting = with_factor(setting, trained.precision)
                problem = restricted(problem, index)
            result = refit(problem, setting)
            posterior = _posterior(result, trained.network, index)
        diagnostics = {
            "prior precision": result.state.log_precision.exp().tolist(),
            "parts of the prior": list(problem.prior.names),
            "rounds": result.steps,
            "held-out data": trained.num_held_out,
            **({} if index is None else {"weights chosen": by_parameter(index, problem.like)}),
            **notes,
        }
        kind = "Laplace bound" if bounded(self.prior_precision) else "Laplace"
        evidence = Evidence(result.log_evidence(), kind)
        return Fit(posterior, result.state.likelihood, evidence, trained.history, diagnostics)

    def _trained(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Trained:
        """The network at its most probable weights, or as given."""
        if not self.pretrained:
            training = DEFAULT_TRAINING if self.training is None else self.training
            factor = self.prior_precision if isinstance(self.prior_precision, int | float) else "validation"
            return train(prior, likelihood, data, training, precision=factor, generator=generator)
        weights, network, _ = prepare(prior, data)
        start = parameters(network, weights.mean)
        return Trained(with_parameters(network, start), start, copy.deepcopy(likelihood), None, {}, 1.0, data)

    def _validate(self) -> None:
        checks.choice(self.structure, name="structure", options=("auto", *STRUCTURES))
        if isinstance(self.subset, int):
            checks.positive(self.subset, name="subset", integer=True)
            if self.structure not in ("auto", "full"):
                raise ValueError(
                    f"`subset={self.subset}` chooses single weights, for structure='full'; got {self.structure!r}"
                )

    def _names(self, network: nn.Module, weights: GaussianWeights, data: Data) -> list[str]:
        """The parameters that get a posterior, in the network's order."""
        if isinstance(self.subset, int):
            chosen = list(weights.mean)
            if self.subset > size(weights.mean):
                raise ValueError(f"`subset` must be at most the {size(weights.mean)} weights; got {self.subset}")
        elif isinstance(self.subset, str):
            checks.choice(self.subset, name="subset", options=("all", "last_layer"))
            own = weights.mean if self.subset == "all" else last_layer(network, data.x)
            chosen = [name for name in own if name in weights.mean]  # a last layer may be frozen in part
        else:
            chosen = list(self.subset)
        unknown = [name for name in chosen if name not in weights.mean]
        if unknown or not chosen:
            raise ValueError(
                f"`subset` must name parameters that the prior names, {list(weights.mean)}; got {unknown or chosen}"
            )
        return [name for name in weights.mean if name in chosen]

    def _affordable(self, weights: GaussianWeights, names: list[str]) -> str:
        """The structure of most terms whose matrices can be formed."""
        named = {name: weights.mean[name] for name in names}
        if isinstance(self.subset, int) or size(named) <= FULL_LIMIT:
            return "full"
        widest = max(max(len(value), value[0].numel() + 1) for value in named.values())
        return "kronecker" if widest <= FULL_LIMIT else "diagonal"

    def _check_size(self, structure: str, weights: GaussianWeights, names: list[str], numbers: int) -> None:
        """Refuse too large a matrix, over the named weights or over so many numbers in the targets."""
        count = self.subset if isinstance(self.subset, int) else size({name: weights.mean[name] for name in names})
        if structure == "full" and count > FULL_LIMIT:
            raise ValueError(
                f"structure='full' would form a {count} x {count} matrix ({8 * count**2 / 1e9:.1f} GB in float64); the "
                f"limit is {FULL_LIMIT} weights. Use structure='kronecker' or 'diagonal', or a smaller `subset`; with "
                "few data, structure='kernel'."
            )
        if structure == "kernel" and numbers > KERNEL_LIMIT:
            raise ValueError(
                f"structure='kernel' would form a {numbers} x {numbers} matrix over data points and outputs "
                f"({8 * numbers**2 / 1e9:.1f} GB in float64); the limit is {KERNEL_LIMIT}. Use structure='kronecker' "
                "or 'diagonal', whose memory does not grow with the data."
            )


def _posterior(result: Refit, network: nn.Module, index: Tensor | None) -> BayesNet:
    """The Gaussian over the subset, in the network's own dtype."""
    flat, covariance, like = result.state.weights, result.covariance(), result.state.problem.like
    if index is not None:
        flat = flatten(like, like).double().index_copy(0, index, flat)
        covariance = operators.Masked(covariance, index, size=len(flat))
    mean = unflatten(flat, like)
    return BayesNet(with_parameters(network, mean), GaussianWeights(mean, covariance), Linearize())
