"""Missing targets: an entry that is NaN was not observed, and adds nothing to anything summed over observations.

    log p(y_i | f_i) = sum over the observed outputs t of log p(y_it | f_i)

A missing entry is filled with a value in the support before anything is computed, and its term is dropped afterwards:
arithmetic on NaN would reach the gradients of everything else, even through a term that is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core.predictive import distribution_cdfs


@dataclass(frozen=True, eq=False)
class Observed:
    """Targets with missing entries filled, and where they were.

    Args:
        y: Targets of the shape given, every missing entry filled.
        mask: Where y was observed, (*b, n, t); None where all of it was.
    """

    y: Tensor
    mask: Tensor | None

    @classmethod
    def read(cls, distribution: Callable[[Tensor], td.Distribution], f: Tensor, y: Tensor, *, owner: str) -> "Observed":
        """Fill the missing entries of `y`, if there are any.

        Args:
            distribution: That of y given latents.
            f: Latents (*b, n, k) at which it may be evaluated.
            y: (*b, n, t) or (n,) targets; NaN for what was not observed.
            owner: Name of the likelihood, for the error.

        Raises:
            ValueError: Entries are missing, and the distribution has no factor for each output.
        """
        gaps = y.isnan() if y.is_floating_point() else None
        if gaps is None or not bool(gaps.any()):
            return cls(y, None)
        mask = ~(gaps.unsqueeze(-1) if y.ndim == 1 else gaps)
        with distribution_cdfs.unvalidated():
            given = distribution(f.detach().reshape(-1, *f.shape[-2:])[0])  # (n, k): the batch axes share the targets
        outputs, latents = mask.shape[-1], f.shape[-1]
        factors = outputs == 1 or distribution_cdfs.per_output(given, torch.Size((f.shape[-2], outputs))) is not None
        if not factors or latents % outputs:
            raise ValueError(
                f"{owner} has one joint distribution for all {outputs} outputs of a row, so `y` may not have single "
                "missing (NaN) entries; drop or impute those rows, or use a likelihood that factorizes over outputs"
            )
        filling = distribution_cdfs.allowed(given).to(y).reshape(y.shape[-2:] if y.ndim > 1 else y.shape)
        return cls(torch.where(gaps, filling, y), mask)

    def total(self, terms: Tensor, f: Tensor) -> Tensor:
        """The sum over observed outputs, (*b, n), of terms (*b, n, t), or of (*b, n) where there is one for each row.

        Args:
            terms: As computed from `y`.
            f: The latents, for their number of axes.
        """
        each = terms if terms.ndim == f.ndim else terms.unsqueeze(-1)
        if self.mask is None:
            return each.sum(-1)
        if each.shape[-1] != self.mask.shape[-1]:
            raise ValueError(
                f"`y` has missing (NaN) entries, which needs one term for each of its {self.mask.shape[-1]} outputs; "
                f"got {each.shape[-1]}: let `log_prob_terms` and `expected_log_prob_terms` not sum over outputs"
            )
        return torch.where(self.mask, each, 0.0).sum(-1)

    def latents(self, values: Tensor) -> Tensor:
        """Values of the latents (*b, n, k) with zeros for those of outputs that were not observed.

        Latent j belongs to output j modulo t: one latent each, or the first of each output, then the second of each.
        """
        return values if self.mask is None else torch.where(self._of_latents(values.shape[-1]), values, 0.0)

    def blocks(self, values: Tensor) -> Tensor:
        """Matrices over the latents (*b, n, k, k) with zero rows and columns for outputs that were not observed."""
        if self.mask is None:
            return values
        seen = self._of_latents(values.shape[-1])
        return torch.where(seen.unsqueeze(-1) & seen.unsqueeze(-2), values, 0.0)

    def _of_latents(self, k: int) -> Tensor:
        """Which latents have an observed output, (*b, n, k)."""
        assert self.mask is not None
        return torch.cat([self.mask] * (k // self.mask.shape[-1]), dim=-1)
