"""Bias and cost of every sampler on posteriors that are known: posteriordb's reference draws, or exact moments.

    BAYESKIT_POSTERIORDB=folder python benchmarks/mcmc_posteriordb.py --samplers hmc,nuts,sgld

The protocol, for each parameter with reference mean m and standard deviation s, and a tolerance b that the sampler's
own theory asks for (0 for those that are exact):

    |mean - m| <= 4 s sqrt(1 / ESS + 1 / ESS_ref) + b s
    |sd / s - 1| <= 4 sqrt(1 / (2 ESS) + 1 / (2 ESS_ref)) + b

and rank-normalized R-hat below 1.01; for exact samplers also Stein's identities on their own draws, |z| < 4.5.

HMC starts uniformly in (-2, 2) in the unconstrained coordinates of the model and finds units for itself. The others run
in units of the covariance that such a burn-in found (as `bnn.MCMC` gives them units from the curvature), with their
default settings and gradients of all rows.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from posteriordb import MODELS, Target, load, stein
from torch import Tensor

from bayeskit import mcmc, registry

TOLERANCES = {"hmc": 0.0, "nuts": 0.0, "sghmc": 0.05, "baoab": 0.0, "baoa": 0.05, "sgld": 0.1}
"""Of the bias in standard deviations; samplers that are not here are reported without a verdict."""


@dataclass(frozen=True)
class Budget:
    num_chains: int
    burn_in: int
    num_samples: int
    thin: int


BUDGETS = {"hmc": Budget(32, 200, 400, 1), "nuts": Budget(4, 150, 300, 1)}
STOCHASTIC = Budget(32, 500, 400, 10)

CAREFUL = {("gp_pois_regr-gp_pois_regr", "hmc"): ({"target_acceptance": 0.97}, {"thin": 2})}
"""Where the defaults report divergences: settings of the kernel, and of the budget, that do away with them."""


@dataclass(frozen=True)
class Result:
    """How far off a sampler is on a target, and what that cost.

    Args:
        bias: Largest error of a mean, in standard deviations.
        spread: The ratio of standard deviations that is farthest from 1.
        worst: Largest error of a mean or standard deviation as a share of what is allowed; NaN without a tolerance.
        rhat: Largest R-hat.
        ess: Smallest effective sample size, of a mean or a variance.
        stein: Largest |z|.
        gradients: Evaluations, those of chains side by side counted each, burn-in included.
        seconds: Of the processor.
    """

    bias: float
    spread: float
    worst: float
    rhat: float
    ess: float
    stein: float
    gradients: int
    seconds: float

    @property
    def accepted(self) -> bool | None:
        """Whether the protocol is passed; None where there is no tolerance."""
        return None if self.worst != self.worst else self.worst <= 1 and self.rhat < 1.01


def kernel_of(sampler: str) -> mcmc.TransitionKernel:
    return registry.get(sampler)().kernel or mcmc.NUTS()


def samplers() -> list[str]:
    """The registered Markov kernels."""
    return [name for name in registry.METHODS if registry.METHODS[name][1].endswith(":MCMC")]


def units(target: Target, seed: int) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a root (d, d) of the covariance as a burn-in of HMC finds them."""
    g = torch.Generator().manual_seed(1000 + seed)
    start = {"q": 4 * torch.rand(100, target.dimension, generator=g, dtype=torch.float64) - 2}
    tuned, state = mcmc.adapt(mcmc.HMC(dense_mass=True), start, density(target), num_steps=200, generator=g)
    return state.position["q"].mean(0), torch.linalg.cholesky(tuned.inverse_mass)


def density(target: Target, calls: list[int] | None = None):
    def log_density(position):
        if calls is not None:
            calls.append(len(position["q"]))
        return target.log_density(position["q"])

    return log_density


def judge(target: Target, sampler: str, *, seed: int = 0, settings: Mapping[str, Any] = {}, **budget: Any) -> Result:
    """Run a sampler on a target and hold it against the reference."""
    kernel, g = replace(kernel_of(sampler), **settings), torch.Generator().manual_seed(seed)
    plan = Budget(**{**vars(BUDGETS.get(sampler, STOCHASTIC)), **budget})
    calls: list[int] = []
    log_density = density(target, calls)
    if sampler == "hmc":
        start = 4 * torch.rand(plan.num_chains, target.dimension, generator=g, dtype=torch.float64) - 2
        back = lambda q: q  # noqa: E731
        moved = log_density
    else:
        mean, root = units(target, seed)
        start = torch.randn(plan.num_chains, target.dimension, generator=g, dtype=torch.float64)
        back = lambda q: mean + q @ root.mT  # noqa: E731
        moved = lambda position: log_density({"q": back(position["q"])})  # noqa: E731
    begin = time.process_time()
    chain = mcmc.run(
        kernel,
        moved,
        {"q": start},
        num_samples=plan.num_samples,
        burn_in=plan.burn_in,
        thin=plan.thin,
        generator=g,
    )
    seconds = time.process_time() - begin
    return compare(target, back(chain.samples["q"]), TOLERANCES.get(sampler), sum(calls), seconds)


def compare(target: Target, q: Tensor, tolerance: float | None, gradients: int, seconds: float) -> Result:
    """The protocol, on draws (c, n, d)."""
    x = target.parameters(q.flatten(0, 1)).unflatten(0, q.shape[:2])
    total = x.shape[0] * x.shape[1]
    of_mean, of_square = mcmc.ess(x).clamp(max=total), mcmc.ess((x - x.mean((0, 1))).square()).clamp(max=total)
    bias = (x.mean((0, 1)) - target.mean).abs() / target.sd
    ratio = x.flatten(0, 1).std(0) / target.sd
    b = float("nan") if tolerance is None else tolerance
    allowed = 4 * (1 / of_mean + target.error).sqrt() + b
    allowed_ratio = 4 * (0.5 / of_square + 0.5 * target.error).sqrt() + b
    worst = torch.maximum(bias / allowed, (ratio - 1).abs() / allowed_ratio).max().item()
    ess = min(of_mean.min(), of_square.min()).item()
    z = stein(target, q.flatten(0, 1), per_draw=ess / total)
    spread = ratio[(ratio - 1).abs().argmax()].item()
    return Result(bias.max().item(), spread, worst, mcmc.rhat(x).max().item(), ess, z, gradients, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default=",".join(samplers()), help="registered names, separated by commas")
    parser.add_argument("--sets", default=",".join(MODELS), help="names of posteriors, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| posterior | sampler | mean off by (sd) | sd ratio | R-hat | ESS | Stein z | gradients per ESS | s | passes |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in arguments.sets.split(","):
        target = load(name)
        for sampler in arguments.samplers.split(","):
            row(name, f"`{sampler}`", judge(target, sampler, seed=arguments.seed))
            if (name, sampler) in CAREFUL:
                settings, budget = CAREFUL[name, sampler]
                words = ", ".join(f"{key} {value}" for key, value in {**settings, **budget}.items())
                row(name, f"`{sampler}`, {words}", judge(target, sampler, settings=settings, **budget))


def row(name: str, sampler: str, r: Result):
    passes = {True: "yes", False: "no", None: ""}[r.accepted]
    print(
        f"| {name} | {sampler} | {r.bias:.3f} | {r.spread:.3f} | {r.rhat:.3f} | {r.ess:.0f} | {r.stein:.1f} "
        f"| {r.gradients / r.ess:.1f} | {r.seconds:.1f} | {passes} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
