"""Bayesian optimization by Thompson sampling: maximize one posterior function sample, evaluate, refit."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bayeskit import GPRegressor


def branin(x):
    a, b = 15 * x[:, 0] - 5, 15 * x[:, 1]
    return (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10


def run(seed, *, thompson, evaluations=20, initial=6):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(initial, 2))
    while len(x) < evaluations:
        candidates = rng.uniform(size=(400, 2))
        if thompson:
            model = GPRegressor(random_state=seed).fit(x, branin(x))
            f = model.sample_functions(1, random_state=len(x))(candidates)[0]
            x = np.concatenate([x, candidates[[np.argmin(f)]]])
        else:
            x = np.concatenate([x, candidates[:1]])
    return np.minimum.accumulate(branin(x)) - 0.397887


figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for thompson, name in ((False, "random search"), (True, "Thompson sampling, exact GP")):
    regret = np.stack([run(seed, thompson=thompson) for seed in range(4)])
    evaluations = np.arange(1, regret.shape[1] + 1)
    (line,) = ax.plot(evaluations, np.exp(np.log(regret).mean(0)), label=name)
    ax.fill_between(evaluations, regret.min(0), regret.max(0), color=line.get_color(), alpha=0.2)
ax.axvline(6.5, color="0.5", linewidth=0.8, linestyle=":")
ax.set(xlabel="evaluations of Branin's function", ylabel="simple regret", yscale="log")
ax.legend(fontsize="small")
figure.savefig(Path(sys.argv[1]) / "optimization_regret.png", dpi=90)
