"""Coresets and other sparse processes: bike and protein, split 0, at equal numbers of points.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_coreset.py [--points 50 100 200 256] [--sets bike protein]

Prints a markdown table: error, negative log predictive density and coverage of 95 % intervals on the test rows, in
units standardized by the training rows; the lower bound; and seconds of processor time and elapsed, of one thread.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from bayeskit import gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

FILES = {"bike": "gp_regression/bike.npz", "protein": "uci/protein.npz"}


def load(name):
    """Training and test rows of split 0, standardized by the training rows."""
    arrays = np.load(Path(os.environ["BAYESKIT_DATA"]) / FILES[name])
    if "test_fold" in arrays:
        train, test = np.flatnonzero(arrays["test_fold"] != 0), np.flatnonzero(arrays["test_fold"] == 0)
    else:
        train, test = arrays["train_idx"][0], arrays["test_idx"][0]
    columns = []
    for values in (arrays["X"].astype(float), arrays["y"].astype(float)[:, None]):
        mean, deviation = values[train].mean(0), values[train].std(0)
        scaled = torch.from_numpy((values - mean) / np.where(deviation > 1e-10, deviation, 1.0))
        columns += [scaled[train], scaled[test]]
    return columns


def evaluate(method, x, x_test, y, y_test):
    generator = torch.Generator().manual_seed(0)
    elapsed, processor = time.perf_counter(), time.process_time()
    fit = method.infer(gp.default_prior(x), Gaussian(), Data(x, y), generator=generator)
    elapsed, processor = time.perf_counter() - elapsed, time.process_time() - processor
    predictive = fit.likelihood.predictive(fit.posterior(x_test))
    low, high = predictive.interval(0.95)
    covered = ((low <= y_test) & (y_test <= high)).double().mean().item()
    rmse = (predictive.mean - y_test).square().mean().sqrt().item()
    nlpd = -predictive.log_prob(y_test).mean().item()
    return rmse, nlpd, covered, float(fit.log_evidence), processor, elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--points", nargs="+", type=int, default=[50, 100, 200, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| set | M | method | RMSE | NLPD | coverage | bound | processor s | elapsed s |\n|" + "---|" * 9)
    for name in arguments.sets:
        columns = load(name)
        for m in arguments.points:
            methods = {
                "SGPR": gp.SGPR(num_inducing=m),
                "SVGP": gp.SVGP(num_inducing=m),
                "CoresetGP": gp.CoresetGP(num_points=m),
            }
            for label, method in methods.items():
                row = evaluate(method, *columns)
                print(
                    "| {} | {} | {} | {:.4f} | {:.3f} | {:.3f} | {:.0f} | {:.1f} | {:.1f} |".format(
                        name, m, label, *row
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
