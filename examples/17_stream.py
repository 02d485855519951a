"""A stream of labels with concept drift: each batch is predicted before it is learnt.

The Gaussian process is updated by `partial_fit`, with a memory of 200 data points whatever the length of the stream.
Another is not updated after the first batches. The printed numbers are the accuracy of both over the stream. With a
folder of data in BAYESKIT_DATA the stream is `streaming/elec2.npz`, whether the price of electricity in New South Wales
goes up, a week a batch; without it, a stream of the same shape is simulated.
"""

import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bayeskit import GPClassifier, gp


def made_up(batches, rows=100):
    """Six features, of which two matter, by a direction that rotates with time."""
    rng = np.random.default_rng(0)
    X, turn = rng.normal(size=(batches * rows, 6)), np.linspace(0, np.pi, batches * rows)
    return X, (X[:, 0] * np.cos(turn) + X[:, 1] * np.sin(turn) + 0.3 * rng.normal(size=len(X)) > 0).astype(int), rows


def elec2(path, batches, rows=336):
    """Without the Victorian prices and the transfer, which are constant in the first year."""
    arrays = np.load(path)
    return arrays["X"][: batches * rows, :3].astype(float), arrays["y"][: batches * rows].astype(int), rows


path = Path(os.environ.get("BAYESKIT_DATA", ".")) / "streaming" / "elec2.npz"
X, y, rows = elec2(path, batches=50) if path.exists() else made_up(batches=12)
method = gp.MemoryDualGP(num_inducing=60, memory=200)
model, early = (GPClassifier(inference=method, random_state=0) for _ in range(2))

right = {"goes on learning": [], "stopped": []}
for batch, start in enumerate(range(0, len(y), rows)):
    now = slice(start, start + rows)
    if batch >= 3:
        right["goes on learning"].append(model.score(X[now], y[now]))
        right["stopped"].append(early.score(X[now], y[now]))
    model.partial_fit(X[now], y[now], classes=[0, 1])
    if batch < 3:
        early.partial_fit(X[now], y[now], classes=[0, 1])

for name, accuracy in right.items():
    late = np.mean(accuracy[-len(accuracy) // 3 :])
    print(f"{name:15s} accuracy of the next batch {np.mean(accuracy):.3f}, in the last third {late:.3f}")
kept = model.posterior_
print(f"{kept.seen:.0f} rows seen, {len(kept.memory)} in memory, {len(kept.z)} inducing points")
assert np.mean(right["goes on learning"]) > np.mean(right["stopped"])

for name, accuracy in right.items():
    plt.plot(np.arange(3, 3 + len(accuracy)), accuracy, label=name)
plt.xlabel("batch")
plt.ylabel("accuracy before it is learnt")
plt.legend()
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
plt.savefig(folder / "17_stream.png", dpi=120)
