"""SSVI beside dense mean-field VI: state, seconds of a step and of a prediction, and operations counted.

A 784-1024-1024-10 MLP in float32, mini-batches of 128, the local reparameterization, Adam. A hundred steps of each are
timed in turn; one exchange of active weights in them is part of it. The state is what a run keeps: the tensors of the
posterior, of its divergence and of its sparse layers, and the optimizer's. Predictions are 32 draws at 2,000 rows.
"""

from functools import partial

import torch
from torch import Tensor, nn

from bayeskit.bnn import MLP, Subspace, variational
from bayeskit.bnn.variational_inference.stochastic_forward import Passes
from bayeskit.core.likelihood import Categorical
from bayeskit.core.types import Data
from bnn_costs.timing import Row, interleaved

EVERY, BATCH, PREDICTED, DENSITIES = 100, 128, 2_000, (0.05,)
ASKED = {(0.05, "state"): 0.12, (0.05, "step"): 0.6, (0.05, "prediction"): 0.5}
DENSE = "mean-field VI"
ROUNDS = 3
"""A round takes half a minute."""


class Run:
    """A variational posterior in training."""

    def __init__(self, density):
        torch.manual_seed(0)
        self.generator = torch.Generator().manual_seed(0)
        network = MLP(784, 10, hidden=(1024, 1024), activation=nn.ReLU)
        self.q = variational(network, estimator="local", density=density, generator=self.generator)
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=1e-3, fused=True)
        self.subspace = Subspace(self.q, every=EVERY, until=10**6) if density < 1 else None
        x = torch.randn(BATCH, 784, generator=self.generator)
        self.data = Data(x, torch.randint(10, (BATCH,), generator=self.generator), scale=100.0)

    def step(self):
        self.optimizer.zero_grad()
        self.q.loss(Categorical(10), self.data, generator=self.generator).backward()
        self.optimizer.step()
        if self.subspace is not None:
            self.subspace.step(self.optimizer)

    def state(self):
        """Bytes."""
        tensors = [*self.q.parameters(), *self.q.buffers(), *_tensors(self.q._divergence[-1]), *self._patterns()]
        tensors += [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def _patterns(self):
        assert isinstance(self.q._passes, Passes)
        return [t for pattern in self.q._passes._patterns.values() for t in _tensors(pattern)]

    def step_flops(self):
        """Multiplications and additions of a step, by the usual count of two passes back for one forth.

        Two products a layer, of means and of variances; one step in a hundred of the sparse posterior is dense.
        """
        total = 0.0
        for name, shape in self.q.support.shapes.items():
            if len(shape) == 2:
                density, step = self.q.support.densities[name], 2 * 3 * 2 * shape.numel() * BATCH
                total += step * (density + (1 / EVERY if density < 1 else 0))
        return total


def _tensors(thing):
    return [value for value in vars(thing).values() if isinstance(value, Tensor)]


def rows(rounds):
    """State, step and prediction of 32 draws at 2,000 rows, of the sparse and the dense posterior."""
    rounds = min(rounds, ROUNDS)
    for density in DENSITIES:
        dense, sparse = Run(1.0), Run(density)
        for run in (dense, sparse):
            run.step()
        at = f"SSVI at {density:g}"
        bytes_ = [run.state() / 2**20 for run in (sparse, dense)]
        note = f"{bytes_[0]:.1f} beside {bytes_[1]:.1f} MiB kept between steps"
        yield Row(
            f"{at}, state", beside=DENSE, ratio=bytes_[0] / bytes_[1], at_most=ASKED.get((density, "state")), note=note
        )
        times = interleaved({"SSVI": sparse.step, DENSE: dense.step}, rounds, EVERY)
        yield times.row(f"{at}, step", "SSVI", DENSE, ASKED.get((density, "step")), _count(sparse.step_flops(), dense))
        x = torch.randn(PREDICTED, 784)
        runs = {"SSVI": sparse, DENSE: dense}
        calls = {name: partial(_mean, run.q.eval().posterior(run.data.x[:]), x) for name, run in runs.items()}
        times = interleaved(calls, rounds)
        yield times.row(f"{at}, prediction", "SSVI", DENSE, ASKED.get((density, "prediction")))


def _count(ours, dense):
    theirs = dense.step_flops()
    return f"counted {ours / 1e9:.2f} beside {theirs / 1e9:.2f} GFLOP, ratio {ours / theirs:.3f}"


@torch.no_grad()
def _mean(posterior, x):
    return posterior(x).mean
