"""BatchNorm running statistics, re-estimated for given weights."""

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

    The rest of the network runs in evaluation mode, without dropout. Batches have equal weight, as in
    `torch.optim.swa_utils.update_bn`.

    Args:
        network: The module, in evaluation mode afterwards.
        layers: Those of its layers whose statistics are estimated.
        batches: Inputs (b, *input_shape), each of at least two samples.
    """
    _estimate(network, {}, list(layers), batches)


@torch.no_grad()
def statistics_of_draws(network: nn.Module, draws: Params, batches: Iterable[Batch]) -> Params:
    """The BatchNorm statistics of each of s draws of the weights, by one pass over the inputs for each draw.

    Averaged or sampled weights have other activations than the weights during training, so the running statistics of
    training do not fit them.

    Args:
        network: Any module; its own statistics are unchanged.
        draws: Leaves (s, *shape).
        batches: Inputs (b, *input_shape), each of at least two samples; iterated over s times.

    Returns:
        Buffers of the network, leaves (s, *shape), for `SampledWeights`; empty if it keeps none or there is no batch.

    References:
        Maddox et al. A simple baseline for Bayesian uncertainty in deep learning. NeurIPS 2019, section 3.4.

    >>> network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    >>> draws = {"0.weight": torch.tensor([[[1.0]], [[3.0]]])}
    >>> statistics_of_draws(network, draws, [torch.tensor([[1.0], [3.0]])])["1.running_mean"]
    tensor([[2.],
            [6.]])
    """
    layers = [layer for layer in batch_norms(network).values() if layer.running_mean is not None]
    batches, original = list(batches), {name: value.clone() for name, value in network.named_buffers()}
    if not layers or not batches:
        return {}
    statistics: list[Params] = []
    for i in range(len(next(iter(draws.values())))):
        _estimate(network, {name: value[i] for name, value in draws.items()}, layers, batches)
        statistics.append({name: value.clone() for name, value in network.named_buffers()})
    for name, value in network.named_buffers():
        value.copy_(original[name])
    return {name: torch.stack([one[name] for one in statistics]) for name in statistics[0]}


def _estimate(network: nn.Module, params: Params, layers: list[_BatchNorm], batches: Iterable[Batch]) -> None:
    network.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None  # a plain average over the batches instead of an exponential one
    for x in batches:
        call(network, params, x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.eval()
        layer.momentum = momentum
