"""Your own network and your own training loop; the uncertainty is added afterwards.

A residual network is trained by plain torch. Laplace approximations of the last layer and of all layers are computed
at its weights without training again. The printed numbers are the seconds that took, and the coverage of 90 % intervals
on test targets.
"""

import time

import torch
from torch import nn

from bayeskit import bnn, metrics
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lift = nn.Linear(4, width)
        self.inside = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        h = self.lift(x)
        return self.head(h + self.inside(h))


torch.manual_seed(0)
X = torch.randn(1000, 4)
y = X[:, :1] * X[:, 1:2] + torch.sin(2 * X[:, 2:3]) + 0.2 * torch.randn(1000, 1)
train, test = Data(X[:600], y[:600]), Data(X[600:], y[600:])

network = Residual(24)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-3)
start = time.perf_counter()
for _ in range(30):
    for batch in torch.randperm(len(train)).split(50):
        loss = nn.functional.mse_loss(network(train.x[batch]), train.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"own loop               {time.perf_counter() - start:4.1f} s   last loss {loss.item():.3f}")

prior = bnn.gaussian_prior(network)
for method in (
    bnn.Laplace(pretrained=True, subset="last_layer"),
    bnn.Laplace(pretrained=True, subset="all", structure="full"),
):
    start = time.perf_counter()
    fit = method.infer(prior, Gaussian(), train, generator=torch.Generator().manual_seed(0))
    predictive = fit.likelihood.predictive(fit.posterior(test.x))
    inside = metrics.coverage(predictive, test.y, level=0.9)
    print(
        f"Laplace, {method.subset:10s}    {time.perf_counter() - start:4.1f} s"
        f"   rmse {metrics.rmse(predictive.mean, test.y):.3f}   90 % intervals hold {inside:.1%}"
        f"   noise sd {fit.likelihood.noise.sqrt().item():.3f}"
    )
