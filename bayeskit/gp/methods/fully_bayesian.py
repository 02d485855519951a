"""Gaussian-process regression averaged over the posterior of its hyperparameters, by MCMC."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from gpytorch.kernels import Kernel
from sklearn.base import clone
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Drawn, Gaussian, KnownNoise, Likelihood
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.methods.exact import Exact, log_evidence
from bayeskit.gp.methods.hyperparameter_posterior import HyperparameterPosterior
from bayeskit.gp.methods.sgpr import SGPR
from bayeskit.gp.model.hyperparameters import Model, learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.process.cg_kernel import IterativelyConditioned
from bayeskit.gp.process.conditioned_kernel import Conditioned, ConditionedMean
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.process.process_mixture import ProcessMixture
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.mcmc import NUTS, Chain, TransitionKernel, agreement, run

EXACT_ROWS = 400
"""Data points up to which the evidence is exact if no inner method is named: some 15 ms with its gradient."""

MIXED = 1.05
"""R-hat above which the diagnostics warn."""


@dataclass(eq=False, repr=False)
class FullyBayesian(Inference):
    r"""Gaussian-process regression averaged over the posterior of its hyperparameters.

    Draws theta_1 .. theta_S of p(theta | y) ~ p(y | theta) p(theta), by Markov chains on the evidence (or on SGPR's
    bound at fixed inducing points), give

        p(f | y) = 1/S sum_s p(f | y, theta_s),

    a mixture of processes, each with its own noise. The density sampled is that of the raw values, with the change of
    variables of each prior; parameters without a prior get a weak one: see `HyperparameterPosterior`.

    More data reweight the same draws by the density they gave the new data: exact for the empirical distribution of the
    draws, and less efficient as the weights spread (`diagnostics["effective components"]`). Where all hyperparameters
    are frozen nothing is drawn, and the fit is the inner method's.

    Args:
        inference: `gp.Exact` or `gp.SGPR`, which also finds the start and the inducing points; None for `Exact` up to
            `EXACT_ROWS` data points, then `SGPR(num_inducing=128)`.
        num_chains: Number of chains, started at the optimum plus a standard normal step in raw values.
        num_samples: Draws of each.
        burn_in: Steps before the first, which also tune the kernel.
        num_components: Draws that make up the posterior, taken evenly from all.
        kernel: A kernel of `bayeskit.mcmc`; None for `NUTS(max_tree_depth=6)`.

    References:
        Lalchand and Rasmussen (2020), "Approximate Inference for Fully Bayesian Gaussian Process Regression".
        Lalchand, Bruinsma, Burt and Rasmussen (2022), "Sparse Gaussian Process Hyperparameters: Optimize or
        Integrate?", for the same over the collapsed bound.

    Examples:
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 6, 20, dtype=torch.float64).unsqueeze(-1)
        >>> method, g = FullyBayesian.quickly(), torch.Generator().manual_seed(0)
        >>> fit = method.infer(default_prior(x), Gaussian(), Data(x, x.sin()), generator=g)
        >>> len(fit.posterior.components), list(fit.diagnostics["hyperparameters"])[-1]
        (4, 'noise')
    """

    likelihoods: ClassVar[tuple[type[Likelihood], ...]] = (Gaussian, KnownNoise, Drawn)
    priors: ClassVar[tuple[type[Posterior], ...]] = (GaussianProcess, ProcessMixture)
    kind: ClassVar[Kind] = "GP posterior"
    quick: ClassVar[Mapping[str, Any]] = {
        "inference": Exact(max_iter=5),
        "num_chains": 1,
        "num_samples": 4,
        "burn_in": 4,
        "num_components": 4,
        "kernel": NUTS(max_tree_depth=2),
    }

    inference: Inference | None = None
    num_chains: int = 2
    num_samples: int = 100
    burn_in: int = 100
    num_components: int = 32
    kernel: TransitionKernel | None = None

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The mixture of posterior processes given `data`, over draws of the hyperparameters."""
        self.check(prior, likelihood, data)
        inner = self._inner(len(data))
        if isinstance(prior, ProcessMixture):
            return _continued(inner, prior, likelihood, data, generator)
        assert isinstance(prior, GaussianProcess)
        if prior.mixing is not None:
            raise ValueError(
                "FullyBayesian models outputs independently and would drop the `mixing` of the prior: leave "
                "`num_latents` at None, or use `gp.Exact` or `gp.SVGP`"
            )
        if likelihood.components:
            name = type(likelihood).__name__
            raise TypeError(f"FullyBayesian takes a {name} likelihood only with its mixture of processes as prior")
        model = learnable(prior, likelihood, learn=True)
        start = inner.infer(prior, likelihood, data, generator=generator)
        if not model.parameters:
            return start
        rows = training_set(prior, likelihood, data)
        with operators.recording() as notes:
            return self._sampled(_Conditioning.build(model, rows, start), prior, start, notes, generator)

    def _inner(self, num_rows: int) -> Exact | SGPR:
        """The method that conditions, after the settings are validated."""
        for name in ("num_chains", "num_samples", "burn_in", "num_components"):
            checks.positive(getattr(self, name), name=name, integer=True)
        if self.inference is None:
            return Exact() if num_rows <= EXACT_ROWS else SGPR(num_inducing=128)
        if not isinstance(self.inference, Exact | SGPR):
            raise TypeError(f"`inference` must be a gp.Exact, a gp.SGPR or None; got {type(self.inference).__name__}")
        return cast("Exact | SGPR", clone(self.inference))

    def _sampled(
        self,
        problem: "_Conditioning",
        prior: GaussianProcess,
        start: Fit,
        notes: dict[str, float],
        generator: torch.Generator,
    ) -> Fit:
        model = problem.model
        model.center(model.likelihood.observations(problem.rows.y)[0], problem.rows.weights)
        density = HyperparameterPosterior(model, problem.evidence, problem.rows)
        _adopt(model, prior, start)
        position = {"raw": _starts(density, self.num_chains, generator)}
        chain = run(
            NUTS(max_tree_depth=6) if self.kernel is None else self.kernel,
            density,
            position,
            num_samples=self.num_samples,
            burn_in=self.burn_in,
            generator=generator,
            description="hyperparameters",
        )
        draws = chain.samples["raw"].flatten(0, 1)  # (c * num_samples, p)
        chosen = draws[torch.linspace(0, len(draws) - 1, min(self.num_components, len(draws))).round().long()]
        parts, likelihoods = [], []
        for raw in chosen:
            density.move(raw)
            parts.append(problem.posterior())
            likelihoods.append(model.frozen_likelihood())
        weights = torch.full((len(chosen),), 1 / len(chosen), dtype=torch.float64, device=draws.device)
        found = {**start.diagnostics, **notes, **_chain_diagnostics(chain), "hyperparameters": density.readable(chosen)}
        history = {"log_density": chain.info["log_density"].mean(0).tolist()}
        return Fit(ProcessMixture(tuple(parts), weights), Drawn(likelihoods, weights), None, history, found)


@dataclass(frozen=True, eq=False)
class _Conditioning:
    """Evidence and posterior of a data set at a model's present hyperparameters.

    Args:
        model: Mean, kernel and Gaussian likelihood.
        rows: The training set.
        z: Inducing points, fixed; None for no approximation.
    """

    model: Model
    rows: Data
    z: Tensor | None

    @classmethod
    def build(cls, model: Model, rows: Data, start: Fit) -> "_Conditioning":
        """With the inducing points of the initial fit, if it has any."""
        process = start.posterior
        assert isinstance(process, GaussianProcess)
        sparse = len(rows) and isinstance(process.kernel, Conditioned) and process.kernel.root is not None
        return cls(model, rows, process.kernel.z[-process.kernel.blocks[-1] :] if sparse else None)  # type: ignore

    def evidence(self) -> Tensor:
        """The number log p(y | theta), or the bound on it; zero without data."""
        if not len(self.rows):
            return torch.zeros((), dtype=torch.float64, device=self.rows.y.device)
        if self.z is None:
            return log_evidence(self.model, self.rows)
        return collapsed(self.model, self.z, self.rows).bound

    @torch.no_grad()
    def posterior(self) -> GaussianProcess:
        """p(f | y, theta)."""
        process = self.model.process()
        if not len(self.rows):
            return process
        if self.z is not None:
            return collapsed(self.model, self.z, self.rows).posterior(process, self.z)
        method, likelihood = Exact(learn=False, solver="cholesky"), self.model.frozen_likelihood()
        posterior = method.infer(process, likelihood, self.rows, generator=torch.Generator()).posterior
        return cast(GaussianProcess, posterior)


def _adopt(model: Model, prior: GaussianProcess, start: Fit) -> None:
    """Copy the hyperparameters of a fit to the model; those of a conditioned prior have not changed."""
    model.likelihood.load_state_dict(start.likelihood.state_dict())
    conditioned = Conditioned | IterativelyConditioned
    process = cast(GaussianProcess, start.posterior)
    if isinstance(prior.kernel, conditioned) or not isinstance(process.kernel, conditioned):
        return
    assert isinstance(process.mean, ConditionedMean)
    model.kernel.load_state_dict(cast(Kernel, process.kernel.base).state_dict())
    model.mean.load_state_dict(process.mean.base_mean.state_dict())


def _starts(density: HyperparameterPosterior, num_chains: int, generator: torch.Generator) -> Tensor:
    """Raw values near the model's present ones, (c, p), where the density is positive."""
    best, values = density.model.values(), []
    for _ in range(num_chains):
        density.model.scatter(generator)
        scattered = density.raw()
        density.model.set(best)
        with torch.no_grad():
            possible = bool(density({"raw": scattered.unsqueeze(0)}).isfinite())
        density.model.set(best)
        values.append(scattered if possible else density.raw())
    return torch.stack(values)


def _chain_diagnostics(chain: Chain) -> dict[str, Any]:
    """Acceptance rate, divergences, and convergence diagnostics over all hyperparameters."""
    found: dict[str, Any] = {}
    if "acceptance" in chain.info:
        found["acceptance"] = chain.info["acceptance"].mean().item()
    if "divergent" in chain.info:
        found["divergences"] = int((chain.info["divergent"] > 0).sum())
    draws = chain.samples["raw"]
    if draws.shape[1] >= 4:
        numbers = agreement(draws)
        found |= {"R-hat": numbers["R-hat"], "effective draws": numbers["ESS"]}
        if found["R-hat"] > MIXED:
            found["warning"] = (
                f"The chains disagree about a hyperparameter or never moved (R-hat {found['R-hat']:.2f} > {MIXED}): "
                "raise `burn_in` and `num_samples`."
            )
    return found


def _continued(
    inner: Exact | SGPR, prior: ProcessMixture, likelihood: Likelihood, data: Data, generator: torch.Generator
) -> Fit:
    """Every component conditioned on the new data, and weighted by the density it gave them."""
    size = len(prior.components)
    members = list(likelihood.components) or [likelihood] * size
    if len(members) != size:
        raise ValueError(f"the likelihood has {len(members)} draws and the prior {size} components; they must match")
    settings: dict[str, Any] = {"learn": False} | ({"learn_inducing": False} if isinstance(inner, SGPR) else {})
    condition: Callable[..., Fit] = replace(inner, **settings).infer
    fits = [
        condition(f, member, data, generator=generator) for f, member in zip(prior.components, members, strict=True)
    ]
    evidence = torch.tensor([float(fit.log_evidence) for fit in fits], dtype=torch.float64)  # type: ignore[arg-type]
    weights = (prior.weights.log() + evidence.to(prior.weights)).softmax(0)
    posterior = ProcessMixture(tuple(cast(GaussianProcess, fit.posterior) for fit in fits), weights)
    diagnostics = {"effective components": float(1 / weights.square().sum())}
    return Fit(posterior, Drawn([fit.likelihood for fit in fits], weights), diagnostics=diagnostics)
