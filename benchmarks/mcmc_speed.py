"""Cost of Markov chains, as ratios within one process.

    python benchmarks/mcmc_speed.py --only chains,logistic,memory,step

- `chains`: 1,000 chains of a 10-dimensional target beside one at a time.
- `logistic`: effective draws a second of batched HMC beside pyro's NUTS on the logistic posteriors of posteriordb,
  whose folder is named by `BAYESKIT_POSTERIORDB`.
- `memory`: the memory of a run of 100,000 kept draws on disk beside one of 1,000.
- `step`: a step of SGLD and of SGHMC, as a kernel and as an optimizer, beside one of plain SGD, batch 128; and the
  kernels beside `posteriors` where it is installed.

Processor time, medians of interleaved runs.
"""

import argparse
import contextlib
import copy
import ctypes
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch import nn
from torch.func import functional_call

from bayeskit import mcmc

ROWS = 50_000


def seconds(call):
    begin = time.process_time()
    call()
    return time.process_time() - begin


def interleaved(first, second, rounds=7):
    """Median and range of the ratio of processor times, and both medians."""
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds + 1)][1:]
    ratios = sorted(a / b for a, b in pairs)
    return statistics.median(ratios), ratios[0], ratios[-1], *(statistics.median(c) for c in zip(*pairs, strict=True))


def chains():
    """Steps of all chains a second, 1,000 side by side and one alone."""
    print(
        "| kernel | 1,000 chains, steps a second | one chain, steps a second | ratio | range |\n|---|---|---|---|---|"
    )
    widths = torch.logspace(-1, 0, 10, dtype=torch.float64)

    def density(position):
        return -0.5 * (position["x"] / widths).square().sum(-1)

    for name, kernel in (("`HMC`", mcmc.HMC(step_size=0.05, trajectory=0.5)), ("`SGLD`", mcmc.SGLD(lr=1e-3))):

        def steps(number, kernel=kernel):
            g = torch.Generator().manual_seed(0)
            start = {"x": torch.zeros(number, 10, dtype=torch.float64)}
            mcmc.run(kernel, density, start, num_samples=30, burn_in=0, generator=g)

        ratio, low, high, alone, together = interleaved(lambda f=steps: f(1), lambda f=steps: f(1000))
        print(
            f"| {name} | {30_000 / together:,.0f} | {30 / alone:,.0f} | {1000 * ratio:.0f} | "
            f"{1000 * low:.0f} to {1000 * high:.0f} |"
        )
    print()


def logistic():
    """Smallest effective sample size, of a mean or a variance, for a second of sampling, the burn-in apart."""
    from posteriordb import load

    print(
        "| posterior | HMC, ESS a second | NUTS of pyro, ESS a second | ratio | with burn-in |\n|---|---|---|---|---|"
    )
    for name in ("wells_data-wells_dist", "nes_logit_data-nes_logit_model"):
        target = load(name)
        rates = {}
        for kernel, number, burn_in, draws in ((mcmc.HMC(), 200, 150, 200), (mcmc.NUTS(), 2, 200, 400)):
            g = torch.Generator().manual_seed(0)
            spot = target.mean + target.sd * torch.randn(number, 2, generator=g, dtype=torch.float64)
            density = lambda q, target=target: target.model.log_density(q["q"])  # noqa: E731
            begin = time.process_time()
            tuned, state = mcmc.adapt(kernel, {"q": spot}, density, num_steps=burn_in, generator=g)
            tuning = time.process_time() - begin
            points = []
            for _ in range(draws):
                state, _ = tuned.step(state, density, generator=g)
                points.append(state.position["q"])
            sampling = time.process_time() - begin - tuning
            x = torch.stack(points, dim=1)
            size = min(mcmc.ess(x).min().item(), mcmc.ess((x - x.mean((0, 1))).square()).min().item())
            rates[type(kernel).__name__] = (size / sampling, size / (sampling + tuning))
        (hmc, hmc_all), (nuts, nuts_all) = rates["HMC"], rates["NUTS"]
        print(f"| {name} | {hmc:,.0f} | {nuts:,.0f} | {hmc / nuts:.0f} | {hmc_all / nuts_all:.0f} |", flush=True)
    print()


CHILD = """
import resource, sys, torch
from dataclasses import dataclass
from bayeskit import mcmc

@dataclass(frozen=True)
class State:
    position: dict

class Noise(mcmc.TransitionKernel):
    def init(self, position, log_density, *, generator):
        return State(position)

    def step(self, state, log_density, *, generator):
        return State({"x": torch.randn(4, 50, generator=generator)}), {"log_density": torch.zeros(4)}

def run(number, folder):
    mcmc.run(Noise(), lambda q: q["x"].sum(-1), {"x": torch.zeros(4, 50)}, num_samples=number, burn_in=0,
             generator=torch.Generator().manual_seed(0), collector=mcmc.Disk(folder))

run(1000, sys.argv[1] + "/short")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(100_000, sys.argv[1] + "/long")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def memory():
    """How much the largest resident memory grows from a run of 1,000 kept draws to one of 100,000, 4 chains of 50."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, folder]
        grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(f"100,000 kept draws (80 MB on disk): memory grew by {float(grown):.1f} MB over a run of 1,000\n")


def networks():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    yield "256x3 MLP", nn.Sequential(wide, nn.ReLU(), nn.Linear(256, 10)), torch.randn(128, 784)
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    yield (
        "small CNN",
        nn.Sequential(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1568, 10)),
        torch.randn(128, 1, 28, 28),
    )


def step():
    """One chain, gradients of a batch of 128 of `ROWS` rows."""
    keep_memory()
    print("| network | step of | beside | ms | the other ms | ratio | range |\n|---|---|---|---|---|---|---|")
    for name, network, x in networks():
        y = torch.randint(10, (128,))
        params = {key: value.detach().clone() for key, value in network.named_parameters()}

        def log_posterior(leaves, network=network, x=x, y=y):
            loss = nn.functional.cross_entropy(functional_call(network, leaves, (x,)), y)
            return -ROWS * loss - 0.5 * sum(value.square().sum() for value in leaves.values())

        plain = descent(network, x, y)
        for kernel in (mcmc.SGLD(lr=1e-8), mcmc.SGHMC(lr=1e-8)):
            label = type(kernel).__name__
            shell = optimizer_loop(copy.deepcopy(network), kernel, x, y)
            pairs = [(f"`{label}`", "SGD", chain_loop(kernel, params, log_posterior), plain)]
            pairs += [(f"`Optimizer({label})`", "SGD", shell, plain)]
            pairs += [
                (f"`{label}`", "`posteriors`", chain_loop(kernel, params, log_posterior), peer)
                for peer in theirs(label, params, log_posterior)
            ]
            for ours, other, first, second in pairs:
                ratio, low, high, a, b = interleaved(first, second, rounds=15)
                times = f"{50 * a:.2f} | {50 * b:.2f} | {ratio:.2f} | {low:.2f} to {high:.2f}"
                print(f"| {name} | {ours} | {other} | {times} |", flush=True)
    print()


def keep_memory():
    """Let the C library keep what it has been given back.

    Otherwise the activations of a convolution go back to the system and come again page by page, 0 to 1,200 faults a
    step for one loop or the other as the layout of the heap has it, which is up to a fifth of the time.
    """
    with contextlib.suppress(OSError, AttributeError):
        adjust = ctypes.CDLL(None).mallopt
        for what in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            adjust(what, 2**30)


def chain_loop(kernel, params, log_posterior):
    """Twenty steps of a chain."""

    def density(position):
        return log_posterior({key: leaf.squeeze(0) for key, leaf in position.items()}).unsqueeze(0)

    g = torch.Generator().manual_seed(0)
    holder = [kernel.init({key: value.unsqueeze(0) for key, value in params.items()}, density, generator=g)]

    def call():
        for _ in range(20):
            holder[0], _ = kernel.step(holder[0], density, generator=g)

    return call


def optimizer_loop(network, kernel, x, y):
    """Twenty steps of a sampler in a loop of one's own."""
    return descent(network, x, y, mcmc.Optimizer(network.parameters(), kernel, num_data=ROWS))


def descent(network, x, y, optimizer=None):
    """Twenty steps of an optimizer, plain SGD if none is given."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3) if optimizer is None else optimizer

    def call():
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()

    return call


def theirs(kernel, params, log_posterior):
    """Twenty steps of the same sampler in `posteriors`, if that is installed."""
    try:
        import posteriors
    except ImportError:
        return
    build = {"SGLD": posteriors.sgmcmc.sgld.build, "SGHMC": posteriors.sgmcmc.sghmc.build}[kernel]
    transform = build(lambda leaves, _: (log_posterior(leaves) / ROWS, torch.tensor([])), lr=1e-3, temperature=1 / ROWS)
    holder = [transform.init({key: value.clone() for key, value in params.items()})]

    def call():
        for _ in range(20):
            holder[0], _ = transform.update(holder[0], None, inplace=True)

    yield call


PARTS = {"chains": chains, "logistic": logistic, "memory": memory, "step": step}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for part in arguments.only.split(","):
        PARTS[part]()
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
