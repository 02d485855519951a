import torch
from torch import nn

from bayeskit import BNNRegressor, bnn, load, save


def network(in_features=3, out_features=1):
    return nn.Sequential(nn.Linear(in_features, 32), nn.SiLU(), nn.Linear(32, out_features))


g = torch.Generator().manual_seed(0)
X = torch.randn(200, 3, generator=g).numpy()
y = X[:, 0] - X[:, 1] ** 2
model = BNNRegressor(network=network, inference=bnn.Laplace(subset="last_layer"), random_state=0).fit(X, y)
K = model.latent(X[:50]).covariance  # (50, 50) LinearOperator: J S J', never formed
assert K.shape == (50, 50) and (K @ torch.ones(50, 1, dtype=K.dtype)).shape == (50, 1)
save(model, "model.bayeskit")
again = load("model.bayeskit", network=network)
assert (again.predict(X) == model.predict(X)).all()
