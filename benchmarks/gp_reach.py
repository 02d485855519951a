"""Time to reach the accuracy that GPyTorch's sparse variational GP ends at.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_reach.py [--sets elevators,kin40k,protein] [--threads 1]

GPyTorch fits once a set: 512 inducing points that start at training rows, Matern-5/2 with a lengthscale a feature,
float32, Adam at 0.01, 30 epochs of batches of 1,024. Then methods of ours with budgets from the smallest up, until one
has a negative log predictive density as low on the test rows. In units standardized by the training rows of split 0.
"""

import argparse
import time

import gpytorch
import torch
from gp_quality import load
from gp_speed import Peer

from bayeskit import gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

SETS = ("elevators", "kin40k", "protein")


def methods(n):
    """Methods of the library by increasing cost."""
    for rows, m in ((500, 256), (1000, 256), (1000, 512), (1000, 1024), (2000, 1024)):
        yield (
            f"sgpr, M = {m}, hyperparameters from {rows} rows",
            gp.SGPR(num_inducing=m, learning="subset", learning_rows=rows),
        )
    for m, steps in ((256, 60), (512, 150), (512, 300)):
        epochs = max(1, round(steps * 1024 / n))
        training = Training(lr=0.05, max_epochs=epochs, batch_size=n // round(steps / epochs), schedule="cosine")
        yield f"svgp, M = {m}, {steps} steps", gp.SVGP(num_inducing=m, training=training)


def their_fit(x, y, *, epochs=30):
    """Seconds elapsed and of processor time, and the predictive mean and variance as a function of inputs."""
    x, y = x.float(), y[:, 0].float()
    g = torch.Generator().manual_seed(0)
    peer = Peer(x[torch.randperm(len(x), generator=g)[:512]].clone()).train()
    noise = gpytorch.likelihoods.GaussianLikelihood().train()
    objective = gpytorch.mlls.VariationalELBO(noise, peer, num_data=len(x))
    optimizer = torch.optim.Adam([*peer.parameters(), *noise.parameters()], lr=0.01)
    begin = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=g).split(1024):
            optimizer.zero_grad()
            (-objective(peer(x[rows]), y[rows])).backward()
            optimizer.step()
    spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
    peer.eval(), noise.eval()

    @torch.no_grad()
    def predict(x_test):
        parts = [noise(peer(part)) for part in x_test.float().split(1024)]
        return torch.cat([part.mean for part in parts]).double(), torch.cat([part.variance for part in parts]).double()

    return predict, *spent


def our_fit(method, x, y):
    """As `their_fit`."""
    begin = time.perf_counter(), time.process_time()
    fit = method.infer(gp.default_prior(x), Gaussian(), Data(x, y), generator=torch.Generator().manual_seed(0))
    spent = time.perf_counter() - begin[0], time.process_time() - begin[1]

    def predict(x_test):
        predictive = fit.likelihood.predictive(fit.posterior(x_test))
        return predictive.mean[:, 0], predictive.variance[:, 0]

    return predict, *spent


def row(name, label, fitted, x_test, y_test, target):
    """Print a line of the table; the negative log predictive density."""
    predict, *spent = fitted
    mean, variance = predict(x_test)
    residual = y_test[:, 0] - mean
    nlpd = float(0.5 * ((2 * torch.pi * variance).log() + residual.square() / variance).mean())
    numbers = float(residual.square().mean().sqrt()), nlpd, *spent
    share = 1.0 if target is None else spent[1] / target
    print("| {} | {} | {:.3f} | {:.3f} | {:.1f} | {:.1f} | {:.2f} |".format(name, label, *numbers, share), flush=True)
    return nlpd


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| set | method | RMSE | NLPD | s | processor s | share of GPyTorch's processor time |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.sets.split(","):
        x, y, x_test, y_test = (torch.from_numpy(values) for values in load(name, 0))
        y, y_test = y.unsqueeze(-1), y_test.unsqueeze(-1)
        theirs = their_fit(x, y)
        goal = row(name, "GPyTorch", theirs, x_test, y_test, None)
        for label, method in methods(len(x)):
            if row(name, label, our_fit(method, x, y), x_test, y_test, theirs[2]) <= goal:
                break


if __name__ == "__main__":
    main()
