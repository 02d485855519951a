"""The base class of stochastic-gradient kernels: step size, temperature, preconditioner, gradient clipping, noise.

Gradients are those of the log density of the full data, exact or estimated from a mini-batch, and `lr` is the step size
for them. A learning rate for the *mean* loss of N data points corresponds to `lr / N`.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch

from bayeskit.core import checks, generators
from bayeskit.mcmc.base.log_density import LogDensity, Position, curvature, hessian_diagonal, ravel, value_and_gradient
from bayeskit.mcmc.base.schedules import Schedule, cosine_cycles
from bayeskit.mcmc.base.transition_kernel import Info, TransitionKernel

lists: Any = torch
"""The namespace of torch's operations on lists of tensors (`_foreach_add` ...), which have no public name."""


class StochasticKernel(TransitionKernel, ABC):
    """A kernel with one gradient a step, exact or an unbiased estimate, and no accept/reject step.

    Its state is a frozen dataclass with fields `position`, `lr` and `count`. `begin` and `update` define the algorithm;
    `init` measures the step size if none is given, and `step` evaluates the gradient.

    Invariant: with a preconditioner S, the kernel is the one without applied to the log density as a function of
    z = q / S.

    Args:
        lr: Step size for the log density of the full data, or None to measure it.
        temperature: T of the tempered density `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken, or None.
        preconditioner: Diagonal S, leaves that broadcast with the position's, or None for 1.
        relative_lr: With `lr=None`, the step size times the largest curvature where the chains start.
        gradient_clip: Gradient clipping at T > 0: `sqrt(lr) |g|`, the change of a momentum in one step, is clipped at
            `gradient_clip sqrt(T)`, and the fraction of clipped components reported as "clipped". In equilibrium on a
            Gaussian it has the standard deviation `sqrt(lr l) < 2` for every stable step size, and 0.5 with the
            measured one, so 10 leaves the distribution unchanged; it keeps chains finite where the curvature grows
            beyond the stability limit, such as at small noise variances with few data. None is 10 with a measured step
            size, and no clipping with a given one, so that one that is too large shows.
    """

    lr: float | None
    temperature: float
    schedule: Schedule | None
    preconditioner: Position | None
    relative_lr: float
    gradient_clip: float | None
    gradient_noise: float = 0.0

    @abstractmethod
    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> Any:
        """The state of c chains that start at `position`, leaves (c, *shape), with a step size of `lr`."""

    @abstractmethod
    def update(self, state: Any, gradients: Position, *, generator: torch.Generator) -> Any:
        """The next state, given the gradients of the log density at `state.position`, leaves (c, *shape)."""

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> Any:
        """The chains at `position`, with the step size measured if none is given."""
        self.check()
        lr = measured_lr(self, log_density, position, generator=generator) if self.lr is None else self.lr
        return self.begin(position, lr, generator=generator)

    def check(self) -> None:
        """Refuse settings that are out of range."""
        if self.temperature < 0:
            raise ValueError(f"`temperature` must not be negative; got {self.temperature!r}")
        if self.lr is not None:
            checks.positive(self.lr, name="lr")
        if self.gradient_noise < 0:
            raise ValueError(f"`gradient_noise` must not be negative; got {self.gradient_noise!r}")

    def prepared(
        self, log_density: LogDensity, position: Position, *, share: float = 1.0, generator: torch.Generator
    ) -> "StochasticKernel":
        """The kernel with a step size that is stable at these positions and small enough for the mini-batch noise."""
        if self.lr is not None:
            return self
        settings: Any = self
        lr = measured_lr(self, log_density, position, share=share, generator=generator)
        return replace(
            settings, lr=lr, gradient_clip=GRADIENT_CLIP if self.gradient_clip is None else self.gradient_clip
        )

    def step(self, state: Any, log_density: LogDensity, *, generator: torch.Generator) -> tuple[Any, Info]:
        """One gradient, one transition."""
        gradients, info = self.gradient(state, log_density)
        return self.update(state, gradients, generator=generator), info

    def gradient(self, state: Any, log_density: LogDensity) -> tuple[Position, Info]:
        """The (clipped) gradient of a step, leaves (c, *shape), and the diagnostics of the step."""
        value, gradients = value_and_gradient(log_density, self.gradient_position(state))
        size, _ = self.step_size_and_temperature(state)
        info = {"log_density": value, "step_size": torch.full_like(value, size)}
        bound = self.gradient_clip if self.gradient_clip is not None or self.lr is not None else GRADIENT_CLIP
        if bound is not None and self.temperature > 0:
            limit = bound * (self.temperature / size) ** 0.5
            gradients, info["clipped"] = clip(gradients, limit, self.current_preconditioner(state))
        return gradients, info

    def current_preconditioner(self, state: Any) -> Position | None:
        """The preconditioner of the current step."""
        return self.preconditioner

    def gradient_position(self, state: Any) -> Position:
        """The point at which the gradient is evaluated: the position, or the part of it that the density depends on."""
        return state.position

    def step_size_and_temperature(self, state: Any) -> tuple[float, float]:
        """The step size and the temperature of the step that `state` is about to take."""
        multiplier = 1.0 if self.schedule is None else self.schedule(state.count)
        return state.lr * multiplier, self.temperature if self.samples(state.count) else 0.0

    def samples(self, count: int) -> bool:
        """Whether the step after `count` steps samples; in cyclical schedules some search for a mode instead."""
        return not (isinstance(self.schedule, cosine_cycles) and self.schedule.explores(count))


GRADIENT_CLIP = 10.0
"""`gradient_clip` with a measured step size."""

NUM_PROBES = 8
"""Number of gradients to estimate the average curvature."""


def measured_lr(
    kernel: StochasticKernel,
    log_density: LogDensity,
    position: Position,
    *,
    share: float = 1.0,
    generator: torch.Generator,
) -> float:
    """The kernel's `relative_lr` over the largest preconditioned curvature of any chain's log density.

    With mini-batches that hold a `share` of the data it is small enough that the excess variance from gradient noise,
    on average over the directions, is at most that of a batch of all data points drawn with replacement: if the model
    fits, the noise of a mini-batch has the variance `curvature / share` in each direction, and raises the temperature
    by `lr / 2` times that, over the friction in a step. In the few directions of largest curvature the excess is
    larger. Avoiding it there too would require, for a network, steps a thousand times shorter, with which the other
    directions would not mix.

    Args:
        kernel: Its `relative_lr`, `preconditioner` and, if it has one, `momentum` are used.
        log_density: The log density, or an estimate of it from a mini-batch.
        position: Where to measure, leaves (n, *shape).
        share: The share of the data in a mini-batch.
        generator: Source of all randomness.

    Raises:
        ValueError: The log density is flat there, or not finite.

    Examples:
        >>> from bayeskit import mcmc
        >>> g, start = torch.Generator().manual_seed(0), {"x": torch.zeros(1, 3)}
        >>> density = lambda q: -2 * q["x"].square().sum(-1)
        >>> [round(measured_lr(mcmc.SGLD(), density, start, share=s, generator=g), 4) for s in (1.0, 0.1)]
        [0.0625, 0.0063]
    """
    checks.positive(kernel.relative_lr, name="relative_lr")
    density, units = _preconditioned(log_density, position, kernel.preconditioner)
    top = curvature(density, units, generator=generator).max().item()
    if not 0 < top < float("inf"):
        raise ValueError(
            f"the curvature of the log density where the chains start is {top}, which gives no step size; "
            "give `lr`, or start elsewhere."
        )
    if share >= 1:
        return kernel.relative_lr / top
    hessian = ravel(hessian_diagonal(density, units, num_probes=NUM_PROBES, generator=generator))  # (n, p)
    average = max(-hessian.mean(-1).min().item(), top / hessian.shape[-1])
    friction = 1 - getattr(kernel, "momentum", 0.0)
    return kernel.relative_lr * min(1 / top, share * friction / average)


def _preconditioned(
    log_density: LogDensity, position: Position, preconditioner: Position | None
) -> tuple[LogDensity, Position]:
    """The log density as a function of `z = q / S`, and the position in these coordinates."""
    if preconditioner is None:
        return log_density, position
    units = {name: leaf / preconditioner[name] for name, leaf in position.items()}
    return lambda z: log_density({name: leaf * preconditioner[name] for name, leaf in z.items()}), units


def moved_along(position: Position, direction: Position, preconditioner: Position | None, *, alpha: float) -> Position:
    """The position plus `alpha * S * direction`."""
    change = list(precondition(direction, preconditioner).values())
    leaves = lists._foreach_add(list(position.values()), change, alpha=alpha)
    return dict(zip(position, leaves, strict=True))


def clip(gradients: Position, limit: float, preconditioner: Position | None) -> tuple[Position, torch.Tensor]:
    """Gradients clipped at `limit / S`, and the fraction of clipped components of each chain, (c,).

    Not in place: autograd may return expanded tensors, or one tensor for two leaves.

    >>> clip({"x": torch.tensor([[3.0, -1.0]])}, 2.0, None)
    ({'x': tensor([[ 2., -1.]])}, tensor([0.5000]))
    """
    kept, cut, total = {}, [], 0
    for name, gradient in gradients.items():
        most: Any = limit if preconditioner is None else limit / preconditioner[name]
        beyond = (gradient.abs() > most).reshape(len(gradient), -1)
        cut.append(beyond.sum(-1))
        total += beyond.shape[-1]
        kept[name] = gradient.clamp(-most, most)
    return kept, (torch.stack(cut).sum(0) / total).to(next(iter(gradients.values())).dtype)


def precondition(leaves: Position, preconditioner: Position | None) -> Position:
    """The leaves times S: a gradient with respect to `z = q / S`, or a change of z as one of q."""
    return leaves if preconditioner is None else {name: leaf * preconditioner[name] for name, leaf in leaves.items()}


def add_noise(
    leaves: Position,
    variance: float,
    *,
    temperature: float,
    generator: torch.Generator,
    preconditioner: Position | None = None,
) -> None:
    """Add S N(0, variance) to the leaves in place; nothing at temperature 0.

    Raises:
        ValueError: The variance is negative at a temperature above 0: the known gradient noise exceeds the noise of a
            step.
    """
    if temperature == 0:
        return
    if variance < 0:
        raise ValueError(
            f"the noise of the gradients alone is more than temperature {temperature:g} allows (what is to be added "
            f"would have variance {variance:.3g}); lower `lr` or `gradient_noise`."
        )
    for name, leaf in leaves.items():
        noise = generators.normal(leaf.shape, like=leaf, generator=generator)
        leaf.add_(noise if preconditioner is None else noise.mul_(preconditioner[name]), alpha=variance**0.5)
