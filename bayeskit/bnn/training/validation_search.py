"""Held-out data of a training run, which choose the epoch, the noise, and a setting such as the prior precision."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from linear_operator import to_linear_operator
from linear_operator.operators import BlockDiagLinearOperator
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize_lbfgs, split
from bayeskit.core.posterior import FunctionValues, GaussianValues, SampledValues
from bayeskit.core.types import Data
from bayeskit.core.validation_plan import planned
from bayeskit.core.validation_split import duplicate_groups, inseparable

PRECISIONS = (1.0, 0.1, 0.01)
"""Factors on the prior's precision that `prior_precision="validation"` tries."""

THRESHOLD = 1.0
"""Standard errors by which the held-out log-likelihood must gain for a weaker prior (the one-standard-error rule)."""

FEWEST_GAINS = 4
"""Independent held-out observations below which no weaker prior is chosen: the extreme two are left out."""

GROSS = 3.0
"""How much further below the median than the next one the lowest log-likelihood counts; more is a gross outlier."""

FEWEST_ROWS = 20
"""With fewer observations none are held out unasked, and the parameters of the likelihood are not learnt."""

HELD_OUT = 0.15
"""Share held out for a search where the training settings hold out none."""


@dataclass(frozen=True, eq=False)
class ValidationSearch:
    """Training runs at one value of a setting or at several, scored by held-out data.

    Args:
        training: Settings of each run.
        train_data: The training data.
        held_out: The validation data, or None.
        values: Values of the setting, in the order to be tried.
        enough: Whether there are enough data to learn the likelihood's own parameters.
    """

    training: Training
    train_data: Data
    held_out: Data | None
    values: tuple[float, ...]
    enough: bool

    @classmethod
    def plan(
        cls,
        data: Data,
        training: Training,
        setting: float | str,
        *,
        known: bool,
        generator: torch.Generator,
        tried: Sequence[float] = PRECISIONS,
    ) -> Self:
        """Hold out data as the training settings say, and in any case where the setting is searched for.

        Args:
            data: All the data.
            training: Settings of each run.
            setting: A number, or "validation" for a search.
            known: Take the first value instead of a search, because the prior is the posterior of earlier data.
            generator: Picks the held-out data.
            tried: The values of a search.
        """
        data = planned(data, training.validation_split)
        searching, enough = isinstance(setting, str) and not known, enough_rows(data)
        training = with_held_out(training, HELD_OUT) if searching else training
        rows, held_out = split(data, training, generator=generator) if enough else (data, None)
        return cls(
            training, rows, held_out, candidates(setting, tried, search=searching and held_out is not None), enough
        )

    @property
    def num_held_out(self) -> int:
        """Number of held-out observations."""
        return 0 if self.held_out is None else len(self.held_out)

    def learnt(self, likelihood: Likelihood) -> list[Tensor]:
        """The likelihood's own parameters that are learnt."""
        return [value for value in likelihood.parameters() if value.requires_grad] if self.enough else []

    def validation(self, score: Callable[[Data], Tensor]) -> Callable[[], Tensor] | None:
        """The validation loss of the training loop: minus the average log-likelihood of the held-out data.

        One gross outlier is bounded (`bounded_average`), so that it cannot decide when to stop.

        Args:
            score: Log-likelihoods of the held-out data, (m,).
        """
        held_out = self.held_out
        if held_out is None:
            return None
        return lambda: -bounded_average(score(held_out), held_out.weights, clusters=self.clusters)

    @cached_property
    def clusters(self) -> Tensor | None:
        """Codes of the held-out observations, (m,), equal where inputs are equal or of one group."""
        if self.held_out is None:
            return None
        return torch.from_numpy(inseparable(self.held_out)).to(self.held_out.y.device)

    def run(
        self,
        train: Callable[[Training, float], History],
        score: Callable[[Data], Tensor],
        state: list[Tensor],
        *,
        threshold: float = THRESHOLD,
    ) -> tuple[History, float]:
        """Train at each value in turn, from the same start, and keep the last by which the held-out score gains.

        Every run starts anew because a strong prior can pull a network to zero, from where no gradient leads back. A
        gain counts if it exceeds `threshold` standard errors, which allows for a small validation set (`gains`).

        Args:
            train: Trains at a value, changing `state` in place.
            score: Log-likelihoods of the held-out data, (m,).
            state: What training changes: set to the start before each run, and at the end to that of the run kept.
            threshold: See above.

        Returns:
            The curves of all runs one after the other, and the value kept.
        """
        start, kept = _copies(state), self.values[0]
        history = train(self.training, kept)
        for value in self.values[1:]:
            assert self.held_out is not None  # else there is one value
            best, reached = _copies(state), score(self.held_out)
            _write(state, start)
            file = None if self.training.checkpoint is None else f"{self.training.checkpoint}.{value:g}"
            curves = train(replace(self.training, checkpoint=file), value)
            history = {name: history[name] + curve for name, curve in curves.items()}
            gain = score(self.held_out) - reached
            if gains(gain, self.held_out.weights, clusters=self.clusters, threshold=threshold):
                kept = value
            else:
                _write(state, best)
        return history, kept


def gains(
    gain: Tensor, weights: Tensor | None, *, clusters: Tensor | None = None, threshold: float = THRESHOLD
) -> bool:
    """Whether the trimmed mean of the gains exceeds `threshold` of its standard errors.

    The gains of a cluster are averaged first, so that copies count as one observation. Then the cluster that adds most
    to the mean and the one that adds least are left out: a single observation cannot decide. For weights w that sum to
    1, m = 1 / sum_c w_c^2 is the effective number of clusters (Kish 1965), v the weighted variance of the gains with
    the two replaced by their neighbors, and h the weight of the others; the squared standard error is v / (m - 1) / h^2
    (Yuen 1974). With fewer than `FEWEST_GAINS` effective clusters the answer is no.

    Args:
        gain: Gain in log-likelihood of each held-out observation, (m,).
        weights: Case weights, (m,), or None.
        clusters: Integers, (m,), equal for observations that are not independent, or None.
        threshold: See above.

    References:
        Yuen. The two-sample trimmed t for unequal population variances. Biometrika 1974.

    Examples:
        >>> gain = torch.tensor([1.0, 1.2, 0.9, 1.1, 1.0, 0.8])
        >>> gains(gain, None), gains(torch.cat([gain, torch.tensor([-1e6])]), None), gains(-gain, None)
        (True, True, False)
    """
    gain, w = _clustered(gain, weights, clusters)
    if _effective(w) < FEWEST_GAINS:
        return False
    order = (w * gain).argsort()
    inner = order[1:-1]
    bounded = gain.clone()
    bounded[order[0]], bounded[order[-1]] = gain[inner[0]], gain[inner[-1]]
    kept, effective = w[inner].sum(), _effective(w)
    variance = (w * (bounded - (w * bounded).sum()).square()).sum()
    return bool((w[inner] * gain[inner]).sum() / kept > threshold * (variance / (effective - 1)).sqrt() / kept)


def bounded_average(values: Tensor, weights: Tensor | None, *, clusters: Tensor | None = None) -> Tensor:
    """The weighted average of log-likelihoods, in which one gross outlier is bounded.

    What the lowest of them takes away from the average, against the median, is at most `GROSS` times what the next one
    takes away; with fewer than `FEWEST_GAINS` observations nothing is bounded.

    Args:
        values: Of each held-out observation, (m,).
        weights: Case weights, (m,), or None.
        clusters: Integers, (m,), equal for observations that are not independent, or None.

    Examples:
        >>> values = torch.tensor([-1.0, -2.0, -1.5, -1e6, -1.5])
        >>> bounded_average(values, None), bounded_average(values[:3], None)
        (tensor(-1.8000), tensor(-1.5000))
    """
    values, w = _clustered(values, weights, clusters)
    if _effective(w) < FEWEST_GAINS:
        return (w * values).sum()
    order = values.argsort()
    median = values[order[torch.searchsorted(w[order].cumsum(0), 0.5).clamp_max(len(w) - 1)]]
    below = (w * (values - median)).sort().values
    return median + below[1:].sum() + below[0].maximum(GROSS * below[1])


def _clustered(values: Tensor, weights: Tensor | None, clusters: Tensor | None) -> tuple[Tensor, Tensor]:
    """The average of each cluster of positive weight, and their weights, which sum to 1."""
    w = torch.ones_like(values) if weights is None else weights.to(values)
    if clusters is not None:
        codes = clusters.unique(return_inverse=True)[1]
        total = w.new_zeros(int(codes.max()) + 1).index_add(0, codes, w)
        values = torch.zeros_like(total).index_add(0, codes, w * values) / total.clamp_min(torch.finfo(w.dtype).tiny)
        w = total
    values, w = values[w > 0], w[w > 0]
    return values, w / w.sum()


def _effective(w: Tensor) -> float:
    """Kish's effective number of observations of weights that sum to 1."""
    return float(1 / w.square().sum()) + 1e-6 if len(w) else 0.0


def check_precision(precision: float | str, rule: str) -> None:
    """Raise unless `precision` is a positive number or the name of the rule that finds it."""
    if isinstance(precision, str):
        checks.choice(precision, name="prior_precision", options=(rule,))
    else:
        checks.positive(precision, name="prior_precision")


def enough_rows(data: Data) -> bool:
    """Whether there are enough to hold some out and learn the likelihood, or the validation data are given.

    Copies of inputs and targets count once, so that a row of weight two is the same as the row twice.
    """
    if data.validation is not None and (data.validation.data is not None or data.validation.splits is not None):
        return True
    if len(data) < FEWEST_ROWS:
        return False
    targets = data.y.reshape(len(data), -1).double().cpu().numpy()
    return len(np.unique(np.column_stack([duplicate_groups(data.x), targets]), axis=0)) >= FEWEST_ROWS


def with_held_out(training: Training, fraction: float) -> Training:
    """The settings, with this fraction held out if they hold out none."""
    return replace(training, validation_fraction=training.validation_fraction or fraction)


def candidates(setting: float | str, tried: Sequence[float] = PRECISIONS, *, search: bool) -> tuple[float, ...]:
    """Values of a setting: the number given; or those to try, of which only the first without held-out data."""
    if not isinstance(setting, str):
        return (setting,)
    return tuple(tried) if search else tuple(tried[:1])


def calibrate(likelihood: Likelihood, values: FunctionValues, data: Data) -> None:
    """Set the likelihood's own parameters to maximize the predictive density of data that the weights have not seen.

    Args:
        likelihood: Changed in place.
        values: Function values at those inputs: draws, scored as a mixture, or a Gaussian, of which the completely
            observed points are scored.
        data: The held-out data.
    """
    own = [value for value in likelihood.parameters() if value.requires_grad]
    if not own or not len(data):
        return
    if isinstance(values, SampledValues):
        draws, share = values.draws.detach().double(), math.log(len(values.draws))

        def density() -> Tensor:
            return likelihood.log_prob(draws, data.y).logsumexp(0) - share
    else:
        full = ~data.y.isnan().reshape(len(data), -1).any(-1)
        if not full.any():
            return
        data = replace(data.rows(full), scale=data.scale)
        blocks = BlockDiagLinearOperator(to_linear_operator(values.output_covariance()[full].detach().double()))
        marginals = GaussianValues(values.mean[full].detach().double(), blocks)

        def density() -> Tensor:
            return likelihood.gaussian_predictive(marginals).log_prob(data.y)

    minimize_lbfgs(lambda: -average(density(), data), own, description="calibration")


def average(values: Tensor, data: Data) -> Tensor:
    """The average of one value for each observation, weighted by the case weights: (*b, n) to (*b,)."""
    return data.total(values) / data.total(torch.ones_like(values))


def _copies(state: list[Tensor]) -> list[Tensor]:
    return [value.detach().clone() for value in state]


@torch.no_grad()
def _write(state: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(state, values, strict=True):
        tensor.copy_(value)
