"""Rows held out from training, and what they choose: when to stop, and one setting such as the prior's precision."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, split
from bayeskit.core.types import Data

PRECISIONS = (1.0, 0.1, 0.01)
"""Factors on the prior's precision that `prior_precision="validation"` tries."""

THRESHOLD = 1.0
"""Standard errors by which held-out rows must gain before a weaker prior is taken (the one-standard-error rule)."""

FEWEST_ROWS = 20
"""With fewer rows none are held out, and the parameters of the likelihood stay as they were given."""

HELD_OUT = 0.15
"""The share of the rows that is held out where a search needs some and the settings hold none."""


@dataclass(frozen=True, eq=False)
class Search:
    """A training that held-out rows judge, at one value of a setting or at several.

    Args:
        training: Settings of each run.
        rows: What is trained on.
        held_out: What judges, or None.
        values: Of the setting, in the order to be tried.
        enough: Whether there are rows enough to learn a likelihood's own parameters.
    """

    training: Training
    rows: Data
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
        """Hold rows out as the training says, and some in any case where the setting is to be searched for.

        Args:
            data: All the rows.
            training: Settings; a search without rows held out would stay at the first value, which may leave a deep
                network at zero.
            setting: A number, or "validation" for a search.
            known: The setting has its first value, whatever was asked: the prior is the posterior of earlier data.
            generator: Picks the rows.
            tried: The values of a search.
        """
        searching, enough = isinstance(setting, str) and not known, len(data) >= FEWEST_ROWS
        training = holding_out(training, HELD_OUT) if searching else training
        rows, held_out = split(data, training, generator=generator) if enough else (data, None)
        return cls(
            training, rows, held_out, candidates(setting, tried, search=searching and held_out is not None), enough
        )

    @property
    def num_held_out(self) -> int:
        """How many rows judge."""
        return 0 if self.held_out is None else len(self.held_out)

    def learnt(self, likelihood: Likelihood) -> list[Tensor]:
        """The likelihood's own parameters, those that are learnt."""
        return [value for value in likelihood.parameters() if value.requires_grad] if self.enough else []

    def validation(self, score: Callable[[Data], Tensor]) -> Callable[[], Tensor] | None:
        """Minus the average log-likelihood of the held-out rows, for the training loop to watch.

        Args:
            score: Log-likelihoods of the held-out rows, (m,).
        """
        held_out = self.held_out
        return None if held_out is None else lambda: -average(score(held_out), held_out)

    def descend(
        self,
        run: Callable[[Training, float], History],
        score: Callable[[Data], Tensor],
        state: list[Tensor],
        *,
        threshold: float = THRESHOLD,
    ) -> tuple[History, float]:
        """Train at each value in turn; see the function `descend`."""

        def judged() -> Tensor:
            assert self.held_out is not None  # else there is one value
            return score(self.held_out)

        return descend(run, judged, state, self.training, self.values, threshold=threshold)


def check_precision(precision: float | str, rule: str) -> None:
    """Raise unless `precision` is a positive number or the name of the rule that finds it."""
    if isinstance(precision, str):
        checks.choice(precision, name="prior_precision", options=(rule,))
    else:
        checks.positive(precision, name="prior_precision")


def holding_out(training: Training, share: float) -> Training:
    """The settings, with this share of the rows held out if they hold none."""
    return replace(training, validation_fraction=training.validation_fraction or share)


def candidates(setting: float | str, tried: Sequence[float] = PRECISIONS, *, search: bool) -> tuple[float, ...]:
    """What a setting may be: the number given; or what is tried, of which only the first if no rows can judge."""
    if not isinstance(setting, str):
        return (setting,)
    return tuple(tried) if search else tuple(tried[:1])


def descend(
    run: Callable[[Training, float], History],
    score: Callable[[], Tensor],
    state: list[Tensor],
    training: Training,
    factors: Sequence[float],
    *,
    threshold: float = THRESHOLD,
) -> tuple[History, float]:
    """Train at falling prior precisions, each from the same start, and keep the last that held-out rows gain by.

    Every run starts anew because a strong prior can pull a network to zero, and from there no gradient leads back. A
    gain counts if it is larger than `threshold` standard errors, so that a few rows are not listened to too closely.

    Args:
        run: Trains at a precision, changing `state` in place.
        score: Log-likelihoods of the held-out rows, (m,).
        state: What training changes: set to the start before each run, and to the kept run's end at last.
        training: Settings; further runs write further checkpoint files.
        factors: Precisions in the order to be tried.
        threshold: See above.

    Returns:
        The curves of all runs one after the other, and the precision that is kept.
    """
    start = [value.detach().clone() for value in state]
    history, kept = run(training, factors[0]), factors[0]
    for factor in factors[1:]:
        best, reached = [value.detach().clone() for value in state], score()
        _put(state, start)
        file = None if training.checkpoint is None else f"{training.checkpoint}.{factor:g}"
        curves = run(replace(training, checkpoint=file), factor)
        history = {name: history[name] + curve for name, curve in curves.items()}
        gain = score() - reached
        if gain.mean() > threshold * gain.std() / math.sqrt(len(gain)):
            kept = factor
        else:
            _put(state, best)
    return history, kept


@torch.no_grad()
def _put(state: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(state, values, strict=True):
        tensor.copy_(value)


def average(values: Tensor, data: Data) -> Tensor:
    """The average of a quantity given per row, weighted by the cases: (*b, n) to (*b,)."""
    return data.total(values) / data.total(torch.ones_like(values))
