"""One sampler on one known posterior: a line of the table of `mcmc_posteriordb.py`."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from posteriordb import Target, stein
from posteriordb_model import Index, Model
from torch import Tensor

from bayeskit import mcmc, registry

TOLERANCES = {
    "hmc": 0.0,
    "nuts": 0.0,
    "baoab": 0.0,
    "sghmc": 0.05,
    "csghmc": 0.05,
    "sgld": 0.1,
    "csgld": 0.1,
    "entropy_mcmc": 0.1,
    "federated_sgld": 0.1,
    "sgld_cv": 0.1,
    "sgld_svrg": 0.1,
}
"""Of the bias in standard deviations; samplers that are not here are reported without pass or fail."""

NOISY = {"baoab": 0.05}
"""The same for mini-batches, where it is another."""

FEW_ROWS = 100
"""Posteriors with fewer are not cut into mini-batches."""


@dataclass(frozen=True)
class Budget:
    num_chains: int
    burn_in: int
    num_samples: int
    thin: int


BUDGETS = {
    "hmc": Budget(32, 200, 400, 1),
    "nuts": Budget(4, 150, 300, 1),
    "svgd": Budget(100, 500, 1, 1),
    "federated_sgld": Budget(32, 50, 400, 1),  # in rounds of ten steps
    "csgld": Budget(32, 400, 400, 10),  # half of the steps sample
    "csghmc": Budget(32, 400, 400, 10),
}
STOCHASTIC = Budget(32, 500, 400, 10)
BATCHES = Budget(32, 500, 400, 20)
"""With mini-batches, whose steps are shorter."""

SETTINGS: dict[str, dict[str, Any]] = {"structured_sgld": {"groups": "parameter"}}
"""Where a default is made for networks: a posterior here is one leaf, so one layer."""


def variants(density: "Moved") -> dict[str, mcmc.TransitionKernel]:
    """Kernels without a name of their own in the registry."""
    return {
        "adaptive_sghmc": mcmc.AdaptiveSGHMC(),
        "sgld_cv": mcmc.ControlVariate(mcmc.SGLD(), density),
        "sgld_svrg": mcmc.ControlVariate(mcmc.SGLD(), density, refresh=100),
    }


def samplers(batch: float | None) -> list[str]:
    """The registered Markov kernels and the variants, or those of them that take mini-batches."""
    names = [name for name in registry.METHODS if registry.METHODS[name].path.endswith(":MCMC")]
    if batch is None:
        return [*names, "adaptive_sghmc"]
    return [*(name for name in names if registered(name).mini_batches), *VARIANTS]


VARIANTS = ("adaptive_sghmc", "sgld_cv", "sgld_svrg")


def registered(name: str) -> mcmc.TransitionKernel:
    return registry.get(name)().kernel or mcmc.NUTS()


def takes_batches(sampler: str, target: Target, batch: float | None) -> bool:
    """Whether a posterior has the rows for a sampler: to make mini-batches of, or to deal to clients."""
    return (batch is None and sampler != "federated_sgld") or target.model.num_rows >= FEW_ROWS


@dataclass(frozen=True)
class Result:
    """Errors and cost of a sampler on a target.

    Args:
        bias: Largest error of a mean, in standard deviations.
        spread: The ratio of standard deviations that is farthest from 1.
        worst: Largest error of a mean or standard deviation as a share of what is allowed; NaN without a tolerance.
        rhat: Largest R-hat.
        ess: Smallest effective sample size, of a mean or a variance.
        stein: Largest |z|.
        gradients: Evaluations on all rows, those of chains side by side counted each, burn-in included.
        seconds: Of the processor.
        interacting: Whether draws are particles, for which R-hat and ESS mean nothing.
    """

    bias: float
    spread: float
    worst: float
    rhat: float
    ess: float
    stein: float
    gradients: float
    seconds: float
    interacting: bool = False

    @property
    def accepted(self) -> bool | None:
        """Whether the protocol is passed; None where there is no tolerance."""
        return None if self.worst != self.worst else self.worst <= 1 and self.rhat < 1.01


@dataclass(frozen=True, eq=False)
class Moved:
    """A model's log density in other units, which counts what it is asked for; `mcmc.Divisible`.

    Args:
        model: The log density.
        mean: Where zero is, (d,).
        root: Of the covariance that is one there, (d, d).
        calls: Evaluations, in shares of all the rows.
    """

    model: Model
    mean: Tensor
    root: Tensor
    calls: list[float] = field(default_factory=list)

    def back(self, q: Tensor) -> Tensor:
        return self.mean + q @ self.root.mT

    def of_some(self, rows: Index, share: float):
        def log_density(position):
            self.calls.append(len(position["q"]) * share)
            return self.model.log_density(self.back(position["q"]), rows)

        return log_density

    def __call__(self, position):
        return self.of_some(slice(None), 1.0)(position)

    @property
    def order(self) -> Tensor:
        return torch.arange(self.model.num_rows)

    def log_prior(self, position):
        return self.model.log_prior(self.back(position["q"]))

    def of_rows(self, rows):
        def log_likelihood(position):
            self.calls.append(len(position["q"]) * len(rows) / self.model.num_rows)
            return self.model.row_terms(self.back(position["q"]), rows).sum(-1)

        return log_likelihood


@dataclass(frozen=True, eq=False)
class Batches:
    """Passes over mini-batches, shuffled anew; their sizes differ by a row at most, as those of `bnn.MCMC`."""

    density: Moved
    size: int
    generator: torch.Generator

    def __iter__(self) -> Iterator[mcmc.LogDensity]:
        number = self.density.model.num_rows
        for rows in torch.randperm(number, generator=self.generator).tensor_split(-(-number // self.size)):
            yield self.density.of_some(rows, len(rows) / number)


def units(target: Target, seed: int) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a root (d, d) of the covariance as a burn-in of HMC finds them."""
    g = torch.Generator().manual_seed(1000 + seed)
    start = {"q": 4 * torch.rand(100, target.model.dimension, generator=g, dtype=torch.float64) - 2}
    kernel = mcmc.HMC(dense_mass=True)
    tuned, state = mcmc.adapt(kernel, start, lambda q: target.model.log_density(q["q"]), num_steps=200, generator=g)
    return state.position["q"].mean(0), torch.linalg.cholesky(tuned.inverse_mass)


def judge(
    target: Target,
    sampler: str,
    *,
    seed: int = 0,
    batch: float | None = None,
    settings: Mapping[str, Any] = {},
    **budget: Any,
) -> Result:
    """Run a sampler on a target and compare it with the reference.

    Args:
        target: The posterior.
        sampler: A registered name, or one of `VARIANTS`.
        seed: Of everything random.
        batch: The share of the rows in a mini-batch; None for all of them.
        settings: Of the kernel, in place of its defaults.
        budget: In place of what is in `BUDGETS`.
    """
    g, d = torch.Generator().manual_seed(seed), target.model.dimension
    usual = STOCHASTIC if batch is None else BATCHES
    plan = Budget(**{**vars(BUDGETS.get(sampler, usual)), **budget})
    alone = sampler == "hmc"
    mean, root = (torch.zeros(d).double(), torch.eye(d).double()) if alone else units(target, seed)
    density = Moved(target.model, mean, root)
    kernel: Any = variants(density)[sampler] if sampler in VARIANTS else registered(sampler)
    kernel = replace(kernel, **SETTINGS.get(sampler, {}), **settings)
    uniform = 4 * torch.rand(plan.num_chains, d, generator=g, dtype=torch.float64) - 2
    start = uniform if alone else torch.randn(plan.num_chains, d, generator=g, dtype=torch.float64)
    if sampler == "sgld_cv":
        start = torch.zeros_like(start)  # the center ought to be near the mode
    size = target.model.num_rows if batch is None else round(batch * target.model.num_rows)
    source: Any = density if batch is None else Batches(density, size, g)
    begin = time.process_time()
    share = 1.0 if batch is None else size / target.model.num_rows
    kernel = kernel.prepared(density, {"q": start}, share=share, generator=g)
    chain = mcmc.run(
        kernel,
        source,
        {"q": start},
        num_samples=plan.num_samples,
        burn_in=plan.burn_in,
        thin=plan.thin,
        generator=g,
    )
    seconds = time.process_time() - begin
    tolerance = (TOLERANCES if batch is None else TOLERANCES | NOISY).get(sampler)
    found = density.back(chain.samples["q"])
    if kernel.interacting:
        return particles(target, found, sum(density.calls), seconds)
    return compare(target, found, tolerance, sum(density.calls), seconds)


def particles(target: Target, q: Tensor, gradients: float, seconds: float) -> Result:
    """What can be said about particles (c, 1, d), which depend on each other."""
    x = target.model.parameters(q[:, 0])
    bias, ratio = ((x.mean(0) - target.mean).abs() / target.sd).max().item(), x.std(0) / target.sd
    nan = float("nan")
    z = stein(target, q[:, 0])
    return Result(bias, ratio[(ratio - 1).abs().argmax()].item(), nan, nan, nan, z, gradients, seconds, True)


def compare(target: Target, q: Tensor, tolerance: float | None, gradients: float, seconds: float) -> Result:
    """The protocol, on draws (c, n, d)."""
    x = target.model.parameters(q.flatten(0, 1)).unflatten(0, q.shape[:2])
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
