"""Structures of the Laplace approximation: parts of the prior, classification, and a network of two million weights.

    python benchmarks/bnn_laplace.py parts [folder with the UCI sets as .npz]     all weights, one factor or one a layer
    python benchmarks/bnn_laplace.py classes                                      structures and rules on digits
    python benchmarks/bnn_laplace.py large                                        seconds and MB, a method at a time

NLPD in units of the target's spread; seconds are of the processor, of one thread; MB the growth of the peak (Linux).
"""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

from bayeskit import BNNClassifier, BNNRegressor, bnn, metrics
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

LAYERS = {"1": "evidence", "3": "evidence", "5": "evidence"}
RULES = {
    "last layer": bnn.Laplace(),
    "kronecker, evidence": bnn.Laplace("all", "kronecker"),
    "kronecker, bound": bnn.Laplace("all", "kronecker", "bound"),
    "diagonal, evidence": bnn.Laplace("all", "diagonal"),
    "diagonal, bound": bnn.Laplace("all", "diagonal", "bound"),
    "500 weights": bnn.Laplace(500),
    "map": bnn.MAP(),
}
SHORT = Training(lr=1e-3, max_epochs=2, batch_size=50)
LARGE = {
    "diagonal": bnn.Laplace("all", "diagonal", training=SHORT),
    "diagonal, bound": bnn.Laplace("all", "diagonal", "bound", training=SHORT),
    "kronecker": bnn.Laplace("all", "kronecker", training=SHORT),
    "kernel": bnn.Laplace("all", "kernel", training=SHORT),
    "500 weights": bnn.Laplace(500, training=SHORT),
    "mean_field": bnn.MeanFieldVI(training=SHORT),
    "ivon": bnn.IVON(training=SHORT),
    "ssvi": bnn.SSVI(training=SHORT),
    "swag": bnn.SWAG(training=SHORT),
    "mc_dropout": bnn.MCDropout(training=SHORT),
    "deep_ensemble": bnn.DeepEnsemble(training=SHORT),
    "vbll": bnn.VBLL(training=SHORT),
}


def noisy_sine(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (150, 1))
    return x, np.sin(2 * x[:, 0]) + 0.3 * np.exp(x[:, 0] - 1) * rng.normal(size=150)


def rows(name: str, seed: int, folder: Path | None) -> list[np.ndarray]:
    if name in ("noisy sine", "diabetes"):
        x, y = noisy_sine(seed) if name == "noisy sine" else load_diabetes(return_X_y=True)
    else:
        assert folder is not None
        arrays = np.load(folder / f"{name}.npz")
        x, y = arrays["x"] if "x" in arrays else arrays["X"], arrays["y"].reshape(len(arrays["y"]), -1)[:, 0]
    return train_test_split(x, y, train_size=min(400, int(0.75 * len(x))), random_state=seed)


def small(inputs: int, outputs: int) -> bnn.MLP:
    return bnn.MLP(inputs, outputs, hidden=(20, 20), dtype=torch.float64)


def parts(folder: Path | None) -> None:
    for name in ("noisy sine", "diabetes", *(("energy", "concrete", "yacht") if folder else ())):
        for label, prior_precision in (("one", "evidence"), ("layers", LAYERS), ("fixed", 1.0)):
            found = []
            for seed in range(4):
                x, x_test, y, y_test = rows(name, seed, folder)
                model = BNNRegressor(small, bnn.Laplace("all", "full", prior_precision), random_state=seed)
                start = time.process_time()
                model.fit(x, y)
                seconds = time.process_time() - start
                nlpd = -np.mean(np.asarray(model.predictive(x_test).log_prob(y_test))) - np.log(y.std())
                found.append((nlpd, float(model.log_evidence_), seconds))
            show(f"{name}, {label}", found)


def classes() -> None:
    for label, inference in RULES.items():
        found = []
        for seed in range(3):
            x, x_test, y, y_test = train_test_split(*load_digits(return_X_y=True), test_size=400, random_state=seed)
            model = BNNClassifier(lambda i, o: bnn.MLP(i, o, hidden=(50, 50)), inference, random_state=seed)
            start = time.process_time()
            model.fit(x, y)
            seconds, p = time.process_time() - start, model.predict_proba(x_test)
            scores = metrics.negative_log_likelihood(p, y_test), metrics.expected_calibration_error(p, y_test)
            evidence = float("nan") if model.log_evidence_ is None else float(model.log_evidence_)
            found.append((*scores, evidence, seconds))
        show(label, found)


def large(label: str) -> None:
    """Fit on 100 rows, then mean and variance at them, then their whole covariance."""
    torch.manual_seed(0)
    x = torch.randn(100, 20)
    prior = bnn.gaussian_prior(bnn.MLP(20, 1, hidden=(1000, 1000, 1000)))
    generator = torch.Generator().manual_seed(0)
    fit = LARGE[label].infer(prior, Gaussian(), Data(x, torch.sin(x[:, :1])), generator=generator)
    found = []
    values = fit.posterior(x)
    for ask in (lambda: fit.posterior(x).variance, values.covariance.to_dense):
        Path("/proc/self/clear_refs").write_text("5")
        before, start = memory("VmRSS"), time.process_time()
        ask()
        found.append((time.process_time() - start, memory("VmHWM") - before))
    kind = type(values.covariance).__name__
    print(f"{label:18s} {kind:32s}", *(f"{seconds:6.2f} s {extra:5.0f} MB" for seconds, extra in found), flush=True)


def memory(entry: str) -> float:
    found = re.search(rf"{entry}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def show(label: str, found: list[tuple[float, ...]]) -> None:
    numbers = zip(np.mean(found, 0), np.std(found, 0), strict=True)
    print(f"{label:22s}", *(f"{mean:9.3f} ± {spread:.3f}" for mean, spread in numbers), flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "parts":
        parts(Path(rest[0]) if rest else None)
    elif what == "classes":
        classes()
    elif rest:
        large(rest[0])
    else:
        for method in LARGE:  # a process each, for a peak of its own
            subprocess.run([sys.executable, __file__, "large", method], check=True)
