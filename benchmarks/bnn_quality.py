"""Networks with default settings beside simple baselines: the tables of the pages of map, laplace and deep_ensemble.

    python benchmarks/bnn_quality.py [splits] [methods, with commas]

Regression in standardized units of the target; NLL is per test row, seconds are of the processor, of one thread.
`noisy sine` has 112 rows whose noise grows along x: a strong prior can pull a network to zero there.
"""

import sys
import time

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayeskit import metrics
from bayeskit.estimators import make

METHODS = tuple(sys.argv[2].split(",")) if len(sys.argv) > 2 else ("map", "laplace", "deep_ensemble")
SETS = ("diabetes", "noisy sine", "digits")


def noisy_sine(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (150, 1))
    return x, np.sin(2 * x[:, 0]) + 0.3 * np.exp(x[:, 0] - 1) * rng.normal(size=150)


def rows(name: str, seed: int) -> list[np.ndarray]:
    if name == "noisy sine":
        return train_test_split(*noisy_sine(seed), test_size=38, random_state=seed)
    load, held = (load_diabetes, 92) if name == "diabetes" else (load_digits, 400)
    return train_test_split(*load(return_X_y=True), test_size=held, random_state=seed)


def scores(name: str, method: str, seed: int) -> tuple[float, float, float]:
    """RMSE over the spread of the target or error rate, NLL (NaN for a baseline that has none), and seconds."""
    x, x_test, y, y_test = rows(name, seed)
    classes = name == "digits"
    start = time.process_time()
    if method in METHODS:
        model = make(method, "classification" if classes else "regression", random_state=seed).fit(x, y)
    else:
        network = MLPClassifier if classes else MLPRegressor
        settings = {"hidden_layer_sizes": (50, 50), "early_stopping": True, "max_iter": 1000, "random_state": seed}
        last = RidgeCV(np.logspace(-3, 3, 25)) if method == "ridge" else network(**settings)
        model = make_pipeline(StandardScaler(), last).fit(x, y)
    seconds = time.process_time() - start
    if classes:
        probabilities = model.predict_proba(x_test)
        return 1 - model.score(x_test, y_test), metrics.negative_log_likelihood(probabilities, y_test), seconds
    spread = y.std()
    error = metrics.rmse(model.predict(x_test), y_test) / spread
    if method not in METHODS:
        return error, float("nan"), seconds
    return error, float(metrics.negative_log_likelihood(model.predictive(x_test), y_test)) - np.log(spread), seconds


if __name__ == "__main__":
    torch.set_num_threads(1)
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    print("| set | method | error | NLL | seconds |\n|---|---|---|---|---|")
    for name in SETS:
        for method in (*METHODS, "perceptron", *(["ridge"] if name != "digits" else [])):
            found = np.array([scores(name, method, seed) for seed in range(splits)])
            mean, deviation = found.mean(0), found.std(0)
            cells = " | ".join(f"{m:.3f} ± {d:.3f}" for m, d in zip(mean[:2], deviation[:2], strict=True))
            print(f"| {name} | {method} | {cells} | {mean[2]:.2f} |", flush=True)
