"""IVON as an optimizer for any training loop: the cost of Adam, and a Gaussian over the weights at the end.

    with optimizer.sampled_params():      weights are drawn from the posterior
        loss(...).backward()              gradients at the draw
    optimizer.step()                      updates mean and variance

Between contexts the parameters hold the posterior's mean.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from bayeskit.bnn.ivon.fused_kernel import Kernel, load
from bayeskit.bnn.ivon.perturbation import Draw, is_supported, rows_and_decay
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, generators
from bayeskit.core.optimize import distributed

HESSIANS = ("price", "gradsq")

FUSED_FROM = 10_000
"""Weights from which the C functions are used: to compile them takes a second, once."""


class IVONOptimizer(torch.optim.Optimizer):
    """Variational inference with the step of an optimizer: `q(w) = N(m, diag(1 / (n (h + d))))`.

    It minimizes `n E_q[l(w)] + KL(q || N(0, I / p))`, where l is the loss *per observation* that the body of the
    context differentiates, n = `num_data / kl_weight` and d = p / n for the prior precision p. A gradient is the
    average over all the contexts entered since the last step; entering one clears the gradients. Clip them inside.

    Every setting but `generator` and `sync` may differ between parameter groups. Parameters without `requires_grad` are
    neither perturbed nor stored; those that the loss does not depend on have gradient zero, so that they return to the
    prior. g, h and, for parameters in half precision, a copy of m are kept in at least float32.

    `torch.amp.GradScaler` works as with any optimizer: `scaler.step(optimizer)` unscales the gradients, or skips the
    step, without a trace, if one is not finite. Call `scaler.unscale_(optimizer)`, as for clipping, inside the context.

    With several processes: by default gradients are assumed to be averaged already (`DistributedDataParallel`), for
    which all ranks must draw the same weights: give every rank a generator with the same seed (the default). With
    `sync`, every rank draws its own weights, which reduces the variance, and the averages are exchanged in `step`;
    gradients must then not be averaged before (`no_sync()`).

    Args:
        params: Tensors, groups, or `network.named_parameters()`, which names the weights of `posterior()`.
        lr: Learning rate; 0.1 or so, as for plain gradient descent, decayed to zero for best results.
        num_data: Number of observations N in the training data.
        prior_precision: p; the prior of a weight is N(0, 1 / p).
        kl_weight: Factor on the KL divergence from the prior.
        hess_init: Initial h: the first draws have the variance 1 / (n (h + d)). Too small a value diverges.
        betas: Decay of gradient and Hessian averages. 1 - b2 should be a few times one over the number of steps.
        mc_samples: How often `step(closure)` calls the closure, each time at another draw.
        hess_approx: "price", the unbiased estimate by gradient times noise, or "gradsq", the squared gradient.
        gradsq_scale: Factor on the squared gradient for "gradsq": the size of a mini-batch, over which the gradient is
            a mean.
        clip_radius: Largest preconditioned gradient, per weight.
        debias: Divide the averaged gradient by 1 - b1^t.
        rescale_lr: Multiply `lr` by `hess_init` + d, which makes it that of plain gradient descent at the start.
        sync: See above.
        fused: Draw and step by compiled functions, for contiguous float32 parameters on a CPU: three times as fast, the
            same numbers to rounding. None for 10,000 weights or more where there is a C compiler, which runs once for
            about a second; True raises without one, False never compiles.
        generator: Source of all draws; None for one with seed 0.

    References:
        Shen et al. Variational learning is effective for large deep networks. ICML 2024.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = IVONOptimizer([w], lr=0.2, num_data=100, betas=(0.9, 0.99))
    >>> for _ in range(1000):
    ...     with optimizer.sampled_params():
    ...         (2 * (w - 1) ** 2).sum().backward()  # curvature 4 for each of 100 observations
    ...     _ = optimizer.step()
    >>> weights = optimizer.posterior()  # exactly N(400 / 401, 1 / 401)
    >>> abs(float(w.detach()) - 1) < 0.03, round(float(weights.covariance.diagonal()), 3)
    (True, 0.002)
    """

    _step_supports_amp_scaling = True  # `GradScaler.step` leaves unscaling and skipping to `step`

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        num_data: float,
        prior_precision: float = 1.0,
        kl_weight: float = 1.0,
        hess_init: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.99999),
        mc_samples: int = 1,
        hess_approx: str = "price",
        gradsq_scale: float | None = None,
        clip_radius: float = math.inf,
        debias: bool = True,
        rescale_lr: bool = True,
        sync: bool = False,
        fused: bool | None = None,
        generator: torch.Generator | None = None,
    ):
        defaults = {
            "lr": lr,
            "num_data": num_data,
            "prior_precision": prior_precision,
            "kl_weight": kl_weight,
            "hess_init": hess_init,
            "betas": betas,
            "hess_approx": hess_approx,
            "gradsq_scale": gradsq_scale,
            "clip_radius": clip_radius,
            "debias": debias,
            "rescale_lr": rescale_lr,
            "steps": 0,
        }
        checks.positive(mc_samples, name="mc_samples", integer=True)
        super().__init__(params, defaults)
        self.mc_samples, self.sync, self.fused = mc_samples, sync, fused
        first = self.param_groups[0]["params"][0]
        self.generator = torch.Generator(first.device).manual_seed(0) if generator is None else generator
        if sync and distributed.several():
            self.generator = generators.fork(self.generator)
            self.generator.manual_seed(generators.seed(self.generator) + distributed.rank())
        self._draws: list[Draw] = []
        self._sampling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; see the class."""
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @contextmanager
    def sampled_params(self, train: bool = True) -> Iterator[None]:
        """Set the parameters to a draw from the posterior, and on exit, also after an error, to the mean, to the bit.

        Args:
            train: Clear the gradients on entry, and use those computed in the context at the next `step`.

        Raises:
            RuntimeError: A context is open already, or, when training, no gradient was computed.
        """
        if self._sampling:
            raise RuntimeError("`sampled_params` is open already; leave it before entering it again.")
        draws = self._drawing() if train else self._new_draws()
        if train:
            self.zero_grad()
        for draw in draws:
            draw.read_mean()
        self._sampling = True
        try:
            for draw in draws:
                draw.perturb(self.generator)
            yield
            if train:
                self._observe(draws)
        finally:
            for draw in draws:
                draw.restore()
            self._sampling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update mean and variance by the gradients of the contexts since the last step.

        Args:
            closure: Clears the gradients, computes the loss, differentiates and returns it; called `mc_samples` times,
                each time in a context of its own. Without it, enter `sampled_params` yourself.

        Returns:
            The average of what the closure returned, or None.

        Raises:
            RuntimeError: There was no context since the last step, one is open, or a `GradScaler` unscaled gradients
                after they had been used.
        """
        value = None
        if closure is not None:
            values = []
            for _ in range(self.mc_samples):
                with torch.enable_grad(), self.sampled_params():
                    values.append(closure())
            value = sum(values) / len(values)
        if self._sampling:
            raise RuntimeError("`step` moves the mean: call it after `sampled_params` has been left.")
        if not self._draws or not self._draws[0].count:
            raise RuntimeError(
                "There are no gradients: compute them within `with optimizer.sampled_params():`, or "
                "pass a closure to `step`."
            )
        if hasattr(self, "found_inf") and not self._unscaled():
            for draw in self._draws:
                draw.count = 0
            return value
        for group in self.param_groups:
            group["steps"] += 1
        for draw in self._draws:
            draw.update(several=self.sync and distributed.several())
        return value

    def posterior(self) -> GaussianWeights:
        """The Gaussian over the weights, `N(m, diag(1 / (n (h + d))))`.

        They have the names given with the parameters; without names "0", "1", ..., which `monte_carlo`, `linearize` and
        `BayesNet` assign to the network's parameters in order.
        """
        mean, variances = {}, []
        for group in self.param_groups:
            n, decay = rows_and_decay(group)
            for i, p in enumerate(group["params"]):
                if p.requires_grad:
                    h = self._state(p, group)["hessian"]
                    mean[group["param_names"][i] if "param_names" in group else str(len(mean))] = p.detach().clone()
                    variances.append(1 / (n * (h.flatten() + decay)))
        return GaussianWeights(mean, DiagLinearOperator(torch.cat(variances)))

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to continue to the bit, the generator included; call it between two steps."""
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Continue from a `state_dict`."""
        super().load_state_dict(dict(state_dict))
        places = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(places, params, strict=True):  # torch has cast the state to the parameter's type
            for name, value in state_dict["state"].get(i, {}).items():
                self.state[p][name] = value.detach().to(p.device, copy=True)
        self.generator.set_state(state_dict["generator"].cpu())
        self._draws = []

    def _unscaled(self) -> bool:
        """Divide the averages by the factor of the `GradScaler` that calls; whether they are finite on every rank.

        It sets `grad_scale` to None where `unscale_` was called, which changes the last gradients in place.
        """
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            for draw in self._draws:
                draw.unscale(scale)
        device = self._draws[0].flat_gradients.device  # groups may lie on several
        finite = torch.stack([draw.is_finite().to(device) for draw in self._draws]).all().float()
        if self.sync and distributed.several():
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if finite and scale is None and any(draw.is_outdated() for draw in self._draws):
            raise RuntimeError(
                "`scaler.unscale_(optimizer)` came after `sampled_params` had been left and the scaled gradients used: "
                "call it inside the only context of a step, or leave it to `scaler.step(optimizer)`."
            )
        return bool(finite)

    def _drawing(self) -> list[Draw]:
        """The buffers of this step: the same ones until parameters are frozen, unfrozen or added."""
        if not any(draw.count for draw in self._draws):
            places = [p for draw in self._draws for p in draw.params]
            wanted = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            if len(places) != len(wanted) or any(a is not b for a, b in zip(places, wanted, strict=True)):
                self._draws = self._new_draws()
        return self._draws

    def _new_draws(self) -> list[Draw]:
        draws: list[Draw] = []
        for group in self.param_groups:
            kinds: dict[Any, list[Tensor]] = {}
            for p in group["params"]:
                if p.requires_grad:
                    kinds.setdefault((p.device, p.dtype), []).append(p)
            for params in kinds.values():
                states = [self._state(p, group) for p in params]
                draws.append(Draw(params, states, group, kernel=self._kernel(params)))
        return draws

    def _kernel(self, params: list[Tensor]) -> Kernel | None:
        """The compiled functions, if requested, worthwhile and available."""
        enough = self.fused or sum(p.numel() for p in params) >= FUSED_FROM
        if self.fused is False or not enough or not all(is_supported(p) for p in params):
            return None
        kernel = load()
        if kernel is None and self.fused:
            raise RuntimeError(
                "`fused=True` needs a C compiler (`cc`, or what the variable CC names) whose functions agree with "
                "torch's; leave `fused` out to do without."
            )
        return kernel

    def _state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """g, h and for half precision m of a parameter, created at first use."""
        state = self.state[p]
        if not state:
            like = torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)).detach()
            state["momentum"] = like
            state["hessian"] = torch.full_like(like, group["hess_init"])
            if like.dtype != p.dtype:
                state["mean"] = p.detach().to(like.dtype)
        return state

    def _observe(self, draws: list[Draw]) -> None:
        if all(p.grad is None for draw in draws for p in draw.params):
            raise RuntimeError(
                "No gradient was computed within `sampled_params`: call `backward()` inside it, or `bnn.monte_carlo("
                "network, optimizer.posterior(), x)` to predict."
            )
        for draw in draws:
            draw.observe()


def _check(group: dict[str, Any]) -> None:
    """Raise one sentence if a setting of a group is out of range."""
    for name in ("num_data", "prior_precision", "kl_weight", "hess_init"):
        checks.positive(group[name], name=name)
    if group["lr"] < 0:  # a schedule may start or end at zero
        raise ValueError(f"`lr` must be at least 0; got {group['lr']!r}")
    checks.choice(group["hess_approx"], name="hess_approx", options=HESSIANS)
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"`betas` must be two numbers in [0, 1); got {group['betas']!r}")
    if not group["clip_radius"] > 0:
        raise ValueError(f"`clip_radius` must be above 0; got {group['clip_radius']!r}")
    if group["hess_approx"] == "gradsq" and group["gradsq_scale"] is None:
        raise ValueError('hess_approx="gradsq" needs `gradsq_scale`, the size of a mini-batch.')
    for p in group["params"]:
        if not p.is_floating_point() or p.is_sparse:
            raise TypeError(f"IVON needs dense real tensors; got {p.dtype} with layout {p.layout}.")
