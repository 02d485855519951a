import torch
from torch import nn

from bayeskit import bnn

torch.manual_seed(0)
X = torch.randn(400, 8)
y = X[:, :2] @ torch.tensor([[1.0, -1.0], [0.5, 2.0]]) + 0.1 * torch.randn(400, 2)
body, head = nn.Sequential(nn.Linear(8, 64), nn.SiLU()), bnn.VBLLRegression(64, 2, num_data=400, covariance="dense")
optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=3e-3)
for _ in range(300):
    optimizer.zero_grad()
    loss = head.loss(body(X), y)
    loss.backward()
    optimizer.step()
values = head.values(body(X[:7]))  # GaussianValues over 7 inputs and 2 outputs; head(features) gives tensors
assert values.covariance.shape == (14, 14)
