"""Bias and cost of every sampler on known posteriors: posteriordb's reference draws, or exact moments.

    BAYESKIT_POSTERIORDB=folder python benchmarks/mcmc_posteriordb.py --samplers hmc,nuts,sgld --out runs.jsonl
    python benchmarks/mcmc_posteriordb.py --table runs.jsonl

The protocol, for each parameter with reference mean m and standard deviation s, and a tolerance b that the sampler's
own theory asks for (0 for those that are exact):

    |mean - m| <= 4 s sqrt(1 / ESS + 1 / ESS_ref) + b s
    |sd / s - 1| <= 4 sqrt(1 / (2 ESS) + 1 / (2 ESS_ref)) + b

and rank-normalized R-hat below 1.01; for exact samplers also Stein's identities on their own draws, |z| < 4.5.

HMC starts uniformly in (-2, 2) in the unconstrained coordinates of the model and finds units for itself. The others run
in units of the covariance that such a burn-in found (as `bnn.MCMC` gives them units from the curvature), with their
default settings, and with gradients of all rows or, by `--batch 0.2`, of mini-batches of a fifth of them.

Any set of posteriordb whose model is in `posteriordb_models.py` is taken by its name (`--sets`), and by `--own FILE.py`
a file of one's own with `log_density`, from positions (c, d) to (c,), and `draws`, (s, d) of reference.
"""

import argparse
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import torch
from mcmc_posteriordb_runs import Result, judge, samplers, takes_batches
from posteriordb import SHIPPED, Target, load, own, stein

DOUBTFUL = 5.0
"""A z beyond which draws are not of a density, of some dozen identities."""

COLUMNS = ("mean off by (sd)", "sd ratio", "of the allowance", "R-hat", "ESS", "Stein z", "gradients", "s", "passes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samplers", help="registered names and those of VARIANTS, separated by commas; all if left out"
    )
    parser.add_argument("--sets", default=",".join(SHIPPED), help="names of posteriors, separated by commas")
    parser.add_argument("--own", type=Path, help="a file with `log_density` and `draws`, instead of the sets")
    parser.add_argument("--batch", type=float, help="the share of the rows in a mini-batch; all of them if left out")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help="file to add a line to for each run; runs that it has are not repeated"
    )
    parser.add_argument("--table", type=Path, help="print the table of such a file, and run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.table:
        table(arguments.table)
        return
    print("\n".join(head(("posterior", "sampler", "rows", "seed", *COLUMNS))))
    chosen = arguments.samplers.split(",") if arguments.samplers else samplers(arguments.batch)
    for name, find in targets(arguments).items():
        target = find()
        contradicted(name, target)
        for sampler in chosen:
            for seed in map(int, arguments.seeds.split(",")):
                if takes_batches(sampler, target, arguments.batch):
                    once(arguments.out, name, target, sampler, arguments.batch, seed)


def targets(arguments) -> dict[str, Callable[[], Target]]:
    """The posteriors that are asked for, not loaded yet."""
    if arguments.own is None:
        return {name: lambda name=name: load(name) for name in arguments.sets.split(",")}
    given = runpy.run_path(str(arguments.own))
    return {arguments.own.stem: lambda: own(given["log_density"], torch.as_tensor(given["draws"]), given.get("names"))}


def contradicted(name: str, target: Target):
    """Say so if the reference draws are none of the log density's: Stein's identities ask that before any sampler."""
    if target.draws is None:
        return
    z = stein(target, target.model.positions(target.draws))
    if not z < DOUBTFUL:
        print(
            f"the reference draws of {name} contradict its log density (Stein |z| = {z:.1f}): are both in the same "
            "coordinates, with the Jacobian put in?",
            flush=True,
        )


def once(out: Path | None, name: str, target: Target, sampler: str, batch: float | None, seed: int):
    """Run, print and write down, unless that has been done."""
    key = {"posterior": name, "sampler": sampler, "batch": batch, "seed": seed}
    if out is not None and out.exists() and any(key.items() <= entry.items() for entry in lines(out)):
        return
    found = judge(target, sampler, seed=seed, batch=batch)
    rows = "all" if batch is None else f"{batch:.0%}"
    print("| " + " | ".join([name, f"`{sampler}`", rows, str(seed), *cells(found)]) + " |", flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(key | vars(found)) + "\n")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def head(columns: tuple[str, ...]) -> tuple[str, str]:
    return "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)


def cells(r: Result) -> list[str]:
    passed = {True: "yes", False: "no", None: ""}[r.accepted]
    share = "" if r.worst != r.worst else f"{r.worst:.2f}"
    diagnosed = ["", ""] if r.interacting else [f"{r.rhat:.3f}", f"{r.ess:.0f}"]
    cost = [f"{r.gradients / 1000:.0f}k", f"{r.seconds:.1f}"]
    return [f"{r.bias:.3f}", f"{r.spread:.3f}", share, *diagnosed, f"{r.stein:.1f}", *cost, passed]


SHORT = ("mean off", "sd ratio", "share of allowance", "R-hat", "gradients", "s", "passes")


def table(path: Path):
    """A table for each posterior: samplers on all rows and, on the right, on mini-batches; the worst of the seeds."""
    found: dict[str, dict[str, dict[bool, list[Result]]]] = {}
    for entry in lines(path):
        sides = found.setdefault(entry["posterior"], {}).setdefault(entry["sampler"], {False: [], True: []})
        sides[entry["batch"] is not None].append(Result(**{key: entry[key] for key in Result.__dataclass_fields__}))
    order = [*samplers(None), *samplers(0.5)]
    for name in sorted(found, key=lambda name: [*SHIPPED, name].index(name)):
        batches = any(sides[True] for sides in found[name].values())
        columns = [*SHORT, *(f"batches: {word}" for word in SHORT if word not in FULL_BATCH_ONLY)] if batches else SHORT
        print(f"\n### {name}\n\n" + "\n".join(head(("sampler", *columns))))
        for sampler, sides in sorted(found[name].items(), key=lambda item: order.index(item[0])):
            right = [cell for word, cell in zip(SHORT, half(sides[True]), strict=True) if word not in FULL_BATCH_ONLY]
            print("| " + " | ".join([f"`{sampler}`", *half(sides[False]), *(right if batches else [])]) + " |")


FULL_BATCH_ONLY = ("gradients", "s")
"""Columns that are printed for full batches alone."""


def half(runs: list[Result]) -> list[str]:
    """The worst of the seeds, and whether it (or how many) passed."""
    if not runs:
        return [""] * len(SHORT)
    bias, spread = max(r.bias for r in runs), max((r.spread for r in runs), key=lambda ratio: abs(ratio - 1))
    judged = [r.accepted for r in runs if r.accepted is not None]
    passes = f"{sum(judged)} of {len(judged)}" if len(judged) > 1 else "".join("yes" if one else "no" for one in judged)
    share = f"{max(r.worst for r in runs):.2f}" if judged else ""
    rhat = "" if runs[0].interacting else f"{max(r.rhat for r in runs):.3f}"
    cost = [f"{runs[0].gradients / 1000:.0f}k", f"{sum(r.seconds for r in runs) / len(runs):.1f}"]
    return [f"{bias:.3f}", f"{spread:.3f}", share, rhat, *cost, passes]


if __name__ == "__main__":
    main()
