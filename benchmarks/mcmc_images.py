"""Stochastic-gradient samplers of a small CNN on MNIST and Fashion-MNIST, all with the same number of gradients.

    BAYESKIT_DATA=folder python benchmarks/mcmc_images.py [--sets mnist,fashion_mnist] [--methods sgld,sghmc]
        [--seeds 3] [--rows 3000] [--gradients 2000] [--test 5000] [--temperature 1] [--out mcmc_images.json]

`BAYESKIT_DATA` as for `bnn_ood.py`, whose scores these are. Methods run by their registered names. A sampler is one
chain at temperature `--temperature` that evaluates `--gradients` mini-batch gradients of 100 rows: half of them to burn
in, then 20 draws; `csghmc` runs four cycles with five draws in each, `structured_sgld` takes a gradient for each of the
network's three layers in a step, so it takes a third of the steps. `map`, and the five members of `deep_ensemble`
together, take as many gradients, by Adam with a cosine schedule. The chains' start takes `START` L-BFGS steps and as
many curvature probes, of 2,000 rows each, about 450 gradients of 100 rows, which `map` and `deep_ensemble` get on top.

Each method's step size is chosen on seed 0 of each set: half the gradients on four fifths of the rows, the
log-likelihood of the others, steps of a factor of sqrt(10) from `STEP_SIZES` as long as that gains. All that is found
goes to `--out` at once, and nothing that is there is computed again.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bnn_ood import NAMES, SETS, cell, key, table, training_rows
from torch import nn
from torch.utils.data import TensorDataset

from bayeskit import BNNClassifier, metrics, registry
from bayeskit.core.inference import Inference
from bayeskit.core.optimize import Training
from bayeskit.mcmc import SGHMC, SGLD, EntropySGLD, Structured, TransitionKernel, cyclical_sghmc

STEP_SIZES = {
    **{"sgld": 3e-4, "sghmc": 1e-4, "csghmc": 3e-4, "entropy_mcmc": 3e-4, "structured_sgld": 3e-4},
    **{"map": 3e-3, "deep_ensemble": 1e-2},
}
"""Where the search for each method's step size begins."""

METHODS = (*("map", "deep_ensemble"), *("sgld", "sghmc", "csghmc", "entropy_mcmc", "structured_sgld"))
BATCH, START, START_GRADIENTS, DRAWS, LAYERS, CYCLES, MEMBERS = 100, 10, 450, 20, 3, 4, 5


def cnn(_: int, outputs: int) -> nn.Module:
    """3,818 weights on images of 14 by 14; a gradient of 100 rows takes some 2 ms."""
    first, second = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    return nn.Sequential(nn.AvgPool2d(2), first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(256, outputs))


def inference(name: str, lr: float, gradients: int, rows: int, temperature: float) -> Inference:
    """A registered method that takes as many gradients, with step size `lr`."""
    if name in ("map", "deep_ensemble"):
        networks = MEMBERS if name == "deep_ensemble" else 1
        epochs = round((gradients + START_GRADIENTS) * BATCH / rows / networks)
        training = Training(lr=lr, max_epochs=epochs, batch_size=BATCH, schedule="cosine")
        return registry.get(name, training=training, prior_precision=1.0)()
    steps = gradients // LAYERS if name == "structured_sgld" else gradients
    burn_in, thin = steps // 2, steps // 2 // DRAWS
    if name == "csghmc":
        burn_in, thin = 0, gradients // 4 // DRAWS
    kernel = KERNELS[name](lr, temperature, gradients)
    chain: dict[str, Any] = {"num_chains": 1, "num_samples": DRAWS, "burn_in": burn_in, "thin": thin}
    if name == "entropy_mcmc":  # what the paper predicts with
        chain["variables"] = ("weights", "weights.anchor")
    return registry.get(name, kernel=kernel, batch_size=BATCH, start_steps=START, **chain)()


KERNELS: dict[str, Callable[[float, float, int], TransitionKernel]] = {
    "sgld": lambda lr, t, _: SGLD(lr, t),
    "sghmc": lambda lr, t, _: SGHMC(lr, temperature=t),
    "csghmc": lambda lr, t, gradients: cyclical_sghmc(gradients // CYCLES, lr=lr, temperature=t),
    "entropy_mcmc": lambda lr, t, _: EntropySGLD(lr, temperature=t),
    "structured_sgld": lambda lr, t, _: Structured(SGLD(lr, t), groups="layer"),
}


def held_out(name: str, method: str, lr: float, arguments: argparse.Namespace) -> float:
    """Mean log-likelihood of a fifth of the training rows after half the gradients on the others."""
    (x, y), rows = training_rows(name, arguments.rows, seed=0)[0].tensors, arguments.rows * 4 // 5
    how = inference(method, lr, arguments.gradients // 2, rows, arguments.temperature)
    try:
        p = BNNClassifier(cnn, how, random_state=0).fit(TensorDataset(x[:rows], y[:rows])).predict_proba(x[rows:])
    except (FloatingPointError, ValueError):  # a chain that ran off
        return -np.inf
    return -metrics.negative_log_likelihood(p, y[rows:].numpy())


def climb(score: Callable[[float], float], start: float) -> float:
    """The step size to which steps of a factor of sqrt(10) from `start` lead."""
    best, found = start, score(start)
    for factor in (10**0.5, 10**-0.5):
        while (value := score(float(f"{best * factor:.1e}"))) > found:
            best, found = float(f"{best * factor:.1e}"), value
        if best != start:
            break
    return best


class Results:
    """What has been found, in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, where: str, compute: Callable[[], Any]) -> Any:
        if where not in self.found:
            self.found[where] = compute()
            self.path.write_text(json.dumps(self.found, indent=1))
            print(where, self.found[where], flush=True)
        return self.found[where]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--gradients", type=int, default=2_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default="mcmc_images.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(arguments.out)
    stems = {
        name: key(name, arguments.rows, arguments.gradients, arguments.temperature)
        for name in arguments.sets.split(",")
    }
    for seed in range(arguments.seeds):
        for name, stem in stems.items():
            for method in arguments.methods.split(","):
                lr = climb(
                    lambda size, name=name, method=method, stem=stem: results.get(
                        key("held out", stem, method, size), lambda: held_out(name, method, size, arguments)
                    ),
                    STEP_SIZES[method],
                )
                how = inference(method, lr, arguments.gradients, arguments.rows, arguments.temperature)
                results.get(
                    key(stem, method, seed),
                    lambda name=name, how=how, seed=seed, lr=lr: (
                        cell(name, cnn, how, seed, rows=arguments.rows, test=arguments.test) | {"lr": lr}
                    ),
                )
    for name, stem in stems.items():
        print(f"\n### {NAMES[name]}\n\n{table(results.found, stem, METHODS)}\n", flush=True)


if __name__ == "__main__":
    main()
