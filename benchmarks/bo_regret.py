"""Bayesian optimization by BoTorch over posteriors of this library: regret on Branin and Hartmann-6.

    python benchmarks/bo_regret.py [--problems branin,hartmann6] [--methods exact,dual_svgp,vbll,ivon]
        [--acquisitions logei,thompson] [--seeds 5] [--out bo_regret.json] [--figure bo_regret.png] [--threads 1]

Each run starts from the same Sobol points for a seed, then fits, asks for a batch of q inputs and evaluates them, with
noise of a hundredth of the start's standard deviation. "logei" is `qLogExpectedImprovement` climbed by `optimize_acqf`,
"thompson" `MaxPosteriorSampling` over 500 Sobol points, "random" Sobol points alone. Regret is that of the best input
so far, without the noise. Results already in `--out` are not recomputed. Needs the extra `bayeskit[botorch]`.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.generation import MaxPosteriorSampling
from botorch.optim import optimize_acqf
from botorch.sampling.get_sampler import get_sampler
from botorch.test_functions import Branin, Hartmann
from botorch.utils.sampling import draw_sobol_samples
from torch import nn

from bayeskit import BNNRegressor, GPRegressor, bnn
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.integrations.botorch import as_model

PROBLEMS = {"branin": (Branin(negate=True), 10, 2, 8), "hartmann6": (Hartmann(negate=True), 14, 2, 15)}
"""Function to maximize, Sobol points at the start (10, and 2 (d + 1)), q, batches."""


def network(in_features, out_features):
    """Two smooth layers, for smooth interpolation between few points."""
    first, second = nn.Linear(in_features, 64), nn.Linear(64, 64)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(64, out_features))


VBLL = bnn.VBLL(prior_precision=1e-3, training=Training(lr=1e-2, max_epochs=300, batch_size=None, schedule="cosine"))
IVON = bnn.IVON(kl_weight=0.1, training=Training(lr=5e-3, max_epochs=1_000, batch_size=None, schedule="cosine"))
METHODS = {
    "exact": lambda seed: GPRegressor(random_state=seed),
    "dual_svgp": lambda seed: GPRegressor(inference="dual_svgp", random_state=seed),
    "vbll": lambda seed: BNNRegressor(network, inference=VBLL, likelihood=Gaussian(0.01), random_state=seed),
    "ivon": lambda seed: BNNRegressor(network, inference=IVON, random_state=seed),
}
"""The networks learn from all rows, none held out, and their settings were chosen by `bo_fits.py`: by how they predict
both functions at random points, and by no regret."""


def ask(acquisition, problem, model, best, q, seed):
    """The next q inputs, (q, d)."""
    if acquisition == "random":
        return draw_sobol_samples(problem.bounds, n=1, q=q, seed=1_000 + seed)[0]
    if acquisition == "thompson":
        torch.manual_seed(seed)
        candidates = draw_sobol_samples(problem.bounds, n=1, q=500, seed=seed)[0]
        with torch.no_grad():
            return MaxPosteriorSampling(model, replacement=False)(candidates, num_samples=q)
    sampler = get_sampler(model.posterior(problem.bounds), torch.Size([64]), seed=seed)
    chosen, _ = optimize_acqf(
        qLogExpectedImprovement(model, best_f=best, sampler=sampler),
        problem.bounds,
        q=q,
        num_restarts=3,
        raw_samples=64,
        options={"maxiter": 40, "seed": seed},
    )
    return chosen


def cell(name, method, acquisition, seed):
    problem, start, q, batches = PROBLEMS[name]
    problem = problem.double()
    x = draw_sobol_samples(problem.bounds, n=1, q=start, seed=seed)[0]
    clean = problem(x)
    generator = torch.Generator().manual_seed(seed)
    noise = 0.01 * clean.std()

    def observe(values):
        return values + noise * torch.randn(values.shape, generator=generator, dtype=values.dtype)

    y, model, began = observe(clean), None, time.perf_counter()
    regret = [float(problem.optimal_value - clean.max())]
    for batch in range(batches):
        if acquisition != "random":
            model = as_model(METHODS[method](seed).fit(x.numpy(), y.numpy()))
        chosen = ask(acquisition, problem, model, y.max(), q, 100 * seed + batch)
        value = problem(chosen)
        x, y, clean = torch.cat([x, chosen]), torch.cat([y, observe(value)]), torch.cat([clean, value])
        regret.append(float(problem.optimal_value - clean.max()))
    evaluations = (start + q * np.arange(batches + 1)).tolist()
    return {"evaluations": evaluations, "regret": regret, "seconds": time.perf_counter() - began}


def runs(cells, name, row, seeds):
    return [cells[f"{name}/{row}/{s}"] for s in range(seeds) if f"{name}/{row}/{s}" in cells]


def report(cells, names, rows, seeds):
    for name in names:
        print(f"\n### {name}\n\n| method | acquisition | regret at first | halfway | at the end | seconds a batch |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            found = runs(cells, name, row, seeds)
            if len(found) < seeds:
                continue
            regret = np.array([run["regret"] for run in found])
            columns = [f"`{part}`" if part else "" for part in row.split("/")]
            for at in (0, regret.shape[1] // 2, -1):
                half = regret[:, at].std(ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
                columns.append(f"{regret[:, at].mean():.3f} ± {half:.3f}")
            columns.append(f"{np.median([run['seconds'] for run in found]) / (regret.shape[1] - 1):.1f}")
            print("| " + " | ".join(columns) + " |")


def draw(cells, names, methods, acquisitions, seeds, path):
    """A row of panels for each function, a column for each acquisition, the same random points in all of a row."""
    import matplotlib.pyplot as plt

    from bayeskit import plots

    size = {"figsize": (5 * len(acquisitions), 3.4 * len(names)), "layout": "constrained"}
    figure, panels = plt.subplots(len(names), len(acquisitions), sharey="row", squeeze=False, **size)
    for name, row in zip(names, panels, strict=True):
        for acquisition, panel in zip(acquisitions, row, strict=True):
            curves = {}
            for method in ("random", *methods):
                found = runs(cells, name, "/random" if method == "random" else f"{method}/{acquisition}", seeds)
                if found:
                    log10 = [np.log10(np.maximum(run["regret"], 1e-4)) for run in found]
                    curves[method] = found[0]["evaluations"], log10
            plots.learning_curve(curves, score="log10 of the regret", xlabel="evaluations", band="range", ax=panel)
            panel.set_title(f"{name}, {acquisition}")
            if panel is panels[0, 0]:
                panel.legend(frameon=False, fontsize="small", loc="lower left")
            else:
                panel.get_legend().remove()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--acquisitions", default="logei,thompson")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bo_regret.json"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # of searches that end at their limit of steps
    cells = json.loads(given.out.read_text()) if given.out.exists() else {}
    names = given.problems.split(",")
    rows = ["/random", *(f"{m}/{a}" for m in given.methods.split(",") for a in given.acquisitions.split(","))]
    for seed in range(given.seeds):
        for name in names:
            for row in rows:
                key = f"{name}/{row}/{seed}"
                if key in cells:
                    continue
                cells[key] = cell(name, *row.split("/"), seed)
                given.out.write_text(json.dumps(cells))
                print(f"{key} {cells[key]['regret'][-1]:.3f} in {cells[key]['seconds']:.0f} s", flush=True)
    report(cells, names, rows, given.seeds)
    if given.figure:
        draw(cells, names, given.methods.split(","), given.acquisitions.split(","), given.seeds, given.figure)
