"""The precision of the prior of some weights, with a factor for each group: those of a layer, or as the user says."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from bayeskit.bnn.weights.layer_block_covariance import has_factors
from bayeskit.bnn.weights.low_rank_update import Precision
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, operators

FULL_LIMIT = 5_000
"""Most weights for which the full matrix is formed: 200 MB in float64, and some minutes to factorize."""

Setting = float | str | Mapping[str, float | str]
"""A factor, "evidence" or "bound" to learn one, or one of these for each named part of the network."""


@dataclass(frozen=True, eq=False)
class PriorPrecision:
    """`P = D^1/2 P0 D^1/2`: the precision P0 of the prior and a factor for each group, D diagonal.

    Args:
        base: P0: (p,), (p, p), or a `Precision` that is never formed; float64. Only a diagonal one has several groups.
        groups: The group of each weight, (p,).
        names: Of the groups.
        known: Whether the prior's scale is fixed.
    """

    base: Tensor | Precision
    groups: Tensor
    names: tuple[str, ...]
    known: bool

    def scaled(self, log_factors: Tensor) -> Tensor | Precision:
        """P for log factors (g,)."""
        if self.known or isinstance(self.base, Precision):
            return self.base
        if len(self.names) == 1:
            return self.base * log_factors.exp()
        return self.base * log_factors.exp()[self.groups]

    def covariance(self, log_factors: Tensor, *, dtype: torch.dtype) -> LinearOperator:
        """`P^-1`, (p, p), not formed where P is diagonal or an operator."""
        precision = self.scaled(log_factors)
        if isinstance(precision, Precision):
            return precision.covariance
        if precision.ndim == 1:
            return DiagLinearOperator((1 / precision).to(dtype))
        return operators.Inverse(precision.to(dtype))

    def quadratics(self, step: Tensor) -> Tensor:
        """`step' P0 step`, what each group adds to it, (g,)."""
        if isinstance(self.base, Tensor) and self.base.ndim == 1:
            terms = self.base * step.square()
            return terms.new_zeros(len(self.names)).index_add(0, self.groups, terms)
        if isinstance(self.base, Precision):
            return operators.quadratic(self.base.covariance, step.to(self.base.dtype)).to(step).reshape(1)
        return (step @ (self.base @ step)).reshape(1)


def prior_precision(prior: GaussianWeights, names: list[str], structure: str, setting: Setting) -> PriorPrecision:
    """The precision of the named weights given the others, and the groups whose factors are set or learnt.

    Args:
        prior: The prior of all the weights.
        names: The chosen ones, in its order.
        structure: Of the curvature; "full" and "kernel" take priors that are not diagonal, "kronecker" one of layers
            with Kronecker factors.
        setting: The factors; a mapping says which weights share one.

    Raises:
        ValueError: The setting names something else than parts of these weights, or leaves some out.
    """
    diagonal, whole = isinstance(prior.covariance, DiagLinearOperator), names == list(prior.mean)
    taken = structure == "kernel" or (structure == "kronecker" and has_factors(prior.covariance))
    unformed = whole and taken and not diagonal
    base = Precision(prior.covariance) if unformed else base_precision(prior, names, structure)
    keys = [""] * len(names)  # a prior of known scale has no factors
    if not prior.scale_known and isinstance(setting, Mapping):
        keys = _keys(names, setting, structure)
    elif not prior.scale_known:
        keys = [_owner(name, structure) for name in names]
    groups = tuple(dict.fromkeys(keys))
    sizes = [prior.mean[name].numel() for name in names]
    numbers = [torch.full((size,), groups.index(key)) for key, size in zip(keys, sizes, strict=True)]
    return PriorPrecision(base, torch.cat(numbers).to(prior.flat_mean.device), groups, prior.scale_known)


def base_precision(prior: GaussianWeights, names: list[str], structure: str) -> Tensor:
    """The precision of the named weights given the others, (p,) or (p, p), in float64."""
    kept = [torch.full((value.numel(),), name in names) for name, value in prior.mean.items()]
    chosen = torch.cat(kept).to(prior.flat_mean.device)
    if isinstance(prior.covariance, DiagLinearOperator):
        return 1 / prior.covariance.diagonal().double()[chosen]
    if structure not in ("full", "kernel"):
        raise ValueError(
            f"structure={structure!r} needs independent weights in the prior; got a "
            f"{type(prior.covariance).__name__}, the posterior of earlier data. Use structure='full', or 'diagonal' "
            "from the first data on; 'kronecker' continues from its own posterior over the same `subset`."
        )
    if len(chosen) > FULL_LIMIT:
        raise ValueError(
            f"The prior's covariance over {len(chosen)} weights is too large to invert (at most {FULL_LIMIT})."
        )
    eye = torch.eye(len(chosen), dtype=prior.covariance.dtype, device=chosen.device)
    precision = operators.solve(prior.covariance, eye).double()[chosen][:, chosen]
    return (precision + precision.mT) / 2


def start(setting: Setting, precision: PriorPrecision) -> tuple[Tensor, Tensor]:
    """Where the log factors begin, (g,) in float64, and which of them the evidence is to learn, (g,)."""
    if precision.known:
        setting = 1.0
    chosen = [setting[name] if isinstance(setting, Mapping) else setting for name in precision.names]
    learnt = torch.tensor([isinstance(value, str) for value in chosen], device=precision.groups.device)
    factors = [1.0 if isinstance(value, str) else value for value in chosen]
    return torch.tensor(factors, dtype=torch.float64, device=learnt.device).log(), learnt


def with_factor(setting: Setting, factor: float) -> Setting:
    """The setting with this factor in place of every rule."""
    if isinstance(setting, Mapping):
        return {name: factor if isinstance(value, str) else value for name, value in setting.items()}
    return factor if isinstance(setting, str) else setting


def bounded(setting: Setting) -> bool:
    """Whether factors are learnt by the lower bound from blocks of data points."""
    return "bound" in _choices(setting)


def check_setting(setting: Setting, structure: str) -> None:
    """Raise unless every factor is a positive number or one and the same rule that finds them."""
    for value in _choices(setting):
        if isinstance(value, str):
            checks.choice(value, name="prior_precision", options=("evidence", "bound"))
        else:
            checks.positive(value, name="prior_precision")
    if bounded(setting) and "evidence" in _choices(setting):
        raise ValueError("`prior_precision` must learn all its factors by one rule: 'evidence' or 'bound'")
    if bounded(setting) and structure in ("full", "kernel"):
        raise ValueError(
            f"`prior_precision='bound'` is for structures whose own evidence drops terms; structure={structure!r} has "
            "all of them: use 'evidence'."
        )


def _choices(setting: Setting) -> list[float | str]:
    return list(setting.values()) if isinstance(setting, Mapping) else [setting]


def _owner(name: str, structure: str) -> str:
    """The layer of a parameter; for one matrix over all weights, the network."""
    return "" if structure in ("full", "kernel") else name.rpartition(".")[0]


def _keys(names: list[str], setting: Mapping[str, float | str], structure: str) -> list[str]:
    """For each parameter the longest key that names it or a part of the network that it lies in."""
    keys = [_key(name, setting) for name in names]
    unused = [key for key in setting if key not in keys]
    if unused:
        raise ValueError(f"`prior_precision` names {unused}, no part of the weights of `subset`: {names}")
    layers: dict[str, str] = {}
    for name, key in zip(names, keys, strict=True):
        layer = name.rpartition(".")[0]
        if structure == "kronecker" and layers.setdefault(layer, key) != key:
            raise ValueError(
                f"`structure='kronecker'` has one factor on the prior precision of a layer; `prior_precision` names "
                f"parts of {layer!r}: {layers[layer]!r} and {key!r}. Name the layer."
            )
    return keys


def _key(name: str, setting: Mapping[str, float | str]) -> str:
    part = name
    while part not in setting:
        if not part:
            raise ValueError(
                f"`prior_precision` says nothing of {name!r}; add a factor or 'evidence' for it, for its layer, or "
                f"for the rest of the network under the key ''. Got {dict(setting)}"
            )
        part = part.rpartition(".")[0]
    return part
