import numpy as np

from bayeskit import GPClassifier, gp

rng = np.random.default_rng(0)
X = rng.uniform(-2, 2, (600, 2))
y = (np.sin(2 * X[:, 0]) > X[:, 1]).astype(int)
model = GPClassifier(inference=gp.MemoryDualGP(num_inducing=40, memory=60), random_state=0)
for start in range(0, 600, 100):
    model.partial_fit(X[start : start + 100], y[start : start + 100], classes=[0, 1])
print(model.score(X, y))
