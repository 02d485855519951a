"""Layers and data for the tests of the last layers."""

import torch

from bayeskit import bnn

COVARIANCES = ("diagonal", "dense", "low_rank", "dense_precision")


def seeded(build, *arguments, seed=0, **options):
    """A layer in float64 whose starting values are fixed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*arguments, dtype=torch.float64, **options)


def disturbed(layer, seed=1):
    """The layer with all its parameters moved, so that nothing is zero or equal by chance."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=g, dtype=value.dtype))
    return layer


def problem(n=30, d=5, k=3, seed=0):
    """Features and targets of k outputs with different noises."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g, dtype=torch.float64)
    weights = torch.randn(d, k, generator=g, dtype=torch.float64)
    noise = torch.randn(n, k, generator=g, dtype=torch.float64) * torch.linspace(0.2, 0.6, k, dtype=torch.float64)
    return features, features @ weights + noise


def labels(features, k=3):
    """k classes that depend on the first features."""
    return ((features[:, 0] > 0).long() + (features[:, 1] > 0.3).long() + (features[:, 2] > 1).long()).clamp(max=k - 1)


def regression(features, y, *, covariance="dense", **options):
    """A regression layer for these data with noises known."""
    noise = options.pop("noise", torch.linspace(0.1, 0.4, y.shape[1], dtype=torch.float64))
    learn = options.pop("learn_noise", False)
    sizes = features.shape[1], y.shape[1]
    built = seeded(
        bnn.VBLLRegression,
        *sizes,
        num_data=len(y),
        covariance=covariance,
        noise=noise,
        rank=2,
        learn_noise=learn,
        **options,
    )
    return built
