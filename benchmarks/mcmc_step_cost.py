"""Cost of a step of a sampler relative to a step of gradient descent: same network, same batch of 128, one thread.

Ratios of processor time, each the median over interleaved repetitions.

    python benchmarks/mcmc_step_cost.py
"""

import statistics
import time

import torch
from torch import nn

from bayeskit import mcmc

ROWS, REPETITIONS = 60_000, 40


def perceptron():
    hidden = [layer for _ in range(2) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), *hidden, nn.Linear(256, 10))


def convolutional():
    first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10))


def loop(network, optimizer, x, y):
    def run():
        start = time.process_time()
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        return time.process_time() - start

    return run


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    kernels = [mcmc.SGLD, mcmc.SGHMC, mcmc.BAOAB, mcmc.SGNHT]
    for make in (perceptron, convolutional):
        networks = [make() for _ in range(len(kernels) + 1)]
        loops = {"SGD": loop(networks[0], torch.optim.SGD(networks[0].parameters(), lr=0.01), x, y)}
        for kernel, network in zip(kernels, networks[1:], strict=True):
            optimizer = mcmc.Optimizer(network.parameters(), kernel(lr=0.01 / ROWS), num_data=ROWS)
            loops[kernel.__name__] = loop(network, optimizer, x, y)
        times = {name: [] for name in loops}
        for _ in range(REPETITIONS):
            for name, run in loops.items():
                times[name].append(run())
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(values, times["SGD"], strict=True))
            print(f"{make.__name__:15}{name:8}{500 * statistics.median(values):8.2f} ms{ratio:8.2f}")


if __name__ == "__main__":
    main()
