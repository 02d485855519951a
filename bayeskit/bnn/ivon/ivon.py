"""IVON as an inference: mean-field variational Bayes at the cost of an optimizer."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn
from torch.func import vmap

from bayeskit.bnn.ivon.vector_step import Steps
from bayeskit.bnn.networks.functional import (
    at_least_single,
    call,
    flatten,
    is_random,
    parameters,
    unflatten,
    with_parameters,
)
from bayeskit.bnn.networks.last_layer import head_of
from bayeskit.bnn.networks.layers import check_frozen, normalizes, set_training
from bayeskit.bnn.pushforward.bayes_net import BayesNet, Linearize, MonteCarlo
from bayeskit.bnn.training.map_training import calibrate, prepare, seeded_by
from bayeskit.bnn.training.validation_search import Search
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.inputs import Batch
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize
from bayeskit.core.optimize.training_settings import SCHEDULES
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data

DEFAULT_TRAINING = Training(lr=2e-2, batch_size=128, schedule="cosine", validation_fraction=0.15)
"""Without settings; the epochs follow from `DEFAULT_STEPS`."""

DEFAULT_STEPS = 1_000
"""Steps without settings: the averages of curvature need some hundred, however few the rows."""

FEWEST_EPOCHS = 30
"""Without settings, however many the rows."""

QUICK_TRAINING = Training(lr=2e-2, max_epochs=15, batch_size=64, schedule="cosine", validation_fraction=0.15)
"""A tenth of a second for a hundred rows."""

KL_WEIGHTS = (1.0, 0.1)
"""What `kl_weight="validation"` tries."""

THRESHOLD = 2.0
"""Standard errors by which held-out rows must gain before a part of the divergence is dropped."""


@dataclass(eq=False, repr=False)
class IVON(Inference):
    """A Gaussian with a diagonal covariance over all the weights, `argmax E_q[log p(y | f(.; w))] - KL(q || p)`.

    Each step draws weights from q, and moves mean and variance by the gradient there (see `ivon_rule`). The weights are
    learnt in units of the prior: w = center + scale u with u ~ N(0, I), in which the step does not change but `lr` and
    `hess_init` mean the same for every layer and any prior.

    Args:
        lr: Length of a step as a share of the Newton step that q's own curvature says.
        hess_init: Curvature at the start, in multiples of the prior's: the first draws have the prior's variance
            divided by one more than this. With a prior that is the posterior of earlier data, that variance is the
            largest of each parameter's weights, and weights that are known better start at what is known.
        betas: Decay of the averages of gradient and curvature. An average over fewer steps is noisier, one over more
            remembers the start.
        num_draws: Draws of the weights in a step.
        training: Settings of the loop, whose `lr` is that of the likelihood's own parameters; None for some 1,000
            steps of 128 rows. All of it is run: the steps shrink as `schedule` says, and nothing stops early.
        prior_precision: A factor on the prior's precision.
        kl_weight: What the divergence from the prior is multiplied by, or "validation": 1, and 0.1 where the held-out
            log-likelihood gains by two standard errors. At 1 it is Bayes, within what a diagonal covariance can say,
            which for a network with many more weights than rows is often that hidden units are not worth their cost.
            With a prior that is the posterior of earlier data, or fewer than 20 rows, "validation" is 1.
        num_samples: Draws of the weights at prediction.

    References:
        Shen et al. Variational learning is effective for large deep networks. ICML 2024.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> fit = IVON.quickly().infer(gaussian_prior(nn.Linear(1, 1)), Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.posterior.weights.covariance.shape, fit.posterior(x).variance.shape
    (torch.Size([2, 2]), torch.Size([40, 1]))
    """

    lr: float = 0.1
    hess_init: float = 1000.0
    betas: tuple[float, float] = (0.9, 0.99)
    num_draws: int = 1
    training: Training | None = None
    prior_precision: float = 1.0
    kl_weight: float | str = "validation"
    num_samples: int = 32

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {
        "lr": 0.3,  # longer steps, or a smaller curvature at the start, make some seeds run off
        "hess_init": 1000.0,
        "kl_weight": 0.1,
        "training": replace(QUICK_TRAINING, max_epochs=120),
    }

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train mean and variance together; the posterior is the network at draws of its weights."""
        self.check(prior, likelihood, data)
        self._validate()
        weights, network, data = prepare(prior, likelihood, data)
        check_frozen(network)
        weights = weights.sharpened(self.prior_precision)
        with operators.recording() as notes:
            problem = _Problem(network, weights, copy.deepcopy(likelihood), data, self, generator=generator)
            search = problem.search
            history, weight = search.descend(problem.run, problem.score, problem.state, threshold=THRESHOLD)
            problem.calibrate()
        law = problem.law()
        network = with_parameters(network, law.mean)
        closing = head_of(network, law.mean, data.x)
        linear = closing is not None and isinstance(closing.layer, nn.Linear)  # then the function's law is closed
        posterior = BayesNet(network, law, Linearize() if linear else MonteCarlo(self.num_samples))
        diagnostics = {"KL weight": weight, "held-out rows": search.num_held_out, **notes}
        return Fit(posterior, problem.likelihood, history=history, diagnostics=diagnostics)

    def _validate(self) -> None:
        for name in ("lr", "hess_init", "prior_precision"):
            checks.positive(getattr(self, name), name=name)
        for name in ("num_draws", "num_samples"):
            checks.positive(getattr(self, name), name=name, integer=True)
        for beta in self.betas:
            checks.fraction(beta, name="betas")
        if isinstance(self.kl_weight, str):
            checks.choice(self.kl_weight, name="kl_weight", options=("validation",))
        else:
            checks.positive(self.kl_weight, name="kl_weight")


class _Problem:
    """A network's weights in units of the prior, the rows, and what is learnt from them."""

    def __init__(
        self,
        network: nn.Module,
        weights: GaussianWeights,
        likelihood: Likelihood,
        data: Data,
        settings: IVON,
        *,
        generator: torch.Generator,
    ):
        self.network, self.weights, self.likelihood = network, weights, likelihood
        self.settings, self.generator = settings, generator
        training = DEFAULT_TRAINING if settings.training is None else settings.training
        known, weight = weights.scale_known, settings.kl_weight
        search = Search.plan(data, training, weight, known=known, generator=generator, tried=KL_WEIGHTS)
        per_epoch = math.ceil(len(search.rows) / (training.batch_size or len(search.rows)))
        if settings.training is None:
            epochs = max(FEWEST_EPOCHS, DEFAULT_STEPS // per_epoch)
            search = replace(search, training=replace(search.training, max_epochs=epochs))
        self.search, self.num_steps = search, per_epoch * search.training.max_epochs
        self.own = search.learnt(likelihood)
        self.like = parameters(network, weights.mean)
        self.source, self.normalizes = generator if is_random(network, data.x[:2]) else None, normalizes(network)
        self.together = False
        self.center = weights.flat_mean.to(at_least_single(weights.flat_mean.dtype))
        self.scale = weights.covariance.diagonal().to(self.center).sqrt()
        self.hess_init = self._first_curvature(settings.hess_init)
        # What a step does not know of a prior with correlations.
        self.rest = None if isinstance(weights.covariance, DiagLinearOperator) else weights
        start = (flatten(self.like, self.like) - self.center) / self.scale
        self.steps = Steps(start, lr=settings.lr, betas=settings.betas)
        self.together = settings.num_draws > 1 and not self.normalizes and self._joinable(data.x[:2])

    def _first_curvature(self, hess_init: float) -> Tensor:
        """Curvature at the start, in multiples of the prior's, (p,).

        Where the prior is the posterior of earlier data, that multiple belongs to the weight of each parameter that
        those data say least of; what they have determined starts at their law.
        """
        if not self.weights.scale_known:
            return torch.full_like(self.scale, hess_init)
        shares = [leaf.square() / leaf.square().max() for leaf in unflatten(self.scale, self.like).values()]
        return (hess_init * torch.cat([share.reshape(-1) for share in shares])).clamp(min=min(1.0, hess_init))

    @property
    def state(self) -> list[Tensor]:
        """All that training changes."""
        return [self.steps.mean, *self.steps.memory, *self.own, *self.network.buffers()]

    def run(self, training: Training, kl_weight: float) -> History:
        """Train with a weight on the divergence, from where the state stands."""
        steps, settings = self.steps, self.settings
        schedule = SCHEDULES[training.schedule]
        steps.begin(len(self.search.rows) / kl_weight, self.hess_init, schedule, self.num_steps)

        def loss(batch: Data) -> Tensor:
            # One row alone has no spread to be normalized by.
            set_training(self.network, not self.normalizes or len(batch) > 1)
            drawn = steps.draw(settings.num_draws, self.generator)  # (s, p)
            value = -batch.total(self.likelihood.log_prob(self._outputs(drawn, batch.x[:]), batch.y)).mean()
            if self.rest is not None:
                density = self.rest.log_density(self.center + self.scale * drawn)
                value = value - kl_weight * (density + 0.5 * drawn.square().sum(-1)).mean()
            return value

        return minimize(
            loss,
            self.own,
            self.search.rows,
            training,
            generator=self.generator,
            description="IVON",
            buffers=[*steps.memory, *self.network.buffers()],
            second_optimizer=steps,
        )

    def _outputs(self, drawn: Tensor, x: Batch) -> Tensor:
        """The network at draws of the weights, (s, n, k)."""

        def one(u: Tensor) -> Tensor:
            return call(self.network, unflatten(self.center + self.scale * u, self.like), x)

        with seeded_by(self.source):
            if self.together:
                return vmap(one, randomness="different")(drawn)
            return torch.stack([one(u) for u in drawn])

    def _joinable(self, x: Batch) -> bool:
        """Whether one pass can run all the draws."""
        self.together = True
        try:
            with torch.no_grad():
                self._outputs(self.steps.mean.expand(2, -1), x)
        except RuntimeError:  # control flow that depends on values
            return False
        return True

    def score(self, held_out: Data) -> Tensor:
        """Log predictive densities of the held-out rows, (m,)."""
        terms = self.likelihood.log_prob(self._predicted(held_out), held_out.y).detach()
        return terms.logsumexp(0) - math.log(len(terms))

    def calibrate(self) -> None:
        """Set the likelihood's own parameters by the held-out rows."""
        held_out = self.search.held_out
        if held_out is not None and self.own:
            calibrate(self.likelihood, self._predicted(held_out), held_out)

    def _predicted(self, data: Data) -> Tensor:
        """The network at as many draws as predictions will have, (s, n, k)."""
        return MonteCarlo(self.settings.num_samples).values(self.network, self.law(), data.x).draws

    def law(self) -> GaussianWeights:
        """The Gaussian over the weights."""
        mean = self.center + self.scale * self.steps.mean.detach()
        variance = self.scale.square() * self.steps.variance
        return GaussianWeights(unflatten(mean, self.like), DiagLinearOperator(variance))
