"""Networks as functions of their weights.

The library never trains, linearizes or samples a module in place: the values of some of its parameters are `Params`,
flattened to one vector, and the network is called as a function of that vector, `f(w, x)`. Everything else (frozen
layers, BatchNorm statistics) stays in the module.

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

from bayeskit.bnn.networks.batched_mlp import mlp_layers, run_mlp
from bayeskit.bnn.networks.layers import aliases, batch_norms
from bayeskit.core import generators, operators
from bayeskit.core.inputs import Batch, as_inputs, as_real
from bayeskit.core.modules import arguments, known_attention, output, run
from bayeskit.core.types import Inputs, Params

HALF_PRECISION = (torch.bfloat16, torch.float16)
"""Types in which a network may run, but nothing is summed or factorized."""

VMAP_ROWS = 256
"""Inputs up to which draws run under vmap; beyond, one draw at a time is faster because it stays in the cache."""


class MLP(nn.Sequential):
    """A fully connected network, `f(x) = W_L a(... a(W_1 x + b_1) ...) + b_L`; inputs of any shape are flattened.

    Args:
        in_features: Number of features of one input.
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
    for name, value in params.items():  # new storage: a parameter of a hollow network has none
        own[name].data = value.detach().to(own[name]).clone(memory_format=torch.contiguous_format)
    return fixed


def hollow(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy, without gradients, that allocates no memory for these parameters: each is one zero expanded to its shape.

    They keep shape, dtype and device; `call` passes their values.
    """
    shell = copy.deepcopy(network).requires_grad_(False)
    own = dict(shell.named_parameters())
    for name in names:
        own[name].data = own[name].new_zeros(()).expand(own[name].shape)
    return shell


def frozen(network: nn.Module) -> nn.Module:
    """The network in evaluation mode and with `requires_grad` off for its parameters: itself if it is so, else a copy.

    Evaluation mode means no dropout and fixed BatchNorm statistics. Gradients of the inputs are still computed.
    """
    learns = any(module.training for module in network.modules()) or any(p.requires_grad for p in network.parameters())
    return copy.deepcopy(network).eval().requires_grad_(False) if learns else network


def size(params: Params) -> int:
    """The number p of weights."""
    return sum(value.numel() for value in params.values())


def flatten(params: Params, like: Params) -> Tensor:
    """All weights as one vector: leaves (*c, *shape) become (*c, p), in the order and of the shapes of `like`.

    The vector has at least single precision, so that steps below the rounding of bfloat16 weights accumulate.
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
        network: In the mode it is called in; it keeps its own values of parameters that `like` does not name.
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
        """The number p of weights."""
        return size(self.like)


def call(network: nn.Module, params: Params, x: Batch) -> Tensor:
    """The network's outputs (n, k) with these parameters in place of its own, in at least single precision.

    Real inputs are cast to the type of the network's first parameter.

    Raises:
        ValueError: The outputs are not (n, k).
    """
    x = as_inputs(x)
    positional, named = arguments(network, _cast(x, network, params))
    with known_attention():
        outputs = output(call_with(network, params, *positional, **named))
    return checked_outputs(outputs, len(x))


def call_plainly(network: nn.Module, x: Batch) -> Tensor:
    """The output of the network with its own parameters, unchanged."""
    return run(network, _cast(x, network, {}))


def checked_outputs(outputs: Tensor, num_rows: int) -> Tensor:
    """Outputs (n,) or (n, k) as (n, k), in at least single precision.

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
    return outputs.float() if outputs.dtype in HALF_PRECISION else outputs


def _cast(x: Batch, network: nn.Module, params: Params) -> Batch:
    x = as_real(x)
    if not x.is_floating_point():
        return x
    name, first = _first_parameter(network)
    dtype = params[name].dtype if name in params else x.dtype if first is None else first.dtype
    return x.to(dtype) if dtype.is_floating_point else x


def _first_parameter(module: nn.Module, prefix: str = "") -> tuple[str, Tensor | None]:
    """The first name and value of `named_parameters`, at a tenth of its cost."""
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
    """The type in which values of this type are summed, differentiated and factorized: float32 for half precision."""
    return torch.float32 if dtype in HALF_PRECISION else dtype


def call_with(module: nn.Module, params: Params, *inputs: Any, **named: Any) -> Any:
    """The output of a module with these tensors in place of its own, in every place that shares one."""
    # With `tie_weights=True` torch swaps the tensors of a module that occurs twice two times, and leaves them in it.
    shared = {alias: params[name] for name, others in aliases(module).items() if name in params for alias in others}
    return functional_call(module, {**params, **shared}, inputs, named, tie_weights=False)


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
    together = max(1, operators.CHUNK_ELEMENTS // max(1, sum(value[0].numel() for value in draws.values())))
    pieces = []
    for rows in operators.pieces(x, 64 * num_draws * max(1, x.shape[1:].numel())):
        if layers := mlp_layers(network, draws, rows):
            outputs = run_mlp(layers, draws, rows)
            pieces.append(outputs.to(at_least_single(outputs.dtype)))
            continue
        if len(rows) <= VMAP_ROWS:
            try:
                one = torch.func.vmap(lambda p, rows=rows: call(network, p, rows), chunk_size=together)
                pieces.append(one(draws))
                continue
            except RuntimeError:  # control flow that depends on values
                pass
        each = ({name: value[i] for name, value in draws.items()} for i in range(num_draws))
        pieces.append(torch.stack([call(network, params, rows) for params in each]))
    return torch.cat(pieces, dim=1)


def evaluate_at(network: nn.Module, params: Params, x: Inputs) -> Tensor:
    """The network's outputs (n, k) with these parameters, without gradients for them."""
    return evaluate(network, {name: value.detach().unsqueeze(0) for name, value in params.items()}, x)[0]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode within the context."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_random(network: nn.Module, x: Batch) -> bool:
    """Whether the network uses the global generator in training mode (dropout of any form); found by running it."""
    trial = copy.deepcopy(network).train()
    for layer in batch_norms(trial).values():
        layer.eval()  # a batch of one has no variance to normalize by
    with generators.seeded(torch.Generator()), torch.no_grad():
        before = _global_state(x)
        call(trial, dict(trial.named_parameters()), x)
        return not torch.equal(before, _global_state(x))


def _global_state(x: Batch) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(x.device)]) if x.device.type == "cuda" else state
