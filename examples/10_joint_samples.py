"""Joint samples of the function answer questions that marginal bands cannot.

Where is the maximum of the function, and what is the uncertainty of a difference between two inputs? Both need the
joint posterior at many inputs. The printed numbers compare it with independent marginals.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from bayeskit import GPRegressor

rng = np.random.default_rng(0)
x = rng.uniform(0, 10, (25, 1))
y = np.sin(x[:, 0]) + 0.1 * x[:, 0] + 0.2 * rng.standard_normal(25)
grid = np.linspace(0, 10, 201)[:, None]
model = GPRegressor(random_state=0).fit(x, y)

# Fixed functions: f(X) agrees between calls, in any order.
f = model.sample_functions(500, random_state=0)
draws = f(grid)  # (500, 201)
assert np.allclose(f(grid[::10]), draws[:, ::10])

peaks = grid[draws.argmax(1), 0]
print(f"the maximum lies at {peaks.mean():.2f} +- {peaks.std():.2f}")

pair = np.array([[7.8], [8.2]])
values = model.latent(pair)
difference = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
joint = float((difference.mT @ (values.covariance @ difference)).sqrt())
marginal = float(values.variance.sum().sqrt())
print(f"sd of f(7.8) - f(8.2): {joint:.3f} jointly, {marginal:.3f} if the two were independent")

figure, axes = plt.subplots(2, 1, sharex=True, figsize=(6, 5), layout="constrained", height_ratios=[2, 1])
axes[0].plot(grid, draws[:30].T, color="#0072B2", alpha=0.25, linewidth=0.8)
axes[0].plot(x, y, ".", color="black")
axes[0].set_ylabel("f(x), 30 of 500 draws")
axes[1].hist(peaks, bins=np.linspace(0, 10, 51), color="#0072B2")
axes[1].set(xlabel="x", ylabel="draws that peak")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
figure.savefig(folder / "10_joint_samples.png", dpi=150)
print("figure:", folder / "10_joint_samples.png")
