"""Continual learning on split and permuted MNIST: accuracy, forgetting and calibration beside Avalanche's EWC.

    BAYESKIT_DATA=folder python benchmarks/continual_mnist.py [--tasks split,permuted] [--methods mean_field,ewc-100]
        [--rows 3000] [--test 1000] [--epochs 20] [--memory 0,100] [--seeds 3] [--lr 0.001] [--precision 0.1]
        [--out continual_mnist.json] [--figure docs/images/continual.png]

`BAYESKIT_DATA` holds `images/mnist.npz`. Every method trains the same network, 784-256-256-10 with one set of ten
outputs, for the same epochs of 128 rows with Adam (at 0.001, or what `RATES` says) on the same `--rows` random rows of
each task, sees each task once, and is not told at test time which task an image is of. `split` has five pairs of
digits, `permuted` five orders of the pixels. `--memory` is how many rows a task are remembered; Avalanche's methods
have `Replay` of as many instead. `naive` is training on, `ewc-x` is EWC with `ewc_lambda` x; both need avalanche-lib,
and come from it. Test images are `--test` random ones a task. Scores are after the last task: mean accuracy over
tasks, forgetting, mean ECE; seconds are of the processor, of one thread. Cells already in `--out` are not computed
again.
"""

import argparse
import json
import os
import time
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bayeskit import BNNClassifier, continual, metrics, plots, registry
from bayeskit.core.inference import Inference
from bayeskit.core.optimize import Training

METHODS = tuple(
    "naive,ewc-1000,ewc-10000,ewc-100000,ewc-1000000,laplace,laplace+kronecker,mean_field,ivon,vbll,ssvi".split(",")
)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "laplace": ("laplace", {"subset": "all", "structure": "diagonal"}),
    "laplace+kronecker": ("laplace", {"subset": "all", "structure": "kronecker"}),
    "mean_field": ("mean_field", {"initial_scale": 0.3}),
}
RATES = {"mean_field": 3e-3, "ivon": 3e-3, "vbll": 3e-3, "ssvi": 3e-3}
"""Of Adam, where it is not 0.001; `--lr` takes the place of both."""
WIDTHS = (784, 256, 256, 10)


def rate(method: str, arguments: argparse.Namespace) -> float:
    return arguments.lr or RATES.get(method, 1e-3)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [part for a, b in pairwise(WIDTHS) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@cache
def images() -> dict[str, np.ndarray]:
    return dict(np.load(Path(os.environ["BAYESKIT_DATA"]) / "images" / "mnist.npz"))


def tasks(kind: str, seed: int, rows: int, test: int) -> list[continual.Task]:
    """Five tasks of at most `rows` training and `test` test images each."""
    data, random = images(), np.random.default_rng(seed)
    shift, scale = data["x_train"].mean(), data["x_train"].std()
    x, x_test = (((data[f"x_{part}"] - shift) / scale).reshape(-1, 784).astype("float32") for part in ("train", "test"))
    y, y_test = (data[f"y_{part}"].astype(int) for part in ("train", "test"))
    if kind == "permuted":
        chosen, held = random.permutation(len(x))[:rows], random.permutation(len(x_test))[:test]
        return continual.permuted_tasks(
            x[chosen], y[chosen], x_test[held], y_test[held], num_tasks=5, random_state=seed
        )
    whole = continual.split_tasks(x, y, x_test, y_test, num_tasks=5)

    def fewer(index: np.ndarray | None, size: int) -> np.ndarray:
        assert index is not None
        return random.permutation(index)[:size]

    return [
        continual.Task(t.name, x, y, x_test, y_test, rows=fewer(t.rows, rows), test_rows=fewer(t.test_rows, test))
        for t in whole
    ]


def inference(name: str, arguments: argparse.Namespace) -> Inference:
    method, settings = SETTINGS.get(name, (name, {}))
    training = Training(lr=rate(name, arguments), max_epochs=arguments.epochs, batch_size=128, schedule="cosine")
    return registry.get(method, training=training, prior_precision=arguments.precision, **settings)()


def ours(name: str, sequence: list[continual.Task], memory: int, seed: int, arguments: argparse.Namespace) -> dict:
    model = BNNClassifier(network(seed), inference(name, arguments), random_state=seed)
    coreset = continual.Coreset(memory) if memory else None
    start, stages = time.process_time(), []
    for stage in continual.run(model, sequence, memory=coreset, random_state=seed):
        stages.append(stage)
    spent = time.process_time() - start
    return {key: continual.scores(stages, key).tolist() for key in stages[0].scores} | {"seconds": spent}


@cache
def declare_vision() -> None:
    """Two operators that torchvision asks for at its import and does not have beside a torch without CUDA."""
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")


def avalanche(name: str, sequence: list[continual.Task], memory: int, seed: int, arguments: argparse.Namespace) -> dict:
    """Avalanche's `Naive` or `EWC`, with its `ReplayPlugin` if rows are remembered."""
    declare_vision()
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.supervised import EWC, Naive
    from torch.utils.data import TensorDataset

    def dataset(x: np.ndarray, y: np.ndarray) -> Any:
        rows: Any = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        rows.targets = y.tolist()
        return as_classification_dataset(rows)

    net = network(seed)
    streams = benchmark_from_datasets(
        train=[dataset(*t.train()) for t in sequence], test=[dataset(*t.test()) for t in sequence]
    )
    common: dict[str, Any] = {"model": net, "optimizer": torch.optim.Adam(net.parameters(), lr=rate(name, arguments))}
    common |= {"criterion": nn.CrossEntropyLoss(), "train_mb_size": 128, "train_epochs": arguments.epochs}
    common |= {"evaluator": None, "plugins": [ReplayPlugin(mem_size=memory * len(sequence))] if memory else None}
    strategy = Naive(**common) if name == "naive" else EWC(ewc_lambda=float(name.removeprefix("ewc-")), **common)
    learner = _Learner(net)
    start, found = time.process_time(), []
    for experience in streams.train_stream:
        torch.manual_seed(seed)
        strategy.train(experience)
        net.eval()
        found.append([continual.score(learner, *t.test()) for t in sequence])
    spent = time.process_time() - start
    return {key: [[s[key] for s in row] for row in found] for key in found[0][0]} | {"seconds": spent}


class _Learner:
    """A network's softmax as a learner."""

    def __init__(self, net: nn.Module):
        self.net = net

    def predictive(self, x: np.ndarray) -> Any:
        from bayeskit.core.predictive import CategoricalPredictive

        with torch.no_grad():
            return CategoricalPredictive.from_draws(self.net(torch.from_numpy(x)).log_softmax(-1)[None])


def cell(kind: str, method: str, memory: int, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    sequence = tasks(kind, seed, arguments.rows, arguments.test)
    run = avalanche if method == "naive" or method.startswith("ewc") else ours
    return run(method, sequence, memory, seed, arguments)


def summary(found: dict[str, Any]) -> dict[str, float]:
    R = found["accuracy"]
    return {
        "accuracy, %": 100 * metrics.average_accuracy(R),
        "forgetting, %": 100 * metrics.forgetting(R),
        "ECE": float(np.mean(found["ece"][-1])),
        "s": found["seconds"],
    }


def table(results: dict[str, dict], start: str, methods: list[str], memories: list[int]) -> str:
    """Markdown, means over seeds with standard deviations."""
    heads = ("accuracy, %", "forgetting, %", "ECE", "s")
    lines = [f"| method | remembered a task | seeds | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for method in methods:
        for memory in memories:
            cells = [summary(v) for key, v in results.items() if key.startswith(f"{start}/{method}/{memory}/")]
            if cells:
                shown = [spread([c[head] for c in cells], 3 if head == "ECE" else 1) for head in heads]
                lines.append(f"| `{method}` | {memory} | {len(cells)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def figure(results: dict[str, dict], keys: list[str], path: Path) -> None:
    """The accuracy matrix of each run, and under it the calibration error of each task over time."""
    import matplotlib.pyplot as plt

    columns = min(4, len(keys))
    bands, highest = -(-len(keys) // columns), max(np.max(np.tril(results[key]["ece"])) for key in keys)
    canvas, axes = plt.subplots(
        2 * bands, columns, figsize=(3.2 * columns, 5.2 * bands), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for number, key in enumerate(keys):
        kind, *_, method, memory, _, _ = key.split("/")
        row, column = 2 * (number // columns), number % columns
        upper, lower = axes[row, column], axes[row + 1, column]
        remembered = f", {memory} remembered" if memory != "0" else ""
        plots.score_matrix(results[key]["accuracy"], score=f"{kind}: {method}{remembered}", ax=upper)
        plots.score_curves(results[key]["ece"], score="ECE", ax=lower)
        upper.title.set_fontsize("medium")
        lower.set_ylim(0, 1.1 * highest)
        for axis in (upper, lower):
            axis.set_visible(True)
        if not column:
            lower.legend(title="task", fontsize="small", ncols=2, loc="upper left")
    canvas.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="split,permuted")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--memory", default="0,100")
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--test", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--precision", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="continual_mnist.json")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(arguments.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    methods, memories = arguments.methods.split(","), [int(m) for m in arguments.memory.split(",")]
    key_of = partial(_key, arguments)
    for kind in arguments.tasks.split(","):
        for seed in range(arguments.seeds):
            for method in methods:
                for memory in memories:
                    key = key_of(kind, method, memory, seed)
                    if key not in results:
                        results[key] = cell(kind, method, memory, seed, arguments)
                        out.write_text(json.dumps(results))
                        shown = (f"{name} {value:.3f}" for name, value in summary(results[key]).items())
                        print(key, *shown, flush=True)
        start = _setting(arguments, kind)
        print(f"\n### {kind}\n\n{table(results, start, methods, memories)}\n", flush=True)
    if arguments.figure:
        keys = [key_of(k, m, r, 0) for k in arguments.tasks.split(",") for m in methods for r in memories]
        figure(results, keys, arguments.figure)


def _setting(arguments: argparse.Namespace, kind: str) -> str:
    return f"{kind}/{arguments.rows}/{arguments.test}/{arguments.epochs}/{arguments.precision:g}"


def _key(arguments: argparse.Namespace, kind: str, method: str, memory: int, seed: int) -> str:
    return f"{_setting(arguments, kind)}/{method}/{memory}/{rate(method, arguments):g}/{seed}"


if __name__ == "__main__":
    main()
