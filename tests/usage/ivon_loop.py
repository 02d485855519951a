"""IVON in my own loop."""

import torch
from torch import nn

from bayeskit import bnn

torch.manual_seed(0)
X = torch.randn(512, 10)
y = (X[:, 0] > 0).long()
network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = bnn.IVONOptimizer(network.parameters(), lr=0.1, num_data=len(X))
for _ in range(200):
    i = torch.randint(len(X), (64,))
    with optimizer.sampled_params():
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X[i]), y[i]).backward()
    optimizer.step()
weights = optimizer.posterior()  # GaussianWeights, diagonal operator
values = bnn.monte_carlo(network, weights, X[:5], num_samples=16)
assert values.draws.shape == (16, 5, 2)
