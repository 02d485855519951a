"""The Laplace approximation: a Gaussian at the most probable weights."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bayeskit.bnn.curvature import FULL_LIMIT
from bayeskit.bnn.head import last_layer
from bayeskit.bnn.layers import check_frozen
from bayeskit.bnn.network import parameters, size, unflatten, with_parameters
from bayeskit.bnn.posterior import BayesNet, Linearize
from bayeskit.bnn.problem import STRUCTURES, Problem
from bayeskit.bnn.refit import Refit, refit
from bayeskit.bnn.search import check_precision
from bayeskit.bnn.training import DEFAULT_TRAINING, QUICK_TRAINING, Trained, prepare, train
from bayeskit.bnn.weights import GaussianWeights
from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data


@dataclass(eq=False, repr=False)
class Laplace(Inference):
    """`N(w*, (H + P)^-1)` at the most probable weights w*: H the log-likelihood's curvature, P the prior precision.

    The network is trained (as `MAP` does), then the weights of `subset` get a Gaussian law whose functions are those
    of the network linearized about w*. H is the generalized Gauss-Newton matrix of any likelihood. The prior precision
    and a Gaussian noise variance are chosen by the evidence, to which w* is refitted by Gauss-Newton steps on all
    the rows, those held out for early stopping included: for the last layer this is Bayesian regression on learnt
    features, and for a linear network it is exact.

    Args:
        subset: "last_layer", "all", or names of parameters (those of a layer together for structure "kronecker").
        structure: "full", "kronecker" (a product of two factors a layer) or "diagonal".
        prior_precision: A factor on the prior's precision, or "evidence" to learn it (one a layer; a single one for
            structure "full"); before that, while the network trains, held-out rows choose it as in `MAP`. A prior that
            is the posterior of earlier data is taken as it is.
        training: Settings of the training loop; None for Adam with early stopping.
        pretrained: No training, and the weights stay; only a linear last layer is refitted. Beyond that
            layer, structures "diagonal" and "kronecker" then set a Gaussian noise to the mean squared residual.

    References:
        MacKay. A practical Bayesian framework for backpropagation networks. Neural Computation 1992.
        Daxberger et al. Laplace redux: effortless Bayesian deep learning. NeurIPS 2021.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> fit = Laplace().infer(gaussian_prior(nn.Linear(1, 1)), Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.log_evidence.kind, fit.posterior(x).covariance.shape
    ('Laplace', torch.Size([40, 40]))
    """

    subset: str | Sequence[str] = "last_layer"
    structure: str = "full"
    prior_precision: float | str = "evidence"
    training: Training | None = None
    pretrained: bool = False

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {"training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train, refit the subset under the evidence, and invert its curvature."""
        self.check(prior, likelihood, data)
        self._validate()
        weights, network, data = prepare(prior, likelihood, data)
        check_frozen(network)
        names = self._names(network, weights, data)
        with operators.recording() as notes:
            if self.pretrained:
                start = parameters(network, weights.mean)
                trained = Trained(
                    with_parameters(network, start), start, copy.deepcopy(likelihood), None, {}, 1.0, data
                )
            else:
                training = DEFAULT_TRAINING if self.training is None else self.training
                factor = "validation" if self.prior_precision == "evidence" else self.prior_precision
                trained = train(prior, likelihood, data, training, precision=factor, generator=generator)
            problem = Problem.build(trained, weights, names, data, self.structure, movable=not self.pretrained)
            result = refit(problem, self.prior_precision)
            posterior = _posterior(problem, result, trained.network)
        diagnostics = {
            "prior precision": result.log_precision.exp().tolist(),
            "rounds": result.steps,
            "held-out rows": trained.num_held_out,
            **notes,
        }
        evidence = Evidence(result.log_evidence(problem), "Laplace")
        return Fit(posterior, result.likelihood, evidence, trained.history, diagnostics)

    def _validate(self) -> None:
        checks.choice(self.structure, name="structure", options=STRUCTURES)
        check_precision(self.prior_precision, "evidence")

    def _names(self, network: nn.Module, weights: GaussianWeights, data: Data) -> list[str]:
        """The parameters that get a law, in the network's order, refused if they are too many for a full matrix."""
        if isinstance(self.subset, str):
            checks.choice(self.subset, name="subset", options=("all", "last_layer"))
            own = weights.mean if self.subset == "all" else last_layer(network, data.x)
            chosen = [name for name in own if name in weights.mean]  # a last layer may be frozen in part
        else:
            chosen = list(self.subset)
        unknown = [name for name in chosen if name not in weights.mean]
        if unknown or not chosen:
            raise ValueError(
                f"`subset` must name parameters that the prior knows, {list(weights.mean)}; got {unknown or chosen}"
            )
        names = [name for name in weights.mean if name in chosen]
        count = size({name: weights.mean[name] for name in names})
        if self.structure == "full" and count > FULL_LIMIT:
            raise ValueError(
                f"structure='full' would form a {count} x {count} matrix ({8 * count**2 / 1e9:.1f} GB in float64); the "
                f"limit is {FULL_LIMIT} weights. Use structure='kronecker' or 'diagonal', or a smaller `subset`."
            )
        return names


def _posterior(problem: Problem, result: Refit, network: nn.Module) -> BayesNet:
    """The Gaussian over the subset, in the network's own dtype."""
    mean = unflatten(result.weights, problem.like)
    covariance = result.covariance(problem)
    weights = GaussianWeights(mean, covariance)
    return BayesNet(with_parameters(network, mean), weights, Linearize())
