"""Active learning: every acquisition function against random labels, on pools whose labels are known.

    BAYESKIT_DATA=folder python benchmarks/active_pools.py [--sets banana,banana_single,mnist,boston,concrete,energy]
        [--seeds 5] [--acquisitions bald,random] [--out active_pools.json] [--figure active_pools.png] [--threads 1]

Every seed is another split into pool and test rows and another start; within a seed all acquisitions start from the
same labels. Numbers are by an exact GP, banana is by GPClassifier as it comes, and MNIST by a softmax regression with a
Bayesian layer on 50 principal components of its strokes (the directions of the edges in each cell of the image). Score
is the accuracy, or minus the RMSE in standard deviations of y. The tables show the last score and the area between the
curve and that of random labels, as the mean difference over all rounds after the first, with the standard error over
seeds; a star marks more than twice that. Results that `--out` has for the same setting are not recomputed.
"""

import argparse
import functools
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn

from bayeskit import BNNClassifier, GPClassifier, GPRegressor, active, bnn, metrics


@dataclass(frozen=True)
class Setting:
    file: str
    initial: int
    batch_size: int
    rounds: int
    pool: int = 1_000
    test: int = 1_000
    candidates: int | None = None


@functools.cache
def table(name):
    stored = np.load(Path(os.environ["BAYESKIT_DATA"]) / SETTINGS[name].file)
    if name == "mnist":
        return PCA(50, random_state=0).fit_transform(strokes(stored["x_train"][:IMAGES])), stored["y_train"][:IMAGES]
    suffix = "_full" if "X_full" in stored else ""
    return stored[f"X{suffix}"], np.ravel(stored[f"y{suffix}"])


def strokes(images, directions=8, cell=4):
    """How much edge of each direction lies in each cell of images (n, 28, 28), as (n, 392) with rows of length one."""
    down, right = np.gradient(images.astype(np.float32) / 255, axis=(1, 2))
    angle = np.arctan2(down, right) % (2 * np.pi) * directions / (2 * np.pi)
    lower, share, length = np.floor(angle).astype(int) % directions, angle % 1, np.hypot(down, right)
    edges = np.zeros((*images.shape, directions), dtype=np.float32)
    for direction, part in ((lower, 1 - share), ((lower + 1) % directions, share)):
        edges[(*np.indices(lower.shape), direction)] += part * length
    cells = edges.reshape(len(images), 28 // cell, cell, 28 // cell, cell, directions).sum((2, 4))
    roots = np.sqrt(cells).reshape(len(images), -1)
    return roots / np.linalg.norm(roots, axis=1, keepdims=True)


SETTINGS = {
    "banana": Setting("classification/banana.npz", 10, 10, 10, pool=2_000, test=2_000),
    "banana_single": Setting("classification/banana.npz", 10, 1, 31, pool=2_000, test=2_000, candidates=300),
    "mnist": Setting("images/mnist.npz", 20, 40, 8, pool=2_000, test=2_000),
    "boston": Setting("uci/boston.npz", 20, 20, 6),
    "concrete": Setting("uci/concrete.npz", 20, 20, 6),
    "energy": Setting("uci/energy.npz", 20, 20, 6),
}
CLASSES = ("banana", "banana_single", "mnist")
IMAGES = 10_000


def estimator(name):
    if name not in CLASSES:
        return GPRegressor(random_state=0)
    if name != "mnist":
        return GPClassifier(random_state=0)
    # 0.1 and 0.01 were tried, on 300 random labels of another split of these images: accuracies of 0.912 and 0.916.
    return BNNClassifier(nn.Linear, inference=bnn.VBLL(prior_precision=0.03), random_state=0)


def start_of(y, size, rng, *, classes):
    """Rows at the start; of every class as many, so that all are known."""
    if not classes:
        return rng.choice(len(y), size, replace=False)
    each = size // len(np.unique(y))
    return np.concatenate([rng.choice(np.flatnonzero(y == label), each, replace=False) for label in np.unique(y)])


def cell(name, acquisition, seed):
    setting, rng = SETTINGS[name], np.random.default_rng(seed)
    x, y = table(name)
    rows = rng.permutation(len(y))[: setting.pool + setting.test]
    cut = min(setting.pool, int(0.7 * len(rows)))
    pool, test = rows[:cut], rows[cut:]
    initial = start_of(y[pool], setting.initial, rng, classes=name in CLASSES)
    scale = y[pool].std() if name not in CLASSES else 1.0
    found = {"setting": asdict(setting), "labels": [], "score": [], "nlpd": [], "seconds": []}
    loop = active.run(
        estimator(name),
        x[pool],
        y[pool],
        acquisition=acquisition,
        initial=initial,
        batch_size=setting.batch_size,
        rounds=setting.rounds,
        candidates=setting.candidates,
        random_state=seed,
    )
    for r in loop:
        predictive = r.estimator.predictive(x[test])
        if name in CLASSES:
            score = metrics.accuracy(predictive.probs.numpy(), np.searchsorted(r.estimator.classes_, y[test]))
        else:
            score = -float(np.sqrt(np.mean((predictive.mean.numpy() - y[test]) ** 2))) / scale
        found["labels"].append(r.num_labels)
        found["score"].append(float(score))
        found["nlpd"].append(-float(predictive.log_prob(y[test]).mean()))
        found["seconds"].append(r.seconds)
    return found


def spread(values):
    return f"{np.mean(values):+.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"


def runs_of(cells, name, acquisition, seeds):
    keys = [f"{name}/{acquisition}/{seed}" for seed in range(seeds)]
    return [cells[key] for key in keys if key in cells]


def report(cells, names, seeds):
    for name in names:
        kept = {a: runs for a in ORDER if len(runs := runs_of(cells, name, a, seeds)) == seeds}
        if "random" not in kept or seeds < 2:
            continue
        print(f"\n### {name}: {kept['random'][0]['labels'][0]} to {kept['random'][0]['labels'][-1]} labels")
        print("\n| acquisition | score at the end | area over random | NLPD under random | seconds to choose and fit |")
        print("|---|---|---|---|---|")
        for a, runs in kept.items():
            last = [run["score"][-1] for run in runs]
            columns = [f"`{a}`", f"{np.mean(last):.3f} ± {np.std(last, ddof=1) / np.sqrt(len(last)):.3f}"]
            for key, sign in (("score", 1), ("nlpd", -1)):
                pairs = zip(runs, kept["random"], strict=True)
                area = [sign * np.mean(np.subtract(run[key], base[key])[1:]) for run, base in pairs]
                significant = abs(np.mean(area)) > 2 * np.std(area, ddof=1) / np.sqrt(len(area))
                columns.append("" if a == "random" else spread(area) + (" *" if significant else ""))
            columns.append(f"{np.median([s for run in runs for s in run['seconds'][1:]]):.2f}")
            print("| " + " | ".join(columns) + " |")


def draw(cells, names, seeds, path):
    import matplotlib.pyplot as plt

    from bayeskit import plots

    shape, shared = (len(names), len(ORDER[1:])), {"sharex": "row", "sharey": "row", "squeeze": False}
    figure, rows = plt.subplots(*shape, figsize=(1.7 * shape[1], 2.1 * shape[0]), layout="constrained", **shared)
    for name, row in zip(names, rows, strict=True):
        known = {a: runs for a in ORDER if (runs := runs_of(cells, name, a, seeds))}
        for acquisition, panel in zip(ORDER[1:], row, strict=True):
            pair = {"random labels": known["random"], "asked for": known.get(acquisition, known["random"])}
            curves = {label: (runs[0]["labels"], [run["score"] for run in runs]) for label, runs in pair.items()}
            plots.learning_curve(curves, score="", ax=panel).legend().remove()
            panel.set(visible=acquisition in known, title=acquisition)
        row[0].set_ylabel(f"{name.replace('_', ', ')}: " + ("accuracy" if name in CLASSES else "minus RMSE / std"))
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


ORDER = ("random", "variance", "entropy", "margin", "bald", "batch_bald", "epig")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETTINGS))
    parser.add_argument("--acquisitions", default=",".join(ORDER))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("active_pools.json"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    stored = json.loads(given.out.read_text()) if given.out.exists() else {}
    cells = {key: run for key, run in stored.items() if run.get("setting") == asdict(SETTINGS[key.split("/")[0]])}
    sets = given.sets.split(",")
    for seed in range(given.seeds):
        for name in sets:
            for acquisition in given.acquisitions.split(","):
                key = f"{name}/{acquisition}/{seed}"
                if key in cells or (acquisition == "margin" and name not in CLASSES):
                    continue
                began = time.perf_counter()
                cells[key] = cell(name, acquisition, seed)
                given.out.write_text(json.dumps(cells))
                print(f"{key} {cells[key]['score'][-1]:.3f} in {time.perf_counter() - began:.0f} s", flush=True)
    report(cells, sets, given.seeds)
    if given.figure:
        draw(cells, sets, given.seeds, given.figure)
