"""Quality of Gaussian-process regression on tables, with no settings, beside GPyTorch's sparse variational process.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_quality.py [--sets naval,bike] [--splits 1]
        [--methods default,svgp] [--gpytorch] [--threads 2]

Prints a markdown table: root mean squared error, negative log predictive density and coverage of 95 % intervals on the
test rows, in units standardized by the training rows; seconds elapsed and of processor time for the fit, seconds for
the prediction, peak memory of a process of its own. "default" is `GPRegressor()` itself; other methods are registered
names. The seed of a split is its number. `--gpytorch` adds GPyTorch's SVGP: 512 inducing points that start at training
rows, Matern-5/2 with a lengthscale a feature, float32, Adam at 0.01, 30 epochs of batches of 1,024.
`BAYESKIT_DATA` is a folder with `uci/*.npz` and `gp_regression/*.npz`.
"""

import argparse
import math
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

SETS = ("naval", "elevators", "bike", "pol", "kin40k", "protein")
COLUMNS = "| set | split | method | RMSE | NLPD | coverage | fit s | processor s | predict s | peak MiB | it took |"


def load(name, split):
    """Standardized training and test rows, x (n, d) and y (n,), by the mean and deviation of the training rows."""
    folder = Path(os.environ["BAYESKIT_DATA"])
    path = next(p for p in (folder / "uci" / f"{name}.npz", folder / "gp_regression" / f"{name}.npz") if p.exists())
    arrays = np.load(path)
    if "train_idx" in arrays:
        train, test = arrays["train_idx"][split], arrays["test_idx"][split]
    else:
        train, test = (np.flatnonzero((arrays["test_fold"] == split) == held) for held in (False, True))
    x, y = (_standardized(arrays[key].astype(float), train) for key in ("X", "y"))
    return x[train], y[train], x[test], y[test]


def _standardized(values, train):
    deviation = values[train].std(0)
    return (values - values[train].mean(0)) / np.where(deviation > 1e-10, deviation, 1.0)


def ours(method, split, x, y, x_test):
    """Mean and standard deviation at the test rows, when the fit was done, and what it was."""
    from bayeskit import GPRegressor

    model = GPRegressor(inference=None if method == "default" else method, random_state=split).fit(x, y)
    fitted = time.perf_counter(), time.process_time()
    points = model.diagnostics_.get("inducing points")
    note = type(model.inference_).__name__ + ("" if points is None else f", {points} inducing points")
    return *model.predict(x_test, return_std=True), fitted, note


def gpytorch_svgp(split, x, y, x_test):
    """The same from GPyTorch."""
    import gpytorch
    import torch
    from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

    class Process(gpytorch.models.ApproximateGP):
        def __init__(self, z):
            strategy = VariationalStrategy(self, z, CholeskyVariationalDistribution(len(z)))
            super().__init__(strategy)
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(
                gpytorch.kernels.MaternKernel(2.5, ard_num_dims=z.shape[1])
            )

        def forward(self, inputs):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), self.covar_module(inputs))

    torch.manual_seed(split)
    x, y, x_test = (torch.from_numpy(a).float() for a in (x, y, x_test))
    process, likelihood = Process(x[torch.randperm(len(x))[:512]].clone()), gpytorch.likelihoods.GaussianLikelihood()
    objective = gpytorch.mlls.VariationalELBO(likelihood, process, len(x))
    optimizer = torch.optim.Adam([*process.parameters(), *likelihood.parameters()], lr=0.01)
    for _ in range(30):
        for batch in torch.randperm(len(x)).split(1024):
            optimizer.zero_grad()
            (-objective(process(x[batch]), y[batch])).backward()
            optimizer.step()
    fitted = time.perf_counter(), time.process_time()
    process.eval(), likelihood.eval()
    with torch.no_grad():
        predictive = likelihood(process(x_test))
    mean, std = predictive.mean.double().numpy(), predictive.variance.double().sqrt().numpy()
    return mean, std, fitted, "512 inducing points, 30 epochs"


def row(name, split, method, threads):
    """One line of the table; runs in a process of its own, so that peak memory is that of this fit."""
    import torch

    import bayeskit.gp  # noqa: F401  (its import is not part of a fit)

    torch.set_num_threads(threads)
    x, y, x_test, y_test = load(name, split)
    begin = time.perf_counter(), time.process_time()
    if method == "gpytorch":
        mean, std, fitted, note = gpytorch_svgp(split, x, y, x_test)
    else:
        mean, std, fitted, note = ours(method, split, x, y, x_test)
    predicted = time.perf_counter() - fitted[0]
    error = y_test - mean
    nlpd = np.mean(0.5 * (error / std) ** 2 + np.log(std)) + 0.5 * math.log(2 * math.pi)
    covered = np.mean(np.abs(error) <= 1.959964 * std)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"| {name} | {split} | {method} | {np.sqrt(np.mean(error**2)):.4f} | {nlpd:.3f} | {covered:.3f} | "
        f"{fitted[0] - begin[0]:.1f} | {fitted[1] - begin[1]:.1f} | {predicted:.2f} | {peak:.0f} | {note} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--methods", default="default")
    parser.add_argument("--gpytorch", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    methods = [*arguments.methods.split(","), *(["gpytorch"] if arguments.gpytorch else [])]
    print(COLUMNS)
    print("|---" * (COLUMNS.count("|") - 1) + "|")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in arguments.sets.split(","):
            for split in range(arguments.splits):
                for method in methods:
                    print(pool.submit(row, name, split, method, arguments.threads).result(), flush=True)


if __name__ == "__main__":
    main()
