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
from bayeskit.bnn.networks.functional import at_least_single, call, flatten, parameters, unflatten, with_parameters
from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, MonteCarlo, exact_or_monte_carlo
from bayeskit.bnn.training.map_training import QUICK_TRAINING, prepare
from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.training.validation_search import ValidationSearch, calibrate
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.inputs import Batch
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize
from bayeskit.core.optimize.training_settings import SCHEDULES
from bayeskit.core.posterior import Posterior, SampledValues
from bayeskit.core.types import Data

DEFAULT_TRAINING = Training(lr=2e-2, batch_size=128, schedule="cosine", validation_fraction=0.15)
"""Without settings; the epochs follow from `DEFAULT_STEPS`."""

DEFAULT_STEPS = 1_000
"""Steps without settings: the averages of curvature need some hundred, however few the data."""

FEWEST_EPOCHS = 30
"""Epochs at least without settings, however many the data."""

KL_WEIGHTS = (1.0, 0.1)
"""What `kl_weight="validation"` tries."""

THRESHOLD = 2.0
"""Standard errors by which the held-out log-likelihood must gain for the smaller weight of the divergence."""


@dataclass(eq=False, repr=False)
class IVON(Inference):
    """A Gaussian with a diagonal covariance over all the weights, `argmax E_q[log p(y | f(.; w))] - KL(q || p)`.

    Each step samples weights from q, and updates mean and variance by the gradient there (see `update_rule`). The
    weights are standardized by the prior: w = center + scale u with u ~ N(0, I), which does not change the step, but
    gives `lr` and `hess_init` the same meaning for every layer and any prior.

    Args:
        lr: Length of a step as a share of the Newton step by q's own curvature.
        hess_init: Initial curvature, in multiples of the prior's: the first draws have the prior's variance divided by
            one more than this. With a prior that is the posterior of earlier data, this holds for the most uncertain
            weight of each parameter tensor, and weights that are known better start at their prior variance.
        betas: Decay of the averages of gradient and curvature. An average over fewer steps is noisier, one over more
            forgets the initial value later.
        num_draws: Draws of the weights in a step.
        training: Settings of the loop, whose `lr` is that of the likelihood's own parameters; None for some 1,000
            steps of 128 observations. There is no early stopping: the steps shrink as `schedule` says.
        prior_precision: A factor on the prior's precision.
        kl_weight: Factor on the KL divergence from the prior, or "validation": 1, and 0.1 where the held-out
            log-likelihood gains by two standard errors. 1 is variational Bayes; for a network with many more weights
            than data, a diagonal covariance then often prunes most hidden units. With a prior that is the posterior of
            earlier data, or fewer than 20 observations, "validation" is 1.
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
        "lr": 0.3,  # longer steps, or a smaller initial curvature, diverge for some seeds
        "hess_init": 1000.0,
        "kl_weight": 0.1,
        "training": replace(QUICK_TRAINING, max_epochs=120, schedule="cosine", patience=None),
    }

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train mean and variance together; the posterior is a Gaussian over the weights."""
        self.check(prior, likelihood, data)
        self._validate()
        weights, network, data = prepare(prior, data)
        check_frozen(network)
        weights = weights.sharpened(self.prior_precision)
        with operators.recording() as notes:
            trainer = _Trainer(network, weights, copy.deepcopy(likelihood), data, self, generator=generator)
            search = trainer.search
            history, weight = search.run(trainer.run, trainer.score, trainer.state, threshold=THRESHOLD)
            trainer.calibrate()
        q = trainer.weights()
        posterior = exact_or_monte_carlo(with_parameters(network, q.mean), q, data.x, num_samples=self.num_samples)
        diagnostics = {"KL weight": weight, "held-out data": search.num_held_out, **notes}
        return Fit(posterior, trainer.likelihood, history=history, diagnostics=diagnostics)

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


class _Trainer:
    """The posterior of standardized weights, and what its training needs."""

    def __init__(
        self,
        network: nn.Module,
        prior: GaussianWeights,
        likelihood: Likelihood,
        data: Data,
        settings: IVON,
        *,
        generator: torch.Generator,
    ):
        self.network, self.prior, self.likelihood = network, prior, likelihood
        self.settings, self.generator = settings, generator
        training = DEFAULT_TRAINING if settings.training is None else settings.training
        known, weight = prior.scale_known, settings.kl_weight
        search = ValidationSearch.plan(data, training, weight, known=known, generator=generator, tried=KL_WEIGHTS)
        per_epoch = math.ceil(len(search.train_data) / (training.batch_size or len(search.train_data)))
        if settings.training is None:
            epochs = max(FEWEST_EPOCHS, DEFAULT_STEPS // per_epoch)
            search = replace(search, training=replace(search.training, max_epochs=epochs))
        self.search, self.num_steps = search, per_epoch * search.training.max_epochs
        self.own = search.learnt(likelihood)
        self.like = parameters(network, prior.mean)
        self.center = prior.flat_mean.to(at_least_single(prior.flat_mean.dtype))
        self.scale = prior.covariance.diagonal().to(self.center).sqrt()
        # The step takes the prior's covariance as diagonal; the loss holds the rest of a correlated prior.
        self.correlated = not isinstance(prior.covariance, DiagLinearOperator)
        start = (flatten(self.like, self.like) - self.center) / self.scale
        self.steps = Steps(start, lr=settings.lr, betas=settings.betas)
        self.training_pass = TrainingPass(network, data, generator=generator)
        self.together = settings.num_draws > 1 and not self.training_pass.normalizes and self._can_vmap(data.x[:2])

    def _initial_hessian(self) -> Tensor:
        """Initial curvature, in multiples of the prior's, (p,).

        If the prior is the posterior of earlier data, `hess_init` applies to the weight of largest prior variance in
        each parameter tensor; weights that those data have determined start at their prior variance.
        """
        hess_init = self.settings.hess_init
        if not self.prior.scale_known:
            return torch.full_like(self.scale, hess_init)
        shares = [leaf.square() / leaf.square().max() for leaf in unflatten(self.scale, self.like).values()]
        return (hess_init * torch.cat([share.reshape(-1) for share in shares])).clamp(min=min(1.0, hess_init))

    @property
    def state(self) -> list[Tensor]:
        """All that training changes."""
        return [self.steps.mean, *self.steps.memory, *self.own, *self.network.buffers()]

    def run(self, training: Training, kl_weight: float) -> History:
        """Train with a weight on the divergence, starting from the current mean."""
        steps, settings = self.steps, self.settings
        schedule = SCHEDULES[training.schedule]
        steps.begin(len(self.search.train_data) / kl_weight, self._initial_hessian(), schedule, self.num_steps)

        def loss(batch: Data) -> Tensor:
            drawn = steps.draw(settings.num_draws, self.generator)  # (s, p)
            f = self._outputs(drawn, batch.x[:], together=self.together)
            value = -batch.total(self.likelihood.log_prob(f, batch.y)).mean()
            if self.correlated:
                density = self.prior.log_density(self.center + self.scale * drawn)
                value = value - kl_weight * (density + 0.5 * drawn.square().sum(-1)).mean()
            return value

        return minimize(
            loss,
            self.own,
            self.search.train_data,
            training,
            generator=self.generator,
            description="IVON",
            buffers=[*steps.memory, *self.network.buffers()],
            second_optimizer=steps,
        )

    def _outputs(self, drawn: Tensor, x: Batch, *, together: bool) -> Tensor:
        """The network in training mode at draws of the weights, (s, n, k)."""

        def one(u: Tensor) -> Tensor:
            return call(self.network, unflatten(self.center + self.scale * u, self.like), x)

        with self.training_pass(len(x)):
            return vmap(one, randomness="different")(drawn) if together else torch.stack([one(u) for u in drawn])

    def _can_vmap(self, x: Batch) -> bool:
        """Whether one pass can run all the draws."""
        try:
            with torch.no_grad():
                self._outputs(self.steps.mean.expand(2, -1), x, together=True)
        except RuntimeError:  # control flow that depends on values
            return False
        return True

    def score(self, held_out: Data) -> Tensor:
        """Log predictive densities of the held-out data, (m,)."""
        terms = self.likelihood.log_prob(self._values(held_out).draws, held_out.y).detach()
        return terms.logsumexp(0) - math.log(len(terms))

    def calibrate(self) -> None:
        """Set the likelihood's own parameters by the held-out data."""
        held_out = self.search.held_out
        if held_out is not None and self.own:
            calibrate(self.likelihood, self._values(held_out), held_out)

    def _values(self, data: Data) -> SampledValues:
        """The network at as many draws as predictions use, (s, n, k)."""
        return MonteCarlo(self.settings.num_samples).values(self.network, self.weights(), data.x)

    def weights(self) -> GaussianWeights:
        """The Gaussian over the weights."""
        mean = self.center + self.scale * self.steps.mean.detach()
        variance = self.scale.square() * self.steps.variance
        return GaussianWeights(unflatten(mean, self.like), DiagLinearOperator(variance))
