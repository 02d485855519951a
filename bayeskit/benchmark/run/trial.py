"""One trial of a comparison: one method on one seed, fitted, timed and scored in a worker process.

Exceptions of the method do not propagate: a trial returns a row with the status "ok", "error" with the reason, or
"time limit", and the arrays that the report draws.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bayeskit import metrics
from bayeskit.benchmark.run import resource_limits
from bayeskit.benchmark.run.problem import Problem

SHARED_INPUTS = 200
"""Test inputs at which the methods' joint posteriors are compared."""

LEVEL = 0.9
"""Probability of the intervals and sets whose coverage is measured."""

_CHUNK = 2_000  # inputs predicted at a time, so that memory does not grow with the test set


@dataclass(frozen=True, eq=False)
class TrialResult:
    """A trial's row of numbers and the arrays for the report.

    Args:
        row: Plain values, one line of `results.jsonl`.
        arrays: Arrays by name, one `.npz` file.
    """

    row: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def run(estimator: Any, problem: Problem, *, identity: dict[str, Any], time_limit: float | None = None) -> TrialResult:
    """Fit and score one method on one problem.

    Args:
        estimator: Unfitted; or a function without arguments that builds one, called here so that its imports and its
            errors belong to the trial.
        problem: The data.
        identity: What the row starts with: method, seed, settings.
        time_limit: Seconds after which the trial is stopped, or None.
    """
    row: dict[str, Any] = {**identity, "status": "ok", "task": problem.task}
    arrays: dict[str, np.ndarray] = {}
    with _one_thread(), warnings.catch_warnings(record=True) as caught, resource_limits.memory(row):
        warnings.simplefilter("always")
        try:
            with resource_limits.seconds(time_limit):
                _fill(row, arrays, estimator if hasattr(estimator, "fit") else estimator(), problem)
        except resource_limits.TimeLimit:
            row.update(status="time limit", reason=f"stopped after the time limit of {time_limit:g} s")
        except Exception as error:  # any exception of the method is recorded in the row
            row.update(status="error", reason=_reason(error))
    row["warnings"] = sorted(
        {str(w.message).split("\n")[0][:300] for w in caught if issubclass(w.category, UserWarning)}
    )
    return TrialResult(row, arrays if row["status"] == "ok" else {})


def _fill(row: dict[str, Any], arrays: dict[str, np.ndarray], estimator: Any, problem: Problem) -> None:
    row["num_train"], row["num_test"] = len(problem.y_train), len(problem.y_test)
    started = time.perf_counter()
    estimator.fit(problem.X_train, problem.y_train)
    row["fit_seconds"] = time.perf_counter() - started
    evidence = getattr(estimator, "log_evidence_", None)
    row["log_evidence"] = None if evidence is None else evidence.value
    row["evidence_kind"] = None if evidence is None else evidence.kind
    row["kind"] = getattr(getattr(estimator, "inference_", None), "kind", None)
    row["diagnostics"] = {
        k: v for k, v in getattr(estimator, "diagnostics_", {}).items() if isinstance(v, int | float | str)
    }
    score = _score_regression if problem.task == "regression" else _score_classification
    score(row, arrays, estimator, problem)
    if problem.X_ood is not None:
        outside = _over_chunks(estimator, problem.X_ood, lambda p, _: {"uncertainty": _uncertainty(p)})["uncertainty"]
        inside = arrays["uncertainty"]
        arrays["ood_uncertainty"] = outside
        row["ood_auroc"] = metrics.ood_auroc(inside, outside)
        row["ood_aupr"] = metrics.ood_aupr(inside, outside)
        row["ood_fpr95"] = metrics.ood_fpr95(inside, outside)


def _score_regression(row: dict[str, Any], arrays: dict[str, np.ndarray], estimator: Any, problem: Problem) -> None:
    def timed(predictive: Any, rows: slice) -> dict[str, np.ndarray]:
        y = problem.y_test[rows]
        return {
            "log_prob": _numpy(predictive.log_prob(y)),
            "mean": _numpy(predictive.mean),
            "uncertainty": _uncertainty(predictive),
        }

    def untimed(predictive: Any, rows: slice) -> dict[str, np.ndarray]:
        y = problem.y_test[rows]
        low, high = (np.asarray(end) for end in _interval(estimator, predictive, problem.X_test[rows]))
        reshaped = y.reshape(low.shape)
        interval_score = metrics.interval_score(low, high, reshaped, level=LEVEL)
        return {
            "pit": metrics.pit(predictive, y),
            "crps": np.full(len(y), metrics.crps(predictive, y)),
            "inside": (low <= reshaped) & (reshaped <= high),
            "interval": np.full(len(y), interval_score),
        }

    started = time.perf_counter()
    scores = _over_chunks(estimator, problem.X_test, timed)
    row["predict_seconds"] = time.perf_counter() - started
    row["nll"] = _nll(scores["log_prob"])
    scores |= _over_chunks(estimator, problem.X_test, untimed)
    y = problem.y_test.reshape(scores["mean"].shape)
    losses = ((scores["mean"] - y) ** 2).reshape(len(y), -1).mean(1)
    row["rmse"] = metrics.rmse(scores["mean"], y)
    row["crps"] = float(scores["crps"].mean())
    row["coverage_90"], row["interval_score_90"] = float(scores["inside"].mean()), float(scores["interval"].mean())
    row["aurc"] = metrics.aurc(losses, scores["uncertainty"])
    arrays.update(pit=scores["pit"].ravel(), losses=losses, uncertainty=scores["uncertainty"])
    arrays["nll"] = -scores["log_prob"]
    try:
        arrays.update(_joint(estimator, problem))
    except Exception as error:  # the scores are kept; only the distance is missing, with its reason
        row["distance_reason"] = _reason(error)


def _interval(estimator: Any, predictive: Any, X: np.ndarray) -> tuple[Any, Any]:
    """Intervals of each test point: the conformal ones of a `Conformal`, else central ones of the predictive."""
    return estimator.predict_interval(X) if _conformal(estimator) else predictive.interval(LEVEL)


def _set(estimator: Any, predictive: Any, X: np.ndarray) -> np.ndarray:
    """Prediction sets of each test point, likewise."""
    return estimator.predict_set(X) if _conformal(estimator) else np.asarray(predictive.prediction_set(LEVEL).cpu())


def _conformal(estimator: Any) -> bool:
    from bayeskit.estimators import Conformal

    if not isinstance(estimator, Conformal):
        return False
    if estimator.confidence != LEVEL:
        raise ValueError(
            f"`confidence` of a Conformal must be {LEVEL} in a comparison, whose intervals and sets all have that "
            f"level; got {estimator.confidence}"
        )
    return True


def _joint(estimator: Any, problem: Problem) -> dict[str, np.ndarray]:
    """Mean and covariance of the joint posterior of f at the shared inputs, over the target's standard deviation."""
    y = problem.y_train.reshape(len(problem.y_train), -1)
    spread = y.std(0)
    values = estimator.latent(problem.X_test[:SHARED_INPUTS])
    mean = _numpy(values.mean)
    if mean.shape[1] != len(spread):
        raise ValueError(f"the latent function has {mean.shape[1]} outputs and the target {len(spread)}")
    covariance = _numpy(values.covariance.to_dense())
    scale = np.tile(np.where(spread > 0, spread, 1.0), len(mean))  # point-major, as the covariance is
    return {"latent_mean": mean.ravel() / scale, "latent_covariance": covariance / np.outer(scale, scale)}


def _score_classification(row: dict[str, Any], arrays: dict[str, np.ndarray], estimator: Any, problem: Problem) -> None:
    def timed(predictive: Any, rows: slice) -> dict[str, np.ndarray]:
        log_prob = _numpy(predictive.log_prob(problem.y_test[rows]))
        return {"log_prob": log_prob, "probs": _numpy(predictive.probs), "uncertainty": _uncertainty(predictive)}

    def untimed(predictive: Any, rows: slice) -> dict[str, np.ndarray]:
        return {"set": _set(estimator, predictive, problem.X_test[rows])}

    started = time.perf_counter()
    scores = _over_chunks(estimator, problem.X_test, timed)
    row["predict_seconds"] = time.perf_counter() - started
    scores |= _over_chunks(estimator, problem.X_test, untimed)
    labels, classes = problem.y_test, np.asarray(estimator.classes_, dtype=int)
    p, sets = np.zeros((len(labels), problem.num_classes)), np.zeros((len(labels), problem.num_classes), dtype=bool)
    p[:, classes], sets[:, classes] = scores["probs"], scores["set"]
    losses = (p.argmax(1) != labels).astype(float)
    row["nll"] = _nll(scores["log_prob"])
    row["accuracy"], row["brier"] = metrics.accuracy(p, labels), metrics.brier(p, labels)
    row["ece"] = metrics.expected_calibration_error(p, labels)
    row["ece_mass"] = metrics.expected_calibration_error(p, labels, binning="mass")
    row["set_coverage_90"] = float(sets[np.arange(len(labels)), labels].mean())
    row["set_size_90"] = float(sets.sum(1).mean())
    row["aurc"] = metrics.aurc(losses, scores["uncertainty"])
    arrays.update(probs=p, labels=labels, losses=losses, uncertainty=scores["uncertainty"])
    arrays["nll"] = -scores["log_prob"]


def _over_chunks(estimator: Any, X: np.ndarray, evaluate: Any) -> dict[str, np.ndarray]:
    """Evaluate `evaluate(predictive, rows)` on chunks of `X` and concatenate the results."""
    parts = []
    for start in range(0, len(X), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(X)))
        parts.append(evaluate(estimator.predictive(X[rows]), rows))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _nll(log_prob: np.ndarray) -> float:
    """The mean negative log-likelihood; NaN is an error."""
    lost = int(np.isnan(log_prob).sum())
    if lost:
        raise ValueError(f"the predictive log-likelihood is NaN at {lost} of {len(log_prob)} test points")
    return float(-log_prob.mean())


def _uncertainty(predictive: Any) -> np.ndarray:
    """Total predictive uncertainty of each input: entropy in nats, or variance (its mean over outputs)."""
    total = _numpy(predictive.total)
    return total.mean(1) if total.ndim == 2 else total


def _numpy(value: torch.Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread while the trial runs: two processes of two threads on two cores are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
