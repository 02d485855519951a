"""The base class of likelihoods: everything that follows from the distribution of y given f.

A new likelihood defines that distribution:

    class LaplaceNoise(Likelihood):
        def distribution(self, f):
            return torch.distributions.Independent(torch.distributions.Laplace(f, 0.1), 1)

Shapes: n inputs, k latents, t outputs, s draws, any batch axes *b in front.
"""

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch import distributions as td

from bayeskit.core import generators
from bayeskit.core.likelihood import expectations, noise_marginals
from bayeskit.core.likelihood.missing_targets import Observed
from bayeskit.core.posterior import FunctionValues, MixtureValues, SampledValues
from bayeskit.core.predictive import Predictive, distribution_cdfs, pool
from bayeskit.core.predictive.adaptive_quadrature import panels, panels_about

SMALLEST_PRECISION = 2e-8
"""Floor of the site precisions: a likelihood that is not log-concave would otherwise give improper sites."""

WIDE = 16.0
"""Variance of a latent from which Gauss-Hermite nodes are too far apart for the bend of a binary log-likelihood: the
relative error of E[log p] and its derivatives is 3e-4 there, and 7e-3 at 100."""

Target = Literal["continuous", "count", "binary", "classes"]


class Likelihood(nn.Module, ABC):
    """The distribution of y given the function value f at each input; its parameters may be learned (on a copy).

    A subclass defines `distribution`, which must be a function of f alone, input by input: predictions evaluate it on
    chunks of inputs. The rest is derived from it; where there is a closed form, override the `..._terms` behind it.

    A target that is NaN was not observed: it adds nothing to `log_prob`, `expected_log_prob`, `site_gradients` and
    `curvature`. The `..._terms` never see such an entry.

    Class attributes:
        target: What y is: "continuous" and "count" targets are (n, t) numbers, "binary" and "classes" targets (n,)
            integer codes. Only a continuous target may be standardized.
        is_conjugate: Whether `observations` gives Gaussian observations of the latents, so that a Gaussian process
            has a closed-form posterior.

    Inference methods ask a likelihood what it can do by these and by `has_labels`, `has_logits`, `noise_variance`,
    `noise_parameter` and `components`, not by its class.

    Examples:
        >>> class LaplaceNoise(Likelihood):
        ...     def distribution(self, f):
        ...         return td.Independent(td.Laplace(f, 0.1), 1)
        >>> LaplaceNoise().log_prob(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor([1.6094, 1.6094])
    """

    target: ClassVar[Target] = "continuous"
    is_conjugate: ClassVar[bool] = False

    @property
    def has_labels(self) -> bool:
        """Whether y is a class label."""
        return self.target in ("binary", "classes")

    @property
    def has_logits(self) -> bool:
        """Whether the class probabilities are the softmax of the latents, or the logistic function of a single one."""
        return False

    @property
    def noise_variance(self) -> Tensor | None:
        """Variance of additive Gaussian noise, the same for all observations, (1,) or (k,); None under other noise."""
        return None

    @property
    def noise_parameter(self) -> nn.Parameter | None:
        """The unconstrained parameter of `noise_variance`, None where there is none; learned if it requires grad."""
        return None

    @property
    def noise_floor(self) -> float:
        """What a learned `noise_variance` always exceeds."""
        return 0.0

    @property
    def components(self) -> tuple["Likelihood", ...]:
        """The likelihoods that this one is a mixture of; none unless it is a mixture."""
        return ()

    def set_noise_variance(self, value: Tensor) -> None:
        """Set `noise_variance` in place, without gradients, to () or to one value per output, kept above the floor."""
        raise TypeError(f"{type(self).__name__} has no noise variance to set")

    def observations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Values v and noise variances s with v_j = f_j + N(0, s_j), if `is_conjugate`; see `Conjugate`."""
        raise TypeError(f"{type(self).__name__} is not conjugate: it has no Gaussian observations of the latents")

    @abstractmethod
    def distribution(self, f: Tensor) -> td.Distribution:
        """The distribution of y given f.

        Args:
            f: Latents (*b, n, k).

        Returns:
            Batch (*b, n) with event (t,) (such as `Independent(Normal(f, scale), 1)`), or event () for one label or
            number an input.
        """

    def num_latents(self, y: Tensor) -> int:
        """How many latents k the targets need; one per output unless overridden."""
        return y.shape[-1] if y.ndim > 1 else 1

    def latent_units(self, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """How the latents change with the units of a continuous target: y -> shift + scale y takes f to a + b f.

        Args:
            shift: (t,) of the t outputs.
            scale: (t,).

        Returns:
            a and b, (k,); those of the outputs themselves unless overridden, for latents that are locations.
        """
        return shift, scale

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """Log p(y | f) at each input, summed over the outputs that were observed.

        Args:
            f: (*b, n, k).
            y: (n, t) or (n,) targets, NaN for what was not observed.

        Returns:
            (*b, n).

        Raises:
            ValueError: `y` has missing entries, and the likelihood does not factorize over outputs.
        """
        observed = self._observed(f, y)
        return observed.total(self.log_prob_terms(f, observed.y), f)

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """E[log p(y | f)] for independent latents f ~ N(mean, variance), summed over the outputs that were observed.

        Args:
            mean: (*b, n, k).
            variance: (*b, n, k).
            y: (n, t) or (n,) targets, NaN for what was not observed.

        Returns:
            (*b, n).
        """
        observed = self._observed(mean, y)
        return observed.total(self.expected_log_prob_terms(mean, variance, observed.y), mean)

    def site_gradients(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The dual pair: derivatives of the expected log likelihood E in the mean and variance of each latent.

        alpha = dE / d mean = E[l'(f)] and beta = -2 dE / d variance = -E[l''(f)], with l = log p(y | .). beta is kept
        at 2e-8 or more, which makes the site of a likelihood that is not log-concave proper. Both are zero for the
        latents of an output that was not observed.

        Args:
            mean: (n, k).
            variance: (n, k), zero allowed.
            y: (n, t) or (n,) targets, NaN for what was not observed.

        Returns:
            (alpha, beta), each (n, k).
        """
        observed = self._observed(mean, y)
        alpha, beta = self.site_terms(mean, variance, observed.y)
        return observed.latents(alpha), observed.latents(beta)

    def curvature(self, f: Tensor, y: Tensor) -> Tensor:
        """Negative Hessian of log p(y | f) in f; the Fisher information at inputs where that is not positive definite.

        Args:
            f: (n, k).
            y: (n, t) or (n,) targets, NaN for what was not observed.

        Returns:
            (n, k, k), symmetric and positive semi-definite; zero for the latents of an output that was not observed.
        """
        observed = self._observed(f, y)
        return observed.blocks(self.curvature_terms(f, observed.y))

    def curvature_root(self, f: Tensor, y: Tensor) -> Tensor:
        """R with R R' the `curvature`, (n, k, k); a place for a closed form. Eigenvalues below zero are cut off."""
        curvature = self.curvature(f, y)
        if curvature.shape[-1] == 1:
            return curvature.clamp(min=0).sqrt()
        values, vectors = torch.linalg.eigh(curvature)
        return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)

    def log_prob_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Log p of each output given f: a place for a closed form.

        Args:
            f: (*b, n, k).
            y: (n, t) or (n,) targets, nothing missing.

        Returns:
            (*b, n, t); (*b, n) where the distribution is a joint one of all outputs, or of a label.
        """
        distribution = self.distribution(f)
        y = fit_targets(distribution, f, y)
        if isinstance(distribution, td.Independent) and distribution.reinterpreted_batch_ndims == 1:
            distribution = distribution.base_dist
        return distribution.log_prob(y)

    def expected_log_prob_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """E[log p] of each output: a place for a closed form.

        Where each latent has its own output, panels about the peaks of log p of a continuous target, which may be far
        narrower than the latent's spread, and Gauss-Hermite for labels and counts; fixed-seed Sobol draws otherwise.

        Args:
            mean: (*b, n, k).
            variance: (*b, n, k).
            y: (n, t) or (n,) targets, nothing missing.

        Returns:
            As `log_prob_terms`.
        """
        z, weights = self._points(mean, variance, y)
        with distribution_cdfs.unvalidated():
            values = self.log_prob_terms(mean + variance.sqrt() * z, y)  # (q, *b, n) or (q, *b, n, t)
        return expectations.average(weights, values)

    def site_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The dual pair of each latent: a place for a closed form.

        beta is computed as -E[z l'(mean + std z)] / std (Stein's identity), which needs no second derivative of l, so
        that it also holds for likelihoods with a corner such as Laplace noise.

        Args:
            mean: (n, k).
            variance: (n, k), zero allowed.
            y: (n, t) or (n,) targets, nothing missing.

        Returns:
            (alpha, beta), each (n, k), beta at 2e-8 or more.
        """
        center, spread = mean.detach().double(), variance.detach().double().clamp(min=1e-10)
        z, weights = self._points(center, spread, y)
        with torch.enable_grad(), distribution_cdfs.unvalidated():
            f = (center + spread.sqrt() * z).requires_grad_()
            (slope,) = torch.autograd.grad(self.log_prob_terms(f, y).sum(), f)  # (q, n, k)
        alpha = expectations.average(weights, slope)
        beta = -expectations.average(weights, slope * z) / spread.sqrt()
        return alpha.to(mean.dtype), beta.clamp(min=SMALLEST_PRECISION).to(mean.dtype)

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Negative Hessian or Fisher information in all latents: a place for a closed form.

        The Fisher information, E[score score'] over y given f, is estimated from 256 fixed-seed draws of y.

        Args:
            f: (n, k).
            y: (n, t) or (n,) targets, nothing missing.

        Returns:
            (n, k, k), symmetric and positive semi-definite.
        """
        return expectations.curvature(self.log_prob, self.distribution, f, y)

    def predictive(self, values: FunctionValues) -> Predictive:
        """The predictive distribution of y at each input, given the distribution `values` of f.

        Stored draws give the mixture over them, a mixture the one of its components' predictive distributions. Gaussian
        values give a closed form where there is one, otherwise quadrature of the density itself (one latent per
        output), otherwise a mixture over 512 Sobol draws. The result keeps a copy of the likelihood: it neither follows
        nor differentiates the likelihood's parameters.
        """
        if isinstance(values, MixtureValues):
            return pool([self.predictive(part) for part in values.components], values.weights)
        frozen = copy.deepcopy(self).requires_grad_(False)
        if isinstance(values, SampledValues):
            count = len(values.draws)
            rule = f"mixture of {count} draws" if count > 1 else "a single function"
            return noise_marginals.over_draws(frozen.distribution(values.draws), values.draws, rule=rule)
        return frozen.gaussian_predictive(values)

    def gaussian_predictive(self, values: FunctionValues) -> Predictive:
        """`predictive` for Gaussian values; the place for a closed form."""
        return noise_marginals.over_gaussian(self.distribution, values)

    def paired(self, values: FunctionValues) -> list[tuple[float, FunctionValues, "Likelihood"]]:
        """The components of a mixture of functions or of likelihoods: weight, function values, likelihood."""
        if isinstance(values, MixtureValues):
            return [(float(w), part, self) for w, part in zip(values.weights, values.components, strict=True)]
        return [(1.0, values, self)]

    def sample(self, values: FunctionValues, num_samples: int, *, generator: torch.Generator) -> Tensor:
        """Joint draws of the observations at all inputs: a draw of the function, then one of y given it.

        Args:
            values: Joint distribution of the latents (n, k).
            num_samples: s.
            generator: Source of randomness.

        Returns:
            (s, n, t), or (s, n) where y is one label or number an input.
        """
        with torch.no_grad(), generators.seeded(generator):
            return self.distribution(values.sample(num_samples, generator=generator)).sample()

    def _observed(self, f: Tensor, y: Tensor) -> Observed:
        """Targets with missing entries filled, and where they were."""
        return Observed.read(self.distribution, f, y, owner=type(self).__name__)

    def _points(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal points for expectations of log p(y | f), and their weights; see `expectations.average`.

        The noise of a continuous target may be a hundredth of the latent's spread: there the points follow log p. That
        of a binary one bends at zero within a few units, for which Gauss-Hermite suffices up to a variance of 16.
        """
        factorizes = self._factorizes(mean)
        center, spread = mean.detach().double(), variance.detach().double()
        if factorizes and self.target == "continuous":
            with torch.no_grad(), distribution_cdfs.unvalidated():
                points = panels(lambda f: self.log_prob_terms(f, y).reshape(f.shape), center, spread)
        elif factorizes and self.target == "binary" and bool((spread > WIDE).any()):
            std = spread.clamp(min=1e-10).sqrt().unsqueeze(0)
            points = panels_about(-center / std, 1 / std)
        else:
            return expectations.points(mean, shared=factorizes)
        return points[0].to(mean), points[1].to(mean)

    def _factorizes(self, f: Tensor) -> bool:
        """Whether each latent has its own output."""
        return distribution_cdfs.per_output(self.distribution(f), f.shape) is not None


def fit_targets(distribution: td.Distribution, f: Tensor, y: Tensor) -> Tensor:
    """`y` with the type of `f` and an output axis exactly where the distribution has one."""
    y = y.to(f.dtype)
    if distribution.event_shape or distribution.batch_shape == f.shape:
        return y.unsqueeze(-1) if y.ndim == 1 else y
    extra = (
        y.ndim > 1
        and y.shape[-1] == 1
        and y.shape[-2] == distribution.batch_shape[-1]
        and y.shape != distribution.batch_shape
    )
    return y.squeeze(-1) if extra else y
