"""Deterministic full-batch minimisation: L-BFGS-B of scipy over the parameters as one float64 vector."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy import optimize as scipy_optimize
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from bayeskit.core import progress


def minimize_lbfgs(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    *,
    max_iter: int = 200,
    tolerance: float = 1e-9,
    description: str = "L-BFGS",
) -> dict[str, list[float]]:
    """Minimize a deterministic loss by L-BFGS, changing `parameters` in place.

    A point at which a factorization fails or the loss is not finite is a step too far, not the end: the line search is
    told of a rise there, and comes back. The lowest point met is the result.

    Args:
        loss: The loss at the present values of the parameters, a scalar.
        parameters: Leaf tensors of any floating type; those that need no gradient are left out.
        max_iter: Iterations at most.
        tolerance: Stop when an iteration lowers the loss by less than this share of it.
        description: A few words for the progress bar and for errors.

    Returns:
        {"loss": [...], "gradient": [...]}: the loss, and the largest entry of its gradient, at the start and after
        every iteration.

    Raises:
        FloatingPointError: The loss is not finite where the search starts.
        torch.linalg.LinAlgError: A factorization fails there.

    References:
        Byrd, Lu, Nocedal and Zhu (1995), A limited memory algorithm for bound constrained optimization.

    Examples:
        >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> history = minimize_lbfgs(lambda: ((w - torch.tensor([1.0, 2.0])) ** 2).sum(), [w])
        >>> [round(v, 6) for v in w.tolist()]
        [1.0, 2.0]
    """
    objective = _Objective(loss, [p for p in parameters if p.requires_grad], description)
    if not objective.parameters:
        with torch.no_grad():
            return {"loss": [float(loss())], "gradient": [0.0]}
    with progress.track(max_iter, description) as bar:

        def after_iteration(intermediate_result: Any) -> None:
            objective.accept()
            bar.update(1, loss=objective.history["loss"][-1])

        options = {"maxiter": max_iter, "maxfun": 50 * max_iter, "ftol": tolerance, "gtol": 1e-7}
        start = objective.start()
        scipy_optimize.minimize(
            objective, start, jac=True, method="L-BFGS-B", callback=after_iteration, options=options
        )
    objective.write(objective.lowest[0])
    return objective.history


class _Objective:
    """The loss as scipy wants it: a float64 vector in, value and gradient out."""

    def __init__(self, loss: Callable[[], Tensor], parameters: list[Tensor], description: str):
        self.loss, self.parameters, self.description = loss, parameters, description
        self.history: dict[str, list[float]] = {"loss": [], "gradient": []}

    def start(self) -> np.ndarray:
        """Evaluate where the parameters stand: here a failure is the caller's to know."""
        point = np.concatenate([p.detach().double().cpu().reshape(-1).numpy() for p in self.parameters])
        value, gradient = self._evaluate()
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            raise FloatingPointError(
                f"{self.description}: the loss or its gradient is not finite at the start (loss {value}). "
                "Standardize inputs and targets, or start elsewhere."
            )
        self.latest = self.lowest = (point, value, gradient)
        self.accept()
        return point

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        self.write(point)
        try:
            value, gradient = self._evaluate()
        except LinAlgError:
            return self._rise(point)
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            return self._rise(point)
        self.latest = (point.copy(), value, gradient)
        if value < self.lowest[1]:
            self.lowest = self.latest
        return value, gradient

    def accept(self) -> None:
        """The line search has ended at the point evaluated last; the next one starts there."""
        self.origin = self.latest
        self.history["loss"].append(self.origin[1])
        self.history["gradient"].append(float(np.abs(self.origin[2]).max()))

    def write(self, point: np.ndarray) -> None:
        """Put a vector into the parameters."""
        with torch.no_grad():
            pieces = torch.from_numpy(point).split([p.numel() for p in self.parameters])
            for parameter, piece in zip(self.parameters, pieces, strict=True):
                parameter.copy_(piece.reshape(parameter.shape))

    def _evaluate(self) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            value = self.loss()
        gradients = torch.autograd.grad(value, self.parameters, allow_unused=True)
        pairs = zip(self.parameters, gradients, strict=True)
        flat = [(torch.zeros_like(p) if g is None else g).double().cpu().reshape(-1) for p, g in pairs]
        return value.item(), torch.cat(flat).numpy()

    def _rise(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """A parabola through the line search's origin that is higher here by twice the first-order fall.

        Its minimum lies at a sixth of the step, which is what the search's interpolation finds and tries next.
        """
        origin, value, gradient = self.origin
        step = point - origin
        fall = max(abs(float(gradient @ step)), 1e-12 * (1 + abs(value)))
        return value + 2 * fall, 5 * fall * step / max(float(step @ step), 1e-300)
