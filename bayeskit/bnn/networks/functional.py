"""Networks as functions of their weights.

The library never trains, linearizes or samples a module in place: it takes the values of some of its parameters as
`Params`, lays them out as one vector, and calls the network as a function of that vector, `f(w, x)`. What is not in
those `Params` (frozen layers, BatchNorm statistics) stays in the module.

    parameters -> Params;  flatten / unflatten -> (p,);  NetworkFunction -> f(w, x) of shape (n, k)
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayeskit.bnn.networks.batched_mlp import chain, run_chain
from bayeskit.bnn.networks.layers import aliases, batch_norms
from bayeskit.core import generators
from bayeskit.core.inputs import Batch, as_inputs
from bayeskit.core.modules import arguments, known_attention, output, run
from bayeskit.core.types import Inputs, Params

SHORT = (torch.bfloat16, torch.float16)
"""Types in which a network may run, but nothing is summed or factorized."""

CHUNK_ELEMENTS = 2**24
"""Numbers held at a time when a network is evaluated over many rows or many draws (128 MB in float64)."""

BATCHED_ROWS = 256
"""Rows up to which draws run under vmap; with more, one draw at a time is faster, for it stays in the cache."""


class MLP(nn.Sequential):
    """A fully connected network, `f(x) = W_L a(... a(W_1 x + b_1) ...) + b_L`; inputs of any shape are flattened.

    Args:
        in_features: Numbers in one input.
        out_features: Outputs k.
        hidden: Widths of the hidden layers; empty for a linear model.
        activation: Builds the nonlinearity; smooth ones suit linearization.
        dtype: Floating type of the weights, torch's default if None.

    >>> MLP(3, 2, hidden=(8,))(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Iterable[int] = (50, 50),
        activation: Callable[[], nn.Module] = nn.SiLU,
        dtype: torch.dtype | None = None,
    ):
        widths = [in_features, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, dtype=dtype), activation()]
        super().__init__(*layers, nn.Linear(widths[-1], out_features, dtype=dtype))


def parameters(network: nn.Module, names: Iterable[str] | None = None) -> Params:
    """Detached copies of the named parameters (by default those that require a gradient), in the network's order."""
    wanted = None if names is None else set(names)
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in network.named_parameters()
        if (value.requires_grad if wanted is None else name in wanted)
    }


def with_parameters(network: nn.Module, params: Params) -> nn.Module:
    """A copy of the network, frozen (see `frozen`), holding these values."""
    fixed = copy.deepcopy(network).eval().requires_grad_(False)
    own = dict(fixed.named_parameters())
    for name, value in params.items():  # memory of its own, for a parameter of a hollow network has none
        own[name].data = value.detach().to(own[name]).clone(memory_format=torch.contiguous_format)
    return fixed


def hollow(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy, without gradients, that stores nothing for these parameters: each is one zero, repeated to its shape.

    They keep shape, dtype and device, and their values are handed over at each call.
    """
    shell = copy.deepcopy(network).requires_grad_(False)
    own = dict(shell.named_parameters())
    for name in names:
        own[name].data = own[name].new_zeros(()).expand(own[name].shape)
    return shell


def frozen(network: nn.Module) -> nn.Module:
    """The network in evaluation mode and without gradients for its parameters: itself if it is so, else a copy.

    Evaluation mode means no dropout and fixed BatchNorm statistics. Gradients for the inputs still flow.
    """
    learns = any(module.training for module in network.modules()) or any(p.requires_grad for p in network.parameters())
    return copy.deepcopy(network).eval().requires_grad_(False) if learns else network


def size(params: Params) -> int:
    """The number p of weights."""
    return sum(value.numel() for value in params.values())


def flatten(params: Params, like: Params) -> Tensor:
    """All weights side by side: leaves (*c, *shape) become (*c, p), in the order and of the shapes of `like`.

    The vector has single precision at least, so that steps smaller than the rounding of bfloat16 weights add up.
    """
    parts = []
    for name, shaped in like.items():
        value = params[name]
        parts.append(value.reshape(*value.shape[: value.ndim - shaped.ndim], -1))
    flat = torch.cat(parts, dim=-1)
    return flat.to(at_least_single(flat.dtype))


def unflatten(flat: Tensor, like: Params) -> Params:
    """The inverse of `flatten`: (*c, p) becomes leaves (*c, *shape)."""
    parts = flat.split([value.numel() for value in like.values()], dim=-1)
    return {
        name: part.reshape(*flat.shape[:-1], *value.shape).to(value.dtype)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }


@dataclass(frozen=True, eq=False)
class NetworkFunction:
    """The network as a picklable function `f(w, x)` of a weight vector, which torch.func can differentiate.

    Args:
        network: In the mode it is to be called in; parameters that `like` does not name are its own.
        like: Names and shapes of the p weights that the vector holds.

    >>> net = nn.Linear(3, 2)
    >>> f = NetworkFunction(net, parameters(net))
    >>> f(flatten(parameters(net), parameters(net)), torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    network: nn.Module
    like: Params

    def __call__(self, weights: Tensor, x: Batch) -> Tensor:
        """Outputs (n, k) at inputs (n, *input_shape) for weights (p,)."""
        return call(self.network, unflatten(weights, self.like), x)

    @property
    def num_weights(self) -> int:
        """Numbers in a gradient of an output."""
        return size(self.like)


def call(network: nn.Module, params: Params, x: Batch) -> Tensor:
    """The network's outputs (n, k) with these parameters in place of its own, in single precision at least.

    Real inputs are cast to the type of the network's first parameter.

    Raises:
        ValueError: The outputs are not (n, k).
    """
    x = as_inputs(x)
    positional, named = arguments(network, _cast(x, network, params))
    with known_attention():
        outputs = output(substituted(network, params, *positional, **named))
    return completed(outputs, len(x))


def call_plainly(network: nn.Module, x: Batch) -> Tensor:
    """What the network returns with its own parameters: the very tensor, whatever its shape."""
    return run(network, _cast(x, network, {}))


def completed(outputs: Tensor, num_rows: int) -> Tensor:
    """Outputs (n,) or (n, k) as (n, k), in single precision at least.

    Raises:
        ValueError: They have another shape.
    """
    if outputs.ndim == 1:
        outputs = outputs.unsqueeze(-1)
    if outputs.ndim != 2 or len(outputs) != num_rows:
        raise ValueError(
            f"The network must return outputs of shape (n, k) with n = {num_rows}; got {tuple(outputs.shape)}. "
            "Flatten its output."
        )
    return outputs.float() if outputs.dtype in SHORT else outputs


def _cast(x: Batch, network: nn.Module, params: Params) -> Batch:
    if not x.is_floating_point():
        return x
    name, first = _first_parameter(network)
    dtype = params[name].dtype if name in params else x.dtype if first is None else first.dtype
    return x.to(dtype) if dtype.is_floating_point else x


def _first_parameter(module: nn.Module, prefix: str = "") -> tuple[str, Tensor | None]:
    """The name and value that `named_parameters` begins with, at a tenth of its cost."""
    for key, value in module._parameters.items():
        if value is not None:
            return prefix + key, value
    for key, child in module._modules.items():
        if child is not None:
            found = _first_parameter(child, f"{prefix}{key}.")
            if found[1] is not None:
                return found
    return "", None


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of this type are summed, differentiated and factorized: float32 for shorter ones."""
    return torch.float32 if dtype in SHORT else dtype


def substituted(module: nn.Module, params: Params, *inputs: Any, **named: Any) -> Any:
    """What a module returns with these tensors in place of its own, wherever a shared one is used."""
    # Torch's own tying exchanges the tensors of a module that occurs twice two times, and then leaves them in it.
    shared = {alias: params[name] for name, others in aliases(module).items() if name in params for alias in others}
    return functional_call(module, {**params, **shared}, inputs, named, tie_weights=False)


def chunks(x: Inputs, row_elements: int) -> Iterator[Batch]:
    """The rows of `x` in pieces such that a piece times `row_elements` stays within `CHUNK_ELEMENTS`."""
    rows = max(1, CHUNK_ELEMENTS // max(1, row_elements))
    for start in range(0, max(1, len(x)), rows):
        yield x[start : start + rows]


def evaluate(network: nn.Module, draws: Params, x: Inputs) -> Tensor:
    """The network at each of s draws of its parameters.

    Args:
        network: In evaluation mode.
        draws: Leaves (s, *shape); buffers (BatchNorm statistics of each draw) may be among them.
        x: Inputs (n, *input_shape).

    Returns:
        (s, n, k).
    """
    x, num_draws = as_inputs(x), len(next(iter(draws.values())))
    width = sum(value[0].numel() for value in draws.values())
    pieces = []
    for rows in chunks(x, 64 * num_draws * max(1, x.shape[1:].numel())):
        if layers := chain(network, draws, rows):
            outputs = run_chain(layers, draws, rows)
            pieces.append(outputs.to(at_least_single(outputs.dtype)))
            continue
        if len(rows) <= BATCHED_ROWS:
            try:
                one = torch.func.vmap(lambda p, rows=rows: call(network, p, rows), chunk_size=_draws_at_once(width))
                pieces.append(one(draws))
                continue
            except RuntimeError:  # control flow that depends on values
                pass
        each = ({name: value[i] for name, value in draws.items()} for i in range(num_draws))
        pieces.append(torch.stack([call(network, params, rows) for params in each]))
    return torch.cat(pieces, dim=1)


def _draws_at_once(width: int) -> int:
    return max(1, CHUNK_ELEMENTS // max(1, width))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode for a while."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_random(network: nn.Module, x: Batch) -> bool:
    """Whether the network draws from the global generator while training (dropout of any form), found by running it."""
    trial = copy.deepcopy(network).train()
    for layer in batch_norms(trial).values():
        layer.eval()  # one row alone has no spread to be normalized by
    with generators.seeded(torch.Generator()), torch.no_grad():
        before = _global_state(x)
        call(trial, dict(trial.named_parameters()), x)
        return not torch.equal(before, _global_state(x))


def _global_state(x: Batch) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(x.device)]) if x.device.type == "cuda" else state
