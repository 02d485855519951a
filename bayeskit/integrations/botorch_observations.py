"""Checked inputs of the BoTorch model: observations after the fit, estimators, output indices, noise variances."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.likelihood import StudentT
from bayeskit.gp.process.conditioned_kernel import Conditioned


@dataclass(frozen=True, eq=False)
class Observed:
    """Observations that a model is conditioned on after its fit.

    Args:
        x: Inputs (*b, n, d).
        y: Observations (*c, n, m), *c broadcasting against *b.
        noise: Their noise variances, broadcasting against y.
    """

    x: Tensor
    y: Tensor
    noise: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """*b and *c together."""
        return torch.broadcast_shapes(self.x.shape[:-2], self.y.shape[:-2])


def checked(x: Tensor, y: Tensor, noise: Tensor, *, num_outputs: int) -> Observed:
    """Observations of matching shapes.

    Args:
        x: Inputs (*b, n, d).
        y: Observations (*c, n, m).
        noise: Noise variances, broadcasting against y.
        num_outputs: m.

    Raises:
        ValueError: Shapes do not match, or a value is not finite.
    """
    if y.ndim < 2 or y.shape[-2:] != (x.shape[-2], num_outputs):
        raise ValueError(
            f"`Y` must have shape (*c, {x.shape[-2]}, {num_outputs}), a row for each of `X`; got {tuple(y.shape)}"
        )
    if not bool(y.isfinite().all()):
        raise ValueError("`Y` must be finite: leave out rows that were not observed")
    variances(noise, torch.broadcast_shapes(noise.shape[:-2], y.shape[:-2]) + y.shape[-2:], name="noise")
    return Observed(x, y, noise.expand(torch.broadcast_shapes(noise.shape, y.shape[-2:])))


def concatenated(first: Observed, second: Observed) -> Observed:
    """All observations, batches broadcast."""

    def cat(a: Tensor, b: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return torch.cat([a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])], -2)

    noises = (o.noise.expand(*o.noise.shape[:-2], *o.y.shape[-2:]) for o in (first, second))
    return Observed(cat(first.x, second.x), cat(first.y, second.y), cat(*noises))


class NoInputs(NotImplementedError, AttributeError):
    """There are no training inputs: not supported, and for `hasattr` not there."""


def inputs_in_units(model: Any) -> tuple[Tensor]:
    """The inputs that a model of a Gaussian process is conditioned at, in the units of the data.

    Args:
        model: A model of `as_model`.

    Returns:
        One tensor (n, d), for m > 1 outputs (m, n, d), as BoTorch keeps them; of training data or of inducing points.

    Raises:
        NoInputs: The method keeps none.
    """
    estimator, m = model.estimator, model.num_outputs
    kernel, scaler = getattr(estimator.posterior_, "kernel", None), estimator.input_scaler_
    if not isinstance(kernel, Conditioned) or not (scaler is None or hasattr(scaler, "shift")):
        raise NoInputs(
            f"{type(estimator.inference_).__name__} keeps no training inputs, which this function of BoTorch needs: "
            "use a method such as `gp.Exact`, or another acquisition function"
        )
    z = kernel.z.double()
    x = z if scaler is None else scaler.shift.to(z) + scaler.scale.to(z) * z
    later = None if model.observed is None else model.observed.x.to(x)
    x = x if later is None else torch.cat([x.expand(*later.shape[:-2], -1, -1), later], -2)
    return (x if m == 1 else x.unsqueeze(-3).expand(*x.shape[:-2], m, -1, -1),)


def check_estimator(estimator: Any) -> None:
    """Raise unless this is a fitted regressor whose latents are the outputs."""
    from sklearn.utils.validation import check_is_fitted

    if not all(hasattr(type(estimator), name) for name in ("sample_functions", "sample_y")):
        raise TypeError(f"`estimator` must be a GPRegressor or BNNRegressor; got {type(estimator).__name__}")
    check_is_fitted(estimator)
    likelihood = estimator.likelihood_
    members = likelihood.components or (likelihood,)
    student = isinstance(likelihood, StudentT)
    if not student and any(member.noise_variance is None for member in members):
        raise TypeError(
            f"`estimator` must have a likelihood whose latents are the outputs, Gaussian or StudentT; got "
            f"{type(members[0]).__name__}"
        )


def check_inputs(x: Any, num_features: int) -> None:
    """Raise unless these are floating-point inputs (*b, q, d)."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"`X` must be a tensor of real numbers, best in float64; got {found}")
    if x.ndim < 2 or x.shape[-1] != num_features or x.numel() == 0:
        expected = f"(*b, q, {num_features})"
        raise ValueError(
            f"`X` must have shape {expected}, with the features of the fit and at least one input; got {tuple(x.shape)}"
        )


def output_positions(output_indices: list[int], num_outputs: int) -> list[int]:
    """Non-negative output indices; raise if one is out of range."""
    m = num_outputs
    if not output_indices or any(not -m <= i < m for i in output_indices):
        raise ValueError(f"`output_indices` must choose among the {m} outputs, 0 to {m - 1}; got {output_indices}")
    return [i % m for i in output_indices]


def variances(noise: Tensor, shape: torch.Size, *, name: str = "observation_noise") -> Tensor:
    """Noise variances, expanded to (*b, q, m).

    Raises:
        ValueError: They do not broadcast, or one is negative or NaN.
    """
    try:
        wide = noise.expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` must hold noise variances that broadcast against (*b, q, m), here {tuple(shape)}; got shape "
            f"{tuple(noise.shape)}"
        ) from error
    if not bool((noise >= 0).all()):
        raise ValueError(f"`{name}` must hold noise variances, none of them negative or NaN; got {float(noise.min())}")
    return wide
