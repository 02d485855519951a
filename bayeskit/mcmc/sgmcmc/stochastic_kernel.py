"""What kernels of one gradient a step have in common: step size, temperature, units and noise, decided in one place.

Gradients are those of the log density of the full data, exact or estimated from a mini-batch; a step size `lr` belongs
to them, so nothing here divides or multiplies by a number of rows. Who knows a learning rate for the *mean* loss of N
rows passes `lr / N`.
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
"""Where torch keeps its operations on lists of tensors (`_foreach_add` ...), which have no public name."""


class StochasticKernel(TransitionKernel, ABC):
    """A kernel that asks for one gradient a step, exact or an unbiased estimate, and never accepts or rejects.

    Its state is a frozen dataclass with fields `position`, `lr` and `count`. `begin` and `update` are the whole
    algorithm; `init` measures the step size if none is given, and `step` takes the gradient.

    Law: in units z = q / `scale`, steps depend on the log density as a function of z alone.

    Args:
        lr: Step size for the log density of the full data, or None to measure it.
        temperature: T of the tempered law `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken, or None.
        scale: Units in which chains move, leaves that broadcast with the position's, or None for 1.
        relative_lr: With `lr=None`, the step size times the largest curvature where the chains start.
        max_kick: What a gradient may change a momentum by in one step, at T > 0, in standard deviations sqrt(T):
            `sqrt(lr) |g|` is cut off there and the share of cut numbers reported as "clipped". In equilibrium on a
            Gaussian its standard deviation is `sqrt(lr l) < 2` wherever the step is stable at all, and 0.5 with the
            measured step, so 10 leaves the law alone; where the curvature grows beyond what a step can follow, such as
            at a small noise of few rows, it keeps the chain finite. None is 10 with a measured step, and never cuts
            with one that is given, so that too large a one is seen.
    """

    lr: float | None
    temperature: float
    schedule: Schedule | None
    scale: Position | None
    relative_lr: float
    max_kick: float | None

    @abstractmethod
    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> Any:
        """The state of c chains that start at `position`, leaves (c, *shape), with a step size of `lr`."""

    @abstractmethod
    def update(self, state: Any, slopes: Position, *, generator: torch.Generator) -> Any:
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

    def prepared(
        self, log_density: LogDensity, position: Position, *, share: float = 1.0, generator: torch.Generator
    ) -> "StochasticKernel":
        """The kernel with a step size that is stable at these positions, and bears the noise of mini-batches."""
        if self.lr is not None:
            return self
        settings: Any = self
        lr = measured_lr(self, log_density, position, share=share, generator=generator)
        return replace(settings, lr=lr, max_kick=KICK if self.max_kick is None else self.max_kick)

    def step(self, state: Any, log_density: LogDensity, *, generator: torch.Generator) -> tuple[Any, Info]:
        """One gradient, one transition."""
        slopes, info = self.gradient(state, log_density)
        return self.update(state, slopes, generator=generator), info

    def gradient(self, state: Any, log_density: LogDensity) -> tuple[Position, Info]:
        """The gradient that a step goes by, leaves (c, *shape), and what there is to say about it."""
        value, slopes = value_and_gradient(log_density, self.where(state))
        size, _ = self.pace(state)
        info = {"log_density": value, "step_size": torch.full_like(value, size)}
        kick = self.max_kick if self.max_kick is not None or self.lr is not None else KICK
        if kick is not None and self.temperature > 0:
            limit = kick * (self.temperature / size) ** 0.5
            slopes, info["clipped"] = clip(slopes, limit, self.current_scale(state))
        return slopes, info

    def current_scale(self, state: Any) -> Position | None:
        """The units in which the chains move now."""
        return self.scale

    def where(self, state: Any) -> Position:
        """Where the gradient is taken: the position, or that part of it which the density knows of."""
        return state.position

    def pace(self, state: Any) -> tuple[float, float]:
        """The step size and the temperature of the step that `state` is about to take."""
        multiplier = 1.0 if self.schedule is None else self.schedule(state.count)
        return state.lr * multiplier, self.temperature if self.samples(state.count) else 0.0

    def samples(self, count: int) -> bool:
        """Whether the step after `count` steps draws from the law; in cycles some search for a mode instead."""
        return not (isinstance(self.schedule, cosine_cycles) and self.schedule.explores(count))


KICK = 10.0
"""`max_kick` of a measured step."""

PROBES = 8
"""Gradients spent on the average curvature."""


def measured_lr(
    kernel: StochasticKernel,
    log_density: LogDensity,
    position: Position,
    *,
    share: float = 1.0,
    generator: torch.Generator,
) -> float:
    """The kernel's `relative_lr` over the largest curvature of any chain's log density, in the kernel's units.

    With mini-batches that hold a `share` of the rows it is no more than heats the chains as much, on average over the
    directions, as a batch of all rows drawn with replacement would: where a model fits, a mini-batch's noise has the
    variance `curvature / share` in each direction, and adds `lr / 2` times that to the temperature, over the friction
    in a step. The few stiffest directions get hotter than that. To spare them too would take, for a network, steps a
    thousand times shorter, with which the others never move.

    Args:
        kernel: Its `relative_lr`, `scale` and, if it has one, `momentum` count.
        log_density: The log density, or an estimate of it from a mini-batch.
        position: Where to measure, leaves (n, *shape).
        share: The share of the rows in a mini-batch.
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
    density, units = _in_own_units(log_density, position, kernel.scale)
    top = curvature(density, units, generator=generator).max().item()
    if not 0 < top < float("inf"):
        raise ValueError(
            f"the curvature of the log density where the chains start is {top}, which gives no step size; "
            "give `lr`, or start elsewhere."
        )
    if share >= 1:
        return kernel.relative_lr / top
    bends = ravel(hessian_diagonal(density, units, num_probes=PROBES, generator=generator))  # (n, p)
    average = max(-bends.mean(-1).min().item(), top / bends.shape[-1])
    friction = 1 - getattr(kernel, "momentum", 0.0)
    return kernel.relative_lr * min(1 / top, share * friction / average)


def _in_own_units(log_density: LogDensity, position: Position, scale: Position | None) -> tuple[LogDensity, Position]:
    """The log density as a function of `z = q / scale`, and the position so."""
    if scale is None:
        return log_density, position
    units = {name: leaf / scale[name] for name, leaf in position.items()}
    return lambda z: log_density({name: leaf * scale[name] for name, leaf in z.items()}), units


def uphill(position: Position, by: Position, scale: Position | None, *, alpha: float) -> Position:
    """The position plus `alpha * by`, with `by` in units of `scale`."""
    leaves = lists._foreach_add(list(position.values()), list(in_units(by, scale).values()), alpha=alpha)
    return dict(zip(position, leaves, strict=True))


def clip(slopes: Position, limit: float, scale: Position | None) -> tuple[Position, torch.Tensor]:
    """Gradients cut off at `limit` over the units, and which share of each chain's numbers was, (c,).

    Not in place: autograd may hand out one number for many, or one tensor for two leaves.

    >>> clip({"x": torch.tensor([[3.0, -1.0]])}, 2.0, None)
    ({'x': tensor([[ 2., -1.]])}, tensor([0.5000]))
    """
    kept, cut, total = {}, [], 0
    for name, slope in slopes.items():
        most: Any = limit if scale is None else limit / scale[name]
        beyond = (slope.abs() > most).reshape(len(slope), -1)
        cut.append(beyond.sum(-1))
        total += beyond.shape[-1]
        kept[name] = slope.clamp(-most, most)
    return kept, (torch.stack(cut).sum(0) / total).to(next(iter(slopes.values())).dtype)


def in_units(leaves: Position, scale: Position | None) -> Position:
    """The leaves times the units: a gradient in units of `scale`, or what was in such units as it is."""
    return leaves if scale is None else {name: leaf * scale[name] for name, leaf in leaves.items()}


def add_noise(
    leaves: Position,
    variance: float,
    *,
    temperature: float,
    generator: torch.Generator,
    scale: Position | None = None,
) -> None:
    """Add N(0, variance), in units of `scale`, to every number of some fresh leaves in place; nothing at temperature 0.

    Raises:
        ValueError: The variance is negative at a temperature above 0: the known noise of the gradients is more than a
            step may have.
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
        leaf.add_(noise if scale is None else noise.mul_(scale[name]), alpha=variance**0.5)
