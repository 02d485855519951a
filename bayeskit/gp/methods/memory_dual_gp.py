"""Gaussian processes for data streams: each data point is seen once, and a few are kept in memory."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit, Inference, Kind
from bayeskit.core.likelihood import Gaussian, KnownNoise, Likelihood
from bayeskit.core.likelihood.indexed import needs_order, values_and_noise
from bayeskit.core.operators import factorize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import Model, learnable
from bayeskit.gp.model.inducing_points import MovingPoints, starting_points
from bayeskit.gp.model.short_lengthscales import start_from
from bayeskit.gp.model.training_set import inputs, training_set
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.elbo_row_sites import TOLERANCE, History, learn_by_rows
from bayeskit.gp.variational.past_data import PastData, PastDataTerm
from bayeskit.gp.variational.per_datum_sites import RowSites
from bayeskit.gp.variational.site_posterior import DualProcess
from bayeskit.gp.variational.site_transfer import TRANSFERS, Transfer
from bayeskit.gp.variational.streaming_posterior import Memory, MemoryProcess, joined, weights_of
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import data_term, optimal_sites


@dataclass(eq=False, repr=False)
class MemoryDualGP(Inference):
    r"""Sparse variational inference on a stream of batches, with a memory of bounded size.

    Like `DualSVGP`, but its posterior, a `MemoryProcess`, continues to learn hyperparameters where it is the prior of
    more data. The sites on v = L^-1 (f(Z) - m(Z)) are those of discarded data plus those of the data in memory. For
    each batch

    1. Z becomes a pivoted-Cholesky choice among the old Z and the new inputs, and the sites of discarded data are
       transferred to it (`site_transfer.py`); those of the memory are projected anew, without loss;
    2. the sites of the new data and of the memory are optimized by natural gradients, all others held;
    3. hyperparameters maximize a bound in which these data count by their likelihood and discarded data by their site
       (`past_data.py`), the sites held; then the sites are optimized again;
    4. `memory` data points of the batch and the memory are kept: a sample of the whole stream in proportion to the
       Bayesian leverage score h_i = b_i var f(x_i). The sites of the others join those of discarded data.

    For Gaussian noise at fixed hyperparameters and Z this is the collapsed bound of all data at once, in any order.

    Args:
        num_inducing: m.
        memory: Data points kept, at most.
        transfer: "site" or "marginal": how sites are transferred where Z moves; see `site_transfer.py`.
        move: Whether Z is chosen again for each batch; if not, the choice of the first batch stays.
        max_iter: L-BFGS iterations a batch, at most.
        batch_size: Largest batch; more data in one call are a stream of batches in random order.
        learn: Whether to learn hyperparameters.
        learn_inducing: Whether Z moves with them from where it was chosen, unless `move` is False.

    References:
        Chang, Verma, John, Solin and Khan (2023), "Memory-Based Dual Gaussian Processes for Sequential Learning".
        Bui, Nguyen and Turner (2017), "Streaming Sparse Gaussian Process Approximations", for the site in the bound.
        Cohen and Kaplan (2007), "Summarizing Data using Bottom-k Sketches", for the sample.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(-1)
        >>> method, generator = MemoryDualGP(num_inducing=10, memory=8), torch.Generator()
        >>> posterior, likelihood = default_prior(x), Gaussian()
        >>> for batch in Data(x, (3 * x).sin()).batches(10):
        ...     fit = method.infer(posterior, likelihood, batch, generator=generator)
        ...     posterior, likelihood = fit.posterior, fit.likelihood
        >>> len(posterior.z), len(posterior.memory), posterior.seen
        (10, 8, 40.0)
        >>> bool((posterior(x).mean - (3 * x).sin()).abs().max() < 0.05)
        True
    """

    likelihoods: ClassVar[tuple[type[Likelihood], ...]] = (Likelihood,)
    priors: ClassVar[tuple[type[Posterior], ...]] = (GaussianProcess,)
    kind: ClassVar[Kind] = "GP posterior"
    quick: ClassVar[Mapping[str, Any]] = {"num_inducing": 20, "memory": 10, "max_iter": 8}

    num_inducing: int = 128
    memory: int = 256
    transfer: Transfer = "marginal"
    move: bool = True
    max_iter: int = 20
    batch_size: int = 2_000
    learn: bool = True
    learn_inducing: bool = True

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The posterior process given `data` and all data that `prior` has seen, a `MemoryProcess`."""
        self.check(prior, likelihood, data)
        self._validate()
        assert isinstance(prior, GaussianProcess)
        if needs_order(likelihood, data.y):  # the memory keeps data points, hence each must hold its noise
            fit = self.infer(
                prior, KnownNoise(), replace(data, y=values_and_noise(likelihood, data.y)), generator=generator
            )
            return replace(fit, likelihood=likelihood)
        if isinstance(prior, MemoryProcess) and isinstance(likelihood, Gaussian):
            missing = prior.memory.rows.y.shape[-1] - data.y.shape[-1]
            if missing > 0:  # its data points have a known noise, to which that of the new ones is zero
                likelihood = KnownNoise(likelihood)
                data = replace(data, y=torch.cat([data.y, torch.zeros_like(data.y)], dim=-1))
        rows = training_set(prior, likelihood, data)
        process = prior if isinstance(prior, DualProcess) else None
        model = learnable(_start(prior), deepcopy(likelihood), learn=self.learn)
        if not len(rows):
            return Fit(prior, model.likelihood, Evidence(0.0, "exact"))
        value, history = 0.0, {"loss": []}
        with operators.recording() as notes:
            if process is None and model.parameters:
                start_from(model, rows)
            for batch in _batches(rows, self.batch_size, generator):
                with torch.enable_grad():
                    process, gain, part = self._advance(model, process, batch, generator)
                value, history = value + gain, {"loss": history["loss"] + part["loss"]}
        assert isinstance(process, MemoryProcess)
        diagnostics = dict(notes) | {"inducing points": len(process.z), "rows in memory": len(process.memory)}
        return Fit(process, model.likelihood, Evidence(value, "lower bound"), history, diagnostics)

    def _validate(self) -> None:
        for name in ("num_inducing", "max_iter", "batch_size"):
            checks.positive(getattr(self, name), name=name, integer=True)
        checks.choice(self.transfer, name="transfer", options=TRANSFERS)
        if not isinstance(self.memory, int) or isinstance(self.memory, bool) or self.memory < 0:
            raise ValueError(f"`memory` must be a whole number of data points, zero for none; got {self.memory!r}")

    def _advance(
        self, model: Model, process: DualProcess | None, rows: Data, generator: torch.Generator
    ) -> tuple[MemoryProcess, float, History]:
        """The process after one more batch, a lower bound on log p(batch | all before), and the training curve."""
        z, tril = self._inducing(model, process, rows, generator)
        batch = _Batch.of(model, process, rows, (z, tril))
        points = MovingPoints(z, inputs(rows), move=self.move and self.learn_inducing and len(z) < len(batch.every))
        sites, history = batch.start((z, tril)), {"loss": []}
        if model.parameters or points.parameters:
            sites, history = batch.learn(points, sites, self.max_iter)
        with torch.no_grad():
            z = points().clone()
            at = (z, factorize(gram(model.kernel, z, z), name="K_zz").tril)
        return *batch.finished(at, sites, size=self.memory, how=self.transfer, generator=generator), history

    @torch.no_grad()
    def _inducing(
        self, model: Model, process: DualProcess | None, rows: Data, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Z for this batch, and L."""
        if process is not None and not self.move:
            return process.z, process.tril
        x = inputs(rows) if process is None else torch.cat([process.z, inputs(rows)])
        z, _ = starting_points(model.kernel, x, self.num_inducing, start="greedy", generator=generator)
        if process is not None and torch.equal(z, process.z):
            return process.z, process.tril
        return z, factorize(gram(model.kernel, z, z), name="K_zz").tril


@dataclass(frozen=True, eq=False)
class _Batch:
    """New data and the posterior before them; `model` is changed by learning.

    Args:
        model: Mean, kernel and likelihood.
        rows: The new data.
        past: The term of discarded data in the bound.
        memory: The data in memory.
        seen: Number of data points before, as the sum of their case weights.
    """

    model: Model
    rows: Data
    past: PastDataTerm
    memory: Memory
    seen: float

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, process: DualProcess | None, rows: Data, at: tuple[Tensor, Tensor]) -> "_Batch":
        """The batch after `process`, or after no data, at Z and L."""
        if process is not None:
            at = (process.z, process.tril)
        z, tril = at
        past, seen = PastData.none(model.num_outputs, z), 0.0
        if isinstance(process, MemoryProcess):
            past, memory, seen = process.rest, process.memory, process.seen
        else:
            few = rows.rows(slice(0, 0))
            memory = Memory(few, RowSites.at(model, tril, z, few, past.sites), z.new_zeros(0))
            past = past if process is None else replace(past, sites=process.sites)
        counts = torch.cat([z.new_zeros(len(rows)), memory.counted(seen) / weights_of(memory.rows) - 1])
        return cls(model, rows, PastDataTerm.at(model, at, past, counts), memory, seen)

    @property
    def every(self) -> Data:
        """The new data and those in memory."""
        return joined(self.rows, self.memory.rows)

    @torch.no_grad()
    def start(self, at: tuple[Tensor, Tensor]) -> Sites:
        """The sites of the data in memory, at Z and L."""
        return self._sites(self.memory, at)

    def learn(self, points: MovingPoints, start: Sites, max_iter: int) -> tuple[Sites, History]:
        """Learn hyperparameters and Z; the sites of the new data and the memory there, and the training curve."""
        return learn_by_rows(
            self.model,
            points,
            self.every,
            [*self.model.parameters, *points.parameters],
            max_iter=max_iter,
            description="MemoryDualGP",
            start=start,
            past=self.past,
        )

    @torch.no_grad()
    def finished(
        self, at: tuple[Tensor, Tensor], start: Sites, *, size: int, how: Transfer, generator: torch.Generator
    ) -> tuple[MemoryProcess, float]:
        """The process at the optimal q with `size` data points in memory; a lower bound on log p(new | all before)."""
        model, (z, tril), every = self.model, at, self.every
        past = self.past.past_at(model, at, how)
        before = past.sites + self._sites(self.memory, at)
        steps = 100 if model.likelihood.noise_variance is None else 1
        sites, _ = optimal_sites(model, tril, z, every, start, before=past.sites, max_steps=steps, tolerance=TOLERANCE)
        total = past.sites + sites
        q = WhitenedGaussian.from_sites(total)
        value = data_term(model, z, q.mean, q.root, self.rows, form="triangular")
        value = float(value - q.divergence(WhitenedGaussian.from_sites(before)))
        tickets = torch.cat([_tickets(len(self.rows), self.memory.tickets, generator), self.memory.tickets])
        kept, left = Memory(every, RowSites.at(model, tril, z, every, total), tickets).kept(size)
        process = MemoryProcess.after(
            model,
            DualProcess.of(model.process(), z, tril, total),
            past=past.joined(model, at, total, left.rows, self._sites(left, at)),
            memory=kept,
            seen=self.seen + float(weights_of(self.rows).sum()),
        )
        return process, value

    def _sites(self, memory: Memory, at: tuple[Tensor, Tensor]) -> Sites:
        (z, tril), x = at, inputs(memory.rows)
        projection = torch.linalg.solve_triangular(tril, gram(self.model.kernel, z, x), upper=False)
        return memory.sites.on(self.model, projection, x)


def _start(prior: GaussianProcess) -> GaussianProcess:
    """The process before all data, whose hyperparameters are learned."""
    if isinstance(prior, MemoryProcess):
        return prior.learnt
    return prior.base if isinstance(prior, DualProcess) else prior


def _batches(rows: Data, size: int, generator: torch.Generator) -> Iterator[Data]:
    """The data in batches of nearly equal size; in random order if there are several."""
    if len(rows) <= size:
        yield rows
        return
    order = torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.y.device)
    for index in order.tensor_split(-(-len(rows) // size)):
        yield rows.rows(index.sort().values)


def _tickets(number: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard exponential draws (number,)."""
    drawn = torch.empty(number, dtype=torch.float64, device=generator.device)
    return drawn.exponential_(generator=generator).to(like.device)
