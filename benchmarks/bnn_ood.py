"""Networks on MNIST and Fashion-MNIST: accuracy, NLL, ECE, and OOD detection of the other set by entropy.

    BAYESKIT_DATA=folder python benchmarks/bnn_ood.py [--sets mnist,fashion_mnist] [--networks mlp,lenet] [--seeds 3]
        [--methods map,laplace] [--rows 3000] [--test 5000] [--epochs 30] [--lr 0.01] [--precision 0.1]
        [--out bnn_ood.json] [--figure docs/images/ood.png]

`BAYESKIT_DATA` holds `images/mnist.npz` and `images/fashion_mnist.npz`. Every method gets the same network
(784-256-256-10, or LeNet) as a user would hand it over, the same random rows of the training images, a tenth of which
it may hold out, the same epochs of 128 rows, Adam at `--lr` falling to zero by cosine, and the same factor
`--precision` on the prior's precision ("validation" lets each choose its own), unless `SETTINGS` says otherwise. Test
images are every other one of either set, scaled like the training rows; AUROC is of the entropy of the predicted
label. Seconds are of the processor, of one thread. Results already in `--out` are not recomputed, and the tables
show all that it holds at these rows and epochs: means over seeds, with standard deviations.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from bayeskit import BNNClassifier, metrics, registry
from bayeskit.core.inference import Inference
from bayeskit.core.optimize import Training
from bayeskit.mcmc import NUTS

SETS = ("mnist", "fashion_mnist")
NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "mlp": "MLP", "lenet": "LeNet"}

# What the name of a row stands for: a registered method, and settings beyond its defaults.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "map+temperature": ("map", {"temperature_scaling": True}),
    "laplace+evidence": ("laplace", {"prior_precision": "evidence"}),
    "mc_dropout": ("mc_dropout", {"rate": 0.1}),
    "ssvi": ("ssvi", {"density": 0.05}),
    "nuts": ("nuts", {"kernel": NUTS(max_tree_depth=4), "num_chains": 1, "num_samples": 10, "burn_in": 10}),
    "sgld": ("sgld", {"num_chains": 2, "num_samples": 20, "burn_in": 200, "thin": 10, "start_steps": 50}),
}
SAMPLERS = ("nuts", "sgld")
"""They take no epochs, and the prior as it is; their budgets are a small share of their own."""

METHODS = (
    *("map", "map+temperature", "laplace", "laplace+evidence", "vbll", "deep_ensemble", "swag", "mc_dropout"),
    *("ivon", "mean_field", "ssvi", "sgld", "nuts"),
)
SCORES = {"accuracy": 100.0, "nll": 1.0, "ece": 1.0, "auroc": 1.0}  # and what they are multiplied by in a table


def mlp(_: int, outputs: int) -> nn.Module:
    widths = (784, 256, 256)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(256, outputs))


def lenet(_: int, outputs: int) -> nn.Module:
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    dense = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, outputs)]
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *dense)


NETWORKS = {"mlp": mlp, "lenet": lenet}


@cache
def images(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(Path(os.environ["BAYESKIT_DATA"]) / "images" / f"{name}.npz"))


def pixels(raw: np.ndarray, shift: float, scale: float) -> torch.Tensor:
    """(n, 28, 28) bytes as (n, 1, 28, 28) numbers."""
    return ((torch.from_numpy(raw).float() - shift) / scale).unsqueeze(1)


def inference(name: str, epochs: int, factor: float | str, rate: float) -> Inference:
    method, settings = SETTINGS.get(name, (name, {}))
    if method in SAMPLERS:
        return registry.get(method, **settings)()
    training = Training(lr=rate, max_epochs=epochs, batch_size=128, schedule="cosine", validation_fraction=0.1)
    # IVON lets held-out rows choose a weight on the divergence instead.
    own = factor == "validation" or method == "ivon"
    shared = {"training": training} if own else {"training": training, "prior_precision": factor}
    return registry.get(method, **{**shared, **settings})()


def precision(text: str) -> float | str:
    return text if text == "validation" else float(text)


def scores(inside: np.ndarray, outside: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of class probabilities at the test images of the set itself (n, c) and of the other one (m, c)."""
    return {
        "accuracy": metrics.accuracy(inside, labels),
        "nll": metrics.negative_log_likelihood(inside, labels),
        "ece": metrics.expected_calibration_error(inside, labels),
        "auroc": metrics.ood_auroc(entropy(inside), entropy(outside)),
    }


def entropy(p: np.ndarray) -> np.ndarray:
    """Nats, (n, c) to (n,)."""
    return -(p * np.log(np.clip(p, 1e-300, None))).sum(-1)


def training_rows(name: str, rows: int, seed: int) -> tuple[TensorDataset, Callable[[np.ndarray], torch.Tensor]]:
    """Random training images of a set with their labels, and what scales other images as these are."""
    own = images(name)
    chosen = np.random.default_rng(seed).permutation(len(own["x_train"]))[:rows]
    train = own["x_train"][chosen]
    scale = partial(pixels, shift=float(train.mean()), scale=float(train.std()))
    return TensorDataset(scale(train), torch.from_numpy(own["y_train"][chosen])), scale


def cell(
    name: str, network: Callable[[int, int], nn.Module], method: Inference, seed: int, *, rows: int, test: int
) -> dict[str, Any]:
    """One fit: its scores, the processor's seconds to fit and to predict the images, and what the method noted."""
    own, other = images(name), images(SETS[1 - SETS.index(name)])
    train, scale = training_rows(name, rows, seed)
    model = BNNClassifier(network, method, random_state=seed)
    start = time.process_time()
    model.fit(train)
    fitted = time.process_time()
    every = slice(None, None, 10_000 // test)
    inside, outside = (model.predict_proba(scale(part["x_test"][every])) for part in (own, other))
    found: dict[str, Any] = scores(inside, outside, own["y_test"][every])
    found |= {"fit": fitted - start, "predict": time.process_time() - fitted}
    notes = {key: value for key, value in model.diagnostics_.items() if isinstance(value, int | float | list)}
    return found | {"test": test, "diagnostics": notes}


def key(*parts: Any) -> str:
    return "/".join(map(str, parts))


def table(results: dict[str, dict[str, Any]], stem: str, methods: Sequence[str]) -> str:
    """The Markdown table of the cells whose keys are `stem`, a method and a seed."""
    lines = ["| method | seeds | accuracy, % | NLL | ECE | AUROC | fit, s | predict, s |", "|---" * 8 + "|"]
    for method in methods:
        start = key(stem, method, "")
        cells = [found for where, found in results.items() if where.startswith(start)]
        if cells:
            shown = [spread([found[what] * factor for found in cells], what) for what, factor in SCORES.items()]
            spent = [f"{np.mean([found[what] for found in cells]):.0f}" for what in ("fit", "predict")]
            lines.append(f"| `{method}` | {len(cells)} | {' | '.join([*shown, *spent])} |")
    return "\n".join(lines)


def spread(values: list[float], what: str) -> str:
    """Mean and standard deviation; the mean alone of a single value."""
    digits = {"accuracy": 2, "ece": 4}.get(what, 3)
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def figure(results: dict[str, dict[str, Any]], rows: int, epochs: int, path: Path) -> None:
    """AUROC and ECE of each method, a dot a seed, for each set and network that has been run."""
    import matplotlib.pyplot as plt

    panels = [
        (kind, name)
        for kind in NETWORKS
        for name in SETS
        if table(results, key(name, kind, rows, epochs), METHODS).count("\n") > 1
    ]
    canvas, axes = plt.subplots(
        2, len(panels), figsize=(3 * len(panels), 5.6), sharey=True, sharex="row", squeeze=False
    )
    for column, (kind, name) in enumerate(panels):
        for axis, what in zip(axes[:, column], ("auroc", "ece"), strict=True):
            for place, method in enumerate(METHODS):
                start = key(name, kind, rows, epochs, method, "")
                values = [found[what] for where, found in results.items() if where.startswith(start)]
                axis.plot(values, [place] * len(values), "o", alpha=0.6, markersize=4, color="tab:blue")
            axis.set_yticks(range(len(METHODS)), METHODS, fontsize=7)
            axis.set_xlabel({"auroc": "AUROC of the entropy", "ece": "ECE"}[what], fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
        axes[0, column].set_title(f"{NAMES[name]}, {NAMES[kind]}", fontsize=9)
    axes[0, 0].invert_yaxis()
    canvas.tight_layout()
    canvas.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--precision", type=precision, default=0.1)
    parser.add_argument("--out", default="bnn_ood.json")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(arguments.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    for kind in arguments.networks.split(","):
        for name in arguments.sets.split(","):
            for seed in range(arguments.seeds):
                for method in arguments.methods.split(","):
                    where = key(name, kind, arguments.rows, arguments.epochs, method, seed)
                    if where not in results:
                        how = inference(method, arguments.epochs, arguments.precision, arguments.lr)
                        found = cell(name, NETWORKS[kind], how, seed, rows=arguments.rows, test=arguments.test)
                        results[where] = found | {"precision": arguments.precision}
                        out.write_text(json.dumps(results, indent=1))
                        print(where, *(f"{what} {results[where][what]:.4f}" for what in SCORES), flush=True)
            shown = table(results, key(name, kind, arguments.rows, arguments.epochs), METHODS)
            print(f"\n### {NAMES[name]}, {NAMES[kind]}\n\n{shown}\n", flush=True)
    if arguments.figure:
        figure(results, arguments.rows, arguments.epochs, arguments.figure)


if __name__ == "__main__":
    main()
