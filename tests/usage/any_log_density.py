"""Any log density, many chains."""

import torch

from bayeskit import mcmc

log_density = lambda q: -0.5 * ((q["x"] / torch.tensor([1.0, 10.0])) ** 2).sum(-1)  # noqa: E731
chain = mcmc.run(
    mcmc.HMC(),
    log_density,
    {"x": torch.randn(64, 2)},
    num_samples=200,
    burn_in=200,
    generator=torch.Generator().manual_seed(0),
)
assert chain.samples["x"].shape == (64, 200, 2)
print(mcmc.rhat(chain.samples["x"]), mcmc.ess(chain.samples["x"]))
