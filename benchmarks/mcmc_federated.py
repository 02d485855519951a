"""Federated SGLD of a network: diabetes, data dealt to clients at random or by target, with or without surrogates.

    python benchmarks/mcmc_federated.py --splits 3

A 50-50 perceptron, four clients, the budget of `bnn.MCMC` for rounds of ten steps; SGLD alone takes as many steps. The
last column is the root mean square, over the test rows, of how far the mean function is from that of SGLD, in its own
standard deviations.
"""

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from bayeskit import BNNRegressor, bnn, mcmc

ROUNDS = {"num_chains": 2, "num_samples": 60, "burn_in": 60, "thin": 1}
STEPS = {"num_chains": 2, "num_samples": 60, "burn_in": 600, "thin": 10}
SURROGATES = {
    "slopes anew each round": {},
    "Gaussians, made once": {"refresh": None, "num_probes": 32},
    "no surrogates": {"conducive": False},
}
METHODS = {
    "sgld": bnn.MCMC(mcmc.SGLD(), **STEPS),
    "sgld, another seed": bnn.MCMC(mcmc.SGLD(), **STEPS),
    **{
        f"federated, {dealt}, {made}": bnn.MCMC(mcmc.Federated(skew=skew, **settings), **ROUNDS)
        for dealt, skew in (("at random", 0.0), ("by target", 1.0))
        for made, settings in SURROGATES.items()
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = load_diabetes(return_X_y=True)
    found = {name: [] for name in METHODS}
    for split in range(arguments.splits):
        parts = train_test_split(x, y, test_size=0.2, random_state=split)
        reference = None
        for name, method in METHODS.items():
            numbers, reference = measured(method, parts, split + 100 * ("seed" in name), reference)
            found[name].append(numbers)
    print(
        "| method | fit s | RMSE | NLL | 90 % intervals hold | R-hat | off from SGLD |\n|---|---|---|---|---|---|---|"
    )
    for name, rows in found.items():
        seconds, rmse, nll, held, rhat, off = np.mean(rows, 0)
        print(f"| {name} | {seconds:.1f} | {rmse:.2f} | {nll:.3f} | {held:.3f} | {rhat:.2f} | {off:.2f} |")


def measured(method, parts, seed, reference):
    """What one fit gives, and the reference mean and spread: those of the first fit, if there is none."""
    x, x_test, y, y_test = parts
    begin = time.process_time()
    model = BNNRegressor(inference=method, random_state=seed).fit(x, y)
    seconds = time.process_time() - begin
    predictive, values = model.predictive(x_test), model.latent(x_test)
    reference = reference or (values.mean, values.variance.sqrt())
    off = ((values.mean - reference[0]) / reference[1]).square().mean().sqrt().item()
    low, high = predictive.interval(0.9)
    held = np.mean((np.asarray(low) <= y_test) & (y_test <= np.asarray(high)))
    rmse = np.sqrt(np.mean((model.predict(x_test) - y_test) ** 2))
    nll = -float(np.mean(np.asarray(predictive.log_prob(y_test))))
    return (seconds, rmse, nll, held, model.diagnostics_["R-hat"], off), reference


if __name__ == "__main__":
    main()
