"""Hyperparameters from a random subset: a start for methods whose passes over all data are expensive."""

from functools import partial

import torch
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data
from bayeskit.gp.methods.exact import log_evidence
from bayeskit.gp.model.hyperparameters import History, Model, best_of_starts

MAX_ITERATIONS = 50
"""Iterations on half of the subset, of each start, at most: the refinement needs no more digits of the optimum."""

REFINE_ITERATIONS = 10
"""Iterations on the whole subset, from the best optimum on half of it."""


def learn_on_subset(
    model: Model, rows: Data, num_rows: int, *, max_iter: int, restarts: int, generator: torch.Generator
) -> History:
    """Set the hyperparameters to those that maximize evidence plus log prior of a random subset.

    The evidence is exact, so nothing here depends on inducing points: lengthscales are unbiased, with the uncertainty
    of so many data points. An evaluation costs n_s^3, so most of the search is on half of the subset, and only its end
    on all of it.

    Args:
        model: The model, changed in place.
        rows: All data, (n, d) and (n, k).
        num_rows: Size of the subset at most, n_s.
        max_iter: L-BFGS iterations at most, of each start; never more than `MAX_ITERATIONS`.
        restarts: Further random starts; the best optimum is kept.
        generator: Source of randomness.

    Returns:
        The curves of the last search, as `minimize_lbfgs` gives them.

    Raises:
        torch.linalg.LinAlgError: A factorization fails at the first start.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 8.3.3 ("subset of datapoints").

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp.model.hyperparameters import learnable
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
        >>> model = learnable(default_prior(x), Gaussian(), learn=True)
        >>> settings = {"max_iter": 20, "restarts": 0, "generator": torch.Generator().manual_seed(0)}
        >>> history = learn_on_subset(model, Data(x, x.sin()), 30, **settings)
        >>> history["loss"][-1] < history["loss"][0], model.likelihood.noise.item() < 1e-3
        (True, True)
    """
    order = torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.y.device)
    few, wanted = order[: max(1, num_rows // 2)], order[:num_rows]
    operators.note("rows used to learn hyperparameters", len(wanted))
    first = partial(_search, model, rows.rows(few), min(max_iter, MAX_ITERATIONS))
    history = best_of_starts(model, first, restarts=restarts, generator=generator)
    if len(wanted) > len(few):
        history = _search(model, rows.rows(wanted), min(max_iter, REFINE_ITERATIONS))
    return history


def _search(model: Model, rows: Data, max_iter: int) -> History:
    def loss() -> Tensor:
        return -(log_evidence(model, rows) + model.log_prior())

    return minimize_lbfgs(loss, model.parameters, max_iter=max_iter, description="subset of rows")
