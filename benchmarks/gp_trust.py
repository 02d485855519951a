"""Robustness of every Gaussian-process method to degenerate data and starting values.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_trust.py [--methods svgp,exact] [--conditions noise]
        [--rows 300]

Fits every registered method with its quick settings, in float64 and float32, through the estimators on every table of
the folder (plain, with every row twice), and through the lower door on a synthetic table under hard conditions: see
`CONDITIONS`. A fit is sound if it ends, its means, variances, covariances, draws, densities, evidence and training
curve are finite, no variance is negative, far from the data and at them, and the jitter used is in its diagnostics.
Prints a markdown table, method by condition, and one line a failure; the exit code is 1 if there was one. Without
`BAYESKIT_DATA` only the synthetic table is used. `--rows` rows of each set, drawn without replacement, seed 0.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bayeskit import GPClassifier, GPRegressor, registry
from bayeskit.core.likelihood import Bernoulli, Categorical, Dirichlet, Gaussian, Likelihood, Poisson, StudentT
from bayeskit.core.types import Data

TYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass
class Problem:
    """Inputs, targets, and what the prior and the likelihood start from."""

    x: torch.Tensor
    y: torch.Tensor
    likelihood: Callable[[], Likelihood] = Gaussian
    scales: dict[str, float] = field(default_factory=dict)


def base(n=60, d=3):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, (2 * x[:, :1]).sin() + 0.1 * torch.randn(n, 1, generator=g, dtype=torch.float64)


X, Y = base()
LABELS = (Y[:, 0] > 0).long()
WAVE = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
CONSTANT = torch.cat([X, torch.full((60, 1), 7.0)], -1)

CONDITIONS: dict[str, Callable[[], Problem]] = {
    "plain": lambda: Problem(X, Y),
    "rows thrice": lambda: Problem(X.repeat(3, 1), Y.repeat(3, 1)),
    "one input, many targets": lambda: Problem(X[:1].repeat(60, 1), Y),
    "inputs 1e-9 apart": lambda: Problem(torch.cat([X, X + 1e-9]), torch.cat([Y, Y + 0.1])),
    "lengthscales 1e-6": lambda: Problem(X, Y, scales={"lengthscale": 1e-6}),
    "lengthscales 1e-6 rows twice": lambda: Problem(
        torch.cat([X, X]), torch.cat([Y, -Y]), scales={"lengthscale": 1e-6}
    ),
    "lengthscales 1e6": lambda: Problem(X, Y, scales={"lengthscale": 1e6}),
    "output scale 1e-10": lambda: Problem(X, Y, scales={"outputscale": 1e-10}),
    "output scale 1e10": lambda: Problem(X, Y, scales={"outputscale": 1e10}),
    "both 1e6": lambda: Problem(X, Y, scales={"lengthscale": 1e6, "outputscale": 1e6}),
    "noise 1e-10 fixed": lambda: Problem(X, Y, lambda: Gaussian(1e-10, learn=False)),
    "noise 1e-10 fixed, rows differ": lambda: Problem(
        torch.cat([X, X]), torch.cat([Y, -Y]), lambda: Gaussian(1e-10, learn=False)
    ),
    "noise 1e-10 fixed, lengthscales 1e6": lambda: Problem(
        X, Y, lambda: Gaussian(1e-10, learn=False), {"lengthscale": 1e6}
    ),
    "noise at its floor": lambda: Problem(X, Y, lambda: Gaussian(1.0001e-6)),
    "noise free": lambda: Problem(WAVE, WAVE.sin()),
    "noise 1e6": lambda: Problem(X, Y, lambda: Gaussian(1e6)),
    "constant column": lambda: Problem(CONSTANT, Y),
    "constant target": lambda: Problem(X, torch.full_like(Y, 3.0)),
    "offset 1e8": lambda: Problem(X + 1e8, Y + 1e8),
    "inputs times 1e12": lambda: Problem(X * 1e12, Y),
    "inputs times 1e-12": lambda: Problem(X * 1e-12, Y),
    "targets times 1e8": lambda: Problem(X, Y * 1e8),
    "targets times 1e-8": lambda: Problem(X, Y * 1e-8),
    "an outlier": lambda: Problem(X, torch.cat([Y[:-1], Y[-1:] + 1e6])),
    "one row": lambda: Problem(X[:1], Y[:1]),
    "two rows": lambda: Problem(X[:2], Y[:2]),
    "two rows alike": lambda: Problem(X[:1].repeat(2, 1), Y[:2]),
    "one column": lambda: Problem(X[:, :1], Y),
    "200 columns": lambda: Problem(base(60, 200)[0], Y),
    "labels": lambda: Problem(X, LABELS, Bernoulli),
    "labels that separate, lengthscales 1e6": lambda: Problem(X, LABELS, Bernoulli, {"lengthscale": 1e6}),
    "labels, lengthscales 1e-6": lambda: Problem(X, LABELS, Bernoulli, {"lengthscale": 1e-6}),
    "labels, output scale 1e10": lambda: Problem(X, LABELS, Bernoulli, {"outputscale": 1e10}),
    "one label": lambda: Problem(X, torch.zeros_like(LABELS), Bernoulli),
    "labels that contradict": lambda: Problem(torch.cat([X, X]), torch.cat([LABELS, 1 - LABELS]), Bernoulli),
    "softmax, a class unseen": lambda: Problem(X, LABELS, lambda: Categorical(3)),
    "Dirichlet, a class unseen": lambda: Problem(X, LABELS, lambda: Dirichlet(3)),
    "counts": lambda: Problem(X, (3 * Y.exp()).round(), Poisson),
    "counts of 1e6": lambda: Problem(X, (1e6 * Y.exp()).round(), Poisson),
    "Student-t, an outlier": lambda: Problem(X, torch.cat([Y[:-1], Y[-1:] + 1e6]), StudentT),
}


def main() -> None:
    """Run the sweep and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(registry.names(family="gp")))
    parser.add_argument("--conditions", default="", help="only those whose name has this in it")
    parser.add_argument("--rows", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error", RuntimeWarning)
    jobs = {name: (lambda m, t, c=build: by_inference(m, t, c())) for name, build in CONDITIONS.items()}
    for name, (x, y) in tables(arguments.rows).items():
        jobs[name] = lambda m, t, x=x, y=y: by_estimator(m, t, x, y)
        jobs[f"{name}, rows twice"] = lambda m, t, x=x, y=y: by_estimator(
            m, t, np.tile(x, (2, 1)), np.concatenate([y, y])
        )
    names, failures = arguments.methods.split(","), []
    print(f"| condition | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for condition, job in jobs.items():
        if arguments.conditions in condition:
            cells = []
            for name in names:
                started, before = time.perf_counter(), len(failures)
                allowed = [dtype for dtype in TYPES if not _outcome(job, name, dtype, condition, failures)]
                cell = "does not apply" if not allowed else "FAILS" if len(failures) > before else "holds"
                cells.append(cell if cell != "holds" else f"{time.perf_counter() - started:.1f} s")
            print(f"| {condition} | {' | '.join(cells)} |", flush=True)
    print(f"\n{len(failures)} failures" + "".join(f"\n- {failure}" for failure in failures))
    raise SystemExit(1 if failures else 0)


def _outcome(job, name, dtype, condition, failures) -> bool:
    """Whether the method does not take such a problem; what fails is appended."""
    try:
        problems = job(name, TYPES[dtype])
    except Exception as error:  # whatever it is, it is what the sweep is looking for
        problems = [f"{type(error).__name__}: {error}"]
    failures += [f"{name}, {condition}, {dtype}: {problem}" for problem in problems or []]
    return problems is None


def by_inference(name, dtype, problem: Problem) -> list[str] | None:
    """What is unsound about the fit of a method through the lower door, None if it does not take the likelihood."""
    method, likelihood = registry.quick(name), problem.likelihood()
    if not isinstance(likelihood, method.likelihoods):
        return None
    x, y = problem.x.to(dtype), problem.y.to(dtype) if problem.y.is_floating_point() else problem.y
    g = torch.Generator().manual_seed(0)
    prior = registry.prior("gp")(None, x, likelihood.num_latents(y), dtype=dtype, generator=g)
    for key, value in problem.scales.items():
        owner = prior.kernel.base_kernel if key == "lengthscale" else prior.kernel
        getattr(owner, f"raw_{key}").data.fill_(np.log(value))  # both are searched on the logarithmic scale
    fit = method.infer(prior, likelihood, Data(x, y), generator=g)
    new = torch.cat([x[:5], x[:5] + x.std(0, correction=0) / 3, 1e6 * x[:2]])
    targets = y[:1].expand(len(new), *y.shape[1:])
    predictive = fit.likelihood.predictive(fit.posterior(new))
    return unsound(fit.posterior, new, fit.log_evidence, fit.history, fit.diagnostics, predictive.log_prob(targets))


def by_estimator(name, dtype, x, y) -> list[str] | None:
    """What is unsound about an estimator's fit, None if the method does not do the task."""
    labels = y.dtype.kind in "iu"
    if ("classification" if labels else "regression") not in registry.tasks(name):
        return None
    model = (GPClassifier if labels else GPRegressor)(inference=registry.quick(name), dtype=dtype, random_state=0)
    model.fit(x, y)
    new = np.concatenate([x[:5], x[:5] * 1.01, x[:2] * 1e6])
    given = y[np.arange(len(new)) % 5]
    density = model.predictive(new).log_prob(given)
    inputs = model._scaled(torch.tensor(new, dtype=torch.float64))
    return unsound(model.posterior_, inputs, model.log_evidence_, model.history_, model.diagnostics_, density)


def unsound(posterior, x, evidence, history, diagnostics, density) -> list[str]:
    """What is wrong with a fit."""
    values, g = posterior(x), torch.Generator().manual_seed(1)
    dense = values.covariance.to_dense()
    numbers = {
        "mean": values.mean,
        "variance": values.variance,
        "covariance": dense,
        "draws": values.sample(2, generator=g),
        "functions": posterior.sample_functions(2, generator=g)(x),
        "log density": torch.as_tensor(density),
        "evidence": torch.tensor(0.0 if evidence is None else float(evidence)),
        "history": torch.tensor([number for curve in history.values() for number in curve], dtype=torch.float64),
    }
    found = [f"{what} is not finite" for what, number in numbers.items() if not torch.isfinite(number).all()]
    if float(values.variance.min()) < 0 or float(dense.diagonal().min()) < 0:
        found.append(f"a variance is {float(values.variance.min()):g}")
    if not any(key.startswith("jitter of ") for key in diagnostics):
        found.append(f"no jitter among the diagnostics {sorted(diagnostics)}")
    return found


def tables(rows: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs (n, d) and targets of every set of the folder, labels as integers."""
    found = {}
    if "BAYESKIT_DATA" not in os.environ:
        return found
    for path in sorted(Path(os.environ["BAYESKIT_DATA"]).glob("*/*.npz")):
        arrays = np.load(path)
        for x, y in (("X", "y"), ("X_full", "y_full"), ("t", "y"), ("loc1", "mag1"), ("snelson_x", "snelson_y")):
            if x in arrays and y in arrays and arrays[x].ndim <= 2:
                table, target = arrays[x].reshape(len(arrays[x]), -1), arrays[y]
                some = np.random.default_rng(0).permutation(len(table))[:rows]
                found[path.stem] = table[some], target[some]
    return found


if __name__ == "__main__":
    main()
