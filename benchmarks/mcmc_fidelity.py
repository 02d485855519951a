"""Posterior fidelity of every method for networks: moments of f compared with those of long Hamiltonian chains.

    BAYESKIT_DATA=folder python benchmarks/mcmc_fidelity.py [--sets energy,concrete] [--rows "map;sgld"] [--seeds 3]
        [--count] [--out mcmc_fidelity.json] [--figure docs/images/fidelity.png] [--threads 1]

`BAYESKIT_DATA` holds `uci/energy.npz` and `uci/concrete.npz`. The model is that of `fidelity/problem.py`, the same for
all, and the rows are those of `fidelity/rows.py`. Results already in `--out` are not recomputed, and the tables
show all that it holds: means over seeds, with standard deviations. Distances are in units of the target's standard
deviation, between Gaussians with the moments of f, each test input for itself, and then averaged. Seconds are of the
processor, of one thread, for the fit; `--count` counts gradients in a run of its own, as multiplications in products of
matrices over those of one gradient of the log density of all the rows.

The reference is stored in `fidelity/reference_NAME.npz`. To recompute it (a minute or two of one thread a table; with a
checkpoint a run that was stopped goes on, also to more draws):

    BAYESKIT_DATA=folder python benchmarks/mcmc_fidelity.py --reference [--draws 300] [--checkpoint file]
"""

import argparse
import json
from pathlib import Path

import torch
from fidelity import reference, table
from fidelity.problem import NOISE, load
from fidelity.rows import ROWS, missing
from fidelity.trials import trial


def make_reference(names: list[str], num_draws: int, checkpoint: str | None):
    for name in names:
        file = None if checkpoint is None else f"{checkpoint}.{name}"
        found = reference.sample(load(name), num_draws=num_draws, checkpoint=file)
        reference.store(name, found)
        print(json.dumps({"table": name, **found.about, "halves apart": found.floor}, indent=1), flush=True)


def fill(names: list[str], rows: list[str], num_seeds: int, *, counting: bool, out: Path) -> dict:
    """Compute the trials that are not there yet, and write the file after each."""
    results = json.loads(out.read_text()) if out.exists() else {}
    for seed in ["count", *range(num_seeds)] if counting else range(num_seeds):
        for name in names:
            problem = load(name)
            for row in rows:
                key = f"{name}/{row}/{seed}"
                if key in results:
                    continue
                only_count = seed == "count"
                results[key] = trial(problem, ROWS[row], 0 if only_count else int(seed), counting=only_count)
                out.write_text(json.dumps(results, indent=1))
                print(key, f"RMSE {results[key]['RMSE']:.4f}", flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="store_true", help="recompute the reference")
    parser.add_argument("--sets", default=",".join(NOISE))
    parser.add_argument("--rows", default=";".join(ROWS), help="separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", action="store_true", help="count gradients too")
    parser.add_argument("--out", default="mcmc_fidelity.json")
    parser.add_argument("--figure", help="file to draw distances against seconds into")
    parser.add_argument("--draws", type=int, default=300, help="of each chain of the reference")
    parser.add_argument("--checkpoint", help="file to write the reference's chains to and to resume from")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.sets.split(",")
    if arguments.reference:
        make_reference(names, arguments.draws, arguments.checkpoint)
        return
    if missing():
        raise SystemExit(f"no row is about {sorted(missing())}; add them to fidelity/rows.py")
    rows = arguments.rows.split(";")
    results = fill(names, rows, arguments.seeds, counting=arguments.count, out=Path(arguments.out))
    references = {name: reference.stored(name) for name in names}
    for name, known in references.items():
        table.print_table(results, name, known)
    if arguments.figure:
        table.draw(results, references, arguments.figure)


if __name__ == "__main__":
    main()
