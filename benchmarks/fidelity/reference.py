"""The reference posterior: many long chains of Hamiltonian Monte Carlo, and their agreement.

It is stored beside this file as `reference_NAME.npz`; `mcmc_fidelity.py` has the command that recomputes it.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayeskit import mcmc, metrics
from bayeskit.bnn.networks.functional import evaluate
from bayeskit.bnn.training.log_posterior import LogPosterior, Model
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.mcmc.base.log_density import value_and_gradient
from fidelity.problem import Problem

FOLDER = Path(__file__).parent
CHAINS, BURN_IN, MAX_STEPS, START_STEPS, SEED = 8, 120, 100, 100, 0


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of f at the t test inputs, and their Monte Carlo errors.

    Args:
        mean: (t,).
        covariance: (t, t).
        mean_error: Standard errors of the means, (t,).
        variance_error: Standard errors of the variances, (t,).
        rhat: Of f at each input, (t,).
        halves: Moments by the even and by the odd chains: means (2, t) and variances (2, t).
        about: Settings and summaries.
    """

    mean: np.ndarray
    covariance: np.ndarray
    mean_error: np.ndarray
    variance_error: np.ndarray
    rhat: np.ndarray
    halves: np.ndarray
    about: dict

    @property
    def variance(self) -> np.ndarray:
        return self.covariance.diagonal()

    @property
    def floor(self) -> float:
        """Mean distance between the distributions of the two halves of the chains."""
        (mean1, variance1), (mean2, variance2) = self.halves
        return float(metrics.pointwise_wasserstein2(mean1, variance1, mean2, variance2).mean())


def stored(name: str) -> Reference:
    with np.load(FOLDER / f"reference_{name}.npz") as file:
        return Reference(
            **{key: file[key] for key in file.files if key != "about"}, about=json.loads(str(file["about"]))
        )


def store(name: str, reference: Reference):
    np.savez_compressed(FOLDER / f"reference_{name}.npz", **{**vars(reference), "about": json.dumps(reference.about)})


class Density:
    """Log density of standardized weights of one hidden layer of tanh units, with its gradient by hand.

    It says what `Model.log_density` says, at less than half the cost, and is code of its own.

    Args:
        model: Mean and units of the weights, in the order hidden weights, hidden biases, output weights, output bias.
        problem: Rows, noise and prior.
    """

    def __init__(self, model: Model, problem: Problem):
        assert isinstance(problem.prior.weights, GaussianWeights)
        self.x, self.y = problem.data.x[:], problem.data.y[:, 0]
        self.noise = problem.likelihood.noise.item()
        self.variances = problem.prior.weights.covariance.diagonal()
        self.mean, self.scale, self.count = model.mean, model.scale, 0

    def __call__(self, position: mcmc.Position) -> Tensor:
        """(c, p) to (c,)."""
        self.count += len(position["weights"])
        return _Value.apply(self.mean + self.scale * position["weights"], self)  # type: ignore[return-value]

    def with_slope(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Values (c,) and gradients (c, p) at weights (c, p) in their own units."""
        (n, d), c = self.x.shape, len(w)
        h = (w.shape[1] - 1) // (d + 2)
        first, bias, last, offset = w.split([h * d, h, h, 1], dim=1)
        hidden = torch.addmm(bias.reshape(-1, 1), first.reshape(c * h, d), self.x.mT).view(c, h, n).tanh_()
        residual = self.y - torch.baddbmm(offset[:, :, None], last[:, None], hidden)[:, 0]  # (c, n)
        to_last = torch.bmm(hidden, residual[..., None])[..., 0]
        back = hidden.square_().neg_().add_(1).mul_(residual[:, None]).mul_(last[..., None])  # (c, h, n)
        to_first = (back.view(c * h, n) @ self.x).view(c, h * d)
        slope = torch.cat([to_first, back.sum(-1), to_last, residual.sum(-1, keepdim=True)], 1) / self.noise
        value = -0.5 * (residual.square().sum(-1) / self.noise + (w.square() / self.variances).sum(-1))
        return value, slope - w / self.variances


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, density):
        value, slope = density.with_slope(w)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx, *grads):
        (slope,) = ctx.saved_tensors
        return grads[0][:, None] * slope, None


def sample(problem: Problem, *, num_draws: int, checkpoint: str | None) -> Reference:
    """Start chains at draws from the prior moved towards modes, run them, and look at the functions."""
    g, begin = torch.Generator().manual_seed(SEED), time.process_time()
    model = Model(problem.prior.network, problem.prior.weights, problem.likelihood)  # type: ignore[arg-type]
    start = model.start(problem.data, CHAINS, START_STEPS, generator=g)
    density = Density(model, problem)
    check(density, LogPosterior(model, problem.data), start)
    settings = {"num_samples": num_draws, "burn_in": BURN_IN, "checkpoint": checkpoint, "generator": g}
    chain = mcmc.run(mcmc.HMC(max_steps=MAX_STEPS), density, start, **settings)
    draws = chain.samples["weights"]
    f = evaluate(model.network, model.params(draws.flatten(0, 1)), problem.x).detach()
    about = {
        "chains": CHAINS,
        "draws": CHAINS * num_draws,
        "burn-in": BURN_IN,
        "acceptance": chain.info["acceptance"].mean().item(),
        "divergences": int(chain.info["divergent"].sum()),
        "step size": chain.info["step_size"].mean().item(),
        "gradients in this run": density.count,
        "seconds in this run": time.process_time() - begin,
    }
    return summarized(f.unflatten(0, draws.shape[:2])[..., 0], about)


def check(ours: Density, theirs: LogPosterior, position: mcmc.Position):
    """Stop if the two codes differ in a slope, or in a difference of values."""
    (value1, slope1), (value2, slope2) = (value_and_gradient(one, position) for one in (ours, theirs))
    torch.testing.assert_close(slope1, slope2, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(value1 - value1[0], value2 - value2[0], rtol=1e-8, atol=1e-8)


def summarized(f: Tensor, about: dict) -> Reference:
    """Moments and errors of draws (c, s, t) of the function."""
    centered = f - f.mean((0, 1))
    halves = [[half.mean((0, 1)).numpy(), half.flatten(0, 1).var(0).numpy()] for half in (f[::2], f[1::2])]
    mean_ess, square_ess = mcmc.ess(f), mcmc.ess(centered.square())
    found = {
        "ESS of f, least": mean_ess.min().item(),
        "ESS of f, median": mean_ess.median().item(),
        "ESS of f squared, least": square_ess.min().item(),
        "ESS of f squared, median": square_ess.median().item(),
        "R-hat of f, most": mcmc.rhat(f).max().item(),
        "R-hat of f, median": mcmc.rhat(f).median().item(),
    }
    return Reference(
        mean=f.mean((0, 1)).numpy(),
        covariance=f.flatten(0, 1).mT.cov().numpy(),
        mean_error=mcmc.mcse(f).numpy(),
        variance_error=mcmc.mcse(centered.square()).numpy(),
        rhat=mcmc.rhat(f).numpy(),
        halves=np.array(halves),
        about={**about, **found},
    )
