"""Products of a network's gradients at pairs of rows, group by group of weights: the neural tangent kernel.

The gradient of an output in the weights of a linear layer is `s a'`, s that in what leaves the layer and a what enters
it, so two of them have the product `(s' s2) (a' V a2)`: rows of the Jacobian, as long as there are weights, are never
formed. Other layers go through `operators.Linearized`.

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

Sides = dict[str, tuple[Tensor, Tensor]]
"""By layer what entered, (n, b), and the gradients at what left, (n, k, a)."""


def tangent_kernels(
    function: NetworkFunction, weights: Tensor, x: Batch, covariance: LinearOperator, *, groups: Tensor, count: int
) -> Tensor:
    """`J_g S J_g'` between the outputs at all rows, J_g with the columns of group g alone.

    Args:
        function: f(w, x).
        weights: Where it is linearized, (p,).
        x: Inputs of n rows.
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
    own = sides(function, weights, x) if variances is not None and separates(function, weights, x) else None
    if own is not None and variances is not None:
        return gram(own, own, variances, groups=groups, count=count)
    if count == 1:
        return operators.Linearized(weights, covariance, x, function=function).to_dense().double().unsqueeze(0)
    alone = [DiagLinearOperator(covariance.diagonal() * (groups == number)) for number in range(count)]
    return torch.stack([operators.Linearized(weights, v, x, function=function).to_dense() for v in alone]).double()


def shared_variances(function: NetworkFunction, covariance: LinearOperator) -> Params | None:
    """The variances of the weights by parameter, float64, if those of a layer are the same for all its outputs."""
    if not isinstance(covariance, DiagLinearOperator):
        return None
    variances = {n: v.double() for n, v in unflatten(covariance.diagonal(), _as_double(function.like)).items()}
    weights = [value for name, value in variances.items() if name.rpartition(".")[2] != "bias"]
    biases = [value for name, value in variances.items() if name.rpartition(".")[2] == "bias"]
    shared = all((value == value[:1]).all() for value in (*weights, *biases))
    return variances if shared else None


def gram(rows: Sides, columns: Sides, variances: Params, *, groups: Tensor, count: int) -> Tensor:
    """The sum over parameters of products of what entered and left their layers, (g, n*k, m*k), float64."""
    first, second = next(iter(rows.values()))[1], next(iter(columns.values()))[1]
    (n, k), m, start = first.shape[:2], len(second), 0
    total = torch.zeros(count, n, k, m, k, dtype=torch.float64, device=first.device)
    for name, value in variances.items():
        layer, _, own = name.rpartition(".")
        (entered, left), (entered2, left2) = rows[layer], columns[layer]
        between = (left.flatten(0, 1) @ left2.flatten(0, 1).mT).unflatten(0, (n, k)).unflatten(-1, (m, k))
        if own == "weight":
            between *= ((entered * value[0]) @ entered2.mT)[:, None, :, None]
        else:
            between *= value[0]
        total[int(groups[start])] += between
        start += value.numel()
    return total.flatten(3).flatten(1, 2)


def blocks(rows: Sides, variances: Params) -> Tensor:
    """The products of the gradients at each row with each other, (n, k, k), float64."""
    first = next(iter(rows.values()))[1]
    total = first.new_zeros(len(first), first.shape[1], first.shape[1])
    for name, value in variances.items():
        layer, _, own = name.rpartition(".")
        entered, left = rows[layer]
        total += (left @ left.mT) * ((entered.square() @ value[0])[:, None, None] if own == "weight" else value[0])
    return total


@torch.inference_mode(False)
@torch.enable_grad()
def sides(function: NetworkFunction, weights: Tensor, x: Batch) -> Sides | None:
    """What enters and leaves the layers of all the weights, in float64; None if one of them is not linear.

    None as well if a layer does not run once, on one input a row. `separates` says whether these are all there is.
    """
    run = _run(function, weights, x)
    return None if run is None else _sides(run[0], run[2])


def _sides(outputs: Tensor, passed: dict[str, tuple[Tensor, Tensor]]) -> Sides:
    left = [leaving for _, leaving in passed.values()]
    sums = outputs.sum(0).unbind()  # a row's output depends on that row alone
    found = [torch.autograd.grad(total, left, retain_graph=True, materialize_grads=True) for total in sums]
    gradients = [torch.stack(values, 1) for values in zip(*found, strict=True)]
    return {n: (entered, s) for (n, (entered, _)), s in zip(passed.items(), gradients, strict=True)}


@torch.inference_mode(False)
@torch.enable_grad()
def separates(function: NetworkFunction, weights: Tensor, x: Batch) -> bool:
    """Whether the gradient of every row's outputs is made of its `sides`, which is tried at two rows.

    It is not where a weight acts outside its own layer, where rows meet inside the network, where a hook changes what
    leaves a layer, or where the network does not run in float64. A random combination of all outputs has the gradient
    that its sides foretell only if each row's has.
    """
    try:
        run = _run(function, weights, x[:2])
        if run is None:
            return False
        outputs, params, passed = run
        own = _sides(outputs, passed)
        random = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        share = random.to(outputs.device)
        found = torch.autograd.grad((share * outputs).sum(), list(params.values()), materialize_grads=True)
    except RuntimeError:
        return False
    for name, gradient in zip(params, found, strict=True):
        layer, _, part = name.rpartition(".")
        entered, left = own[layer]
        reaching = (share.unsqueeze(1) @ left).squeeze(1)  # (n, a)
        foretold = reaching.mT @ entered if part == "weight" else reaching.sum(0)
        # Rounding of float64 sums is some 1e-13; a weight that acts elsewhere changes the first digits.
        if not torch.allclose(gradient, foretold, rtol=1e-8, atol=1e-10 * float(gradient.abs().max())):
            return False
    return True


def _run(
    function: NetworkFunction, weights: Tensor, x: Batch
) -> tuple[Tensor, Params, dict[str, tuple[Tensor, Tensor]]] | None:
    """Outputs (n, k), parameters, and what enters and leaves each layer, in float64; None as in `sides`."""
    if _linear_layers(function) is None:
        return None
    function = NetworkFunction(copy.deepcopy(function.network).double(), _as_double(function.like))
    layers, x = _linear_layers(function) or {}, x.to(torch.float64) if x.is_floating_point() else x
    flat = unflatten(weights.double(), function.like)
    params = {name: value.detach().clone().requires_grad_() for name, value in flat.items()}
    if isinstance(x, Tensor) and x.is_inference():
        x = x.clone()  # what inference mode has made takes part in no gradient
    with passing(layers) as passed:
        outputs = call(function.network, params, x)
    if any(len(calls) != 1 or calls[0][0].ndim != 2 or len(calls[0][0]) != len(x) for calls in passed.values()):
        return None
    return outputs, params, {name: calls[0] for name, calls in passed.items()}


def is_by_rows(function: NetworkFunction, weights: Tensor, x: Batch) -> bool:
    """Whether a row's output is a function of that row: control flow on values may look at a whole batch, unseen."""
    try:
        vmap(lambda row: function(weights, row.unsqueeze(0)))(x[:1])
    except RuntimeError:
        return False
    return True


def known_sides(values: operators.Linearized, x: Batch) -> Sides:
    """The sides of a function that is known to have linear layers alone."""
    assert isinstance(values.function, NetworkFunction)
    found = sides(values.function, values.mean, x)
    assert found is not None
    return found


def _as_double(params: Params) -> Params:
    return {name: value.double() for name, value in params.items()}


def _linear_layers(function: NetworkFunction) -> dict[str, nn.Module] | None:
    modules, shared = dict(function.network.named_modules()), aliases(function.network)
    owners = {name: name.rpartition(".")[0] for name in function.like}
    plain = all(
        is_plain(modules[owner], nn.Linear) and name.rpartition(".")[2] in ("weight", "bias") and name not in shared
        for name, owner in owners.items()
    )
    return {owner: modules[owner] for owner in owners.values()} if plain else None
