"""Deep kernel learning: k(x, x') = base(h(x), h(x')) for a network h, learned with the hyperparameters."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ROWS = 8192
"""Inputs per forward pass of the network: large enough for full speed, small enough for wide networks in memory."""


class DeepKernel(Kernel):
    """The kernel `base(h(x), h(x'))` on the features of a network h.

    The network runs in its own floating type and in evaluation mode (no dropout); the kernel and everything after it
    run in float64 on its features. Every inference that learns hyperparameters learns the weights as well;
    `network.requires_grad_(False)` fixes them. Features are not rescaled: a final `nn.Tanh()` keeps them on the scale
    of lengthscales of about one.

    Maximizing the evidence over many weights can overfit as least squares does, above all with few data: compare with
    a plain kernel on held-out data.

    Args:
        network: Maps rows (n, *input_shape) to features (n, p); a copy is kept, yours stays as it is.
        base_kernel: A gpytorch kernel on the features; `ard_num_dims=p` for a lengthscale each.
        input_shape: Shape of one input of the network, such as (1, 28, 28), where the rows given are flat; None for
            inputs as they are.

    Raises:
        TypeError: `network` is not a module, or `base_kernel` not a kernel.
        ValueError: The network has BatchNorm in training mode, whose features of a row depend on the other rows.

    References:
        Wilson, Hu, Salakhutdinov and Xing (2016), "Deep Kernel Learning", equation 5.
        Ober, Rasmussen and van der Wilk (2021), "The Promises and Pitfalls of Deep Kernel Learning", on overfitting.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel = DeepKernel(nn.Linear(3, 2), RBFKernel(ard_num_dims=2)).double()
        >>> kernel.features(torch.zeros(5, 3)).shape, kernel.network.weight.dtype
        (torch.Size([5, 2]), torch.float32)
    """

    def __init__(self, network: nn.Module, base_kernel: Kernel, *, input_shape: tuple[int, ...] | None = None):
        if not isinstance(network, nn.Module):
            raise TypeError(f"`network` must be a torch.nn.Module; got {type(network).__name__}")
        if not isinstance(base_kernel, Kernel):
            raise TypeError(f"`base_kernel` must be a gpytorch kernel; got {type(base_kernel).__name__}")
        super().__init__(batch_shape=base_kernel.batch_shape)
        coupled = [name for name, layer in network.named_modules() if isinstance(layer, _BatchNorm) and layer.training]
        if coupled:
            raise ValueError(
                f"`network` has BatchNorm in training mode ({', '.join(coupled)}), so the features of a row depend on "
                "the other rows and there is no kernel; freeze its statistics by `network.eval()`, or use LayerNorm"
            )
        self.network = copy.deepcopy(network).eval()
        self.base_kernel = base_kernel
        self.input_shape = input_shape

    def features(self, x: Tensor) -> Tensor:
        """The network's outputs at rows (*b, n, d), (*b, n, p), in the floating type of `x`."""
        batch = x.shape[:-2]
        if batch:  # the same rows for each kernel of a batch go through the network once
            same = all(stride == 0 or size == 1 for size, stride in zip(batch, x.stride(), strict=False))
            rows = x[(0,) * len(batch)] if same else x.reshape(-1, x.shape[-1])
            values = self.features(rows)
            return values.expand(*batch, *values.shape) if same else values.reshape(*x.shape[:-1], -1)
        values = torch.cat([self._outputs(rows) for rows in x.split(ROWS)])
        self._check(x, values)
        return values.to(x.dtype)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Any:
        """Covariances (*b, n1, n2), or of pairs (*b, n) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("a DeepKernel does not support `last_dim_is_batch=True`")
        first = self.features(x1)
        return self.base_kernel(first, first if x1 is x2 else self.features(x2), diag=diag)

    def train(self, mode: bool = True) -> "DeepKernel":
        """Set the mode of all but the network, which stays in evaluation mode: a kernel is a fixed function."""
        super().train(mode)
        self.network.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DeepKernel":
        """Apply `.double()`, `.to(...)` and the like to each tensor; the network keeps its floating type."""
        for module in self.children():
            module._apply(_typed(fn) if module is self.network else fn)
        super()._apply(fn, recurse=False)
        return self

    def _outputs(self, rows: Tensor) -> Tensor:
        weights = [p for p in self.network.parameters() if p.is_floating_point()]
        rows = rows.to(weights[0].dtype) if weights else rows
        return self.network(rows if self.input_shape is None else rows.reshape(-1, *self.input_shape))

    def _check(self, x: Tensor, values: Tensor) -> None:
        if values.dim() != 2 or len(values) != len(x):
            raise ValueError(
                f"`network` must return features of shape (n, p) with n = {len(x)}; got {tuple(values.shape)}. "
                "Flatten its output."
            )
        for part in self.base_kernel.modules():
            known = isinstance(part, Kernel) and part.active_dims is None and part.ard_num_dims is not None
            if known and part.ard_num_dims != values.shape[-1]:
                raise ValueError(
                    f"`base_kernel` has `ard_num_dims={part.ard_num_dims}`, and the network gives {values.shape[-1]} "
                    f"features: use `{type(part).__name__}(ard_num_dims={values.shape[-1]})`"
                )


def network_weights(module: nn.Module) -> list[nn.Parameter]:
    """The weights of the networks of all deep kernels inside a module.

    Examples:
        >>> from gpytorch.kernels import RBFKernel, ScaleKernel
        >>> [tuple(p.shape) for p in network_weights(ScaleKernel(DeepKernel(nn.Linear(3, 2), RBFKernel())))]
        [(2, 3), (2,)]
    """
    networks = [part.network for part in module.modules() if isinstance(part, DeepKernel)]
    return [p for network in networks for p in network.parameters()]


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter requires a gradient and every hyperparameter is float64; networks keep their own type.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel = DeepKernel(nn.Linear(3, 2), RBFKernel()).requires_grad_(False)
        >>> is_frozen(kernel), is_frozen(kernel.double())
        (False, True)
    """
    weights = {id(p) for p in network_weights(module)}
    return all(not p.requires_grad and (p.dtype == torch.float64 or id(p) in weights) for p in module.parameters())


def _typed(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` without a change of floating type."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
