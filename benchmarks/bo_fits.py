"""Fits of test functions of Bayesian optimization to few points, by method and settings.

    python benchmarks/bo_fits.py [--problems branin,hartmann6] [--rows 14,24] [--seeds 3] [--threads 1]

Each fit sees Sobol points of the function without noise, and is judged at 400 others: error over the spread of the
function there; negative log predictive density, in units of that spread; error on the points seen. By this the settings
of `bo_regret.py` were chosen. Needs the extra `bayeskit[botorch]`.
"""

import argparse
import warnings

import numpy as np
import torch
from bo_regret import IVON, METHODS, PROBLEMS, VBLL, network
from botorch.utils.sampling import draw_sobol_samples
from sklearn.base import clone

from bayeskit import BNNRegressor, bnn
from bayeskit.core.likelihood import Gaussian


def changed(inference, built, noise=0.1, **settings):
    """The benchmark's inference with some of its settings changed."""
    return lambda seed: BNNRegressor(
        built, inference=clone(inference).set_params(**settings), likelihood=Gaussian(noise), random_state=seed
    )


ROWS = {
    "exact": METHODS["exact"],
    "vbll, defaults": lambda seed: BNNRegressor(inference=bnn.VBLL(), random_state=seed),
    "vbll, prior 1": changed(VBLL, network, 0.01, prior_precision=1.0),
    "vbll, prior 0.01": changed(VBLL, network, 0.01, prior_precision=0.01),
    "vbll, noise from 0.1": changed(VBLL, network),
    "vbll, as benchmarked": METHODS["vbll"],
    "ivon, defaults": lambda seed: BNNRegressor(inference=bnn.IVON(), random_state=seed),
    "ivon, rectifiers": changed(IVON, None),
    "ivon, noise from 0.01": changed(IVON, network, 0.01),
    "ivon, KL weight 0.01": changed(IVON, network, kl_weight=0.01),
    "ivon, as benchmarked": METHODS["ivon"],
}


def judged(make, name, rows, seed):
    """Error, negative log density and error on the rows seen, in spreads of the function."""
    problem = PROBLEMS[name][0].double()
    x = draw_sobol_samples(problem.bounds, n=1, q=rows, seed=seed)[0]
    at = draw_sobol_samples(problem.bounds, n=1, q=400, seed=77)[0]
    y, f = problem(x).numpy(), problem(at).numpy()
    model, spread = make(seed).fit(x.numpy(), y), f.std()
    error = np.sqrt(np.mean((model.predict(at.numpy()) - f) ** 2)) / spread
    density = model.predictive(at.numpy()).log_prob(torch.as_tensor(f)).mean().item() + np.log(spread)
    return error, -density, np.sqrt(np.mean((model.predict(x.numpy()) - y) ** 2)) / spread


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--rows", default="14,24")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for name in given.problems.split(","):
        for rows in map(int, given.rows.split(",")):
            print(f"\n### {name}, {rows} rows\n\n| method | error | negative log density | error on the rows seen |")
            print("|---|---|---|---|")
            for method, make in ROWS.items():
                found = np.array([judged(make, name, rows, seed) for seed in range(given.seeds)])
                spread = found.std(0, ddof=1) / np.sqrt(given.seeds) if given.seeds > 1 else np.full(3, np.nan)
                columns = [f"{m:.2f} ± {s:.2f}" for m, s in zip(found.mean(0), spread, strict=True)]
                print("| " + " | ".join([method, *columns]) + " |", flush=True)
