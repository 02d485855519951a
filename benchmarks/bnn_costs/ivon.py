"""A step of IVON (forward, backward, drawing the weights, update) beside fused AdamW and the package ivon-opt."""

import copy

import torch
from torch import nn

from bayeskit import bnn
from bnn_costs.timing import Row, interleaved

try:
    import ivon as peer_package
except ImportError:
    peer_package = None

ROWS = 60_000


def mlp(width):
    layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)), (784,)


def cnn():
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)), (1, 28, 28)


NETWORKS = {  # how to build it, steps a round, asked beside AdamW and beside ivon-opt
    "CNN 16-32-64": (cnn, 4, 1.08, None),
    "MLP 256 x 3": (lambda: mlp(256), 10, 2.0, 0.65),
    "MLP 1024 x 3": (lambda: mlp(1024), 2, 2.0, 0.65),
}


def parity(steps=50):
    """Largest difference of weights and Hessians after 50 steps in float64, from the same noise."""
    x, y = torch.randn(64, 5, dtype=torch.float64), torch.randn(64, 3, dtype=torch.float64)
    for approx in ("price", "gradsq"):
        torch.manual_seed(0)
        ours = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 3)).double()
        theirs = copy.deepcopy(ours)
        settings = {"lr": 0.1, "hess_init": 0.5, "hess_approx": approx, "clip_radius": 0.5}
        peer = peer_package.IVON(theirs.parameters(), ess=64, beta1=0.9, beta2=0.99, weight_decay=1e-2, **settings)
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
        gap = max(float((p - q).abs().max()) for p, q in pairs)
        curvature = float((h - peer.param_groups[0]["hess"]).abs().max())
        assert max(gap, curvature) < 1e-12, (gap, curvature)
        note = f"{steps} steps, float64: weights agree to {gap:.0e}, Hessians to {curvature:.0e}"
        yield Row(f"IVON, {approx}", beside="ivon-opt", note=note)


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

    found = {"AdamW": adamw(), "IVON": sampled(lambda p: bnn.IVONOptimizer(p, lr=1e-2, num_data=ROWS))}
    if peer_package is not None:
        found["ivon-opt"] = sampled(lambda p: peer_package.IVON(p, lr=1e-2, ess=ROWS), train=True)
    return found


def rows(rounds):
    """A step beside fused AdamW and ivon-opt, batch 128, float32."""
    if peer_package is not None:
        yield from parity()
    for name, (build, repeats, beside_adamw, beside_peer) in NETWORKS.items():
        calls = steppers(build)
        times = interleaved(calls, rounds, repeats)
        yield times.row(f"IVON step, {name}", "IVON", "AdamW", beside_adamw)
        if peer_package is not None:
            yield times.row(f"IVON step, {name}", "IVON", "ivon-opt", beside_peer)
            yield times.row(f"ivon-opt step, {name}", "ivon-opt", "AdamW")
