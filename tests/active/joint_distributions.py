"""Joint distributions of functions for the tests of active learning."""

import torch
from linear_operator import to_linear_operator

from bayeskit.core.posterior import GaussianValues, SampledValues


def gaussian(n, k=1, *, seed=0, dtype=torch.float64, scale=1.0):
    """Correlated Gaussian values at n inputs."""
    generator = torch.Generator().manual_seed(seed)
    root = scale * torch.randn(n * k, n * k, generator=generator, dtype=torch.float64) / (n * k) ** 0.5
    mean = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return GaussianValues(mean.to(dtype), to_linear_operator((root @ root.T).to(dtype)))


def sampled(s, n, k=1, *, seed=0, dtype=torch.float64, scale=1.0):
    """Stored draws at n inputs."""
    generator = torch.Generator().manual_seed(seed)
    return SampledValues((scale * torch.randn(s, n, k, generator=generator, dtype=torch.float64)).to(dtype))
