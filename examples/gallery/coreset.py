"""A learned coreset: 15 weighted pseudo-observations give nearly the posterior of 600 observations."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bayeskit import GPRegressor, gp

rng = np.random.default_rng(0)
x = rng.normal(0, 2, (600, 1))
y = np.sin(2 * x[:, 0]) * np.exp(-0.1 * x[:, 0] ** 2) + 0.3 * rng.normal(size=600)
grid = np.linspace(-7, 7, 300)[:, None]

full = GPRegressor(inference=gp.Exact(), random_state=0).fit(x, y)
small = GPRegressor(inference=gp.CoresetGP(num_points=15), random_state=0).fit(x, y)
points = small.coreset()  # a DataFrame: inputs, pseudo-output, weight

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(x[:, 0], y, ".", color="0.8", markersize=2, label="600 observations", rasterized=True)
for model, style, name in ((full, "k-", "exact GP"), (small, "C1--", "coreset of 15")):
    mean, std = model.predict(grid, return_std=True)
    ax.plot(grid[:, 0], mean, style, linewidth=1.5, label=name)
    ax.plot(grid[:, 0], np.stack([mean - 2 * std, mean + 2 * std], 1), style, linewidth=0.7)
size = 200 * points["weight"] / points["weight"].max()
ax.scatter(points.iloc[:, 0], points["y"], s=size, color="C1", edgecolor="k", zorder=3, label="area: weight")
ax.set(xlabel="x", ylabel="y")
ax.legend(loc="upper right", fontsize="small")
figure.savefig(Path(sys.argv[1]) / "coreset.png", dpi=80)
