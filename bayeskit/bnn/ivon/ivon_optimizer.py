"""IVON as an optimizer in anybody's training loop: the cost of Adam, and a Gaussian over the weights at the end.

    with optimizer.sampled_params():      weights are drawn from the posterior
        loss(...).backward()              gradients at the draw
    optimizer.step()                      mean and variance move

Between contexts the parameters hold the posterior's mean.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from bayeskit.bnn.ivon.fused_kernel import Kernel, load
from bayeskit.bnn.ivon.perturbation import Draw, rows_and_decay, suits
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, generators
from bayeskit.core.optimize import distributed

HESSIANS = ("price", "gradsq")

FUSED_FROM = 10_000
"""Weights from which on a compiler is asked for: it takes a second once."""


class IVONOptimizer(torch.optim.Optimizer):
    """Variational inference with the step of an optimizer: `q(w) = N(m, diag(1 / (n (h + d))))`.

    It minimizes `n E_q[l(w)] + KL(q || N(0, I / p))`, where l is the loss *per row* that the body of the context
    differentiates, n = `num_data / kl_weight` and d = p / n for the prior precision p. A gradient is the average over
    all the contexts entered since the last step; entering one clears the gradients. Clip them, if at all, inside.

    Every setting but `generator` and `sync` may differ between parameter groups. Parameters that need no gradient are
    neither perturbed nor remembered; those that the loss did not touch have gradient zero, so that they fall back to
    the prior. g, h and, for parameters in half precision, a copy of m are kept in float32 at least.

    With several processes: by default gradients are taken to be averaged already (`DistributedDataParallel`), for which
    all ranks must draw the same weights, so give every rank a generator with the same seed (as is the case without
    one). With `sync`, every rank draws its own weights, which makes a better estimate, and the averages are exchanged
    in `step`; gradients must then stay as they are on each rank (`no_sync()`).

    Args:
        params: Tensors, groups, or `network.named_parameters()`, which names the weights of `posterior()`.
        lr: Learning rate; 0.1 or so, as for plain gradient descent, decayed to zero for best results.
        num_data: Number of rows N in the training data.
        prior_precision: p; weights are N(0, 1 / p) before the data.
        kl_weight: What the divergence from the prior is multiplied by.
        hess_init: h at the start: the first draws have the variance 1 / (n (h + d)). Too small a value diverges.
        betas: Decay of gradient and Hessian averages. 1 - b2 should be a few times one over the number of steps.
        mc_samples: How often `step(closure)` calls the closure, each time at another draw.
        hess_approx: "price", the unbiased estimate by gradient times noise, or "gradsq", the squared gradient.
        gradsq_scale: What "gradsq" multiplies the squared gradient by: the number of rows in a mini-batch, since the
            gradient is their mean.
        clip_radius: Largest move of the scaled gradient, per weight.
        debias: Divide the averaged gradient by 1 - b1^t.
        rescale_lr: Multiply `lr` by `hess_init` + d, which makes it that of plain gradient descent at the start.
        sync: See above.
        fused: Draw and step by compiled functions, for contiguous float32 parameters on a CPU: three times as fast, the
            same numbers to rounding. None where there are 10,000 weights or more and a C compiler, which is asked once
            and takes a second; True raises where they cannot be had, False never asks.
        generator: Source of all draws; None starts one at seed 0.

    References:
        Shen et al. Variational learning is effective for large deep networks. ICML 2024.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = IVONOptimizer([w], lr=0.2, num_data=100, betas=(0.9, 0.99))
    >>> for _ in range(1000):
    ...     with optimizer.sampled_params():
    ...         (2 * (w - 1) ** 2).sum().backward()  # curvature 4 in each of 100 rows
    ...     _ = optimizer.step()
    >>> weights = optimizer.posterior()  # exactly N(400 / 401, 1 / 401)
    >>> abs(float(w.detach()) - 1) < 0.03, round(float(weights.covariance.diagonal()), 3)
    (True, 0.002)
    """

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
        """The parameters hold a draw from the posterior; on leaving, also by an error, the mean again, to the bit.

        Args:
            train: Clear the gradients on entry, and learn from those found on leaving at the next `step`.

        Raises:
            RuntimeError: A context is open already, or, when training, no gradient was computed.
        """
        if self._sampling:
            raise RuntimeError("`sampled_params` is open already; leave it before entering it again.")
        draws = self._drawing() if train else self._new_draws()
        if train:
            self.zero_grad()
        for draw in draws:
            draw.remember()
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
        """Move mean and variance by what the contexts since the last step have seen.

        Args:
            closure: Clears the gradients, computes the loss, differentiates and returns it; called `mc_samples` times,
                each time in a context of its own. Without it, enter `sampled_params` yourself.

        Returns:
            The average of what the closure returned, or None.

        Raises:
            RuntimeError: There was no context since the last step, or one is open.
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
                "There is nothing to learn from: compute the gradients within `with optimizer.sampled_params():`, or "
                "pass a closure to `step`."
            )
        for group in self.param_groups:
            group["steps"] += 1
        for draw in self._draws:
            draw.learn(several=self.sync and distributed.several())
        return value

    def posterior(self) -> GaussianWeights:
        """The Gaussian over the weights, `N(m, diag(1 / (n (h + d))))`.

        They have the names given with the parameters; without names the places "0", "1", ..., for which `monte_carlo`,
        `linearize` and `BayesNet` take the network's parameters in order.
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
        """All that a run needs to go on to the bit, the generator included; to be taken between two steps."""
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take up where `state_dict` was taken."""
        super().load_state_dict(dict(state_dict))
        places = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(places, params, strict=True):  # torch has cast the state to the parameter's type
            for name, value in state_dict["state"].get(i, {}).items():
                self.state[p][name] = value.detach().to(p.device, copy=True)
        self.generator.set_state(state_dict["generator"].cpu())
        self._draws = []

    def _drawing(self) -> list[Draw]:
        """Where this step's draws are made: those in use until parameters are frozen, thawed or added."""
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
        """The compiled functions, if they are wanted, worth their while and there."""
        enough = self.fused or sum(p.numel() for p in params) >= FUSED_FROM
        if self.fused is False or not enough or not all(suits(p) for p in params):
            return None
        kernel = load()
        if kernel is None and self.fused:
            raise RuntimeError(
                "`fused=True` needs a C compiler (`cc`, or what the variable CC names) whose functions agree with "
                "torch's; leave `fused` out to do without."
            )
        return kernel

    def _state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """g, h and for low precision m of a parameter, made when first asked for."""
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
        raise ValueError('hess_approx="gradsq" needs `gradsq_scale`, the number of rows in a mini-batch.')
    for p in group["params"]:
        if not p.is_floating_point() or p.is_sparse:
            raise TypeError(f"IVON moves dense real tensors; got {p.dtype} with layout {p.layout}.")
