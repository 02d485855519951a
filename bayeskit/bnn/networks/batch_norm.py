"""Statistics of BatchNorm layers that belong to the weights they are used with."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayeskit.bnn.networks.functional import call
from bayeskit.bnn.networks.layers import batch_norms
from bayeskit.core.inputs import Batch
from bayeskit.core.types import Params


@torch.no_grad()
def estimate_statistics(network: nn.Module, layers: Iterable[_BatchNorm], batches: Iterable[Batch]) -> None:
    """Set the running statistics of some BatchNorm layers to averages over one pass, in place.

    The rest of the network runs in evaluation mode, so that nothing is dropped. Every batch of inputs counts alike, as
    with `torch.optim.swa_utils.update_bn`.

    Args:
        network: The module, in evaluation mode afterwards.
        layers: Those of its layers whose statistics are to be estimated.
        batches: Inputs (b, *input_shape), each of more than one row.
    """
    _estimate(network, {}, list(layers), batches)


@torch.no_grad()
def statistics_of_draws(network: nn.Module, draws: Params, batches: Iterable[Batch]) -> Params:
    """The BatchNorm statistics of each of s draws of the weights, from one pass over the inputs a draw.

    Averaged or drawn weights have activations that no training step has seen, so the statistics kept from training are
    wrong for them.

    Args:
        network: Any module; its own statistics are left as they are.
        draws: Leaves (s, *shape).
        batches: Inputs (b, *input_shape), each of more than one row; passed over s times.

    Returns:
        Buffers of the network, leaves (s, *shape), for `SampledWeights`; empty if none are kept or no batch comes.

    References:
        Maddox et al. A simple baseline for Bayesian uncertainty in deep learning. NeurIPS 2019, section 3.4.

    >>> network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    >>> draws = {"0.weight": torch.tensor([[[1.0]], [[3.0]]])}
    >>> statistics_of_draws(network, draws, [torch.tensor([[1.0], [3.0]])])["1.running_mean"]
    tensor([[2.],
            [6.]])
    """
    layers = [layer for layer in batch_norms(network).values() if layer.running_mean is not None]
    batches, kept = list(batches), {name: value.clone() for name, value in network.named_buffers()}
    if not layers or not batches:
        return {}
    found: list[Params] = []
    for i in range(len(next(iter(draws.values())))):
        _estimate(network, {name: value[i] for name, value in draws.items()}, layers, batches)
        found.append({name: value.clone() for name, value in network.named_buffers()})
    for name, value in network.named_buffers():
        value.copy_(kept[name])
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def _estimate(network: nn.Module, params: Params, layers: list[_BatchNorm], batches: Iterable[Batch]) -> None:
    network.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None  # the average of what is seen, not a tenth of it
    for x in batches:
        call(network, params, x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.eval()
        layer.momentum = momentum
