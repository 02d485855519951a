"""MemoryDualGP on streams, compared with a fit to all data, a stream without memory, and the last chunk alone.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_memory.py [sets ...] [--seeds 0 1 2] [--set memory=64 ...]
    python benchmarks/gp_memory.py cost [--batches 100]

The first cuts the training rows of elevators, bike, banana and mammographic (seed s takes fold s of ten as its test
rows), sorted by the first feature, into 50 chunks, and prints the negative log predictive density of a test row in nats
at the end, and processor seconds, for

- `offline`: `DualSVGP` at its defaults, on all rows at once;
- `memory`: `MemoryDualGP`, chunk after chunk;
- `without`: the same with `memory=0`;
- `last chunk`: `DualSVGP` on the last chunk alone.

All start from one prior, and inputs and targets are standardized by all training rows; with `--door` the estimators do
both, from the first chunk. `--set name=value` changes a setting of `MemoryDualGP`. With several seeds there follow, for
each set, the mean of each over the folds and that of `memory` less it, fold by fold, both with their standard errors,
and how far it is from `offline`, as the root of the mean square over the folds.

`cost` prints the processor time of a batch of 200 rows as a stream of labels in two dimensions goes on.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from bayeskit import GPClassifier, GPRegressor, gp
from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.types import Data

SETS = ("elevators", "bike", "banana", "mammographic")


def table(name, seed):
    """Training and test rows: x, y, x_test, y_test, and whether y are labels."""
    folder = Path(os.environ["BAYESKIT_DATA"])
    if name in ("banana", "mammographic"):
        arrays = np.load(folder / "classification" / f"{name}.npz")
        x, y = (arrays["X_full"], arrays["y_full"]) if name == "banana" else (arrays["X"], arrays["y"])
        y = (y == y.max()).astype(np.int64)
        fold = np.random.default_rng(0).permutation(len(x)) % 10
    else:
        arrays = np.load(folder / "gp_regression" / f"{name}.npz")
        x, y, fold = arrays["X"], arrays["y"], arrays["test_fold"]
    train = fold != seed
    return x[train], y[train], x[~train], y[~train], name in ("banana", "mammographic")


def chunks(x, number=50):
    """Rows sorted by the first feature, in so many parts."""
    return np.array_split(np.argsort(x[:, 0], kind="stable"), number)


class Direct:
    """Inferences themselves, on rows standardized by all training rows."""

    def __init__(self, x, y, x_test, y_test, labels):
        shift, scale = x.mean(0), x.std(0).clip(1e-10)
        self.x, self.x_test = (torch.from_numpy((part - shift) / scale) for part in (x, x_test))
        self.unit = 1.0 if labels else y.std()
        center = 0.0 if labels else y.mean()
        self.y, self.y_test = (
            torch.from_numpy(part) if labels else torch.from_numpy((part - center) / self.unit).unsqueeze(-1)
            for part in (y, y_test)
        )
        self.likelihood, self.prior = Bernoulli() if labels else Gaussian(), gp.default_prior(self.x)

    def run(self, method, parts, seed):
        """Negative log predictive density of a test row after these parts, one after the other."""
        generator = torch.Generator().manual_seed(seed)
        posterior, likelihood = self.prior, self.likelihood
        for rows in parts:
            fit = method.infer(posterior, likelihood, Data(self.x[rows], self.y[rows]), generator=generator)
            posterior, likelihood = fit.posterior, fit.likelihood
        with torch.no_grad():
            score = likelihood.predictive(posterior(self.x_test)).log_prob(self.y_test)
        return -float(score.mean()) + float(np.log(self.unit))


class Door:
    """Estimators, which learn their scales from the first chunk."""

    def __init__(self, x, y, x_test, y_test, labels):
        self.x, self.y, self.x_test, self.y_test, self.labels = x, y, x_test, y_test, labels

    def run(self, method, parts, seed):
        make = GPClassifier if self.labels else GPRegressor
        model, extra = make(inference=method, random_state=seed), {"classes": [0, 1]} if self.labels else {}
        for rows in parts:
            model.partial_fit(self.x[rows], self.y[rows], **extra)
        score = model.predictive(self.x_test).log_prob(torch.from_numpy(self.y_test))
        return -float(score.mean())


def stream(names, seeds, settings, door, only):
    for name in names:
        scores = {}
        for seed in seeds:
            rows = table(name, seed)
            problem, parts = (Door if door else Direct)(*rows), chunks(rows[0])
            runs = {
                "offline": (gp.DualSVGP(), [np.concatenate(parts)]),
                "memory": (gp.MemoryDualGP(**settings), parts),
                "without": (gp.MemoryDualGP(**settings | {"memory": 0}), parts),
                "last chunk": (gp.DualSVGP(), parts[-1:]),
            }
            for label, (method, given) in runs.items():
                if only and label not in only:
                    continue
                begin = time.process_time()
                score = problem.run(method, given, seed)
                seconds = time.process_time() - begin
                scores.setdefault(label, []).append(score)
                print(f"{name:13s} seed {seed}  {label:11s} {score:9.4f}  {seconds:7.1f} s", flush=True)
        if len(seeds) > 1:
            summary(name, scores)


def summary(name, scores):
    """Print means over folds and paired differences, with standard errors."""
    for label, values in scores.items():
        line = f"{name:13s} {label:11s} mean {shown(values)}"
        if label != "memory" and "memory" in scores:
            line += f"   memory less it {shown(np.subtract(scores['memory'], values))}"
        if label != "offline" and "offline" in scores:
            away = np.subtract(scores["offline"], values)
            line += f"   from offline, root mean square {np.mean(away**2) ** 0.5:.4f}"
        print(line, flush=True)


def shown(values):
    return f"{np.mean(values):8.4f} ({np.std(values, ddof=1) / len(values) ** 0.5:.4f})"


def cost(batches, settings):
    generator = torch.Generator().manual_seed(0)
    posterior, likelihood = None, Bernoulli()
    method, seconds = gp.MemoryDualGP(**settings), []
    for batch in range(1, batches + 1):
        x = 4 * torch.rand(200, 2, dtype=torch.float64, generator=generator) - 2
        data = Data(x, ((2 * x[:, 0]).sin() > x[:, 1]).long())
        begin = time.process_time()
        fit = method.infer(posterior or gp.default_prior(x), likelihood, data, generator=generator)
        seconds.append(time.process_time() - begin)
        posterior, likelihood = fit.posterior, fit.likelihood
        if batch % 10 == 0:
            print(f"batches {batch - 9:3d} to {batch:3d}: median {statistics.median(seconds[-10:]):.3f} s", flush=True)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--door", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--batches", type=int, default=100)
    return parser.parse_args()


def value_of(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"True": True, "False": False}.get(text, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = parse()
    settings = {key: value_of(value) for key, value in (pair.split("=") for pair in given.set)}
    if given.names == ["cost"]:
        cost(given.batches, settings)
    else:
        stream(given.names or SETS, given.seeds, settings, given.door, given.only)
