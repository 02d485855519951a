"""A map of a magnetic field from the paths of a robot, learnt in sequence without storing the paths.

The inducing points follow the robot, and the memory keeps data points of all paths. After each path the printed numbers
are the error and the coverage on a held-out path. With a folder of data in BAYESKIT_DATA these are the
nine paths of `streaming/magnetometer.npz`, the strength of the field in microtesla; without it, all are simulated.
"""

import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bayeskit import GPRegressor, gp


def made_up(paths=4, steps=80):
    """A field of a few anomalies, and circles that drift."""
    rng = np.random.default_rng(0)
    centers, t = rng.uniform(-3, 3, (6, 2)), np.linspace(0, 2 * np.pi, steps)
    found = []
    for i in range(paths):
        x = np.stack([(1 + 0.6 * i) * np.cos(t + i), (1 + 0.6 * i) * np.sin(t + i)], 1)
        field = 50 + (8 * np.cos(3 * np.arange(6)) / (1 + ((x[:, None] - centers) ** 2).sum(-1))).sum(1)
        found.append((x, field + 0.1 * rng.normal(size=steps)))
    return [*found[:2], found[3], found[2]]  # the last one lies between the others


def magnetometer(path, every=20):
    """Every 20th reading of each path."""
    arrays = np.load(path)
    return [(arrays[f"loc{i}"][::every], np.linalg.norm(arrays[f"mag{i}"], axis=1)[::every]) for i in range(1, 10)]


path = Path(os.environ.get("BAYESKIT_DATA", ".")) / "streaming" / "magnetometer.npz"
*driven, (X_test, y_test) = magnetometer(path) if path.exists() else made_up()
model = GPRegressor(inference=gp.MemoryDualGP(num_inducing=100, memory=100), random_state=0)
errors = []
for i, (X, y) in enumerate(driven, 1):
    model.partial_fit(X, y)
    mean, std = model.predict(X_test, return_std=True)
    errors.append(np.sqrt(np.mean((mean - y_test) ** 2)))
    inside = np.mean(abs(mean - y_test) < 1.645 * std)
    print(f"after path {i}: error {errors[-1]:.2f} of {y_test.std():.2f}, {inside:.0%} inside the 90 % intervals")
assert errors[-1] < y_test.std()

low, high = np.min([x.min(0) for x, _ in driven], 0), np.max([x.max(0) for x, _ in driven], 0)
grid = np.stack(np.meshgrid(*np.linspace(low, high, 40).T), -1)
mean, std = model.predict(grid.reshape(-1, 2), return_std=True)
figure, panels = plt.subplots(1, 2, figsize=(10, 4))
for panel, values, title in zip(panels, (mean, std), ("field", "standard deviation"), strict=True):
    image = panel.pcolormesh(grid[..., 0], grid[..., 1], values.reshape(40, 40))
    figure.colorbar(image)
    panel.set_title(title)
for X, _ in driven:
    panels[0].plot(*X.T, "w", linewidth=0.5)
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
plt.savefig(folder / "18_magnetic_field.png", dpi=120)
