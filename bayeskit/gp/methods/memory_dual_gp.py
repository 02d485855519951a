"""Gaussian processes that learn from a stream: each row is seen once, and a few are remembered."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit, Inference, Kind
from bayeskit.core.likelihood import Conjugate, Gaussian, Likelihood
from bayeskit.core.operators import factorize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import Model, learnable
from bayeskit.gp.model.inducing_points import MovingPoints, starting_points
from bayeskit.gp.model.training_set import inputs, training_set
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.elbo_row_sites import TOLERANCE, History, learn_by_rows
from bayeskit.gp.variational.past_data import Earlier, Rest
from bayeskit.gp.variational.per_datum_sites import RowSites
from bayeskit.gp.variational.site_posterior import DualProcess
from bayeskit.gp.variational.site_transfer import TRANSFERS, Transfer
from bayeskit.gp.variational.streaming_posterior import Memory, MemoryProcess, joined, weights_of
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import data_term, optimal_sites


@dataclass(eq=False, repr=False)
class MemoryDualGP(Inference):
    r"""Sparse variational inference on a stream of batches, with a memory of bounded size.

    As `DualSVGP`, but its posterior, a `MemoryProcess`, goes on learning where it is the prior of more data. The sites
    on v = L^-1 (f(Z) - m(Z)) are those of the rows that are gone plus those of the rows in memory, each row in one of
    the two. For each batch

    1. Z becomes a pivoted-Cholesky choice among the old Z and the new inputs, and the sites of the rows that are gone
       are transferred to it (`transfer.py`); those of the memory are projected anew, without loss;
    2. the sites of the new rows and of the memory are settled by natural gradients, all others held;
    3. hyperparameters climb a bound in which these rows count by their likelihood and all others by what their site
       says (`earlier.py`), the sites held; then the sites are settled again;
    4. of the new rows and the memory, `memory` many are kept: a sample of the whole stream in proportion to the
       Bayesian leverage score h_i = b_i var f(x_i). The sites of the others join those of the rows that are gone.

    For Gaussian noise at fixed hyperparameters and Z this is the collapsed bound of all rows at once, in any order.

    Args:
        num_inducing: m.
        memory: Rows that are kept, at most.
        transfer: "site" or "marginal": how sites follow where Z moves; see `gp.transfer`.
        move: Whether Z is chosen again for each batch; if not, the choice of the first batch stays.
        max_iter: L-BFGS iterations a batch, at most.
        batch_size: Rows at most that are taken as one batch; more, in one call, are a stream in random order.
        learn: Whether to learn hyperparameters.
        learn_inducing: Whether Z moves with them from where it was chosen, unless `move` is False.

    References:
        Chang, Verma, John, Solin and Khan (2023), "Memory-Based Dual Gaussian Processes for Sequential Learning".
        Bui, Nguyen and Turner (2017), "Streaming Sparse Gaussian Process Approximations", for the site in the bound.
        Cohen and Kaplan (2007), "Summarizing Data using Bottom-k Sketches", for the sample.

    Examples:
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
    kind: ClassVar[Kind] = "conditioning"
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
        """The posterior process given `data` and all that `prior` has seen, a `MemoryProcess`."""
        self.check(prior, likelihood, data)
        self._validate()
        assert isinstance(prior, GaussianProcess)
        rows = training_set(prior, likelihood, data)
        process = prior if isinstance(prior, DualProcess) else None
        model = learnable(_start(prior), deepcopy(likelihood), learn=self.learn)
        if not len(rows):
            return Fit(prior, model.likelihood, Evidence(0.0, "exact"))
        value, history = 0.0, {"loss": []}
        with operators.recording() as notes:
            if process is None and isinstance(likelihood, Conjugate) and model.parameters:
                model.center(likelihood.observations(rows.y)[0], rows.weights)
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
            raise ValueError(f"`memory` must be a whole number of rows, zero for none; got {self.memory!r}")

    def _advance(
        self, model: Model, process: DualProcess | None, rows: Data, generator: torch.Generator
    ) -> tuple[MemoryProcess, float, History]:
        """One batch: the process after it, a lower bound of log p(batch | all before), and the curve of the search."""
        z, tril = self._inducing(model, process, rows, generator)
        batch = _Batch.of(model, process, rows, (z, tril))
        points = MovingPoints(z, inputs(rows), move=self.move and self.learn_inducing and len(z) < len(batch.every))
        sites, history = batch.start((z, tril)), {"loss": []}
        if model.parameters or points.parameters:
            sites, history = batch.learn(points, sites, self.max_iter)
        with torch.no_grad():
            z = points().clone()
            at = (z, factorize(gram(model.kernel, z, z), name="K_zz").tril)
        return *batch.closed(at, sites, size=self.memory, how=self.transfer, generator=generator), history

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
    """New rows and all that is known before them; `model` is changed by learning.

    Args:
        model: Mean, kernel and likelihood.
        rows: The new rows.
        gone: What the earlier rows that are not in memory said.
        memory: Those that are.
        seen: How many there were, as the sum of their case weights.
    """

    model: Model
    rows: Data
    gone: Earlier
    memory: Memory
    seen: float

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, process: DualProcess | None, rows: Data, at: tuple[Tensor, Tensor]) -> "_Batch":
        """The batch after `process`; without one, nothing is known at Z and L."""
        if process is not None:
            at = (process.z, process.tril)
        z, tril = at
        rest, seen = Rest.none(model.num_outputs, z), 0.0
        if isinstance(process, MemoryProcess):
            rest, memory, seen = process.rest, process.memory, process.seen
        else:
            few = rows.rows(slice(0, 0))
            memory = Memory(few, RowSites.at(model, tril, z, few, rest.sites), z.new_zeros(0))
            rest = rest if process is None else replace(rest, sites=process.sites)
        spare = torch.cat([z.new_zeros(len(rows)), memory.counted(seen) / weights_of(memory.rows) - 1])
        return cls(model, rows, Earlier.at(model, at, rest, spare), memory, seen)

    @property
    def every(self) -> Data:
        """The new rows, and those in memory."""
        return joined(self.rows, self.memory.rows)

    @torch.no_grad()
    def start(self, at: tuple[Tensor, Tensor]) -> Sites:
        """The sites of the rows in memory, at Z and L."""
        return self._sites(self.memory, at)

    def learn(self, points: MovingPoints, start: Sites, max_iter: int) -> tuple[Sites, History]:
        """Move hyperparameters and Z; the sites of the new rows and the memory there, and the curve."""
        return learn_by_rows(
            self.model,
            points,
            self.every,
            [*self.model.parameters, *points.parameters],
            max_iter=max_iter,
            description="MemoryDualGP",
            start=start,
            earlier=self.gone,
        )

    @torch.no_grad()
    def closed(
        self, at: tuple[Tensor, Tensor], start: Sites, *, size: int, how: Transfer, generator: torch.Generator
    ) -> tuple[MemoryProcess, float]:
        """The process with q settled and `size` rows in memory; a lower bound of log p(new rows | all before)."""
        model, (z, tril), every = self.model, at, self.every
        rest = self.gone.rest_now(model, at, how)
        before = rest.sites + self._sites(self.memory, at)
        steps = 1 if isinstance(model.likelihood, Gaussian) else 100
        sites, _ = optimal_sites(model, tril, z, every, start, before=rest.sites, max_steps=steps, tolerance=TOLERANCE)
        total = rest.sites + sites
        law = WhitenedGaussian.from_sites(total)
        value = data_term(model, z, law.mean, law.root, self.rows, form="triangular")
        value = float(value - law.divergence(WhitenedGaussian.from_sites(before)))
        tickets = torch.cat([_tickets(len(self.rows), self.memory.tickets, generator), self.memory.tickets])
        kept, left = Memory(every, RowSites.at(model, tril, z, every, total), tickets).kept(size)
        process = MemoryProcess.after(
            model,
            DualProcess.of(model.process(), z, tril, total),
            rest=rest.joined(model, at, total, left.rows, self._sites(left, at)),
            memory=kept,
            seen=self.seen + float(weights_of(self.rows).sum()),
        )
        return process, value

    def _sites(self, memory: Memory, at: tuple[Tensor, Tensor]) -> Sites:
        (z, tril), x = at, inputs(memory.rows)
        projection = torch.linalg.solve_triangular(tril, gram(self.model.kernel, z, x), upper=False)
        return memory.sites.on(self.model, projection, x)


def _start(prior: GaussianProcess) -> GaussianProcess:
    """The process before all data, whose hyperparameters are learnt."""
    if isinstance(prior, MemoryProcess):
        return prior.learnt
    return prior.base if isinstance(prior, DualProcess) else prior


def _batches(rows: Data, size: int, generator: torch.Generator) -> Iterator[Data]:
    """The rows in batches of nearly equal size; in random order if there are several."""
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
