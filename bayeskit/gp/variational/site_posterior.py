"""A sparse posterior that keeps its sites, so that conditioning on more data adds sites."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inputs import one_tensor
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import natural_gradient_ascent
from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model, learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.process.conditioned_kernel import Conditioned
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.marginal_moments import projected
from bayeskit.gp.variational.projected_data import ProjectedData
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian

STEPS = 50
"""Natural-gradient steps at most for the sites of a few new data points."""


@dataclass(frozen=True, eq=False)
class DualProcess(GaussianProcess):
    """A process conditioned through sites at inducing points: `base` times the sites, at fixed Z and hyperparameters.

    Like every `GaussianProcess` it can be a prior; `DualSVGP` adds the sites of new data to its own, so that memory
    does not grow. `condition` and `fantasies` add a few data points at a cost of M^2 each.

    Args:
        mean: See `GaussianProcess`.
        kernel: See `GaussianProcess`.
        num_outputs: k.
        base: The process before the data.
        sites: Sites of the data on v = L^-1 (f(Z) - m(Z)).

    References:
        Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.
        Chang, Verma, John, Solin and Khan (2023), "Memory-Based Dual Gaussian Processes for Sequential Learning",
        section 3, for adding sites of new data.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> from bayeskit.core.likelihood import Gaussian
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> prior = DualProcess.of(GaussianProcess(ZeroMean(), RBFKernel()), one, one, Sites.none(1, one))
        >>> posterior = prior.condition(one, one, Gaussian(noise=0.25, learn=False))
        >>> round(posterior(one).mean.item(), 6), round(posterior(one).variance.item(), 6)
        (0.8, 0.2)
    """

    base: GaussianProcess = field(kw_only=True)
    sites: Sites = field(kw_only=True)

    @classmethod
    def of(
        cls,
        base: GaussianProcess,
        z: Tensor,
        tril: Tensor,
        sites: Sites,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> "DualProcess":
        """The process `base` with these sites.

        Args:
            base: The process before the data.
            z: Inducing points (m, d).
            tril: L with L L' = k(Z, Z), (m, m) or (k, m, m).
            sites: Sites on v.
            moments: Mean (k, m) and any root (k, m, m) of q(v) where they are known.
        """
        base, (mean, root) = base.frozen(), sites.moments() if moments is None else moments
        process = base.conditioned(z, tril, mean, root=root)
        inherited = {part.name: getattr(process, part.name) for part in fields(GaussianProcess)}
        return cls(**inherited, base=base, sites=sites)

    @property
    def z(self) -> Tensor:
        """Inducing points (m, d)."""
        return self._conditioned.z[-self._size :]

    @property
    def tril(self) -> Tensor:
        """L, (m, m) or (k, m, m)."""
        return self._conditioned.tril[..., -self._size :, -self._size :]

    @property
    def root(self) -> Tensor:
        """R with R R' the covariance of v, (k, m, m)."""
        root = self._conditioned.root
        assert root is not None
        return root[..., -self._size :, -self._size :]

    def condition(
        self, x: Any, y: Any, likelihood: Likelihood, *, weights: Any = None, steps: int = STEPS
    ) -> "DualProcess":
        """The process given a few more data points, at the same Z and hyperparameters.

        Their sites (a_i, b_i) are optimized with all others held, and added; the root of S is updated, not formed
        again: with U = R' A diag(b)^1/2,

            R  <-  R (I + U U')^-1/2,          (I + U U')^-1/2 = I - U W U'.

        Args:
            x: Inputs (b, d).
            y: Targets (b, k) or (b,).
            likelihood: The likelihood, whose parameters stay.
            weights: Case weights (b,) or None.
            steps: Natural-gradient steps at most; Gaussian noise needs one.

        Raises:
            TypeError: Data or likelihood are of a wrong type.
            ValueError: A shape is wrong or a value is not finite.
        """
        checks.positive(steps, name="steps", integer=True)
        like = self.z
        given = Data(
            checks.tensor(x, name="x").to(like),
            _targets(y, like, name="y"),
            None if weights is None else checks.tensor(weights, name="weights", like=like),
        )
        _check_columns(one_tensor(given.x), like)
        rows = training_set(self, likelihood, given)
        if not len(rows):
            return self
        new = _NewRows.of(self, likelihood, rows)
        pull, beta = new.optimal_sites(rows.y, rows.weights, 1, steps)
        return new.added(pull[0], beta[0], new.updated_root(beta[0]))

    def fantasies(self, x: Any, ys: Any, likelihood: Likelihood, *, steps: int = STEPS) -> list["DualProcess"]:
        """The processes given each of s hypothetical sets of targets at the same inputs.

        All sites are optimized together; where their precisions agree, as for Gaussian noise, they share one root.

        Args:
            x: Inputs (b, d).
            ys: Targets (s, b, k) or (s, b).
            likelihood: The likelihood, whose parameters stay.
            steps: As for `condition`.

        Returns:
            s processes.
        """
        checks.positive(steps, name="steps", integer=True)
        x = checks.tensor(x, name="x").to(self.z)
        ys = _targets(ys, self.z, name="ys")
        if x.dim() != 2 or ys.dim() not in (2, 3) or ys.shape[1] != len(x):
            raise ValueError(
                f"`x` must have shape (b, d) and `ys` (s, b) or (s, b, k); got {tuple(x.shape)} and {tuple(ys.shape)}"
            )
        _check_columns(x, self.z)
        if not ys.numel():
            return [self] * len(ys)
        checks.finite(x, name="x")
        training_set(self, likelihood, Data(x.repeat(len(ys), 1), ys.flatten(0, 1)))  # for its checks
        new = _NewRows.of(self, likelihood, Data(x, ys[0]))
        pull, beta = new.optimal_sites(ys.flatten(0, 1), None, len(ys), steps)
        shared = new.updated_root(beta[0]) if bool((beta == beta[:1]).all()) else None
        return [
            new.added(one, b, new.updated_root(b) if shared is None else shared)
            for one, b in zip(pull, beta, strict=True)
        ]

    @property
    def _conditioned(self) -> Conditioned:
        assert isinstance(self.kernel, Conditioned)
        return self.kernel

    @property
    def _size(self) -> int:
        return self.sites.shift.shape[-1]


def _check_columns(x: Tensor, z: Tensor) -> None:
    if x.dim() != 2 or x.shape[-1] != z.shape[-1]:
        raise ValueError(f"`x` must have shape (b, {z.shape[-1]}), as the inducing points; got {tuple(x.shape)}")


@dataclass(frozen=True, eq=False)
class _NewRows:
    """b new data points for a `DualProcess`, in the at most b directions of v that they depend on.

    With v = q + R e and R' A = O T, O orthonormal, f(x_i) = m(x_i) + A_i' q + T_i' O' e plus a residual independent of
    the inducing values, and O' e ~ N(0, I).

    Args:
        process: The process before them.
        model: Its base, and the likelihood.
        projection: A, (k, m, b).
        frame: O, (k, m, r).
        reduced: T, (k, r, b).
        mean: m(x) + A' q, (k, b).
        shift: A' q, (k, b).
        residual: k(x, x) - |A|^2, (k, b).
    """

    process: DualProcess
    model: Model
    projection: Tensor
    frame: Tensor
    reduced: Tensor
    mean: Tensor
    shift: Tensor
    residual: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, process: DualProcess, likelihood: Likelihood, rows: Data) -> "_NewRows":
        model = learnable(process.base, likelihood, learn=False)
        k = process.sites.shift.shape[0]
        block = ProjectedData.build(model, process.tril, process.z, rows)
        projection, residual = block.projection.expand(k, -1, -1), block.variance.expand(k, -1)
        root = process.root
        mean = (root @ (root.mT @ process.sites.shift.unsqueeze(-1))).squeeze(-1)
        frame, reduced = torch.linalg.qr(root.mT @ projection)
        shift = projected(projection, mean)
        return cls(process, model, projection, frame, reduced, block.mean + shift, shift, residual)

    @torch.no_grad()
    def optimal_sites(self, y: Tensor, weights: Tensor | None, copies: int, steps: int) -> tuple[Tensor, Tensor]:
        """Site pulls and precisions (s, k, b) at the optimum, for s copies of the points with targets (s b, ...)."""
        nothing = torch.zeros(2, copies, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        start = _State.at(self, y, weights, nothing)
        pull, precision = natural_gradient_ascent(start, max_steps=steps, tolerance=1e-15, rounding=1e-13).state.sites
        return pull, precision

    def evaluate(self, sites: Tensor, y: Tensor, weights: Tensor | None) -> tuple[float, Tensor]:
        """The bounds of all copies, summed, and the sites (2, s, k, b) that a full step leads to."""
        copies, _, b = sites.shape[1:]
        pull, beta = sites
        t = self.reduced  # (k, r, b)
        inner = WhitenedGaussian.from_sites(
            Sites(
                # a_i is the linear term on A_i' v; on A_i' (v - q) it is a_i - b_i A_i' q
                torch.einsum("krb,skb->skr", t, pull - beta * self.shift).flatten(0, 1),
                torch.einsum("krb,skb,kqb->skrq", t, beta, t).flatten(0, 1),
            )
        )
        t = t.repeat(copies, 1, 1)  # (s k, r, b)
        moved = projected(t, inner.mean).reshape(copies, -1, b)
        variance = self.residual + (inner.root.mT @ t).square().sum(-2).reshape(copies, -1, b)
        mean, variance = ((self.mean + moved).mT.flatten(0, 1), variance.mT.flatten(0, 1))  # (s b, k)
        w = mean.new_ones(b) if weights is None else weights
        expected = (self.model.expected_log_prob(mean, variance, y).reshape(copies, b) @ w).sum()
        alpha, beta = (
            w * site.reshape(copies, b, -1).mT for site in self.model.site_gradients(mean, variance, y)
        )  # (s, k, b)
        return float(expected - inner.divergence()), torch.stack([alpha + beta * (self.shift + moved), beta])

    @torch.no_grad()
    def updated_root(self, beta: Tensor) -> Tensor:
        """R (I + U U')^-1/2 with U = R' A diag(b)^1/2, (k, m, m)."""
        root = self.process.root
        u = self.frame @ (self.reduced * beta.sqrt().unsqueeze(-2))
        values, vectors = torch.linalg.eigh(u.mT @ u)
        stretch = (1 + values.clamp(min=0)).sqrt()
        basis = u @ vectors  # U U' = basis basis', its columns orthogonal of squared lengths `values`
        return root - ((root @ basis) / (stretch * (stretch + 1)).unsqueeze(-2)) @ basis.mT

    def added(self, pull: Tensor, beta: Tensor, root: Tensor) -> DualProcess:
        """The process with these sites (k, b) added; `root` is one of the new covariance."""
        new = Sites.of_points(self.projection, pull, beta)
        sites = self.process.sites + new
        mean = (root @ (root.mT @ sites.shift.unsqueeze(-1))).squeeze(-1)
        return DualProcess.of(self.process.base, self.process.z, self.process.tril, sites, (mean, root))


@dataclass(frozen=True, eq=False)
class _State:
    """Sites (2, s, k, b) of new data points with these targets, their bound, and where a full step leads."""

    rows: "_NewRows"
    y: Tensor
    weights: Tensor | None
    sites: Tensor
    value: float
    target: Tensor

    @classmethod
    def at(cls, rows: "_NewRows", y: Tensor, weights: Tensor | None, sites: Tensor) -> "_State":
        return cls(rows, y, weights, sites, *rows.evaluate(sites, y, weights))

    def propose(self, length: float) -> "_State":
        return _State.at(self.rows, self.y, self.weights, torch.lerp(self.sites, self.target, length))


def _targets(y: Any, like: Tensor, *, name: str) -> Tensor:
    """Targets as a tensor: numbers in float64, class codes as they are."""
    y = checks.tensor(y, name=name).to(like.device)
    return y.double() if y.is_floating_point() else y
