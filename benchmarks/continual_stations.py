"""Continual learning of air quality by station: sequential posteriors, a joint fit, and plain fine-tuning.

    BAYESKIT_DATA=folder python benchmarks/continual_stations.py [--methods memory_dual_gp,vbll,mean_field]
        [--rows 1000] [--test 500] [--seeds 3] [--out continual_stations.json]

`BAYESKIT_DATA` holds `gp_regression/beijing_pm25_6st.npz`: hourly weather and pollutants at six stations of Beijing,
the target log PM2.5. Each station is a task of `--rows` random training and `--test` random test rows, in the file's
order; scores are means over the stations after the last one, in units of the logarithm, and the NLL of the first.
`in turn` is `continual.run` with the library's defaults; `at once` the same method on the rows of all stations; `alone`
continues from the previous weights without their posterior (a process has no weights: it is fitted to the last
station). Seconds are of the processor, one thread. Results already in `--out` are not recomputed.
"""

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from continual_mnist import spread

from bayeskit import BNNRegressor, GPRegressor, bnn, continual, registry

METHODS = ("memory_dual_gp", "vbll", "mean_field", "laplace", "laplace+kronecker")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "laplace+kronecker": ("laplace", {"subset": "all", "structure": "kronecker"}),
}
NAMES = ("Aotizhongxin", "Changping", "Dingling", "Dongsi", "Guanyuan", "Gucheng")
WAYS = ("in turn", "at once", "alone")


def stations(rows: int, test: int, seed: int) -> list[continual.Task]:
    data = np.load(Path(os.environ["BAYESKIT_DATA"]) / "gp_regression" / "beijing_pm25_6st.npz")
    random = np.random.default_rng(seed)
    x, y, station = data["X"].astype(float), np.log(data["y"].astype(float)), data["task"]
    kept = np.concatenate([random.permutation(np.flatnonzero(station == s))[: rows + test] for s in np.unique(station)])
    return continual.domain_tasks(x[kept], y[kept], station[kept], test_size=test / (rows + test), random_state=seed)


def estimator(method: str, seed: int) -> Any:
    name, settings = SETTINGS.get(method, (method, {}))
    kind = GPRegressor if method in registry.names(family="gp") else BNNRegressor
    return kind(inference=registry.get(name, **settings)(), random_state=seed)


def in_turn(model: Any, tasks: list[continual.Task]) -> Any:
    *_, last = continual.run(model, tasks, scoring=lambda *_: {"unused": 0.0})
    return last.learner


def at_once(model: Any, tasks: list[continual.Task]) -> Any:
    x, y = (np.concatenate(parts) for parts in zip(*(task.train() for task in tasks), strict=True))
    return model.fit(x, y)


def alone(model: Any, tasks: list[continual.Task]) -> Any:
    if isinstance(model, GPRegressor):
        return model.fit(*tasks[-1].train())
    for task in tasks:
        if hasattr(model, "posterior_"):
            network = copy.deepcopy(model.posterior_.network).requires_grad_(True)
            model.posterior_ = bnn.gaussian_prior(network)  # starts from these weights, without their posterior
        model.partial_fit(*task.train())
    return model


def cell(method: str, way: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    tasks = stations(arguments.rows, arguments.test, seed)
    start = time.process_time()
    model = {"in turn": in_turn, "at once": at_once, "alone": alone}[way](estimator(method, seed), tasks)
    spent = time.process_time() - start
    found = [continual.score(model, *task.test()) for task in tasks]
    return {name: [score[name] for score in found] for name in found[0]} | {"seconds": spent}


def table(results: dict[str, dict], methods: list[str]) -> str:
    """Markdown, means over seeds with standard deviations."""
    heads = ("RMSE", "NLL", "coverage at 90 %", "NLL of the first", "s")
    lines = [f"| method | stations | seeds | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for method in methods:
        for way in WAYS:
            cells = [value for key, value in results.items() if key.startswith(f"{method}/{way}/")]
            if cells:
                columns = [[float(np.mean(c[name])) for c in cells] for name in ("rmse", "nll", "coverage_90")]
                columns += [[c["nll"][0] for c in cells], [c["seconds"] for c in cells]]
                shown = [spread(column, 0 if i == 4 else 3) for i, column in enumerate(columns)]
                lines.append(f"| `{method}` | {way} | {len(cells)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def by_station(results: dict[str, dict], methods: list[str]) -> str:
    """Markdown, the NLL at each station after the last one, means over seeds."""
    lines = [f"| method | stations | {' | '.join(NAMES)} |", "|---" * (2 + len(NAMES)) + "|"]
    for method in methods:
        for way in WAYS:
            cells = [value["nll"] for key, value in results.items() if key.startswith(f"{method}/{way}/")]
            if cells:
                lines.append(f"| `{method}` | {way} | {' | '.join(f'{mean:.3f}' for mean in np.mean(cells, 0))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="continual_stations.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(arguments.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    methods = arguments.methods.split(",")
    for seed in range(arguments.seeds):
        for method in methods:
            for way in WAYS:
                key = f"{method}/{way}/{arguments.rows}/{seed}"
                if key not in results:
                    results[key] = cell(method, way, seed, arguments)
                    out.write_text(json.dumps(results))
                    shown = (f"{name} {np.mean(value):.3f}" for name, value in results[key].items())
                    print(key, *shown, flush=True)
    print(f"\n{table(results, methods)}\n\n{by_station(results, methods)}\n")


if __name__ == "__main__":
    main()
