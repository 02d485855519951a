"""Active learning: labels queried one by one by an acquisition function, against labels sampled at random.

Most points of the pool lie in a small region; the error is measured over the whole range. The printed numbers are the
mean error by number of labels and strategy. The figure shows the learning curves, mean and two standard errors over
five pools.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bayeskit import GPRegressor, active, plots


def f(x):
    return np.sin(2 * x[:, 0]) + 0.3 * x[:, 0]


grid = np.linspace(-3, 3, 80)[:, None]
ways, seeds = ("random", "bald", "batch_bald", "epig"), range(5)
curves = {}
for way in ways:
    errors = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        pool = np.concatenate([rng.normal(-2, 0.15, (170, 1)), rng.uniform(-3, 3, (30, 1))])
        asked = []

        def label(rows, pool=pool, rng=rng, asked=asked):
            """Whoever labels is asked for these rows alone."""
            asked.extend(rows.tolist())
            return f(pool[rows]) + 0.05 * rng.normal(size=len(rows))

        loop = active.run(
            GPRegressor(random_state=0),
            pool,
            label,
            acquisition=way,
            initial=4,
            batch_size=4,
            rounds=6,
            targets=grid if way == "epig" else None,
            random_state=seed,
        )
        rounds = [(r.num_labels, np.abs(r.estimator.predict(grid) - f(grid)).mean()) for r in loop]
        assert len(set(asked)) == len(asked) == rounds[-1][0]
        errors.append([error for _, error in rounds])
    labels = [number for number, _ in rounds]
    curves[way] = labels, np.array(errors)
    means = curves[way][1].mean(0)
    print(f"{way:11s}" + "".join(f"  {number:2d} labels {e:.3f}" for number, e in zip(labels, means, strict=True)))

better = np.mean([curves["batch_bald"][1][:, -1] < curves["random"][1][:, -1]])
print(f"24 labels queried as one batch beat 24 at random in {100 * better:.0f} % of the pools")

ax = plots.learning_curve(curves, score="mean error over the range")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
ax.figure.savefig(folder / "15_active.png", dpi=150)
plt.close("all")
print("figure:", folder / "15_active.png")
