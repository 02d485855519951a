"""Bayesian last layers beside the package vbll: the same numbers, and the time of a step.

A step is forward and backward of the loss, to the features and to all parameters.
"""

import math

import torch
from torch import nn

from bayeskit import bnn
from bnn_costs.timing import Row, interleaved

try:
    import vbll
except ImportError:
    vbll = None

NUM_DATA, BATCH, FEATURES, OUTPUTS, RANK = 10_000, 1024, 128, 10, 8
ASKED = {("classification", "dense"): 1 / 50, ("classification", "diagonal"): 1 / 5, ("regression", "dense"): 1 / 10}
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
    """Copy the peer's Gaussian to our head."""
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
        noise = float(torch.exp(2 * peer.noise_logdiag.detach()))
        ours = own_layer("regression", d, 1, covariance, n, 2, noise=noise, noise_prior=prior, dtype=torch.float64)
        copy_rows(peer, ours.rows, covariance)
        losses, slopes = [], []
        # the peer drops d / 2 of the divergence of a row, and has its constants for the low-rank trace
        for loss in (lambda f, peer=peer: peer(f).train_loss_fn(y), lambda f, ours=ours: ours.loss(f, y) + d / 2 / n):
            features = x.clone().requires_grad_()
            try:
                value = loss(features)
            except Exception as error:
                yield Row(
                    f"VBLL regression {covariance}", beside="vbll", note=f"the peer raises {type(error).__name__}"
                )
                break
            losses.append(float(value.detach()))
            slopes.append(torch.autograd.grad(value, features)[0])
        else:
            predictive, own = peer(x).predictive, ours.predictive(x)
            gaps = [
                abs(losses[0] - losses[1]),
                float((slopes[0] - slopes[1]).abs().max()),
                float((predictive.mean - own.mean).abs().max().detach()),
                float((predictive.variance - own.variance).abs().max().detach()),
            ]
            assert max(gaps) < 1e-9, gaps
            note = f"float64, one output: loss, gradient and prediction agree to {max(gaps):.0e}"
            yield Row(f"VBLL regression {covariance}", beside="vbll", note=note)


# -- time ------------------------------------------------------------------------------------------------------------


def step(layer, loss, features):
    def run():
        layer.zero_grad(set_to_none=True)
        loss(features.detach().requires_grad_()).backward()

    return run


def rows(rounds):
    """Steps beside the peer's and a linear layer with its ordinary loss, and `fit` on its own."""
    if vbll is not None:
        yield from parity()
    features = torch.randn(BATCH, FEATURES, generator=generator())
    real = torch.randn(BATCH, OUTPUTS, generator=generator(1))
    labels = torch.randint(OUTPUTS, (BATCH,), generator=generator(2))
    for kind, y in (("classification", labels), ("regression", real)):
        for covariance in ("dense", "diagonal", "low_rank"):
            yield from steps(kind, covariance, features, y, rounds)
    yield from optimum()


def steps(kind, covariance, features, y, rounds):
    torch.manual_seed(0)
    sizes = (kind, FEATURES, OUTPUTS, covariance, NUM_DATA, RANK)
    ordinary = nn.functional.cross_entropy if kind == "classification" else nn.functional.mse_loss
    linear = nn.Linear(FEATURES, OUTPUTS)
    runs = {"linear layer": step(linear, lambda f: ordinary(linear(f), y), features)}
    if vbll is not None:
        peer = peer_layer(*sizes)
        runs["vbll"] = step(peer, lambda f: peer(f).train_loss_fn(y), features)
    bounds = ("jensen", "knowles_minka") if kind == "classification" else ("exact",)
    for bound in bounds:
        ours = own_layer(*sizes, **({"bound": bound} if kind == "classification" else {}))
        runs[bound] = step(ours, lambda f, ours=ours: ours.loss(f, y), features)
    times = interleaved(runs, rounds, repeats=1 if covariance == "dense" else 8)
    for bound in bounds:
        case = f"VBLL {kind} {covariance}, {bound}"
        note = f"{times.median(bound) - times.median('linear layer'):.2f} ms over a linear layer"
        yield times.row(case, bound, "linear layer", note=note)
        if vbll is not None:
            yield times.row(case, bound, "vbll", ASKED.get((kind, covariance)))


def optimum(rounds=3):
    """`fit` on fixed features: closed form, and natural gradients for labels."""
    features = torch.randn(NUM_DATA, FEATURES, generator=generator())
    weights = torch.randn(FEATURES, OUTPUTS, generator=generator(1)) / math.sqrt(FEATURES)
    labels = (4 * features @ weights).argmax(-1)
    for kind, y in (("regression", features @ weights), ("classification", labels)):

        def fit(kind=kind, y=y):
            torch.manual_seed(0)
            own_layer(kind, FEATURES, OUTPUTS, "dense", NUM_DATA, RANK).fit(features, y)

        times = interleaved({"fit": fit}, rounds)
        yield Row(f"VBLL {kind} dense, `fit`", times.median("fit"), note=f"{NUM_DATA:,} rows")
