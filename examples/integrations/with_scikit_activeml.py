# %% [markdown]
# # scikit-activeml with a posterior of this library
#
# Which tumors should an expert look at? A query strategy of scikit-activeml chooses from a pool, by the disagreement of
# functions drawn from the posterior. Labels are words, and unknown labels are `None`.

# %%
import numpy as np
from skactiveml.pool import GreedyBALD, RandomSampling
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from bayeskit import GPClassifier
from bayeskit.integrations.skactiveml import BayesianClassifier

measured, kind = load_breast_cancer(return_X_y=True)
words = np.array(["malignant", "benign"], dtype=object)[kind]
X, X_test, y, y_test = train_test_split(measured, words, train_size=200, random_state=0, stratify=kind)

# %% [markdown]
# Ten tumors are known at first. In each round a strategy asks for ten more.

# %%
model = BayesianClassifier(
    GPClassifier(random_state=0), classes=["benign", "malignant"], missing_label=None, random_state=0
)
drawn = {"sample_predictions_method_name": "sample_proba", "missing_label": None}
strategies = {
    "random": (RandomSampling(missing_label=None, random_state=0), {}),
    "greedy BALD": (GreedyBALD(**drawn, random_state=0), {"ensemble": model, "fit_ensemble": False}),
}
for name, (strategy, arguments) in strategies.items():
    known = np.full(len(y), None, dtype=object)
    for word in model.classes:
        first = np.flatnonzero(y == word)[:5]
        known[first] = y[first]
    for _ in range(3):
        model.fit(X, known)
        labels = sum(label is not None for label in known)
        print(f"{name:12s} {labels:2d} labels: accuracy {model.score(X_test, y_test):.3f}")
        asked = strategy.query(X, known, batch_size=10, **arguments)
        known[asked] = y[asked]

# %% [markdown]
# The last queries, and the predicted probability of each.

# %%
for row, p in zip(asked, model.predict_proba(X[asked]), strict=True):
    print(f"tumor {row:3d} is {y[row]:9s}   P(malignant) was {p[1]:.2f}")
