"""Networks on the standard splits of the UCI tables, beside MC dropout trained to convergence on the same splits.

    BAYESKIT_DATA=folder python benchmarks/bnn_uci.py [--methods map,swag] [--sets energy,concrete] [--splits 5]
        [--networks 1x50,default] [--long] [--out bnn_uci.json] [--threads 1]

NLPD per test row in the target's own units, and RMSE, of one hidden layer of 50 (100 for protein) and of the
estimator's default network; seconds are of the processor. With `--long` training is more patient than by default
(`longer`), which the names of the rows say. Results already in `--out` are not recomputed, and the
tables show all that it holds: means over splits with their standard errors, and the paired difference to the published
NLPD of MC dropout (`results/mc_dropout_uci_per_split.json` of `BAYESKIT_DATA`, 4,000 epochs). The seed of a split is
its number.
"""

import argparse
import json
import math
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bayeskit import registry
from bayeskit.bnn import MLP
from bayeskit.bnn.ivon import ivon
from bayeskit.bnn.methods import deep_ensemble
from bayeskit.bnn.training import map_training
from bayeskit.bnn.variational_inference import elbo_training as variational
from bayeskit.estimators import make

SETS = ("boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine", "yacht")
VARIANTS = {"laplace_all": ("laplace", {"subset": "all"})}
"""What the name of a row stands for, where it is not that of a registered method with its defaults."""

LONG = "_longer"
PATIENCE = {"max_epochs": 2_000, "patience": 50}
STEPS = 6_000
PUBLISHED = "MC dropout, 4,000 epochs"


def fields(name):
    return np.load(Path(os.environ["BAYESKIT_DATA"]) / "uci" / f"{name}.npz")


def published(name):
    """Per-split NLPD of converged MC dropout, or None where the table has no row."""
    path = Path(os.environ["BAYESKIT_DATA"]) / "results" / "mc_dropout_uci_per_split.json"
    found = json.loads(path.read_text()).get(name)
    return None if found is None else -np.array(found["test_ll"])


def network_for(kind, name):
    if kind == "default":
        return None
    return partial(MLP, hidden=(100 if name == "protein" else 50,))


def longer(method, num_rows):
    """The settings of a training with more patience than a method's default, or with more steps where none stops it."""
    if method == "ivon":
        return {
            "training": replace(ivon.DEFAULT_TRAINING, max_epochs=math.ceil(STEPS / math.ceil(0.85 * num_rows / 128)))
        }
    default = {"deep_ensemble": deep_ensemble.DEFAULT_TRAINING, "mean_field": variational.DEFAULT_TRAINING}
    return {"training": replace(default.get(method, map_training.DEFAULT_TRAINING), **PATIENCE)}


def cell(name, split, method, kind):
    """NLPD, RMSE and seconds of one fit."""
    table = fields(name)
    x, y, train, test = table["X"], table["y"], table["train_idx"][split], table["test_idx"][split]
    plain, long = method.removesuffix(LONG), method.endswith(LONG)
    registered, settings = VARIANTS.get(plain, (plain, {}))
    settings = {**settings, **(longer(registered, len(train)) if long else {})}
    model = make(registered, "regression", random_state=split, **settings).set_params(network=network_for(kind, name))
    start = time.process_time()
    model.fit(x[train], y[train])
    seconds = time.process_time() - start
    predictive = model.predictive(x[test])
    error = np.asarray(model.predict(x[test])) - y[test]
    nlpd = -float(np.mean(np.asarray(predictive.log_prob(y[test]))))
    return {"nlpd": nlpd, "rmse": float(np.sqrt(np.mean(error**2))), "seconds": seconds}


def key(*parts):
    return "/".join(map(str, parts))


def table_of(results, name):
    """One table a set: means over the splits done, and the difference to the published values on those splits."""
    reference = published(name)
    print(f"\n### {name}\n\n| method | network | splits | NLPD | RMSE | less {PUBLISHED} | seconds |")
    print("|---|---|---|---|---|---|---|")
    if reference is not None:
        print(f"| {PUBLISHED} | 1x50 | {len(reference)} | {spread(reference)} | | | |")
    groups = {}
    for where, found in results.items():
        at, kind, method, split = where.split("/")
        if at == name:
            groups.setdefault((kind, method), {})[int(split)] = found
    for (kind, method), cells in sorted(groups.items()):
        nlpd, rmse, seconds = (np.array([c[what] for c in cells.values()]) for what in ("nlpd", "rmse", "seconds"))
        gap = "" if reference is None else spread(nlpd - reference[list(cells)])
        shown = f"{spread(nlpd)} | {spread(rmse)} | {gap} | {seconds.mean():.1f}"
        print(f"| {method} | {kind} | {len(cells)} | {shown} |")


def spread(values):
    """Mean and standard error."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.3f} ± {error:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(registry.names("regression", family="bnn")))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--networks", default="1x50,default")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--out", default="bnn_uci.json")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    methods = [method + LONG * arguments.long for method in arguments.methods.split(",")]
    for name in arguments.sets.split(","):
        for split in range(min(arguments.splits, len(fields(name)["train_idx"]))):
            for kind in arguments.networks.split(","):
                for method in methods:
                    where = key(name, kind, method, split)
                    if where not in results:
                        results[where] = cell(name, split, method, kind)
                        out.write_text(json.dumps(results, indent=1))
        table_of(results, name)


if __name__ == "__main__":
    main()
