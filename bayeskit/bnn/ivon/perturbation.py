"""Draws of parameters from IVON's posterior and the averages of their gradients: the buffers of `IVONOptimizer`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bayeskit.bnn.ivon.fused_kernel import Kernel
from bayeskit.bnn.ivon.update_rule import blocks, scale_noise_, update_
from bayeskit.core import generators

# Torch's operations on lists of tensors, which fuse over the list on a GPU; they are not in its type stubs.
_lists: Any = torch


MIN_NORMALS = 16
"""Below this number torch draws normals by another algorithm, which the C function does not implement."""


class Draw:
    """The parameters of one group, device and type.

    It uses memory of three times the parameters: the mean while they are perturbed, their noise (then noise times
    gradient), and the gradient; a fourth if a step has more than one draw.

    Args:
        params: The parameters, perturbed and updated in place.
        states: "momentum" and "hessian" of each, and "mean" for half precision.
        group: The settings, read at every step.
        kernel: Compiled functions to use where possible, or None.
    """

    def __init__(
        self,
        params: list[Tensor],
        states: list[dict[str, Tensor]],
        group: dict[str, Any],
        *,
        kernel: Kernel | None = None,
    ):
        self.params, self.group, self.kernel = params, group, kernel
        self.momenta = [state["momentum"] for state in states]
        self.hessians = [state["hessian"] for state in states]
        self.low = "mean" in states[0]
        self.means = [state["mean"] for state in states] if self.low else self._memory()[1]
        self.flat_gradients, self.gradients = self._memory()
        self.flat_products, self.products = self._memory()
        self.noise = self.products
        self.spare: tuple[Tensor, list[Tensor]] | None = None
        self.count = 0  # draws since the last step

    def _memory(self) -> tuple[Tensor, list[Tensor]]:
        """A buffer of the state's type: one vector, and its views in the parameters' shapes."""
        sizes = [h.numel() for h in self.hessians]
        flat = torch.empty(sum(sizes), dtype=self.hessians[0].dtype, device=self.params[0].device)
        return flat, [piece.view(h.shape) for piece, h in zip(flat.split(sizes), self.hessians, strict=True)]

    @torch.no_grad()
    def read_mean(self) -> None:
        """Take the current values of the parameters as the mean."""
        if not self.low:
            _lists._foreach_copy_(self.means, self.params)
            return
        for mean, p in zip(self.means, self.params, strict=True):
            if not torch.equal(mean.to(p.dtype), p):  # changed from outside, not the rounded mean
                mean.copy_(p)

    @torch.no_grad()
    def perturb(self, generator: torch.Generator) -> None:
        """Set the parameters to a draw."""
        if self.count == 0:
            flat, self.noise = self.flat_products, self.products
        else:  # the products hold the average over the previous draws
            self.spare = self.spare or self._memory()
            flat, self.noise = self.spare
        n, decay = rows_and_decay(self.group)
        kernel = self._usable()
        if kernel is not None and generator.device == flat.device and len(flat) >= MIN_NORMALS:
            kernel.normal_(flat, generator)
        elif generator.device == flat.device:
            flat.normal_(generator=generator)
        else:
            flat.copy_(generators.normal(tuple(flat.shape), like=flat, generator=generator))
        if kernel is not None:
            kernel.perturb_(self.params, self.means, self.noise, self.hessians, n=n, decay=decay)
            return
        for params, means, noise, hessians in blocks(self.params, self.means, self.noise, self.hessians):
            if self.low:
                scale_noise_(noise, hessians, [torch.empty_like(h) for h in hessians], n=n, decay=decay)
                _lists._foreach_copy_(params, _lists._foreach_add(means, noise))
            else:
                scale_noise_(noise, hessians, params, n=n, decay=decay)
                _lists._foreach_copy_(params, means)
                _lists._foreach_add_(params, noise)

    def _usable(self) -> Kernel | None:
        """The compiled functions, if they support the current memory layout of the parameters."""
        return self.kernel if all(is_supported(p) for p in self.params) else None

    @torch.no_grad()
    def restore(self) -> None:
        """Set the parameters to the mean."""
        _lists._foreach_copy_(self.params, self.means)

    @torch.no_grad()
    def observe(self) -> None:
        """Update the averages by the gradients at this draw."""
        pairs = zip(self.params, self.noise, strict=True)
        found = [torch.zeros_like(z) if p.grad is None else p.grad.to(z.dtype) for p, z in pairs]
        if self.group["hess_approx"] == "price":
            _lists._foreach_mul_(self.noise, found)
        else:
            _lists._foreach_copy_(self.noise, found)
            _lists._foreach_mul_(self.noise, found)
        self.count += 1
        if self.count == 1:
            _lists._foreach_copy_(self.gradients, found)
        else:
            _lists._foreach_lerp_(self.gradients, found, 1 / self.count)
            _lists._foreach_lerp_(self.products, self.noise, 1 / self.count)

    def is_outdated(self) -> bool:
        """Whether the gradients now are not those averaged: changed since, or of several draws."""
        pairs = zip(self.params, self.gradients, strict=True)
        same = self.count == 1 and all(p.grad is None or torch.equal(p.grad.to(g.dtype), g) for p, g in pairs)
        return not same

    def unscale(self, scale: Tensor) -> None:
        """Divide the averages by a factor that the loss was multiplied by, ()."""
        scale = scale.to(self.flat_gradients)
        self.flat_gradients.div_(scale)
        self.flat_products.div_(scale if self.group["hess_approx"] == "price" else scale.square())

    def is_finite(self) -> Tensor:
        """Whether the averages are finite, ()."""
        return self.flat_gradients.isfinite().all() & self.flat_products.isfinite().all()

    @torch.no_grad()
    def update(self, *, several: bool) -> None:
        """Update mean, momentum and Hessian by the averages, over all ranks if there are `several`."""
        if several:
            for flat in (self.flat_gradients, self.flat_products):
                dist.all_reduce(flat)
                flat.div_(dist.get_world_size())
        group, (n, decay) = self.group, rows_and_decay(self.group)
        price = group["hess_approx"] == "price"
        if not price:
            _lists._foreach_mul_(self.products, group["gradsq_scale"])
        kernel = self._usable()
        rule = update_ if kernel is None else kernel.update_
        lists = (self.means if self.low else self.params, self.momenta, self.hessians, self.gradients, self.products)
        for block in blocks(*lists) if kernel is None else [lists]:
            rule(
                *block,
                n=n,
                decay=decay,
                step_size=group["lr"] * (group["hess_init"] + decay if group["rescale_lr"] else 1.0),
                betas=group["betas"],
                bias=1 - group["betas"][0] ** group["steps"] if group["debias"] else 1.0,
                clip_radius=group["clip_radius"],
                price=price,
            )
        if self.low:
            self.restore()
        self.count = 0


def rows_and_decay(group: dict[str, Any]) -> tuple[float, float]:
    """The effective number of observations n, and the prior's precision over n."""
    n = group["num_data"] / group["kl_weight"]
    return n, group["prior_precision"] / n


def is_supported(p: Tensor) -> bool:
    """Whether the compiled functions support a tensor."""
    return p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous()
