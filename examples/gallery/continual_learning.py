"""Accuracy on each task after each task, with the posterior as prior, without and with a coreset memory."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from bayeskit import BNNClassifier, bnn, continual, plots
from bayeskit.core.optimize import Training

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.4, random_state=0)
tasks = continual.split_tasks(X, y, X_test, y_test, num_tasks=3)
training = Training(lr=0.01, max_epochs=40, batch_size=64)
method = bnn.MeanFieldVI(initial_scale=0.3, prior_precision=1.0, training=training)

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, memory in zip(axes, (None, continual.Coreset(60, choice="k_center")), strict=True):
    model = BNNClassifier(inference=method, random_state=0)
    R = continual.scores(list(continual.run(model, tasks, memory=memory, random_state=0)), "accuracy")
    name = "no memory" if memory is None else f"coreset of {memory.size} a task"
    plots.score_matrix(R, [task.name for task in tasks], score=f"accuracy; {name}", ax=ax)
figure.savefig(Path(sys.argv[1]) / "continual_learning.png", dpi=80)
