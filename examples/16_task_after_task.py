"""Continual learning of pairs of classes: accuracy on earlier tasks, without and with a memory.

Each task is seen once. The previous posterior is the prior of the next task; a memory keeps a few data points of each
task, which are learnt last, so that every point counts once.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from bayeskit import BNNClassifier, bnn, continual, metrics, plots
from bayeskit.core.optimize import Training

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.4, random_state=0)
tasks = continual.split_tasks(X, y, X_test, y_test, num_tasks=3)
method = bnn.MeanFieldVI(
    initial_scale=0.3, prior_precision=1.0, training=Training(lr=0.01, max_epochs=40, batch_size=64)
)

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, memory in zip(axes, (None, continual.Coreset(30, choice="k_center")), strict=True):
    model = BNNClassifier(inference=method, random_state=0)
    stages = list(continual.run(model, tasks, memory=memory, random_state=0))
    R = continual.scores(stages, "accuracy")
    kept = "nothing" if memory is None else f"{memory.size} rows a task"
    print(
        f"remembered {kept}: accuracy {metrics.average_accuracy(R):.2f}, forgetting {metrics.forgetting(R):.2f}, "
        f"ECE by task {continual.scores(stages, 'ece')[-1].round(2)}"
    )
    plots.score_matrix(R, [task.name for task in tasks], score=f"accuracy; remembered: {kept}", ax=axis)

if len(sys.argv) > 1:
    figure.savefig(Path(sys.argv[1]) / "16_task_after_task.png", dpi=120)
