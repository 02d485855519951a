"""Cost of the methods for networks relative to other packages, as ratios of processor time in one run.

    pip install --no-deps ivon-opt vbll
    python benchmarks/bnn_speed.py --only ivon,vbll,ssvi,predict,ensemble --threads 1 --rounds 9

Sides are interleaved in one process, each warmed by a call of its own before it is timed; a ratio is the median of
those of the rounds. Where both sides should give the same numbers that is found first. The packages are run, never
imported by the library; without one of them its rows are left out.
"""

import argparse
import os

import torch
from bnn_costs import draws, ivon, ssvi, vbll_heads

FAMILIES = {
    "ivon": ivon.rows,
    "vbll": vbll_heads.rows,
    "ssvi": ssvi.rows,
    "predict": draws.prediction_rows,
    "ensemble": draws.ensemble_rows,
}
HEADER = ("case", "ours, ms", "beside", "theirs, ms", "ours / theirs", "at most", "note")


def load():
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(FAMILIES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {os.cpu_count()} cores, load {load()} at the start\n"
    )
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for family in arguments.only.split(","):
        for row in FAMILIES[family](arguments.rounds):
            print(row, flush=True)
    print(f"\nload {load()} at the end")
