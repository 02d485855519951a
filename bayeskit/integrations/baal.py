"""Posterior samples of an estimator's predictions in BaaL's convention: inputs, outputs, iterations.

    from baal.active.heuristics import BALD
    order = BALD()(draws(estimator, X_pool, iterations=64))    # inputs in the order to label them

BaaL is not imported, so this also serves other code with that convention.
"""

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from bayeskit.active import function_draws as functions
from bayeskit.core import checks

ROWS = 1_024
"""Inputs sampled jointly; between such blocks functions are independent. Bounds the joint covariance to 8 MiB."""


def draws(estimator: Any, X: Any, *, iterations: int = 20, random_state: Any = 0) -> np.ndarray:
    """Class probabilities, or function values, under functions sampled from the posterior.

    out[i, j, s] = p(y_i = j | f_s) for classes, f_s(x_i)_j in the target's units for regression,   f_s ~ q(f)

    A method that stores samples of its weights resamples those.

    Args:
        estimator: A fitted GPClassifier, BNNClassifier, GPRegressor or BNNRegressor.
        X: Inputs, n rows.
        iterations: s, how many functions.
        random_state: Seed.

    Returns:
        (n, c, s) class probabilities in the order of `classes_`, or (n, k, s) values.

    Raises:
        TypeError: The estimator is not of this library.
        NotFittedError: The estimator is not fitted.

    Examples:
        >>> from bayeskit import BNNClassifier
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> model = BNNClassifier(random_state=0).fit(x, (x[:, 0] > 0).astype(int))
        >>> draws(model, x[:3], iterations=5).shape
        (3, 2, 5)
    """
    checks.positive(iterations, name="iterations", integer=True)
    if not hasattr(estimator, "latent"):
        raise TypeError(f"`estimator` must be a GP or BNN estimator of this library; got {type(estimator).__name__}")
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
