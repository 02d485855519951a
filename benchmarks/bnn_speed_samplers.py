"""Costs of networks side by side: an ensemble trained together, and predictions with many weight samples at once.

    python benchmarks/bnn_speed_samplers.py --only ensemble,predict --threads 1

Ratios of processor time, medians of interleaved runs in one process; both sides are found to agree first.
"""

import argparse
import statistics
import time

import torch
from torch.func import functional_call

from bayeskit import bnn
from bayeskit.bnn.network import evaluate
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

MEMBERS, DRAWS, FEATURES = 8, 32, 8
TRAINING = Training(lr=1e-2, max_epochs=20, batch_size=128)


def interleaved(first, second, rounds=5, repeats=1):
    """Median ratio of processor time, and the median milliseconds of both."""
    spent = []
    for k in range(rounds + 1):
        times = []
        for call in (first, second):
            begin = time.process_time()
            for _ in range(repeats):
                call()
            times.append(1e3 * (time.process_time() - begin) / repeats)
        if k:
            spent.append(times)
    ratio = statistics.median(a / b for a, b in spent)
    return ratio, *(statistics.median(column) for column in zip(*spent, strict=True))


def ensemble():
    """Eight networks trained together, beside eight runs of one network one after another (`bnn.MAP`)."""
    print(f"### {MEMBERS} networks together, beside {MEMBERS} runs, 1,000 rows, {TRAINING.max_epochs} epochs\n")
    print("| network | dtype | together ms | one after another ms | ratio |\n|---|---|---|---|---|")
    g = torch.Generator().manual_seed(0)
    for hidden in ((50,), (50, 50)):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(1000, FEATURES, generator=g, dtype=dtype)
            data = Data(x, x[:, :1].sin())
            prior = bnn.gaussian_prior(bnn.MLP(FEATURES, 1, hidden=hidden, dtype=dtype))

            def fit(method, data=data, prior=prior):
                return method.infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(0))

            many = bnn.DeepEnsemble(num_members=MEMBERS, training=TRAINING, prior_precision=1.0)
            one = bnn.MAP(training=TRAINING, prior_precision=1.0)
            assert fit(many).diagnostics["trained together"]
            found = interleaved(lambda f=fit, m=many: f(m), lambda f=fit, m=one: [f(m) for _ in range(MEMBERS)])
            row(hidden, dtype, *found)
    print()


def predict():
    """32 weight samples through one network, beside a Python loop over `functional_call`."""
    print(f"### {DRAWS} weight samples at once, beside a loop over them\n")
    print("| network | dtype | rows | at once ms | loop ms | ratio |\n|---|---|---|---|---|---|")
    for hidden in ((50,), (50, 50), (256, 256)):
        for dtype in (torch.float32, torch.float64):
            prior = bnn.gaussian_prior(bnn.MLP(FEATURES, 1, hidden=hidden, dtype=dtype))
            draws = prior.weights.sample(DRAWS, generator=torch.Generator().manual_seed(0))
            for n in (1, 32, 128, 1000):
                x = torch.randn(n, FEATURES, dtype=dtype, generator=torch.Generator().manual_seed(1))

                def batched(network=prior.network, draws=draws, x=x):
                    return evaluate(network, draws, x)

                def loop(network=prior.network, draws=draws, x=x):
                    each = ({name: value[i] for name, value in draws.items()} for i in range(DRAWS))
                    return torch.stack([functional_call(network, params, (x,)) for params in each])

                assert torch.allclose(batched(), loop(), atol=1e-4)
                ratio, ours, theirs = interleaved(batched, loop, repeats=4)
                row(hidden, dtype, ratio, ours, theirs, rows=n)
    print()


def row(hidden, dtype, ratio, ours, theirs, rows=None):
    where = "" if rows is None else f"| {rows} "
    name = "x".join(map(str, hidden))
    print(f"| {name} | {str(dtype)[6:]} {where}| {ours:.2f} | {theirs:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="ensemble,predict")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sections = {"ensemble": ensemble, "predict": predict}
    for name in arguments.only.split(","):
        sections[name]()
