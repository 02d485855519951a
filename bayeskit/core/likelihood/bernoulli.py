"""Two classes on one latent."""

from typing import Literal

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.likelihood import noise_marginals
from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import CategoricalPredictive


class Bernoulli(Likelihood):
    """Two classes, P(y = 1 | f) = link^-1(f) with one latent; codes 0 and 1.

    Args:
        link: "logit" (the logistic function; quadrature for the class probabilities) or "probit" (the normal cdf;
            the class probabilities are exact, Phi(m / sqrt(1 + v))).

    References:
        Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, eq. 3.82 (probit integral).

    Examples:
        >>> Bernoulli().distribution(torch.zeros(2, 1)).probs
        tensor([0.5000, 0.5000])
    """

    target = "binary"

    def __init__(self, link: Literal["logit", "probit"] = "logit"):
        super().__init__()
        checks.choice(link, name="link", options=("logit", "probit"))
        self.link = link

    @property
    def has_logits(self) -> bool:
        """Whether the link is the logistic function."""
        return self.link == "logit"

    def num_latents(self, y: Tensor) -> int:
        """One."""
        return 1

    def distribution(self, f: Tensor) -> td.Distribution:
        """Bernoulli distribution of each label, batch (*b, n)."""
        f = f.squeeze(-1)
        # the log odds of a probit, log Phi(f) - log Phi(-f), keep both tails
        logits = f if self.link == "logit" else torch.special.log_ndtr(f) - torch.special.log_ndtr(-f)
        return td.Bernoulli(logits=logits, validate_args=False)

    def gaussian_predictive(self, values: FunctionValues) -> CategoricalPredictive:
        """Class probabilities exact for the probit link, by quadrature for the logit; entropies by quadrature."""
        predictive = noise_marginals.label_quadrature(self._log_probs, values, smooth=True)
        if self.link == "logit":
            return predictive
        z = values.mean / (1 + values.variance).sqrt()  # (*b, n, 1)
        log_probs = torch.special.log_ndtr(torch.cat([-z, z], dim=-1))
        return CategoricalPredictive(log_probs, predictive.expected_entropy, rule="exact")

    def _log_probs(self, f: Tensor) -> Tensor:
        """Log probabilities of the classes 0 and 1, (*b, n, 2), for f of shape (*b, n, 1)."""
        both = torch.cat([-f, f], dim=-1)
        return torch.nn.functional.logsigmoid(both) if self.link == "logit" else torch.special.log_ndtr(both)
