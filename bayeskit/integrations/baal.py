"""Draws of an estimator's predictions as BaaL's heuristics take them: rows, outputs, iterations.

    from baal.active.heuristics import BALD
    order = BALD()(draws(estimator, X_pool, iterations=64))    # the rows to label first

Nothing of BaaL is imported, so what stands here also serves any code that keeps to that convention.
"""

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from bayeskit.active import function_draws as functions
from bayeskit.core import checks

ROWS = 1_024
"""Rows drawn together; functions agree within them, not between them."""


def draws(estimator: Any, X: Any, *, iterations: int = 20, random_state: Any = 0) -> np.ndarray:
    """Class probabilities, or function values, under functions drawn from the posterior.

    out[i, j, s] = p(y_i = j | f_s) for labels, f_s(x_i)_j in the target's units for numbers,   f_s ~ q(f)

    A method that stores draws of its weights gives draws of those.

    Args:
        estimator: A fitted GPClassifier, BNNClassifier, GPRegressor or BNNRegressor.
        X: Inputs, n rows.
        iterations: s, how many functions.
        random_state: Seed.

    Returns:
        (n, c, s) class probabilities in the order of `classes_`, or (n, k, s) values.

    Raises:
        TypeError: The estimator is none of this library.
        NotFittedError: It is not fitted.

    Examples:
        >>> from bayeskit import BNNClassifier
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> model = BNNClassifier(random_state=0).fit(x, (x[:, 0] > 0).astype(int))
        >>> draws(model, x[:3], iterations=5).shape
        (3, 2, 5)
    """
    checks.positive(iterations, name="iterations", integer=True)
    if not hasattr(estimator, "latent"):
        raise TypeError(
            f"`estimator` must be a GP or BNN estimator of this library, for it has draws; got "
            f"{type(estimator).__name__}"
        )
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    n = len(X)
    return np.concatenate([_drawn(estimator, X[i : i + ROWS], iterations, seed) for i in range(0, max(n, 1), ROWS)])


def _drawn(estimator: Any, X: Any, iterations: int, seed: int) -> np.ndarray:
    values = estimator.latent(X)
    generator = torch.Generator(values.mean.device).manual_seed(seed)
    if not hasattr(estimator, "classes_"):
        return values.sample(iterations, generator=generator).movedim(0, -1).double().cpu().numpy()
    found = functions.joint(values, estimator.likelihood_, generator=generator).class_log_probs().exp()  # (s, n, c)
    chosen = torch.randint(len(found), (iterations,), generator=generator, device=found.device)
    return found[chosen].movedim(0, -1).double().cpu().numpy()
