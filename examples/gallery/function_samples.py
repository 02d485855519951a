"""Functions drawn from a Gaussian-process posterior: each is a fixed function that can be evaluated anywhere."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bayeskit import GPRegressor

rng = np.random.default_rng(2)
x = rng.uniform(0, 10, (12, 1))
y = np.sin(x[:, 0]) + 0.5 * np.cos(2.3 * x[:, 0]) + 0.05 * rng.normal(size=12)
grid = np.linspace(-1, 11, 400)[:, None]

model = GPRegressor(random_state=0).fit(x, y)
functions = model.sample_functions(8, random_state=0)
mean, std = model.predict(grid, return_std=True)

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.fill_between(grid[:, 0], mean - 2 * std, mean + 2 * std, color="0.9", label="mean ± 2 standard deviations")
ax.plot(grid[:, 0], functions(grid).T, linewidth=1)
ax.plot(x[:, 0], y, "ko", markersize=4, label="data")
ax.set(xlabel="x", ylabel="f(x)")
ax.legend(loc="upper right", fontsize="small")
figure.savefig(Path(sys.argv[1]) / "function_samples.png", dpi=90)
