"""Bayesian last layers beside the package vbll: the same numbers, and the time of a step.

    python benchmarks/bnn_speed_vbll.py --only parity,step,optimum --threads 1

The package is run, not imported by the library: `pip install --no-deps vbll`. A step is forward and backward of the
loss, to the features and to all parameters; sides are interleaved in one process, and medians of process time taken.
"""

import argparse
import math
import statistics
import time

import torch
import vbll
from torch import nn

from bayeskit import bnn

NUM_DATA, BATCH, FEATURES, OUTPUTS, RANK = 10_000, 1024, 128, 10, 8
PEER_NAMES = {"dense": "dense", "diagonal": "diagonal", "low_rank": "lowrank", "dense_precision": "dense_precision"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def peer_layer(kind, d, k, covariance, num_data, rank):
    built = vbll.Regression if kind == "regression" else vbll.DiscClassification
    extra = {"cov_rank": rank} if covariance == "low_rank" else {}
    return built(d, k, 1 / num_data, parameterization=PEER_NAMES[covariance], **extra)


def own_layer(kind, d, k, covariance, num_data, rank, **options):
    built = bnn.VBLLRegression if kind == "regression" else bnn.VBLLClassification
    return built(d, k, num_data=num_data, covariance=covariance, rank=rank, **options)


# -- the same numbers ------------------------------------------------------------------------------------------------


def copy_rows(peer, rows, covariance):
    """Give our rows the law of the peer's."""
    with torch.no_grad():
        rows.mean.copy_(peer.W_mean)
        scale = peer.W_logdiag / 2 if covariance == "low_rank" else peer.W_logdiag
        rows.log_scale.copy_(scale)
        if covariance == "low_rank":
            rows.factor.copy_(peer.W_offdiag)
        elif covariance in ("dense", "dense_precision"):
            rows.lower.copy_(peer.W_offdiag.tril(-1) / scale.exp().unsqueeze(-1))


def parity(n=40, d=6):
    """Loss, gradient in the features and predictions of a regression with one output, to 1e-9 in float64."""
    x, y = torch.randn(n, d, generator=generator()).double(), torch.randn(n, 1, generator=generator(1)).double()
    for covariance in PEER_NAMES:
        torch.manual_seed(0)
        peer = peer_layer("regression", d, 1, covariance, n, 2).double()
        with torch.no_grad():
            peer.noise_logdiag.fill_(-0.7)
        prior = bnn.InverseWishart(dof=1.0, scale=peer.wishart_scale)
        noise = float(torch.exp(2 * peer.noise_logdiag))
        ours = own_layer("regression", d, 1, covariance, n, 2, noise=noise, noise_prior=prior, dtype=torch.float64)
        copy_rows(peer, ours.rows, covariance)
        losses, slopes = [], []
        # the peer drops d / 2 of the divergence of a row, and has its constants for the low-rank trace
        for loss in (lambda f, peer=peer: peer(f).train_loss_fn(y), lambda f, ours=ours: ours.loss(f, y) + d / 2 / n):
            features = x.clone().requires_grad_()
            try:
                value = loss(features)
            except Exception as error:
                print(f"parity {covariance}: the peer raises {type(error).__name__}: {error}")
                break
            losses.append(float(value.detach()))
            slopes.append(torch.autograd.grad(value, features)[0])
        else:
            law, own = peer(x).predictive, ours.predictive(x)
            gaps = {
                "loss": abs(losses[0] - losses[1]),
                "gradient": float((slopes[0] - slopes[1]).abs().max()),
                "mean": float((law.mean - own.mean).abs().max().detach()),
                "variance": float((law.variance - own.variance).abs().max().detach()),
            }
            print(f"parity {covariance}:", {name: f"{gap:.1e}" for name, gap in gaps.items()})


# -- time ------------------------------------------------------------------------------------------------------------


def step(layer, loss, features):
    def run():
        layer.zero_grad(set_to_none=True)
        loss(features.detach().requires_grad_()).backward()

    return run


def seconds(runs, repeats):
    """Median process time of each, interleaved."""
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def steps(repeats=9):
    """A step of each layer, beside the peer's and a linear layer with its ordinary loss."""
    features = torch.randn(BATCH, FEATURES, generator=generator())
    real = torch.randn(BATCH, OUTPUTS, generator=generator(1))
    labels = torch.randint(OUTPUTS, (BATCH,), generator=generator(2))
    for kind, y in (("classification", labels), ("regression", real)):
        ordinary = nn.functional.cross_entropy if kind == "classification" else nn.functional.mse_loss
        linear = nn.Linear(FEATURES, OUTPUTS)
        for covariance in ("dense", "diagonal", "low_rank"):
            torch.manual_seed(0)
            sizes = (kind, FEATURES, OUTPUTS, covariance, NUM_DATA, RANK)
            peer = peer_layer(*sizes)
            runs = {
                "linear": step(linear, lambda f, linear=linear, y=y, o=ordinary: o(linear(f), y), features),
                "vbll": step(peer, lambda f, peer=peer, y=y: peer(f).train_loss_fn(y), features),
            }
            bounds = ("jensen", "knowles_minka") if kind == "classification" else ("exact",)
            for bound in bounds:
                options = {"bound": bound} if kind == "classification" else {}
                ours = own_layer(*sizes, **options)
                runs[bound] = step(ours, lambda f, ours=ours, y=y: ours.loss(f, y), features)
            times = seconds(runs, repeats)
            line = ", ".join(f"{name} {1e3 * t:.2f} ms" for name, t in times.items())
            ratios = ", ".join(f"{b}: vbll / {times['vbll'] / times[b]:.1f}" for b in bounds)
            print(f"{kind} {covariance}: {line}; {ratios}")


def optimum(repeats=3):
    """`fit` on fixed features: closed form, and natural gradients for labels."""
    features = torch.randn(NUM_DATA, FEATURES, generator=generator())
    weights = torch.randn(FEATURES, OUTPUTS, generator=generator(1)) / math.sqrt(FEATURES)
    labels = (4 * features @ weights).argmax(-1)
    for kind, y in (("regression", features @ weights), ("classification", labels)):
        times = []
        for _ in range(repeats):
            torch.manual_seed(0)
            ours = own_layer(kind, FEATURES, OUTPUTS, "dense", NUM_DATA, RANK)
            began = time.process_time()
            ours.fit(features, y)
            times.append(time.process_time() - began)
        print(f"optimum {kind}, {NUM_DATA} rows: {statistics.median(times):.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="parity,step,optimum")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, run in {"parity": parity, "step": steps, "optimum": optimum}.items():
        if name in arguments.only.split(","):
            run()
