"""Predictive class probabilities and their uncertainty."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.predictive.predictive import Predictive


@dataclass(frozen=True, eq=False)
class CategoricalPredictive(Predictive):
    """The predictive distribution of a class label at each input, its uncertainty in nats.

    total = H[E p], aleatoric = E[H p], epistemic = total - aleatoric, the mutual information between the label and the
    function; the expectations are over the function.

    Args:
        log_probs: Logarithms of the class probabilities, (n, c).
        expected_entropy: The entropy of the label given the function, averaged over the function, (n,).
        classes: The c labels in the user's own values, in the order of the columns; None for the codes 0 .. c - 1.
        rule: How the distribution was formed.

    References:
        Depeweg et al. (2018), Decomposition of uncertainty in Bayesian deep learning, section 3.

    Examples:
        >>> draws = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
        >>> predictive = CategoricalPredictive.from_draws(draws)
        >>> predictive.probs, predictive.aleatoric, predictive.epistemic
        (tensor([[0.5000, 0.5000]]), tensor([0.]), tensor([0.6931]))
    """

    log_probs: Tensor
    expected_entropy: Tensor
    classes: np.ndarray | None = None
    rule: str = "exact"

    @classmethod
    def from_draws(
        cls, log_probs: Tensor, *, classes: np.ndarray | None = None, rule: str | None = None
    ) -> "CategoricalPredictive":
        """The average of the probabilities (never of the logits) over draws, in log space.

        Args:
            log_probs: Normalized log probabilities (s, n, c), one s a draw of the function.
            classes: The labels, or None.
            rule: How the distribution was formed; by default the number of draws.
        """
        average = log_probs.logsumexp(0) - math.log(len(log_probs))
        rule = f"{len(log_probs)} draws" if rule is None else rule
        return cls(average, entropy(log_probs).mean(0), classes=classes, rule=rule)

    @property
    def probs(self) -> Tensor:
        """Class probabilities (n, c); rows sum to one."""
        return self.log_probs.exp()

    @property
    def mode(self) -> Any:
        """The most probable label (n,): a tensor of codes, or an array of labels if `classes` is given."""
        return self._labels(self.log_probs.argmax(-1))

    def prediction_set(self, level: float) -> Tensor:
        """The most probable classes, as few as hold the label with probability `level`: (n, c) truth values.

        Raises:
            ValueError: `level` is not strictly between 0 and 1.
        """
        checks.fraction(level, name="level")
        p, order = self.probs.sort(dim=-1, descending=True, stable=True)
        short = p.cumsum(-1) - p < level  # what the more probable classes hold together is not enough
        return torch.empty_like(short).scatter(-1, order, short)

    def log_prob(self, y: Any) -> Tensor:
        """Log probability of the labels, (n,).

        Args:
            y: Labels (n,), in the values of `classes`, or codes where there are none.

        Raises:
            ValueError: A label is not one of the classes, or the number of labels is not n.
        """
        codes = self._codes(y).to(self.log_probs.device)
        if codes.shape[-1:] != self.log_probs.shape[-2:-1]:
            expected = f"(n,) = ({self.log_probs.shape[-2]},)"
            raise ValueError(f"`y` must have shape {expected} like the predictions; got {tuple(codes.shape)}")
        return self.log_probs.expand(*codes.shape, -1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Any:
        """Draws of the label (s, n): a tensor of codes, or an array of labels if `classes` is given."""
        probs = self.probs.to(generator.device)
        flat = probs.reshape(-1, probs.shape[-1])
        codes = torch.multinomial(flat, num_samples, replacement=True, generator=generator)
        return self._labels(codes.T.reshape(num_samples, *probs.shape[:-1]).to(self.log_probs.device))

    @property
    def total(self) -> Tensor:
        """Entropy of the averaged probabilities, nats, (n,)."""
        return entropy(self.log_probs)

    @property
    def aleatoric(self) -> Tensor:
        """Average of the entropies, nats, (n,)."""
        return self.expected_entropy

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of label and function, nats, (n,); never negative but for rounding."""
        return self.total - self.aleatoric

    def _labels(self, codes: Tensor) -> Any:
        return codes if self.classes is None else np.asarray(self.classes)[codes.cpu().numpy()]

    def _codes(self, y: Any) -> Tensor:
        """Column numbers of the labels."""
        if self.classes is None:
            codes = checks.tensor(y, name="y")
            known = (codes == codes.long()) & (codes >= 0) & (codes < self.log_probs.shape[-1])
            labels, names = codes, f"the codes 0 to {self.log_probs.shape[-1] - 1}"
        else:
            lookup = {label: code for code, label in enumerate(np.asarray(self.classes).tolist())}
            labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
            codes = torch.as_tensor([lookup.get(label, -1) for label in labels.ravel().tolist()]).reshape(labels.shape)
            known, names = codes >= 0, str(list(lookup)[:20])
        if not bool(known.all()):
            raise ValueError(f"`y` has a label that is not among {names}: {labels[~known.numpy()].ravel()[0]!r}")
        return codes.long()


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis of normalized log probabilities; impossible classes add nothing."""
    return torch.special.entr(log_probs.exp()).sum(-1)
