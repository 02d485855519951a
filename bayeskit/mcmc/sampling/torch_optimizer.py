"""A sampler as a torch optimizer: one chain, whose position is the parameters."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks, generators
from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, lists


class Optimizer(torch.optim.Optimizer):
    """Steps of a stochastic-gradient kernel with the gradients computed by `backward()`.

    The loss is the *mean* negative log likelihood over a mini-batch, without a prior, as loss functions return it. The
    gradient of the log density is then `-N grad - p w`, with N data points in all and the prior N(0, 1 / p), so N
    appears neither in the loss nor in the noise. After the burn-in, the parameters after each step are a draw from the
    posterior at the kernel's temperature.

    The kernel's `lr` belongs to that density: for a learning rate r of `torch.optim.SGD` on the same loss, pass r / N
    (and the same `momentum`, for kernels that have one). It cannot be measured here and must be given. A
    learning-rate scheduler of torch may change `param_groups[0]["lr"]`, which begins at the kernel's `lr`; `momentum`
    per step is unchanged, as with SGD. The kernel's own `schedule` keeps the friction per unit of time instead, and may
    be cyclical.

    Args:
        params: Tensors, or `network.parameters()`; one group, because a chain has one step size.
        kernel: `SGLD`, `SGHMC`, `SGNHT`, `BAOAB`, or one of these with a preconditioner; with an `lr`.
        num_data: Number of training data points N.
        prior_precision: p; weights are N(0, 1 / p) before the data.
        generator: Source of all noise; None for a new one with seed 0.

    Raises:
        ValueError: The kernel has no `lr`, or there are several groups.

    Examples:
        >>> from bayeskit import mcmc
        >>> w = torch.nn.Parameter(torch.zeros(1000))  # a thousand chains, as far as a separable loss is concerned
        >>> optimizer = Optimizer([w], mcmc.SGHMC(lr=0.1 / 100), num_data=100)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     (0.5 * (w - 1) ** 2).sum().backward()  # 100 rows of precision 1, all at 1
        ...     _ = optimizer.step()
        >>> draws = w.detach()  # N(100 / 101, 1 / 101)
        >>> bool(abs(draws.mean() - 100 / 101) < 0.02), bool(abs(draws.var() * 101 - 1) < 0.2)
        (True, True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        kernel: StochasticKernel,
        *,
        num_data: float,
        prior_precision: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        if kernel.lr is None:
            raise ValueError("`kernel` needs an `lr` here: that of torch.optim.SGD on the same loss, over `num_data`.")
        kernel.check()
        checks.positive(num_data, name="num_data")
        if prior_precision < 0:
            raise ValueError(f"`prior_precision` must not be negative; got {prior_precision!r}")
        super().__init__(params, {"lr": kernel.lr})
        if len(self.param_groups) != 1:
            raise ValueError("one chain has one step size: pass all parameters in one group, or set `preconditioner`.")
        self.kernel, self.num_data, self.prior_precision = kernel, num_data, prior_precision
        first = self.param_groups[0]["params"][0]
        self.generator = torch.Generator(first.device).manual_seed(0) if generator is None else generator
        self._chain: Any = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One transition of the chain.

        Args:
            closure: Computes the loss and its gradients and returns it; or None, if that is done already.

        Returns:
            The result of the closure, or None.

        Raises:
            RuntimeError: No parameter has a gradient.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        params = self._params()
        gradients = self._slopes(params)
        position: Position = {name: p.detach().unsqueeze(0) for name, p in params.items()}
        lr = self.param_groups[0]["lr"]
        if self._chain is None:
            self._chain = self.kernel.begin(position, lr, generator=self.generator)
        state = replace(self._chain, position=position, lr=lr)  # parameters may have been set, and `lr` scheduled
        self._chain = self.kernel.update(state, gradients, generator=self.generator)
        lists._foreach_copy_(list(params.values()), [leaf[0] for leaf in self._chain.position.values()])
        return value

    def _params(self) -> dict[str, Tensor]:
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        return {str(i): p for i, p in enumerate(params)}

    def _slopes(self, params: Mapping[str, Tensor]) -> Position:
        """Gradients of the log density; those of the prior alone for parameters without a loss gradient."""
        if all(p.grad is None for p in params.values()):
            raise RuntimeError("No parameter has a gradient: call `backward()` before `step`, or pass a closure.")
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params.values()]
        gradients = lists._foreach_mul(grads, -float(self.num_data))
        if self.prior_precision:
            lists._foreach_add_(gradients, list(params.values()), alpha=-float(self.prior_precision))
        return {name: gradient.unsqueeze(0) for name, gradient in zip(params, gradients, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Everything for a bitwise resumed run, the generator included."""
        chain = None
        if self._chain is not None:
            chain = {f.name: getattr(self._chain, f.name) for f in fields(self._chain) if f.name != "position"}
        return {**super().state_dict(), "chain": chain, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Restore the state of `state_dict`."""
        own = ("chain", "generator")
        super().load_state_dict({name: value for name, value in state_dict.items() if name not in own})
        self.generator.set_state(state_dict["generator"].cpu())
        self._chain = None
        if state_dict["chain"] is not None:
            position: Position = {name: p.detach().unsqueeze(0) for name, p in self._params().items()}
            blank = self.kernel.begin(position, self.param_groups[0]["lr"], generator=generators.fork(self.generator))
            self._chain = replace(blank, **state_dict["chain"])
