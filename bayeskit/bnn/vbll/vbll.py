"""Variational Bayesian last layers: one bound trains a network and the distribution of its last layer's weights."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn

from bayeskit.bnn.curvature.ggn import kronecker_order, with_one
from bayeskit.bnn.curvature.prior_precision import base_precision
from bayeskit.bnn.networks.functional import NetworkFunction, parameters, with_parameters
from bayeskit.bnn.networks.last_layer import Head, find_head
from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, Linearize, MonteCarlo
from bayeskit.bnn.training.map_training import DEFAULT_TRAINING, QUICK_TRAINING, prepare
from bayeskit.bnn.training.validation_search import check_precision, enough_rows
from bayeskit.bnn.vbll.joint_training import TrainedBody, train_jointly
from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer
from bayeskit.bnn.vbll.row_gaussians import COVARIANCES, Rows, build, covariance, precision_of
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.bnn.vbll.softmax_bounds import BOUNDS
from bayeskit.bnn.weights.layer_block_covariance import independent_rows, rows_of
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, generators, operators
from bayeskit.core.inference import Evidence, Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.core.validation_plan import planned

LIMIT = 10**8
"""Numbers in the covariances of all weight rows, k d^2, up to which they are formed (0.8 GB in float64)."""

PATIENT_STEPS = 40
"""Steps without a gain after which training on labels may stop: with 150 data points an epoch is one step or two."""


@dataclass(eq=False, repr=False)
class VBLL(Inference):
    """Variational Bayesian last layer: `q(w_o) = N(m_o, S_o)` for its weights and a point estimate for the others.

    The network up to its last layer, the distribution q of that layer and the noise maximize

        sum_i E_q log p(y_i | w' phi(x_i)) - kl_weight KL(q || p) + log p(body),

    with the expectation in closed form or bounded in closed form, so training costs about what `MAP` costs and needs no
    draws. Then, for the learnt features and on all data, q is set to its optimum: for Gaussian noise the exact
    posterior at the noise of the largest evidence. Predictions are deterministic.

    A prior that names the weights of the last layer alone (the posterior of earlier data) keeps the body fixed; for
    Gaussian noise, which is then fixed too, the result is the posterior of all the data.

    Args:
        covariance: Of the weights of an output: "dense", "diagonal", "low_rank" or "dense_precision".
        bound: On the expected log-likelihood of labels: "knowles_minka", "jensen", or "expectation" for the
            likelihood's own quadrature. None for "knowles_minka" where there are logits, else "expectation".
        rank: Columns of the factor of "low_rank".
        kl_weight: Factor on the divergence of the last layer; 1 for the bound.
        prior_precision: A factor on the prior's precision, or "validation" as in `MAP`, which is 1 for fewer than 20
            data points: too large for few data of little noise.
        num_samples: Predict by so many draws of the last layer instead of in closed form.
        training: Settings of the training loop; None for Adam with early stopping, which for labels waits for 40 steps
            at least, however few the data.
        pretrained: The body is fixed, and the last layer is set to its optimum.

    References:
        Harrison, Willes, Snoek. Variational Bayesian last layers. ICLR 2024.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> fit = VBLL().infer(gaussian_prior(nn.Linear(1, 1)), Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.log_evidence.kind, fit.posterior(x).covariance.shape
    ('lower bound', torch.Size([40, 40]))
    """

    covariance: str = "dense"
    bound: str | None = None
    rank: int = 8
    kl_weight: float = 1.0
    prior_precision: float | str = "validation"
    num_samples: int | None = None
    training: Training | None = None
    pretrained: bool = False

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {"training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train body and last layer together, then set the last layer to its optimum."""
        self.check(prior, likelihood, data)
        self._validate()
        weights, network, data = prepare(prior, data)
        if self.training is not None:
            data = planned(data, self.training.validation_split)
        check_frozen(network)
        head = _linear_head(network, data)
        body = None if self.pretrained else _body(weights, head)
        with operators.recording() as notes:
            with generators.seeded(generator):
                layer = self._layer(head, weights, copy.deepcopy(likelihood), len(data))
            trained = self._train(head, layer, body, data, known=weights.scale_known, generator=generator)
            closing, enough = _linear_head(trained.network, data), enough_rows(data)
            data = replace(data, x=with_one(closing.features(data.x), layer.rows.mean.shape[1]))
            learn = enough and not weights.scale_known
            elbo, steps = _optimum(layer.double(), data, trained=bool(trained.history), learn_noise=learn)
            posterior = self._posterior(closing, layer, weights)
        diagnostics = {"prior precision": trained.precision, "held-out data": trained.num_held_out}
        diagnostics |= {"rounds": steps, **notes}
        return Fit(posterior, layer.likelihood, Evidence(elbo, "lower bound"), trained.history, diagnostics)

    def _validate(self) -> None:
        checks.choice(self.covariance, name="covariance", options=COVARIANCES)
        if self.bound is not None:
            checks.choice(self.bound, name="bound", options=BOUNDS)
        checks.positive(self.rank, name="rank", integer=True)
        checks.positive(self.kl_weight, name="kl_weight")
        check_precision(self.prior_precision, "validation")
        if self.num_samples is not None:
            checks.positive(self.num_samples, name="num_samples", integer=True)

    def _layer(self, head: Head, weights: GaussianWeights, likelihood: Likelihood, num_data: int) -> LikelihoodLayer:
        """The Bayesian layer in place of the linear one: means at its weights, variances small against the prior."""
        function = _function(head, weights)
        index = kronecker_order(function)
        outputs, width = index.shape
        if self.covariance in ("dense", "dense_precision") and not _fits(index):
            raise ValueError(
                f"`covariance={self.covariance!r}` would hold {outputs} covariances of {width} x {width} weights; use "
                "'diagonal' or 'low_rank'."
            )
        row_prior = _row_prior(weights, head, index)
        values = dict(head.layer.named_parameters())
        mean = torch.cat([values[key].detach().reshape(outputs, -1) for key in function.like], dim=1)
        spread = (row_prior.diagonal() * width).rsqrt()
        offset = None if "bias" in function.like else values.get("bias")
        bound = self.bound or ("knowles_minka" if likelihood.has_logits else "expectation")
        rows = build(self.covariance, mean, spread, rank=self.rank)
        options = {"num_data": num_data, "kl_weight": self.kl_weight, "bound": bound, "offset": offset}
        return LikelihoodLayer(rows, row_prior, likelihood, **options)

    def _train(
        self,
        head: Head,
        layer: LikelihoodLayer,
        body: GaussianWeights | None,
        data: Data,
        *,
        known: bool,
        generator: torch.Generator,
    ) -> TrainedBody:
        """Body and layer together; nothing if the body is fixed and the layer is small enough for `_optimum`."""
        training = _default_training(layer.likelihood, len(data)) if self.training is None else self.training
        precision = 1.0 if known else self.prior_precision
        if body is not None or not _fits(layer.rows.mean):
            return train_jointly(head, layer, body, data, training, precision=precision, generator=generator)
        factor = 1.0 if isinstance(precision, str) else precision
        layer.prior = RowPrior(layer.prior.mean, layer.prior.precision * factor)
        return TrainedBody(with_parameters(head.network, {}), {}, factor, 0)

    def _posterior(self, head: Head, layer: LikelihoodLayer, weights: GaussianWeights) -> BayesNet:
        """The distribution of the layer's weights by their names in the network, in the network's own dtype."""
        function = _function(head, weights)
        index = kronecker_order(function)
        dtype = next(iter(function.like.values())).dtype
        columns = layer.rows.mean.detach().to(dtype).split([v[0].numel() for v in function.like.values()], dim=1)
        mean = {
            name: value.reshape(shaped.shape).clone(memory_format=torch.contiguous_format)
            for name, value, shaped in zip(_names(head, weights), columns, function.like.values(), strict=True)
        }
        posterior = GaussianWeights(mean, independent_rows(_detached(layer.rows, dtype), index))
        push_forward = Linearize() if self.num_samples is None else MonteCarlo(self.num_samples)
        return BayesNet(with_parameters(head.network, mean), posterior, push_forward)


def _default_training(likelihood: Likelihood, num_data: int) -> Training:
    """The default, for labels with a patience of at least `PATIENT_STEPS`.

    In regression the same patience lowered the error on 60 to 150 data points and made the noise too small.
    """
    settings = DEFAULT_TRAINING
    if not likelihood.has_labels:
        return settings
    assert settings.batch_size is not None and settings.patience is not None
    steps = math.ceil((1 - settings.validation_fraction) * num_data / settings.batch_size)
    return replace(settings, patience=max(settings.patience, math.ceil(PATIENT_STEPS / steps)))


def _linear_head(network: nn.Module, data: Data) -> Head:
    """The last layer, refused if it is not linear in its weights."""
    found = find_head(network, data.x)
    if found is None or not isinstance(found.layer, nn.Linear):
        raise ValueError(
            f"VBLL needs a last nn.Linear; the output of {type(network).__name__} is not that of one that runs once "
            "and shares no weights. End the network in an nn.Linear."
        )
    return found


def _names(head: Head, weights: GaussianWeights) -> list[str]:
    """The last layer's parameters that the prior names: its weight, and its bias if it has one that is not fixed."""
    names = [name for name in head.names if name in weights.mean]
    if not names or not names[0].endswith("weight"):
        raise ValueError(
            f"`prior` must name the weights of the last layer, {head.names}; it names {list(weights.mean)}. Let them "
            "require a gradient before `bnn.gaussian_prior(network)`."
        )
    return names


def _function(head: Head, weights: GaussianWeights) -> NetworkFunction:
    """The layer as a function of the weights that the prior names."""
    return NetworkFunction(head.layer, head.local(parameters(head.network, _names(head, weights))))


def _body(weights: GaussianWeights, head: Head) -> GaussianWeights | None:
    """The prior of the weights below the last layer; None if it names none."""
    below = {name: value for name, value in weights.mean.items() if name not in head.names}
    if not below:
        return None
    if not isinstance(weights.covariance, DiagLinearOperator):
        raise _dependence_error(weights)
    kept = torch.cat([torch.full((v.numel(),), name in below) for name, v in weights.mean.items()])
    variances = weights.covariance.diagonal()[kept.to(weights.covariance.device)]
    return GaussianWeights(below, DiagLinearOperator(variances), weights.scale_known)


def _row_prior(weights: GaussianWeights, head: Head, index: Tensor) -> RowPrior:
    """The prior of the last layer's weights, row by row.

    Args:
        weights: The prior of all the weights it names.
        head: The last layer.
        index: Positions (k, d) of the rows in the flat vector of that layer's weights.
    """
    names = _names(head, weights)
    mean = torch.cat([weights.mean[name].flatten() for name in names])[index]
    rows = rows_of(weights.covariance, index) if list(weights.mean) == names else None
    if rows is not None:
        return RowPrior(mean, precision_of(rows))
    if not isinstance(weights.covariance, DiagLinearOperator):
        raise _dependence_error(weights)
    return RowPrior(mean, base_precision(weights, names, "full").to(mean.dtype)[index])


def _dependence_error(weights: GaussianWeights) -> ValueError:
    return ValueError(
        "VBLL needs a prior whose weights are independent, or the posterior of a VBLL fit; got a "
        f"{type(weights.covariance).__name__}, the posterior of another method. Continue with that method, or start "
        "from `bnn.gaussian_prior(network)`."
    )


def _fits(rows: Tensor) -> bool:
    """Whether the covariances of all weight rows (k, d) can be formed."""
    return len(rows) * rows.shape[1] ** 2 <= LIMIT


def _optimum(layer: LikelihoodLayer, features: Data, *, trained: bool, learn_noise: bool) -> tuple[float, int]:
    """Set the last layer to its optimum on all data unless its covariances are too large; the bound, and the steps."""
    if not _fits(layer.rows.mean):
        with torch.no_grad():
            return float(layer.elbo(features.to(dtype=torch.float64))), 0
    # Parameters other than a Gaussian noise have been estimated on validation data if there was a training.
    free = not trained or layer.likelihood.noise_variance is not None
    return layer.optimize(features, learn_noise=learn_noise and free)


def _detached(rows: Rows, dtype: torch.dtype) -> LinearOperator:
    """The covariances (k, d, d) in memory of their own: views would not be reproduced to the bit through a file."""
    with torch.no_grad():
        factor, diagonal = (
            None if part is None else part.detach().to(dtype, copy=True).clone(memory_format=torch.contiguous_format)
            for part in rows.parts()
        )
    return covariance(factor, diagonal)
