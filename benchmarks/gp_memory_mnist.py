"""MemoryDualGP on split MNIST: ten digits in five tasks of two, by ten softmax latents over a Matern-5/2 on the pixels.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_memory_mnist.py [--images 300] [--seeds 0 1 2]
        [--set num_inducing=200 ...]

A task is `--images` training images of each of its digits, drawn by the seed, in batches of at most 2,000; of each task
400 rows' worth of memory is kept. After each the accuracy on the test images of every task so far is printed, and on
all of them; after the last one also the negative log predictive density of a test image, in nats.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.means import ConstantMean

from bayeskit import gp
from bayeskit.core.likelihood import Categorical
from bayeskit.core.types import Data

TASK = 400
"""Rows of memory for each task of two digits."""


def images(part):
    arrays = np.load(Path(os.environ["BAYESKIT_DATA"]) / "images" / "mnist.npz")
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    return torch.from_numpy(x.reshape(len(x), -1) / 255.0), torch.from_numpy(y.astype(np.int64))


def before():
    base = MaternKernel(nu=2.5).double()
    base.lengthscale = torch.tensor(10.0).double()  # about the distance between two images
    return gp.GaussianProcess(ConstantMean(batch_shape=torch.Size([10])), ScaleKernel(base).double(), 10)


def tasks(y, number, generator):
    """For each task, `number` images of each of its two digits."""
    for task in range(5):
        every = [(y == digit).nonzero()[:, 0] for digit in (2 * task, 2 * task + 1)]
        yield torch.cat([rows[torch.randperm(len(rows), generator=generator)[:number]] for rows in every])


@torch.no_grad()
def scores(posterior, likelihood, x, y):
    """Whether each image is recognized, and its log predictive density."""
    functions = [posterior(part) for part in x.split(1_000)]
    labels = y.split(1_000)
    right = torch.cat([at.mean.argmax(-1) == b for at, b in zip(functions, labels, strict=True)])
    return right, torch.cat([likelihood.predictive(at).log_prob(b) for at, b in zip(functions, labels, strict=True)])


def run(number, seed, settings):
    (x, y), (x_test, y_test) = images("train"), images("test")
    posterior, likelihood = before(), Categorical(10)
    generator, begin, seen, density = torch.Generator().manual_seed(seed), time.process_time(), 0.0, y_test
    for task, rows in enumerate(tasks(y, number, generator), 1):
        method = gp.MemoryDualGP(memory=TASK * task, **settings)
        fit = method.infer(posterior, likelihood, Data(x[rows], y[rows]), generator=generator)
        posterior, likelihood = fit.posterior, fit.likelihood
        right, density = scores(posterior, likelihood, x_test, y_test)
        of_tasks = [float(right[y_test // 2 == done].double().mean()) for done in range(task)]
        seen = float(right[y_test < 2 * task].double().mean())
        shown = " ".join(f"{accuracy:.3f}" for accuracy in of_tasks)
        print(f"seed {seed} task {task}: {shown}  all {seen:.4f}  {time.process_time() - begin:.0f} s", flush=True)
    print(f"seed {seed}: {-float(density.mean()):.3f} nats", flush=True)
    return seen


def value_of(text):
    return {"True": True, "False": False}[text] if text in ("True", "False") else int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"num_inducing": 200, "max_iter": 8} | {
        key: value_of(value) for key, value in (pair.split("=") for pair in given.set)
    }
    ends = [run(given.images, seed, settings) for seed in given.seeds]
    print("accuracy on all at the end:", " ".join(f"{end:.4f}" for end in ends), f" mean {np.mean(ends):.4f}")
