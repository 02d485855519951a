"""SSVI beside dense mean-field VI: state, seconds of a step and of a prediction, and operations counted.

    python benchmarks/bnn_speed_meanfield.py [rounds]

A 784-1024-1024-10 MLP in float32, mini-batches of 128, the local reparameterization, Adam, one thread. Both take a
hundred steps in turn and their processor seconds are compared pair by pair; the medians of the ratios are printed. One
exchange of active weights in 100 steps is part of them. The state is what a run keeps: the tensors of the law, of its
divergence and of its sparse layers, and the optimizer's. Predictions are 32 draws at 2,000 rows.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bayeskit.bnn import MLP, Subspace, variational
from bayeskit.bnn.variational.passes import Passes
from bayeskit.core.likelihood import Categorical
from bayeskit.core.types import Data

EVERY, BATCH, DENSITIES = 100, 128, (1.0, 0.3, 0.1, 0.05, 0.02)


class Run:
    """A law in training."""

    def __init__(self, density: float, estimator: str):
        torch.manual_seed(0)
        self.generator = torch.Generator().manual_seed(0)
        network = MLP(784, 10, hidden=(1024, 1024), activation=nn.ReLU)
        self.q = variational(network, estimator=estimator, density=density, generator=self.generator)
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=1e-3, fused=True)
        self.subspace = Subspace(self.q, every=EVERY, until=10**6) if density < 1 else None
        x = torch.randn(BATCH, 784, generator=self.generator)
        self.data = Data(x, torch.randint(10, (BATCH,), generator=self.generator), scale=100.0)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.q.loss(Categorical(10), self.data, generator=self.generator).backward()
        self.optimizer.step()
        if self.subspace is not None:
            self.subspace.step(self.optimizer)

    def state(self) -> int:
        """Bytes."""
        tensors = [*self.q.parameters(), *self.q.buffers(), *_tensors(self.q._divergence[-1]), *self._patterns()]
        tensors += [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def _patterns(self) -> list[Tensor]:
        assert isinstance(self.q._passes, Passes)
        return [t for pattern in self.q._passes._patterns.values() for t in _tensors(pattern)]

    def operations(self) -> float:
        """Multiplications and additions of a step for each row, by the usual count of two passes back for one forth."""
        products, total = 1 if self.q.estimator == "weight" else 2, 0.0
        for name, shape in self.q.support.shapes.items():
            if len(shape) == 2:
                density = self.q.support.densities[name]
                dense_pass = products * 2 * shape.numel()
                total += dense_pass * 3 * density + (dense_pass * 3 / EVERY if density < 1 else 0)
        return total


def _tensors(thing: object) -> list[Tensor]:
    return [value for value in vars(thing).values() if isinstance(value, Tensor)]


def seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def compare(density: float, estimator: str, rounds: int) -> str:
    dense, sparse = Run(1.0, estimator), Run(density, estimator)
    steps = 100 if density < 1 else 20
    for run in (dense, sparse):
        run.step()
    training = np.array(
        [[sum(seconds(r.step) for _ in range(steps)) / steps for r in (dense, sparse)] for _ in range(rounds)]
    )
    laws, x = [run.q.eval().posterior(run.data.x[:]) for run in (dense, sparse)], torch.randn(2_000, 784)
    with torch.no_grad():
        predictions = np.array([[seconds(lambda law=law: law(x).mean) for law in laws] for _ in range(rounds)])
    cells = [f"{density:g}", estimator, f"{sparse.state() / dense.state():.3f}"]
    for times in (training, predictions):
        milliseconds = np.median(times, 0) * 1e3
        cells.append(f"{milliseconds[0]:.1f}, {milliseconds[1]:.1f}, {np.median(times[:, 1] / times[:, 0]):.2f}")
    cells.append(f"{sparse.operations() / dense.operations():.3f}")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("| density | estimator | state, ratio | step, ms: dense, sparse, ratio | prediction, likewise | operations |")
    print("|---|---|---|---|---|---|")
    for density in DENSITIES:
        print(compare(density, "local", rounds), flush=True)
    print(compare(0.05, "weight", rounds))
