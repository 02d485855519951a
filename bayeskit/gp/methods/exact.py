"""Exact Gaussian-process regression."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.likelihood import Conjugate, Dirichlet, Gaussian, Likelihood
from bayeskit.core.operators import factorize
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.gaussian_observations import Observations
from bayeskit.gp.model.hyperparameters import History, Model, best_of_starts
from bayeskit.gp.model.multitask import StackedProcess, infer_stacked
from bayeskit.gp.model.process_inference import ProcessInference
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.cg_kernel import IterativelyConditioned, Preconditioner, System
from bayeskit.gp.process.conditioned_kernel import ConditionedMean
from bayeskit.gp.process.gaussian_process import GaussianProcess

MEMORY_BUDGET = 4 * 2**30
"""Bytes that the matrices of a Cholesky factorization may take: three of n x n in float64 for each kernel."""

TIME_BUDGET = 60.0
"""Seconds that one factorization may take, at `FLOPS` a thread."""

FLOPS = 1.5e10


@dataclass(eq=False, repr=False)
class Exact(ProcessInference):
    r"""Gaussian-process regression without approximation.

    With C = k(X, X) + D, D the noise variance over the case weight, and r = y - m(X):

        log p(y) = -1/2 r' C^-1 r - 1/2 log|C| - n/2 log 2 pi,
        mean(x) = m(x) + k(x, X) C^-1 r,    cov(x, x') = k(x, x') - k(x, X) C^-1 k(X, x').

    Hyperparameters maximize log p(y) plus their weak log priors, by L-BFGS. Beyond the range of a Cholesky
    factorization, which `solver="auto"` judges by estimated memory and time, preconditioned conjugate gradients are
    used: the posterior to `tolerance`, the evidence to a standard error given in `Fit.diagnostics`.

    Missing (NaN) entries of y have an infinite D. Outputs share one factorization unless they differ in kernel, noise
    or missing entries.

    Args:
        max_iter: L-BFGS iterations at most, of each start.
        restarts: Further random starts; the best optimum is kept.
        solver: "auto", "cholesky" or "cg".
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        max_learning_rows: Hyperparameters are learned on at most this many data points, drawn at random; the
            posterior always uses all.
        tolerance: Largest relative residual of a system solved by conjugate gradients.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, Algorithm 2.1 and section 5.4.1.

    Examples:
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 6, 30, dtype=torch.float64).unsqueeze(-1)
        >>> fit = Exact().infer(default_prior(x), Gaussian(), Data(x, x.sin()), generator=torch.Generator())
        >>> bool((fit.posterior(x).mean - x.sin()).abs().max() < 1e-2)
        True
    """

    likelihoods: ClassVar[tuple[type[Likelihood], ...]] = (Gaussian, Dirichlet, Conjugate)
    priors: ClassVar[tuple[type[Posterior], ...]] = (GaussianProcess, StackedProcess)
    quick: ClassVar[Mapping[str, Any]] = {"max_iter": 15}

    max_iter: int = 100
    restarts: int = 0
    solver: str = "auto"
    learn: bool = True
    max_learning_rows: int = 3000
    tolerance: float = 1e-8

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The posterior process given `data`, at learned hyperparameters."""
        if isinstance(prior, StackedProcess) or (isinstance(prior, GaussianProcess) and prior.mixing is not None):
            self.check(prior, likelihood, data)
            self._validate()
            return infer_stacked(self, prior, likelihood, data, learn=self.learn, generator=generator)
        return super().infer(prior, likelihood, data, generator=generator)

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        iterative = self._solver(model, rows) == "cg"
        if iterative:
            _refuse_batches(model, rows)
        history = self._learn(model, rows, generator)
        with torch.no_grad():
            conditioned = _by_gradients if iterative else _by_cholesky
            posterior, evidence = conditioned(model, rows, self.tolerance, generator)
        return Fit(posterior, model.frozen_likelihood(), evidence, history)

    def _validate(self) -> None:
        checks.positive(self.max_iter, name="max_iter", integer=True)
        checks.positive(self.max_learning_rows, name="max_learning_rows", integer=True)
        checks.positive(self.tolerance, name="tolerance")
        checks.choice(self.solver, name="solver", options=("auto", "cholesky", "cg"))
        if self.restarts:
            checks.positive(self.restarts, name="restarts", integer=True)

    def _learn(self, model: Model, rows: Data, generator: torch.Generator) -> dict[str, list[float]]:
        """Maximize evidence plus log prior from one or several starts; `model` keeps the best."""
        if not model.parameters:
            return {}
        if len(rows) > self.max_learning_rows:
            order = torch.randperm(len(rows), generator=generator, device=generator.device)[: self.max_learning_rows]
            rows = rows.rows(order.to(rows.y.device))
            operators.note("rows used to learn hyperparameters", len(rows))

        def search() -> History:
            def loss() -> Tensor:
                return -(log_evidence(model, rows) + model.log_prior())

            return minimize_lbfgs(loss, model.parameters, max_iter=self.max_iter, description="exact GP")

        return best_of_starts(model, search, restarts=self.restarts, generator=generator)

    def _solver(self, model: Model, rows: Data) -> str:
        """The solver: Cholesky while memory and time allow."""
        if self.solver != "auto":
            return self.solver
        n, count = len(rows), 1 if _one_system(model, rows) else model.num_outputs
        fits = 3 * 8 * count * n**2 <= MEMORY_BUDGET
        quick = count * n**3 / 3 <= TIME_BUDGET * FLOPS * torch.get_num_threads()
        return "cholesky" if fits and quick else "cg"


def _refuse_batches(model: Model, rows: Data) -> None:
    """Raise where conjugate gradients cannot solve one system for all outputs, before anything is learned."""
    if not _one_system(model, rows):
        raise ValueError(
            "conjugate gradients need one kernel, one noise variance and the same observed rows for all outputs; on "
            f"{len(rows)} rows use `gp.SGPR`, or `Gaussian(noise=...)` with a single number, an unbatched kernel and "
            "no missing entries in y"
        )


def _one_system(model: Model, rows: Data) -> bool:
    """Whether all outputs share one matrix C."""
    with torch.no_grad():
        return Observations.build(model, rows).shared and not model.kernel.batch_shape


def log_evidence(model: Model, rows: Data) -> Tensor:
    """Log p(y) of weighted data at the model's present hyperparameters, differentiable.

    Args:
        model: Mean, kernel and conjugate likelihood.
        rows: Inputs (n, d), targets (NaN where not observed), positive weights or None.
    """
    seen = Observations.build(model, rows)
    covariance = seen.noisy(gram(model.kernel, inputs(rows), inputs(rows)))
    value: Any = _LogMarginal.apply(covariance, seen.residual)
    return value + seen.log_constant


class _LogMarginal(torch.autograd.Function):
    """-sum_j (r_j' C_j^-1 r_j + log|C_j|) / 2, its gradient (a a' - C^-1) / 2, a = C^-1 r, by hand.

    That is a third of the cost of automatic differentiation.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, residual: Tensor) -> Tensor:
        """From C (n, n) or (k, n, n) and residuals (k, n), the sum over outputs."""
        factor = factorize(covariance, name="k(X, X) + noise")
        rhs = residual.mT if covariance.dim() == 2 else residual.unsqueeze(-1)  # (n, k) or (k, n, 1)
        solution = factor.solve(rhs)
        ctx.save_for_backward(factor.tril, solution)
        count = rhs.shape[-1]
        return -0.5 * ((rhs * solution).sum() + count * factor.logdet().sum())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in C and in the residuals."""
        tril, solution = ctx.saved_tensors
        inverse = torch.cholesky_inverse(tril)  # the gradient of log|C|, wanted entry by entry
        covariance = 0.5 * (solution @ solution.mT - solution.shape[-1] * inverse)
        residual = solution.mT if tril.dim() == 2 else solution.squeeze(-1)
        return grads[0] * covariance, -grads[0] * residual


def _by_cholesky(
    model: Model, rows: Data, tolerance: float, generator: torch.Generator
) -> tuple[GaussianProcess, Evidence]:
    """Posterior and log evidence by one factorization (Rasmussen and Williams, Algorithm 2.1)."""
    seen = Observations.build(model, rows)
    residual, covariance = seen.residual, seen.noisy(gram(model.kernel, inputs(rows), inputs(rows)))
    factor = factorize(covariance, name="k(X, X) + noise")
    if covariance.dim() == 2:
        whitened = factor.half_solve(residual.mT).mT
    else:
        whitened = factor.half_solve(residual.unsqueeze(-1)).squeeze(-1)
    outputs = residual.shape[0] if covariance.dim() == 2 else 1
    value = -0.5 * (whitened.square().sum() + outputs * factor.logdet().sum()) + seen.log_constant
    jitter = factor.jitter * covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    posterior = model.process().conditioned(
        inputs(rows), seen.with_infinite_noise(factor.tril), whitened, noise=seen.noise + jitter
    )
    return posterior, Evidence(float(value), "exact")


def _by_gradients(
    model: Model, rows: Data, tolerance: float, generator: torch.Generator
) -> tuple[GaussianProcess, Evidence]:
    """Posterior and log evidence by conjugate gradients and Lanczos quadrature."""
    seen = Observations.build(model, rows)
    process, residual, noise = model.process(), seen.residual, seen.noise
    preconditioner = Preconditioner.build(process.kernel, inputs(rows), noise)
    system = System(process.kernel, inputs(rows), preconditioner, tolerance=tolerance)
    weights = system.solve(residual.mT).mT.contiguous()
    logdet, error = system.logdet(generator=generator)
    outputs = len(residual)
    error = float(0.5 * outputs * error)
    operators.note("standard error of the log evidence", error)
    value = -0.5 * ((residual * weights).sum() + outputs * logdet) + seen.log_constant
    kernel = IterativelyConditioned(
        process.kernel,
        inputs(rows),
        noise=noise,
        basis=preconditioner.basis,
        singular=preconditioner.singular,
        tolerance=tolerance,
    )
    mean = ConditionedMean(process.mean, process.kernel, inputs(rows), weights)
    return GaussianProcess(mean, kernel, model.num_outputs), Evidence(float(value), "estimate", error)
