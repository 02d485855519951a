"""One method on one table with one seed: posterior moments, cost, and distance from the reference posterior."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bayeskit import metrics
from bayeskit.bnn.training.log_posterior import LogPosterior, Model
from bayeskit.mcmc.base.log_density import value_and_gradient
from fidelity.problem import Problem
from fidelity.reference import Reference
from fidelity.rows import Row

PRODUCTS = {torch.ops.aten.mm: 0, torch.ops.aten.bmm: 0, torch.ops.aten.addmm: 1, torch.ops.aten.baddbmm: 1}
"""Products of matrices, and which of their arguments is the left factor."""


class Work(TorchDispatchMode):
    """Multiplications in products of matrices, for that is what a gradient of a network is made of."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            self.count += out.numel() * args[PRODUCTS[func.overloadpacket]].shape[-1]
        return out


def trial(problem: Problem, row: Row, seed: int, *, counting: bool = False) -> dict[str, Any]:
    """Fit, and compute the moments of f at the test inputs.

    Args:
        problem: The model and the rows.
        row: The method.
        seed: Of the fit.
        counting: Whether to count gradients, which takes time of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    work, begin = Work(), time.process_time()
    if counting:
        with work:
            fit = row.build().infer(problem.prior, problem.likelihood, problem.data, generator=generator)
    else:
        fit = row.build().infer(problem.prior, problem.likelihood, problem.data, generator=generator)
    seconds = time.process_time() - begin
    values = fit.posterior(problem.x)
    mean, variance = (v.detach().double()[:, 0] for v in (values.mean, values.variance))
    found = {"mean": mean.tolist(), "variance": variance.tolist(), "R-hat": fit.diagnostics.get("R-hat")}
    found |= {"noise": fit.likelihood.noise.item(), "RMSE": (mean - problem.y).square().mean().sqrt().item()}
    return found | ({"gradients": work.count / one_gradient(problem)} if counting else {"seconds": seconds})


def compared(found: Mapping[str, Any], reference: Reference) -> dict[str, float]:
    """The errors of the moments of a trial.

    W2 is the mean distance of the marginal distributions; "mean off" the root mean square of (m - m*) / s*; "sd ratio"
    the median of s / s*; "sd off" the root mean square of s / s* - 1.
    """
    mean, variance = np.array(found["mean"]), np.array(found["variance"])
    distance = metrics.pointwise_wasserstein2(mean, variance, reference.mean, reference.variance)
    ratio, spread = np.sqrt(variance / reference.variance), np.sqrt(reference.variance)
    return {
        "W2": float(distance.mean()),
        "W2 most": float(distance.max()),
        "mean off": float(np.sqrt(np.mean(((mean - reference.mean) / spread) ** 2))),
        "sd ratio": float(np.median(ratio)),
        "sd off": float(np.sqrt(np.mean((ratio - 1) ** 2))),
    }


def one_gradient(problem: Problem) -> int:
    """Multiplications of one gradient of the log density of all the rows."""
    model = Model(problem.prior.network, problem.prior.weights, problem.likelihood)  # type: ignore[arg-type]
    position, work = {"weights": torch.zeros(1, len(model.mean), dtype=torch.float64)}, Work()
    with work:
        value_and_gradient(LogPosterior(model, problem.data), position)
    return work.count
