"""A step of IVON beside fused AdamW and the package ivon-opt: cost, and that the steps are the same.

    pip install --no-deps ivon-opt
    python benchmarks/bnn_speed_ivon.py --only parity,step --threads 1

A step is forward, backward, drawing the weights and the update, batch 128. Ratios of processor time are medians over
interleaved rounds in one process. Without the package only AdamW stands beside.
"""

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from bayeskit import bnn

try:
    import ivon
except ImportError:
    ivon = None

ROWS = 60_000


def mlp(width):
    layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)), (784,)


def cnn():
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)), (1, 28, 28)


NETWORKS = {"CNN 16-32-64": (cnn, 4), "MLP 256 x 3": (lambda: mlp(256), 10), "MLP 1024 x 3": (lambda: mlp(1024), 2)}


def parity(steps=50):
    """Largest difference of weights and Hessians after 50 steps in float64, from the same noise."""
    print(f"### Largest relative difference from ivon-opt after {steps} steps in float64\n")
    print("| Hessian | weights | h |\n|---|---|---|")
    x, y = torch.randn(64, 5, dtype=torch.float64), torch.randn(64, 3, dtype=torch.float64)
    for approx in ("price", "gradsq"):
        torch.manual_seed(0)
        ours = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 3)).double()
        theirs = copy.deepcopy(ours)
        settings = {"lr": 0.1, "hess_init": 0.5, "hess_approx": approx, "clip_radius": 0.5}
        peer = ivon.IVON(theirs.parameters(), ess=64, beta1=0.9, beta2=0.99, weight_decay=1e-2, **settings)
        own = bnn.IVONOptimizer(
            ours.parameters(), num_data=64, betas=(0.9, 0.99), prior_precision=0.64, gradsq_scale=64, **settings
        )
        torch.manual_seed(1)
        own.generator.set_state(torch.get_rng_state())
        for _ in range(steps):
            with own.sampled_params():
                nn.functional.mse_loss(ours(x), y).backward()
            own.step()
            with peer.sampled_params(train=True):
                peer.zero_grad()
                nn.functional.mse_loss(theirs(x), y).backward()
            peer.step()
        pairs = [(p.detach(), q.detach()) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)]
        h = torch.cat([own.state[p]["hessian"].flatten() for p in ours.parameters()])
        gaps = [
            max(float((p - q).abs().max()) for p, q in pairs),
            float((h - peer.param_groups[0]["hess"]).abs().max()),
        ]
        print(f"| {approx} | {gaps[0]:.1e} | {gaps[1]:.1e} |")
    print()


def steppers(build):
    """One step with each optimizer, on copies of a network."""
    network, shape = build()
    x, y = torch.randn(128, *shape), torch.randint(10, (128,))

    def adamw():
        net = copy.deepcopy(network)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

        def step():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

        return step

    def sampled(make, **settings):
        net = copy.deepcopy(network)
        optimizer = make(net.parameters())

        def step():
            with optimizer.sampled_params(**settings):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

        return step

    found = {"AdamW": adamw(), "IVONOptimizer": sampled(lambda p: bnn.IVONOptimizer(p, lr=1e-2, num_data=ROWS))}
    if ivon is not None:
        found["ivon-opt"] = sampled(lambda p: ivon.IVON(p, lr=1e-2, ess=ROWS), train=True)
    return found


def steps(rounds):
    print("### A step, batch 128, float32, milliseconds of processor time\n")
    print("| network | AdamW | IVONOptimizer | ivon-opt | ours / AdamW | ours / ivon-opt | ivon-opt / AdamW |")
    print("|---|---|---|---|---|---|---|")
    for name, (build, repeats) in NETWORKS.items():
        calls, spent = steppers(build), []
        for k in range(rounds + 1):
            times = {}
            for who, call in calls.items():
                call()  # its memory is warm again
                begin = time.process_time()
                for _ in range(repeats):
                    call()
                times[who] = 1e3 * (time.process_time() - begin) / repeats
            if k:
                spent.append({"ivon-opt": float("nan"), **times})
        ms = [statistics.median(t[who] for t in spent) for who in ("AdamW", "IVONOptimizer", "ivon-opt")]
        pairs = (("IVONOptimizer", "AdamW"), ("IVONOptimizer", "ivon-opt"), ("ivon-opt", "AdamW"))
        ratios = [statistics.median(t[a] / t[b] for t in spent) for a, b in pairs]
        print(
            f"| {name} | " + " | ".join(f"{m:.2f}" for m in ms) + " | " + " | ".join(f"{r:.2f}" for r in ratios) + " |"
        )
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="parity,step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads\n")
    for section in arguments.only.split(","):
        if section == "step":
            steps(arguments.rounds)
        elif ivon is not None:
            parity()
