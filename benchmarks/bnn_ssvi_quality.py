"""SSVI beside dense mean-field VI on MNIST and Fashion-MNIST: accuracy and negative log-likelihood of the test images.

    python benchmarks/bnn_ssvi_quality.py FOLDER [--rows 10000] [--epochs 10] [--seeds 1] [--lr 0.01] [--precision 0.1]

FOLDER holds mnist.npz and fashion_mnist.npz (arrays of images and labels; pixels are scaled to mean 0 and variance 1).
A 784-1024-1024-10 MLP in float32, Adam with a cosine schedule, KL weight 1, no rows held out. Predictions average 32
draws. Seconds are of the processor. With a rate of 0.001 the scales of the dense posterior hardly leave
their start, and a prior precision of 1 is too strong for 10,000 images: with either the dense fit does not converge.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.core import generators
from bayeskit.core.likelihood import Categorical
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import SampledValues
from bayeskit.core.types import Data


def images(path: Path, rows: int, seed: int) -> tuple[Data, Data]:
    arrays = dict(np.load(path))
    train, labels, test, test_labels = (torch.from_numpy(arrays[key]) for key in KEYS)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:rows]
    x, x_test = (part.reshape(len(part), -1).float() for part in (train[chosen], test))
    mean, std = x.mean(), x.std()
    return Data((x - mean) / std, labels[chosen].long()), Data((x_test - mean) / std, test_labels.long())


KEYS = ("x_train", "y_train", "x_test", "y_test")


def fit(density: float, train: Data, arguments: argparse.Namespace, seed: int) -> bnn.BayesNet:
    training = Training(lr=arguments.lr, max_epochs=arguments.epochs, batch_size=128, schedule="cosine")
    settings = {"training": training, "prior_precision": arguments.precision}
    method = bnn.MeanFieldVI(**settings) if density == 1 else bnn.SSVI(density=density, **settings)
    generator = torch.Generator().manual_seed(seed)
    with generators.seeded(generator):
        network = bnn.MLP(784, 10, hidden=(1024, 1024), activation=nn.ReLU, dtype=torch.float32)
    found = method.infer(bnn.gaussian_prior(network), Categorical(10), train, generator=generator)
    assert isinstance(found.posterior, bnn.BayesNet)
    return found.posterior


def scores(posterior: bnn.BayesNet, test: Data) -> tuple[float, float]:
    """Percent right, and nats a row."""
    pieces = []
    with torch.no_grad():
        for x in test.x[:].split(1_000):
            values = posterior(x)
            assert isinstance(values, SampledValues)
            pieces.append(values.draws.log_softmax(-1).logsumexp(0) - np.log(len(values.draws)))
    log_probs = torch.cat(pieces)
    right = (log_probs.argmax(-1) == test.y).float().mean()
    return 100 * float(right), -float(log_probs[torch.arange(len(test)), test.y].mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default="mnist,fashion_mnist")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--precision", type=float, default=0.1)
    parser.add_argument("--densities", default="1,0.1,0.05")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| set | density | seed | accuracy, % | NLL | fit, s |\n|---|---|---|---|---|---|")
    for name in arguments.sets.split(","):
        for seed in range(arguments.seeds):
            train, test = images(arguments.folder / f"{name}.npz", arguments.rows, seed)
            for density in map(float, arguments.densities.split(",")):
                start = time.process_time()
                posterior = fit(density, train, arguments, seed)
                spent = time.process_time() - start
                accuracy, nats = scores(posterior, test)
                print(f"| {name} | {density:g} | {seed} | {accuracy:.2f} | {nats:.4f} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
