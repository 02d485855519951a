"""Gaussian-process classification: small sets beside published figures, and handwritten digits.

    BAYESKIT_DATA=folder python benchmarks/gp_classification.py [--methods svgp,...] [--repeats 1] [--threads 2]
    BAYESKIT_DATA=folder python benchmarks/gp_classification.py --mnist deep [--seeds 10] [--first-seed 0] [--epochs 4]

Without `--mnist`, prints accuracy and mean log likelihood of a test row for `GPClassifier` on five folds, `--repeats`
times over, of `classification/mammographic.npz`, scikit-learn's breast cancer and, with the test set they come with or
in five folds, the other sets of `classification/`. Beside them stand the means over 50 folds that Li, John and Solin
(2023) published for Laplace (LA), expectation propagation (EP), variational inference (VI) and MCMC on sets of that
name (`results/gp_classification_50fold.json`): the same protocol, other folds, other kernels.

With `--mnist`, ten softmax latents with shared inducing points learn from the 60,000 images; accuracy on the 10,000
test images. The kernel is an RBF on the pixels, or on the 32 features of a small convolutional network learnt with it
("deep").
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from torch import nn

from bayeskit import GPClassifier, gp, registry
from bayeskit.core.likelihood import Categorical
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

FOLDS = 5
PUBLISHED = {"mammographic": "mammographic", "breast cancer": "breast-cancer-wisc-diag"}


def small_sets(folder):
    """name -> (X, y, None for folds or (train rows, test rows))."""
    cancer = load_breast_cancer()
    sets = {"breast cancer": (cancer.data, cancer.target, None)}
    for path in sorted((folder / "classification").glob("*.npz")):
        arrays = np.load(path)
        if "X_train" in arrays:
            x, y = (
                np.concatenate([arrays["X_train"], arrays["X_test"]]),
                np.concatenate([arrays["y_train"], arrays["y_test"]]),
            )
            rows = np.arange(len(x)) < len(arrays["X_train"])
            sets[path.stem] = (x, y, (np.flatnonzero(rows), np.flatnonzero(~rows)))
        else:
            sets[path.stem] = (arrays["X"], arrays["y"], None)
    return sets


def folds(x, y, given, repeats):
    if given is not None:
        return [given]
    splitters = [StratifiedKFold(FOLDS, shuffle=True, random_state=seed) for seed in range(repeats)]
    return [pair for splitter in splitters for pair in splitter.split(x, y)]


def score(method, x, y, train, test):
    begin = time.perf_counter()
    model = GPClassifier(inference=method, random_state=0).fit(x[train], y[train])
    seconds = time.perf_counter() - begin
    predictive = model.predictive(x[test])
    codes = torch.from_numpy(np.searchsorted(model.classes_, y[test]))
    log_probs = predictive.log_probs.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    return (predictive.probs.argmax(-1) == codes).double().mean().item(), log_probs.mean().item(), seconds


def compare_small(folder, methods, repeats):
    published = json.loads((folder / "results" / "gp_classification_50fold.json").read_text())
    print(
        "| set | method | folds | accuracy | log likelihood (standard error) | fit s |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for name, (x, y, given) in small_sets(folder).items():
        splits = folds(x, y, given, repeats)
        for method in methods:
            rows = np.array([score(method, x, y, *split) for split in splits])
            error = rows[:, 1].std(ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else float("nan")
            accuracy, likelihood, seconds = rows.mean(0)
            figures = f"{accuracy:.4f} | {likelihood:.4f} ({error:.4f}) | {seconds:.1f}"
            print(f"| {name} | `{method}` | {len(rows)} | {figures} |", flush=True)
        for other, values in published.get(PUBLISHED.get(name), {}).items():
            accuracy, likelihood = np.mean(values["test_acc"]), np.mean(values["test_loglik"])
            error = np.std(values["test_loglik"], ddof=1) / len(values["test_loglik"]) ** 0.5
            print(f"| {name} | published {other.upper()} | 50 | {accuracy:.4f} | {likelihood:.4f} ({error:.4f}) | |")


def pixels():
    """An RBF kernel on the 784 pixels."""
    kernel = ScaleKernel(RBFKernel()).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = 5.0, 10.0
    return kernel


def deep():
    """An RBF kernel on 32 standardized features of two convolutions."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.SiLU(), nn.Conv2d(16, 32, 5, stride=2), nn.SiLU(), nn.Flatten()),
        *(nn.Linear(512, 32), nn.LayerNorm(32, elementwise_affine=False)),
    )
    base = ScaleKernel(RBFKernel()).double()
    base.base_kernel.lengthscale, base.outputscale = 5.0, 5.0
    return gp.DeepKernel(network, base, input_shape=(1, 28, 28))


KERNELS = {"pixels": (pixels, 0.1), "deep": (deep, 0.005)}
"""What builds the kernel, and a learning rate for it."""


def digits(folder, name, seeds, num_inducing, epochs):
    # By default q averages over ten batches, which are 5,000 of the 60,000 rows; here over fifty.
    arrays = np.load(folder / "images" / "mnist.npz")
    x, new = (torch.from_numpy(arrays[name].reshape(-1, 784) / 255) for name in ("x_train", "x_test"))
    y, labels = (torch.from_numpy(arrays[name]).long() for name in ("y_train", "y_test"))
    print("| seed | accuracy | mean log likelihood | not a number | fit s |\n|---|---|---|---|---|", flush=True)
    for seed in seeds:
        torch.manual_seed(seed)  # where a network starts
        kernel, lr = KERNELS[name][0](), KERNELS[name][1]
        prior = gp.GaussianProcess(ConstantMean(batch_shape=torch.Size([10])).double(), kernel, 10)
        training = Training(lr=lr, max_epochs=epochs, batch_size=512, schedule="cosine")
        method = gp.SVGP(num_inducing=num_inducing, natural_lr=0.02, training=training)
        begin = time.perf_counter()
        fit = method.infer(prior, Categorical(10), Data(x, y), generator=torch.Generator().manual_seed(seed))
        seconds = time.perf_counter() - begin
        probs = torch.cat([fit.likelihood.predictive(fit.posterior(part)).probs for part in new.split(2000)])
        accuracy = (probs.argmax(-1) == labels).double().mean().item()
        likelihood = probs.gather(-1, labels.unsqueeze(-1)).log().mean().item()
        print(
            f"| {seed} | {accuracy:.4f} | {likelihood:.4f} | {int(probs.isnan().sum())} | {seconds:.0f} |", flush=True
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(registry.names("classification", family="gp")))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--mnist", choices=KERNELS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--inducing", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(os.environ["BAYESKIT_DATA"])
    if arguments.mnist:
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        digits(folder, arguments.mnist, seeds, arguments.inducing, arguments.epochs)
    else:
        compare_small(folder, arguments.methods.split(","), arguments.repeats)


if __name__ == "__main__":
    main()
