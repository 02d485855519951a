"""Sparse variational GPs compared with GPyTorch's: time of a step, of prediction, and scaling of a step.

    python benchmarks/gp_speed.py --only step,natural,predict,scaling --threads 1

Everything is timed interleaved in one process, medians, after both sides were found to agree at the same parameters.
"""

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time

import gpytorch
import numpy as np
import torch

from bayeskit import gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training, minimize
from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model, learnable
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.natural_gradient import NaturalGradient
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound, data_term

SIZES = ((128, 256), (512, 1024), (1024, 1024))
NUM_ROWS, FEATURES = 40_000, 8


class Peer(gpytorch.models.ApproximateGP):
    """GPyTorch's whitened sparse GP with a Matern-5/2 kernel."""

    def __init__(self, z, *, natural=False):
        q = gpytorch.variational.NaturalVariationalDistribution if natural else None
        q = q or gpytorch.variational.CholeskyVariationalDistribution
        super().__init__(gpytorch.variational.VariationalStrategy(self, z, q(len(z)), learn_inducing_locations=True))
        self.mean_module = gpytorch.means.ConstantMean()
        base = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=z.shape[1])
        self.covar_module = gpytorch.kernels.ScaleKernel(base)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def problem(m, b):
    g = torch.Generator().manual_seed(0)
    z, x = torch.randn(m, FEATURES, generator=g), torch.randn(b, FEATURES, generator=g)
    return z, x, x.sum(-1).sin()


def agree(m=64, b=100):
    """Bound, gradients and predictions at the same parameters: 1e-6 in float64, 1e-3 in float32 (jitter 1e-6)."""
    z, x, y = (t.double() for t in problem(m, b))
    peer, noise = Peer(z).double(), gpytorch.likelihoods.GaussianLikelihood().double()
    q = peer.variational_strategy._variational_distribution
    g = torch.Generator().manual_seed(1)
    q.variational_mean.data = torch.randn(m, dtype=z.dtype, generator=g)
    q.chol_variational_covar.data = torch.eye(m).double() / 2 + torch.randn(m, m, generator=g).double().tril() / m
    peer.variational_strategy.variational_params_initialized.fill_(1)
    with (
        gpytorch.settings.variational_cholesky_jitter(double_value=1e-12),
        gpytorch.settings.cholesky_jitter(None, 0.0),
    ):
        value = gpytorch.mlls.VariationalELBO(noise, peer, num_data=NUM_ROWS)(peer(x), y)
        leaves = [*peer.covar_module.parameters(), peer.mean_module.raw_constant]
        leaves += [peer.variational_strategy.inducing_points, q.variational_mean, q.chol_variational_covar]
        expected = [value, *torch.autograd.grad(value, [*leaves, noise.raw_noise])]
        peer.eval()
        predicted = peer(x)
    likelihood = Gaussian(noise.noise.detach())
    scale = torch.autograd.grad(noise.noise.sum(), noise.raw_noise)[0] / (likelihood.noise - likelihood.floor).detach()
    model = Model(copy.deepcopy(peer.mean_module), copy.deepcopy(peer.covar_module), likelihood, 1)
    data = Data(x, y.unsqueeze(-1), scale=NUM_ROWS / b)
    where = z.clone().requires_grad_(True)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
        mean, root = (t.detach().to(dtype).unsqueeze(0).requires_grad_(True) for t in leaves[-2:])
        half = root.double()
        logdet = 2 * half.diagonal(dim1=-2, dim2=-1).abs().log().sum()
        divergence = 0.5 * (half.square().sum() + mean.double().square().sum() - m - logdet)
        ours = (data_term(model, where, mean, root, data, form="root") - divergence) / NUM_ROWS
        ordered = [*model.kernel.parameters(), model.mean.raw_constant, where, mean, root, likelihood.raw_noise]
        found = [ours, *torch.autograd.grad(ours, ordered)]
        found[-2], found[-1] = found[-2].tril(), found[-1] * scale
        for one, two in zip(found, expected, strict=True):
            error = float((one.detach().reshape(two.shape) - two.detach()).norm() / (1e-3 + two.detach().norm()))
            assert error < tolerance, (dtype, error)
    values = WhitenedGaussian(leaves[-2].detach().unsqueeze(0), leaves[-1].detach().unsqueeze(0)).posterior(model, z)(x)
    assert (values.mean[:, 0] - predicted.mean).abs().max() < 1e-6
    assert (values.variance[:, 0] - predicted.variance).abs().max() < 1e-6
    print("Bound, gradients and predictions agree: 1e-6 in float64, 1e-3 in float32.\n")


def their_step(m, b, *, natural):
    z, x, y = problem(m, b)
    peer, noise = Peer(z, natural=natural).train(), gpytorch.likelihoods.GaussianLikelihood().train()
    objective = gpytorch.mlls.VariationalELBO(noise, peer, num_data=NUM_ROWS)
    rest = [*peer.hyperparameters(), *noise.parameters()]
    if natural:
        first = gpytorch.optim.NGD(peer.variational_parameters(), num_data=NUM_ROWS, lr=0.1)
        optimizers = [first, torch.optim.Adam(rest, lr=0.01)]
    else:
        optimizers = [torch.optim.Adam([*peer.parameters(), *noise.parameters()], lr=0.01)]

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad()
        (-objective(peer(x), y)).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def our_step(m, b, *, natural, repeats):
    """Steps of the library's own training loop, each an epoch of one batch."""
    z, x, y = problem(m, b)
    data = Data(x.double(), y.double().unsqueeze(-1), scale=NUM_ROWS / b)
    model = learnable(gp.default_prior(data.x), Gaussian(), learn=True)
    where = z.double().requires_grad_(True)
    start = WhitenedGaussian.prior(1, where)
    learnt, settings, own = [*model.parameters, where], {}, None
    if natural:
        mean, covariance = (t.detach().float().requires_grad_(True) for t in (start.mean, start.root))
        own = NaturalGradient(mean, covariance, num_rows=b, lr=0.1)
        settings = {"second_optimizer": own, "buffers": own.memory}

        def loss(batch):
            return own.divergence - data_term(model, where, mean, covariance, batch, form="sites") - model.log_prior()
    else:
        leaves = start.leaves(torch.float32)
        learnt += leaves

        def loss(batch):
            return -bound(model, where, WhitenedGaussian(*leaves), batch) - model.log_prior()

    training = Training(lr=0.01, max_epochs=repeats, batch_size=None)

    def steps():
        minimize(loss, learnt, data, training, generator=torch.Generator(), **settings)

    return steps


def interleaved(first, second, rounds):
    """Medians of wall and of processor time of both, in milliseconds, after a warm-up."""
    spent = ([], [])
    for k in range(rounds + 1):
        for call, times in zip((first, second), spent, strict=True):
            begin = time.perf_counter(), time.process_time()
            call()
            if k:
                times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return [[1e3 * statistics.median(column) for column in zip(*times, strict=True)] for times in spent]


def steps(*, natural):
    print(f"### A step, {'natural gradients and ' if natural else ''}Adam, float32, milliseconds\n")
    print("| M | B | bayeskit | GPyTorch | ratio | ratio of processor time |\n|---|---|---|---|---|---|")
    for m, b in SIZES:
        theirs, repeats = their_step(m, b, natural=natural), 20 if m < 200 else 3
        ours, peer = interleaved(
            our_step(m, b, natural=natural, repeats=repeats), lambda f=theirs, r=repeats: [f() for _ in range(r)], 8
        )
        numbers = ours[0] / repeats, peer[0] / repeats, ours[0] / peer[0], ours[1] / peer[1]
        print("| {} | {} | {:.2f} | {:.2f} | {:.2f} | {:.2f} |".format(m, b, *numbers), flush=True)
    print()


def fitted(m=512):
    """Our posterior and GPyTorch's model, same M and kernel, ready to predict."""
    z, x, y = problem(m, 4000)
    data = Data(x.double(), y.double().unsqueeze(-1))
    model = learnable(gp.default_prior(data.x), Gaussian(0.05), learn=False)
    posterior = collapsed(model, data.x[:m], data).posterior(model.process(), data.x[:m])
    return posterior, Peer(z).eval()


def our_prediction(posterior: GaussianProcess, x):
    with torch.no_grad():
        return posterior(x).moments


def predict(n=100_000):
    posterior, peer = fitted()
    x = torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(2))

    def theirs():
        with torch.no_grad(), gpytorch.settings.fast_pred_var():
            return [(values.mean, values.variance) for values in map(peer, x.split(1024))]

    ours, other = interleaved(lambda: our_prediction(posterior, x), theirs, 3)
    print(f"### Mean and variance at {n} points, M = 512 (ours in float64, theirs in float32, chunks of 1024)\n")
    print("| bayeskit s | GPyTorch s | ratio | ratio of processor time |\n|---|---|---|---|")
    print(f"| {ours[0] / 1e3:.2f} | {other[0] / 1e3:.2f} | {ours[0] / other[0]:.2f} | {ours[1] / other[1]:.2f} |\n")
    for count in (100_000, 1_000_000):
        command = [sys.executable, __file__, "--memory", str(count), "--threads", str(torch.get_num_threads())]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)
    print()


def memory(n):
    """Growth of the peak memory of this process, beyond inputs and results."""
    posterior, _ = fitted()
    x = torch.randn(n, FEATURES)
    our_prediction(posterior, x[:5000])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    our_prediction(posterior, x)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    own = n * 8 * (FEATURES + 2) / 2**20
    print(f"{n} points: peak grew by {grown:.0f} MiB, of which inputs in float64 and results are {own:.0f}")


def scaling(figure):
    """Processor time of an Adam step against its flops over the rate of a float32 product, measured next to it."""
    square = torch.randn(1024, 1024)
    sizes = [(128, 1024), (256, 1024), (512, 256), (512, 1024), (512, 4096), (1024, 1024), (1024, 4096), (2048, 1024)]
    print("### A step as M and B grow, beside a product of 1024 x 1024 matrices\n")
    print("| M | B | processor ms | Gflop | Gflop/s of a product | share of that |\n|---|---|---|---|---|---|")
    points, rates = [], []
    for m, b in sizes:
        ours, product = interleaved(our_step(m, b, natural=False, repeats=2), lambda: square @ square, 3)
        seconds, rate = ours[1] / 2e3, 2 * 1024**3 / (product[1] / 1e3)
        # Products and solves that know of triangles and symmetry: 5 M^2 B with the rows, 4 M^3 without.
        flops = 5 * m * m * b + 4 * m**3
        points.append((flops, seconds))
        rates.append(rate)
        numbers = 1e3 * seconds, flops / 1e9, rate / 1e9, flops / rate / seconds
        print("| {} | {} | {:.1f} | {:.2f} | {:.0f} | {:.2f} |".format(m, b, *numbers), flush=True)
    print()
    rate = statistics.median(rates)
    if figure is not None:
        import matplotlib.pyplot as plt

        flops, seconds = np.array(sorted(points)).T
        fig, ax = plt.subplots(figsize=(5, 3.5))
        ax.loglog(flops, seconds, "o-", label="an Adam step")
        ax.loglog(flops, flops / rate, "--", label="its flops at the rate of a product")
        ax.set(xlabel="flops", ylabel="seconds")
        ax.legend()
        fig.tight_layout()
        fig.savefig(figure, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="step,natural,predict,scaling")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", default=None, help="where to write the plot of the scaling section (PNG)")
    parser.add_argument("--memory", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory is not None:
        memory(arguments.memory)
        return
    print(f"torch {torch.__version__}, gpytorch {gpytorch.__version__}, {arguments.threads} threads\n")
    agree()
    sections = {
        "step": lambda: steps(natural=False),
        "natural": lambda: steps(natural=True),
        "predict": predict,
        "scaling": lambda: scaling(arguments.figure),
    }
    for name in arguments.only.split(","):
        sections[name]()


if __name__ == "__main__":
    main()
