"""Kernels that `torch.export` can trace: plain tensor operations, fixed hyperparameters."""

import math
from functools import reduce
from operator import add, mul
from typing import Any, cast

import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    CosineKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from torch import Tensor, nn

from bayeskit.gp.kernels.deep import DeepKernel
from bayeskit.gp.kernels.evaluate import outer_dims
from bayeskit.gp.kernels.stationary import CANCELLATION


def traced(kernel: Kernel, z: Tensor) -> nn.Module:
    """Covariances with fixed inputs as a module: `module(x)` is k(z, x), and `module.variance(x)` is k(x, x).

    Args:
        kernel: RBF, Matern, rational quadratic, periodic, linear, polynomial, cosine and constant kernels, scaled,
            added, multiplied, after a network (`DeepKernel`), on some columns of x.
        z: Fixed inputs (m, d).

    Returns:
        A module from (n, d) to (*b, m, n); its `variance` gives (*b, n).

    Raises:
        TypeError: The kernel is of another class.

    Examples:
        >>> traced(RBFKernel().double().requires_grad_(False), torch.zeros(2, 1).double())(torch.zeros(3, 1).double())
        tensor([[1., 1., 1.],
                [1., 1., 1.]], dtype=torch.float64)
    """
    if isinstance(kernel, DeepKernel):
        return _Deep(kernel, z)
    dims = outer_dims(kernel) if type(kernel) is ScaleKernel else kernel.active_dims
    if dims is not None:
        return _Columns(cast(Tensor, dims), kernel, z)
    return _whole(kernel, z)


def _whole(kernel: Kernel, z: Tensor) -> nn.Module:
    """A kernel that uses all columns."""
    if type(kernel) is ScaleKernel:
        return _Combined([_Constant(kernel.outputscale, z), traced(kernel.base_kernel, z)], product=True)
    if type(kernel) in (AdditiveKernel, ProductKernel):
        parts = [traced(part, z) for part in cast(Any, kernel.kernels)]
        return _Combined(parts, product=type(kernel) is ProductKernel)
    if type(kernel) is ConstantKernel:
        return _Constant(cast(Tensor, kernel.constant).squeeze(-1), z)
    for known, build in _KERNELS.items():
        if type(kernel) is known:
            return build(kernel, z)
    raise TypeError(
        f"a {type(kernel).__name__} cannot be exported; those that can are "
        f"{', '.join(known.__name__ for known in _KERNELS)}, ConstantKernel and DeepKernel, scaled, added or multiplied"
    )


class _Combined(nn.Module):
    """The sum or the product of some kernels."""

    def __init__(self, parts: list[nn.Module], *, product: bool):
        super().__init__()
        self.parts, self.join = nn.ModuleList(parts), mul if product else add

    def forward(self, x: Tensor) -> Tensor:
        return reduce(self.join, [part(x) for part in self.parts])

    def variance(self, x: Tensor) -> Tensor:
        return reduce(self.join, [cast(Any, part).variance(x) for part in self.parts])


class _Columns(nn.Module):
    """A kernel of some columns of x."""

    def __init__(self, dims: Tensor, kernel: Kernel, z: Tensor):
        super().__init__()
        self.dims: Tensor
        self.register_buffer("dims", dims.clone())
        self.inner: Any = _whole(kernel, z.index_select(-1, dims))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.index_select(-1, self.dims))

    def variance(self, x: Tensor) -> Tensor:
        return self.inner.variance(x.index_select(-1, self.dims))


class _Deep(nn.Module):
    """A kernel of the features of a network."""

    def __init__(self, kernel: DeepKernel, z: Tensor):
        super().__init__()
        self.network, self.input_shape = kernel.network, kernel.input_shape
        self.dtype = next((p.dtype for p in kernel.network.parameters() if p.is_floating_point()), z.dtype)
        self.inner: Any = traced(kernel.base_kernel, kernel.features(z))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self._features(x))

    def variance(self, x: Tensor) -> Tensor:
        return self.inner.variance(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        rows = x.to(self.dtype)
        return self.network(rows if self.input_shape is None else rows.reshape(-1, *self.input_shape)).to(x.dtype)


class _Constant(nn.Module):
    """The same covariance everywhere."""

    def __init__(self, value: Tensor, z: Tensor):
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", value.detach().to(z.dtype).clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.value[..., None, None]

    def variance(self, x: Tensor) -> Tensor:
        return self.value[..., None].expand(*self.value.shape, x.shape[0])


class _OfDistance(nn.Module):
    """phi(|x - z|^2) with inputs divided by lengthscales; phi(0) = 1."""

    def __init__(self, kernel: Kernel, z: Tensor):
        super().__init__()
        self.lengthscale: Tensor
        self.center: Tensor
        self.a: Tensor
        self.register_buffer("lengthscale", _lengthscale(kernel))
        self.register_buffer("center", z.mean(-2, keepdim=True))  # far from the origin, |a|^2 + |b|^2 - 2ab cancels
        self.register_buffer("a", (z - self.center) / self.lengthscale)
        size = float(self.a.square().sum(-1).max()) if len(z) else 0.0
        self.apart = torch.finfo(z.dtype).eps * size > CANCELLATION
        self.smoothness = kernel.nu if isinstance(kernel, MaternKernel) else math.inf
        self.alpha: Tensor | None
        self.register_buffer("alpha", kernel.alpha.detach()[..., None] if isinstance(kernel, RQKernel) else None)

    def forward(self, x: Tensor) -> Tensor:
        squared = self._squared((x - self.center) / self.lengthscale)
        if self.alpha is not None:
            return (1 + squared / (2 * self.alpha)) ** -self.alpha
        if self.smoothness == math.inf:
            return (-squared / 2).exp()
        u = (2 * self.smoothness * squared).sqrt()
        polynomial = {0.5: 1.0, 1.5: 1 + u, 2.5: 1 + u + u**2 / 3}[self.smoothness]
        return polynomial * (-u).exp()

    def variance(self, x: Tensor) -> Tensor:
        return self.lengthscale.new_ones(()).expand(*self.lengthscale.shape[:-2], x.shape[0])

    def _squared(self, b: Tensor) -> Tensor:
        if self.apart:
            columns = zip(self.a.unbind(-1), b.unbind(-1), strict=True)
            return reduce(add, [(p.unsqueeze(-1) - q.unsqueeze(-2)) ** 2 for p, q in columns])
        squares = self.a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
        return (squares - 2 * self.a @ b.mT).clamp_min(0)


class _Cosine(nn.Module):
    """cos(pi |x - z| / p)."""

    def __init__(self, kernel: CosineKernel, z: Tensor):
        super().__init__()
        self.period: Tensor
        self.z: Tensor
        self.register_buffer("period", cast(Tensor, kernel.period_length).detach())
        self.register_buffer("z", z)

    def forward(self, x: Tensor) -> Tensor:
        difference = (self.z.unsqueeze(-2) - x.unsqueeze(-3)) / self.period.unsqueeze(-1)  # (*b, m, n, d)
        return (math.pi * difference.square().sum(-1).sqrt()).cos()

    def variance(self, x: Tensor) -> Tensor:
        return self.period.new_ones(()).expand(*self.period.shape[:-2], x.shape[0])


class _Periodic(nn.Module):
    """exp(-2 sum_j sin^2(pi (x_j - z_j) / p_j) / l_j)."""

    def __init__(self, kernel: PeriodicKernel, z: Tensor):
        super().__init__()
        self.period: Tensor
        self.lengthscale: Tensor
        self.z: Tensor
        self.register_buffer("period", cast(Tensor, kernel.period_length).detach())
        self.register_buffer("lengthscale", _lengthscale(kernel))
        self.register_buffer("z", z)

    def forward(self, x: Tensor) -> Tensor:
        difference = (self.z.unsqueeze(-2) - x.unsqueeze(-3)) / self.period.unsqueeze(-2)  # (*b, m, n, d)
        return (-2 * (math.pi * difference).sin().square() / self.lengthscale.unsqueeze(-2)).sum(-1).exp()

    def variance(self, x: Tensor) -> Tensor:
        return self.period.new_ones(()).expand(*self.period.shape[:-2], x.shape[0])


class _Product(nn.Module):
    """(x' D z + c)^q."""

    def __init__(self, scale: Tensor, offset: Tensor, power: int, z: Tensor):
        super().__init__()
        self.scale: Tensor
        self.offset: Tensor
        self.z: Tensor
        self.register_buffer("scale", scale.detach())  # (*b, 1, d) or (*b, 1, 1)
        self.register_buffer("offset", offset.detach())  # (*b, 1)
        self.register_buffer("z", z)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return ((self.z * self.scale) @ x.mT + self.offset.unsqueeze(-1)) ** self.power

    def variance(self, x: Tensor) -> Tensor:
        return ((x * self.scale * x).sum(-1) + self.offset) ** self.power


def _linear(kernel: LinearKernel, z: Tensor) -> _Product:
    variance = cast(Tensor, kernel.variance)
    return _Product(variance, variance.new_zeros(*variance.shape[:-2], 1), 1, z)


def _polynomial(kernel: PolynomialKernel, z: Tensor) -> _Product:
    offset = cast(Tensor, kernel.offset)
    return _Product(offset.new_ones(*offset.shape, 1), offset, int(kernel.power), z)


def _lengthscale(kernel: Kernel) -> Tensor:
    return cast(Tensor, kernel.lengthscale).detach().clone()


_KERNELS: dict[type[Kernel], Any] = {
    RBFKernel: _OfDistance,
    MaternKernel: _OfDistance,
    RQKernel: _OfDistance,
    PeriodicKernel: _Periodic,
    CosineKernel: _Cosine,
    LinearKernel: _linear,
    PolynomialKernel: _polynomial,
}
