"""Sparse regression on data of very low noise: the naval propulsion set, its standard splits.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_naval.py [--splits 5] [--inducing 256] [--max-iter 100]

Prints a markdown table: error, negative log predictive density and coverage of 95 % intervals on the test rows, in
units standardized by the training rows, and seconds: elapsed, and of processor time over all threads.
`BAYESKIT_DATA` is a folder in which `uci/naval.npz` lies.
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


def standardized(values, train):
    """By mean and deviation of the training rows; constant columns are centered alone."""
    mean, deviation = values[train].mean(0), values[train].std(0)
    return torch.from_numpy((values - mean) / np.where(deviation > 1e-10, deviation, 1.0))


def evaluate(arrays, split, method):
    train, test = arrays["train_idx"][split], arrays["test_idx"][split]
    x, y = standardized(arrays["X"], train), standardized(arrays["y"][:, None], train)
    generator = torch.Generator().manual_seed(split)
    begin, processor = time.perf_counter(), time.process_time()
    fit = method.infer(gp.default_prior(x[train]), Gaussian(), Data(x[train], y[train]), generator=generator)
    fitted, used = time.perf_counter(), time.process_time() - processor
    predictive = fit.likelihood.predictive(fit.posterior(x[test]))
    low, high = predictive.interval(0.95)
    covered = ((low <= y[test]) & (y[test] <= high)).double().mean().item()
    rmse = (predictive.mean - y[test]).square().mean().sqrt().item()
    nlpd = -predictive.log_prob(y[test]).mean().item()
    return rmse, nlpd, covered, fitted - begin, used, time.perf_counter() - fitted


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--inducing", type=int, default=256)
    parser.add_argument("--max-iter", type=int, default=100)
    parser.add_argument("--start", default="kmeans", choices=["greedy", "kmeans"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arrays = np.load(Path(os.environ["BAYESKIT_DATA"]) / "uci" / "naval.npz")
    method = gp.SGPR(num_inducing=arguments.inducing, max_iter=arguments.max_iter, start=arguments.start)
    print(f"SGPR, M = {arguments.inducing}, {arguments.max_iter} iterations, {arguments.threads} threads\n")
    print(
        "| split | RMSE | NLPD | coverage at 95 % | fit s | of processor | predict s |\n|---|---|---|---|---|---|---|"
    )
    rows = []
    for split in range(arguments.splits):
        rows.append(evaluate(arrays, split, method))
        print("| {} | {:.5f} | {:.3f} | {:.4f} | {:.1f} | {:.1f} | {:.2f} |".format(split, *rows[-1]), flush=True)
    mean, deviation = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=min(1, len(rows) - 1))
    print("| mean | {:.5f} | {:.3f} | {:.4f} | {:.1f} | {:.1f} | {:.2f} |".format(*mean))
    print("| standard deviation | {:.5f} | {:.3f} | {:.4f} | {:.1f} | {:.1f} | {:.2f} |".format(*deviation))


if __name__ == "__main__":
    main()
