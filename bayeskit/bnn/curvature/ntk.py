"""Products of a network's gradients at pairs of inputs, group by group of weights: the neural tangent kernel.

The gradient of an output in the weights of a linear layer is `s a'`, a the layer's input and s the gradient in the
layer's output, so two of them have the product `(s' s2) (a' V a2)`, and rows of the Jacobian (as long as the vector of
weights) are never formed. Other layers go through `operators.Linearized`.

References:
    Jacot, Gabriel, Hongler. Neural tangent kernel: convergence and generalization in neural networks. NeurIPS 2018.
    Novak, Sohl-Dickstein, Schoenholz. Fast finite width neural tangent kernel. ICML 2022, section 3.
"""

import copy

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn
from torch.func import vmap

from bayeskit.bnn.networks.functional import NetworkFunction, aliases, call, unflatten
from bayeskit.bnn.networks.layer_hooks import passing
from bayeskit.bnn.networks.layers import is_plain
from bayeskit.core import operators
from bayeskit.core.inputs import Batch
from bayeskit.core.types import Params

LayerGradients = dict[str, tuple[Tensor, Tensor]]
"""By layer its inputs a, (n, b), and the gradients s of the network's outputs in the layer's output, (n, k, a)."""


def tangent_kernels(
    function: NetworkFunction, weights: Tensor, x: Batch, covariance: LinearOperator, *, groups: Tensor, count: int
) -> Tensor:
    """`J_g S J_g'` between the outputs at all inputs, J_g with the columns of group g alone.

    Args:
        function: f(w, x).
        weights: Where it is linearized, (p,).
        x: n inputs.
        covariance: S, (p, p); diagonal if there are several groups.
        groups: The group of each weight, (p,), the same for all of a parameter.
        count: Number of groups g.

    Returns:
        (g, n*k, n*k), float64.

    >>> net = nn.Linear(2, 1)
    >>> f, w, x = NetworkFunction(net, dict(net.named_parameters())), torch.zeros(3), torch.eye(2)
    >>> groups, ones = torch.tensor([0, 0, 1]), DiagLinearOperator(torch.ones(3))
    >>> tangent_kernels(f, w, x, ones, groups=groups, count=2).tolist()
    [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]
    """
    variances = shared_variances(function, covariance)
    own = layer_gradients(function, weights, x) if variances is not None and separates(function, weights, x) else None
    if own is not None and variances is not None:
        return gram(own, own, variances, groups=groups, count=count)
    parts = [covariance]
    if count > 1:
        parts = [DiagLinearOperator(covariance.diagonal() * (groups == number)) for number in range(count)]
    return torch.stack([operators.Linearized(weights, v, x, function=function).to_dense() for v in parts]).double()


def shared_variances(function: NetworkFunction, covariance: LinearOperator) -> Params | None:
    """The variances of the weights by parameter, float64, if those of a layer are the same for all its outputs."""
    if not isinstance(covariance, DiagLinearOperator):
        return None
    variances = {n: v.double() for n, v in unflatten(covariance.diagonal(), _as_double(function.like)).items()}
    return variances if all((value == value[:1]).all() for value in variances.values()) else None


def gram(
    rows: LayerGradients, columns: LayerGradients, variances: Params, *, groups: Tensor | None = None, count: int = 1
) -> Tensor:
    """The products of the gradients at two sets of inputs, group by group of weights, (g, n*k, m*k), float64."""
    first, second = next(iter(rows.values()))[1], next(iter(columns.values()))[1]
    (n, k), m, start = first.shape[:2], len(second), 0
    total = torch.zeros(count, n, k, m, k, dtype=torch.float64, device=first.device)
    for name, value in variances.items():
        layer, _, own = name.rpartition(".")
        (inputs, slopes), (inputs2, slopes2) = rows[layer], columns[layer]
        between = (slopes.flatten(0, 1) @ slopes2.flatten(0, 1).mT).unflatten(0, (n, k)).unflatten(-1, (m, k))
        between *= ((inputs * value[0]) @ inputs2.mT)[:, None, :, None] if own == "weight" else value[0]
        total[0 if groups is None else int(groups[start])] += between
        start += value.numel()
    return total.flatten(3).flatten(1, 2)


def pointwise_gram(rows: LayerGradients, variances: Params) -> Tensor:
    """The products of the gradients at each input with each other, (n, k, k), float64."""
    first = next(iter(rows.values()))[1]
    total = first.new_zeros(len(first), first.shape[1], first.shape[1])
    for name, value in variances.items():
        layer, _, own = name.rpartition(".")
        inputs, slopes = rows[layer]
        total += (slopes @ slopes.mT) * ((inputs.square() @ value[0])[:, None, None] if own == "weight" else value[0])
    return total


@torch.inference_mode(False)
@torch.enable_grad()
def layer_gradients(function: NetworkFunction, weights: Tensor, x: Batch) -> LayerGradients | None:
    """The inputs and output gradients of the layers of all the weights, in float64; None if a layer is not linear.

    None as well if a layer does not run once, on one input for each data point. `separates` says whether the network's
    gradient consists of these.
    """
    run = _run(function, weights, x)
    return None if run is None else _layer_gradients(run[0], run[2])


def _layer_gradients(outputs: Tensor, passed: dict[str, tuple[Tensor, Tensor]]) -> LayerGradients:
    layer_outputs = [output for _, output in passed.values()]
    sums = outputs.sum(0).unbind()  # the output at an input depends on that input alone
    found = [torch.autograd.grad(total, layer_outputs, retain_graph=True, materialize_grads=True) for total in sums]
    slopes = [torch.stack(values, 1) for values in zip(*found, strict=True)]
    return {name: (inputs, s) for (name, (inputs, _)), s in zip(passed.items(), slopes, strict=True)}


@torch.inference_mode(False)
@torch.enable_grad()
def separates(function: NetworkFunction, weights: Tensor, x: Batch) -> bool:
    """Whether the gradient of the outputs at every input consists of its `layer_gradients`, by trial at two inputs.

    It does not where a weight acts outside its own layer, where the network mixes inputs, where a hook changes a
    layer's output, or where the network does not run in float64. For a random combination of all outputs the two
    gradients agree only if they agree for every output.
    """
    try:
        run = _run(function, weights, x[:2])
        if run is None:
            return False
        outputs, params, passed = run
        own = _layer_gradients(outputs, passed)
        random = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        share = random.to(outputs.device)
        found = torch.autograd.grad((share * outputs).sum(), list(params.values()), materialize_grads=True)
    except RuntimeError:
        return False
    for name, gradient in zip(params, found, strict=True):
        layer, _, part = name.rpartition(".")
        inputs, slopes = own[layer]
        combined = (share.unsqueeze(1) @ slopes).squeeze(1)  # (n, a)
        expected = combined.mT @ inputs if part == "weight" else combined.sum(0)
        # Rounding of float64 sums is some 1e-13; a weight that acts elsewhere changes the first digits.
        if not torch.allclose(gradient, expected, rtol=1e-8, atol=1e-10 * float(gradient.abs().max())):
            return False
    return True


def _run(
    function: NetworkFunction, weights: Tensor, x: Batch
) -> tuple[Tensor, Params, dict[str, tuple[Tensor, Tensor]]] | None:
    """Outputs (n, k), parameters, and each layer's inputs and outputs, float64; None as in `layer_gradients`."""
    if not _is_linear(function):
        return None
    function = NetworkFunction(copy.deepcopy(function.network).double(), _as_double(function.like))
    owners = dict.fromkeys(name.rpartition(".")[0] for name in function.like)
    x = x.to(torch.float64) if x.is_floating_point() else x
    flat = unflatten(weights.double(), function.like)
    params = {name: value.detach().clone().requires_grad_() for name, value in flat.items()}
    if isinstance(x, Tensor) and x.is_inference():
        x = x.clone()  # tensors of inference mode take part in no gradient
    with passing({owner: function.network.get_submodule(owner) for owner in owners}) as passed:
        outputs = call(function.network, params, x)
    if any(len(calls) != 1 or calls[0][0].ndim != 2 or len(calls[0][0]) != len(x) for calls in passed.values()):
        return None
    return outputs, params, {name: calls[0] for name, calls in passed.items()}


def is_pointwise(function: NetworkFunction, weights: Tensor, x: Batch) -> bool:
    """Whether the output at an input depends on that input alone: control flow may depend on a whole batch."""
    try:
        vmap(lambda row: function(weights, row.unsqueeze(0)))(x[:1])
    except RuntimeError:
        return False
    return True


def known_layer_gradients(values: operators.Linearized, x: Batch) -> LayerGradients:
    """The `layer_gradients` of a function that is known to have linear layers alone."""
    assert isinstance(values.function, NetworkFunction)
    found = layer_gradients(values.function, values.mean, x)
    assert found is not None
    return found


def _as_double(params: Params) -> Params:
    return {name: value.double() for name, value in params.items()}


def _is_linear(function: NetworkFunction) -> bool:
    """Whether all the weights are those of linear layers, shared with no other."""
    modules, shared = dict(function.network.named_modules()), aliases(function.network)
    owners = {name: name.rpartition(".") for name in function.like}
    return all(
        is_plain(modules[owner], nn.Linear) and part in ("weight", "bias") and name not in shared
        for name, (owner, _, part) in owners.items()
    )
