"""Calling a network on inputs, and the output tensor among its return values."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeskit.core.inputs import Batch


def run(network: nn.Module, x: Batch) -> Tensor:
    """The output tensor of a network at inputs: see `arguments` and `output`.

    Examples:
        >>> network = nn.Linear(2, 3)
        >>> run(network, torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    positional, named = arguments(network, x)
    with known_attention():
        return output(network(*positional, **named))


def arguments(network: nn.Module, x: Batch) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """Inputs as positional and named arguments of a network.

    A tensor is the first argument. Named inputs are arguments by their names if `forward` knows any of them, as in
    `forward(self, input_ids, attention_mask)`, and one dictionary otherwise, as in `forward(self, batch)`.

    Raises:
        TypeError: `forward` knows some of the names and lacks others.

    Examples:
        >>> from bayeskit.core.inputs import as_inputs
        >>> pair = as_inputs({"input1": torch.zeros(3, 2), "input2": torch.ones(3, 2)})
        >>> list(arguments(nn.Bilinear(2, 2, 1), pair)[1])
        ['input1', 'input2']
    """
    if isinstance(x, Tensor):
        return (x,), {}
    known = inspect.signature(network.forward).parameters.values()
    by_name = {p.name: p for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [name for name, p in by_name.items() if p.default is p.empty]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in known)
    if by_name.keys().isdisjoint(x.leaves) and (required or not takes_any):
        return (dict(x.leaves),), {}
    unknown = [] if takes_any else [name for name in x.leaves if name not in by_name]
    missing = [name for name in required if name not in x.leaves]
    if unknown or missing:
        raise TypeError(
            f"`{type(network).__name__}.forward` takes {list(by_name)}; got inputs named {list(x.leaves)}. Rename "
            "them, or let `forward` take one dictionary."
        )
    return (), dict(x.leaves)


def output(result: Any) -> Tensor:
    """The output tensor among the return values of a network: itself, its `logits`, or the first of several.

    Raises:
        TypeError: There is no such tensor.

    Examples:
        >>> output((torch.zeros(2, 1), "attention")).shape
        torch.Size([2, 1])
    """
    if isinstance(result, Tensor):
        return result
    found = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if found is None and isinstance(result, tuple | list) and result:
        found = result[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            "A network must return a tensor, something with `logits` that are one, or a tuple that begins with one; "
            f"got {type(result).__name__}. Wrap it in a module that returns the outputs (n, k)."
        )
    return found


def cannot_take(row: Batch, error: Exception) -> ValueError:
    """The error of a network that fails on a row of its inputs, in one sentence.

    Examples:
        >>> print(cannot_take(torch.zeros(1, 8, 8), RuntimeError("expected 3 channels")))
        `network` cannot take a row of `X` of shape (8, 8): expected 3 channels.
    """
    shape = tuple(row.shape[1:]) if isinstance(row, Tensor) else {k: tuple(v.shape[1:]) for k, v in row.leaves.items()}
    message = f"`network` cannot take a row of `X` of shape {shape}: {str(error).splitlines()[0].rstrip('.')}"
    if isinstance(shape, tuple) and len(shape) == 3 and shape[-1] < shape[0]:
        message += (
            ". Convolutions take images of shape (channels, height, width): if the last axis holds the channels, pass "
            "`X.transpose(0, 3, 1, 2)`"
        )
    return ValueError(message + ".")


class known_attention:
    """Attention by operations that `torch.func` can differentiate and map.

    In evaluation mode torch's transformer layers otherwise take a fused path that drops padded columns, and
    `scaled_dot_product_attention` kernels without a rule for forward derivatives or `vmap`. The latter are avoided only
    under a transform: they need less memory.
    """

    __slots__ = ("fused", "kernels")

    def __enter__(self) -> None:
        self.fused, self.kernels = torch.backends.mha.get_fastpath_enabled(), None
        torch.backends.mha.set_fastpath_enabled(False)
        if torch._C._are_functorch_transforms_active():  # torch asks the same of itself in its autograd.Function
            sdp = torch.backends.cuda
            self.kernels = sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled(), sdp.cudnn_sdp_enabled()
            _fused_kernels(False, False, False)

    def __exit__(self, *error: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self.fused)
        if self.kernels is not None:
            _fused_kernels(*self.kernels)


def _fused_kernels(flash: bool, efficient: bool, cudnn: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(efficient)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
