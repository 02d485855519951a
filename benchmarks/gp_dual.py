"""DualSVGP compared with Adam and natural gradients: time of a step, and bound during training.

    BAYESKIT_DATA=folder-of-npz-files python benchmarks/gp_dual.py [step] [trace] [--seconds 30] [--figure trace.png]

`step` prints processor time of one step (natural gradient of q, Adam on hyperparameters and Z) and its ratio to that of
GPyTorch's NGD and Adam in float32. `trace` gives three methods the same start, M, batch, learning rate and processor
time, on one thread: the step of DualSVGP, our SVGP by Adam on everything, GPyTorch's SVGP (float32) by Adam. It prints
the bound over all rows, in nats a row and formed by one function in float64, after each tenth of the time. The products
of our own steps are in float32 unless `--precision double` is given.
`BAYESKIT_DATA` is a folder in which `gp_regression/{elevators,kin40k}.npz` and `classification/banana.npz` lie.
"""

import argparse
import copy
import os
import statistics
import time
from pathlib import Path

import gpytorch
import matplotlib.pyplot as plt
import numpy as np
import torch

from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp import default_prior
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.methods.dual_svgp import initial_sites
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.inducing_points import starting_points
from bayeskit.gp.model.minibatches import TYPES
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound


def table(name):
    """Training rows of split 0, standardized."""
    folder = Path(os.environ["BAYESKIT_DATA"])
    if name == "banana":
        arrays = np.load(folder / "classification" / "banana.npz")
        x, y = arrays["X_full"], torch.from_numpy((arrays["y_full"] == arrays["y_full"].max()).astype(np.int64))
    else:
        arrays = np.load(folder / "gp_regression" / f"{name}.npz")
        train = arrays["test_fold"] != 0
        x, y = arrays["X"][train], arrays["y"][train]
        y = torch.from_numpy((y - y.mean()) / y.std()).unsqueeze(-1)
    return Data(torch.from_numpy((x - x.mean(0)) / x.std(0).clip(1e-10)), y)


def synthetic(n, d=10):
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Data(x, x.sum(-1, keepdim=True).sin())


def likelihood_of(data):
    return Gaussian() if data.y.is_floating_point() else Bernoulli("probit")  # GPyTorch's Bernoulli is a probit


class Dual:
    """One step of DualSVGP's mini-batch phase."""

    name = "DualSVGP"
    dtype = torch.float32

    def __init__(self, data, z, lr):
        self.n, self.model = len(data), learnable(default_prior(data.x), likelihood_of(data), learn=True)
        self.z = z.clone().requires_grad_()
        self.inducing = initial_sites(self.model, z, data, self.dtype)
        self.leaves = [*self.model.parameters, self.z]
        self.optimizer = torch.optim.Adam(self.leaves, lr=lr)

    def objective(self, batch):
        return self.inducing.bound(self.model, self.z, batch, length=max(0.1, 1 / batch.scale), dtype=self.dtype)

    def step(self, batch):
        loss = -(self.objective(batch) + self.model.log_prior()) / self.n
        for leaf, gradient in zip(self.leaves, torch.autograd.grad(loss, self.leaves), strict=True):
            leaf.grad = gradient
        self.optimizer.step()

    def state(self):
        """Model, Z and q in float64, apart from what goes on changing."""
        model, z, inducing = copy.deepcopy((self.model, self.z.detach(), self.inducing))
        with torch.no_grad():
            inducing.move(model, z, factorize(gram(model.kernel, z, z), name="K_zz").tril)
        return model, z, WhitenedGaussian.from_sites(inducing.sites)


class Adam(Dual):
    """One step of SVGP: Adam on q as well."""

    name = "SVGP"

    def __init__(self, data, z, lr):
        super().__init__(data, z, lr)
        start = WhitenedGaussian.from_sites(self.inducing.sites)  # SVGP too starts from a q brought near its optimum
        self.q = start.leaves(self.dtype)
        self.leaves = [*self.leaves, *self.q]
        self.optimizer = torch.optim.Adam(self.leaves, lr=lr)

    def objective(self, batch):
        return bound(self.model, self.z, WhitenedGaussian(*self.q), batch)

    def state(self):
        model, z, q = copy.deepcopy((self.model, self.z.detach(), [leaf.detach().double() for leaf in self.q]))
        return model, z, WhitenedGaussian(*q)


class Peer(gpytorch.models.ApproximateGP):
    """GPyTorch's SVGP in float32, from the same start."""

    name = "GPyTorch"

    def __init__(self, data, z, lr, *, natural=False):
        family = gpytorch.variational.NaturalVariationalDistribution if natural else None
        family = family or gpytorch.variational.CholeskyVariationalDistribution
        strategy = gpytorch.variational.VariationalStrategy(
            self, z.float(), family(len(z)), learn_inducing_locations=True
        )
        super().__init__(strategy)
        self.mean_module = gpytorch.means.ConstantMean()
        base = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=z.shape[-1])
        base.lengthscale = default_prior(data.x).kernel.base_kernel.lengthscale.float()
        self.covar_module = gpytorch.kernels.ScaleKernel(base)
        self.covar_module.outputscale = 1.0
        self.gaussian = data.y.is_floating_point()
        likelihoods = gpytorch.likelihoods
        self.likelihood = likelihoods.GaussianLikelihood() if self.gaussian else likelihoods.BernoulliLikelihood()
        if self.gaussian:
            self.likelihood.noise = 0.1
        self.losses = (
            gpytorch.mlls.VariationalELBO(self.likelihood, self, num_data=len(data)),
        )  # no submodule: a cycle
        hyper = [*self.hyperparameters()]  # the likelihood's are among them
        self.optimizers = [torch.optim.Adam(hyper if natural else self.parameters(), lr=lr)]
        if natural:
            self.optimizers.append(gpytorch.optim.NGD(self.variational_parameters(), num_data=len(data), lr=0.1))

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def step(self, batch):
        y = batch.y[:, 0].float() if self.gaussian else batch.y.float()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = -self.losses[0](self(batch.x.float()), y)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def state(self):
        held = copy.deepcopy(self.state_dict())
        z, q = held["variational_strategy.inducing_points"], "variational_strategy._variational_distribution."
        likelihood = Gaussian(self.likelihood.noise.detach().double()) if self.gaussian else Bernoulli("probit")
        model = learnable(default_prior(z.double()), likelihood, learn=False)
        model.mean, model.kernel = copy.deepcopy((self.mean_module, self.covar_module))
        model.mean.double(), model.kernel.double()
        lower = held[q + "chol_variational_covar"].double().tril()
        upper = torch.linalg.cholesky((lower @ lower.mT).flip(-1, -2)).flip(-1, -2)
        return model, z.double(), WhitenedGaussian(held[q + "variational_mean"].double()[None], upper[None])


def full_bound(state, data):
    """The bound over all rows, in nats a row."""
    model, z, q = state
    with torch.no_grad():
        parts = [bound(model, z, q, batch) for batch in data.batches(4096)]
        sizes = [min(4096, len(data) - start) for start in range(0, len(data), 4096)]
        return sum(p.item() * size for p, size in zip(parts, sizes, strict=True)) / len(data) ** 2


def traced(build, data, z, arguments):
    """Bounds after each tenth of the time; time taken to start counts, that of looking does not."""
    build(data, z, arguments.lr).step(next(data.batches(arguments.batch)))  # what is slow the first time
    begin = time.process_time()
    trainer = build(data, z, arguments.lr)
    used, generator, states = time.process_time() - begin, torch.Generator().manual_seed(0), []
    while len(states) < 10:
        for batch in data.batches(arguments.batch, generator=generator):
            begin = time.process_time()
            trainer.step(batch)
            used += time.process_time() - begin
            while len(states) < 10 and used >= (len(states) + 1) * arguments.seconds / 10:
                states.append(trainer.state())
    return [full_bound(state, data) for state in states]


def trace(arguments):
    figure, axes = plt.subplots(1, len(arguments.sets), figsize=(4 * len(arguments.sets), 3), squeeze=False)
    for name, ax in zip(arguments.sets, axes[0], strict=True):
        data, generator = table(name), torch.Generator().manual_seed(0)
        z, _ = starting_points(
            default_prior(data.x).kernel, data.x, arguments.inducing, start="kmeans", generator=generator
        )
        print(f"\n{name}: {len(data)} rows, M = {arguments.inducing}, bound in nats a row after each tenth\n")
        print("| method | " + " | ".join(f"{(i + 1) * arguments.seconds / 10:g} s" for i in range(10)) + " |")
        print("|---" * 11 + "|")
        for build in (Dual, Adam, Peer):
            values = traced(build, data, z, arguments)
            print(f"| {build.name} | " + " | ".join(f"{v:.4f}" for v in values) + " |", flush=True)
            ax.plot([(i + 1) * arguments.seconds / 10 for i in range(10)], values, label=build.name)
        ax.set(title=name, xlabel="processor seconds", ylabel="bound / n")
        ax.legend()
    if arguments.figure:
        figure.savefig(arguments.figure, bbox_inches="tight")


def step(arguments):
    print("| M | batch | DualSVGP, ms | GPyTorch NGD + Adam, float32, ms | ratio |\n|---|---|---|---|---|")
    for m, b in ((128, 256), (512, 1024), (1024, 1024)):
        data = synthetic(20_000)
        z = data.x[:m].clone()
        batch = next(data.batches(b))
        steps = Dual(data, z, 0.01).step, Peer(data, z, 0.01, natural=True).step
        times = ([], [])
        for _ in range(arguments.repeats + 2):
            for run, spent in zip(steps, times, strict=True):  # interleaved: both meet the same machine
                begin = time.process_time()
                run(batch)
                spent.append(1e3 * (time.process_time() - begin))
        ours, theirs = (statistics.median(spent[2:]) for spent in times)
        print(f"| {m} | {b} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["step", "trace"], choices=["step", "trace"])
    parser.add_argument("--sets", nargs="+", default=["elevators", "kin40k", "banana"])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--inducing", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", choices=TYPES, default="single", help="of the products of our steps")
    parser.add_argument("--figure", default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    Dual.dtype = TYPES[arguments.precision]
    for part in arguments.parts:
        {"step": step, "trace": trace}[part](arguments)


if __name__ == "__main__":
    main()
