"""Continual learning: the posterior of one task is the prior of the next.

    tasks = split_tasks(X, y, X_test, y_test, num_tasks=5)
    for stage in run(estimator, tasks):     # a fold: q_t = infer(q_{t-1}, task t), each data point used once
        stage.scores                        # on the test data of every task, later tasks included

`scores(stages)` is the matrix of scores, for `metrics.average_accuracy`,
`metrics.backward_transfer`, `metrics.forgetting`, `plots.score_matrix` and `plots.score_curves`.
"""

from bayeskit.continual.coreset_memory import Coreset as Coreset
from bayeskit.continual.sequential_update import Fold as Fold
from bayeskit.continual.task_scores import score as score
from bayeskit.continual.task_stages import Stage as Stage
from bayeskit.continual.task_stages import run as run
from bayeskit.continual.task_stages import scores as scores
from bayeskit.continual.tasks import Task as Task
from bayeskit.continual.tasks import domain_tasks as domain_tasks
from bayeskit.continual.tasks import permuted_tasks as permuted_tasks
from bayeskit.continual.tasks import split_tasks as split_tasks
