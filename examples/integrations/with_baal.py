# %% [markdown]
# # Heuristics in BaaL's convention
#
# BaaL's heuristics take an array of class probabilities (rows, classes, iterations), whoever made it. Here a Gaussian
# process makes it, and the heuristic is `BALD` as BaaL has it, written out so that nothing need be installed:
#
#     from baal.active.heuristics import BALD
#     order = BALD()(draws)

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

from bayeskit import GPClassifier
from bayeskit.integrations import baal

X, y = make_moons(600, noise=0.25, random_state=0)
labeled = np.flatnonzero(X[:, 0] < 1)[:150]
pool = np.setdiff1d(np.arange(600), labeled)


def entropy(p):
    return -(p * np.log(p.clip(1e-12))).sum(1)


def bald(draws):
    """What a label would say of the function: entropy of the mean less mean entropy, (rows,)."""
    return entropy(draws.mean(-1)) - entropy(draws).mean(-1)


# %% [markdown]
# All labels so far lie left of 1. Where the classes overlap, the probabilities are near a half whatever the number of
# labels (aleatoric uncertainty); to the right the uncertainty is epistemic. Entropy mixes the two, BALD does not.

# %%
model = GPClassifier(random_state=0).fit(X[labeled], y[labeled])
draws = baal.draws(model, X[pool], iterations=200)
print("an array of rows, classes, iterations:", draws.shape)
scores = {"entropy": entropy(draws.mean(-1)), "BALD": bald(draws)}
for name, score in scores.items():
    first = pool[np.argsort(score)[::-1][:30]]
    print(f"{name:8s} asks for {(X[first, 0] > 1).sum()} of 30 labels to the right of 1")

# %%
for name, look in {"entropy": "s", "BALD": "o"}.items():
    first = pool[np.argsort(scores[name])[::-1][:30]]
    plt.plot(*X[first].T, look, fillstyle="none", label=f"asked for by {name}")
plt.scatter(*X[labeled].T, c=y[labeled], cmap="coolwarm", s=8)
plt.legend(frameon=False)
plt.savefig("with_baal.png", dpi=120)
plt.close("all")
