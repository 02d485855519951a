"""Scoring rules, calibration, OOD detection, selective prediction and distances between posteriors: pure functions.

Arguments are NumPy arrays, tensors, lists or pandas columns, or a `Predictive`: a posterior predictive distribution.
Results are plain floats (means over the test points) or NumPy arrays. Conventions: class labels are integer codes that
index the columns of the probabilities, larger uncertainty and OOD scores mean more out of distribution, losses are
lower where better, and every number is on the scale of the targets given.
"""

from bayeskit.metrics.accuracy_matrix import average_accuracy as average_accuracy
from bayeskit.metrics.accuracy_matrix import backward_transfer as backward_transfer
from bayeskit.metrics.accuracy_matrix import forgetting as forgetting
from bayeskit.metrics.calibration import Reliability as Reliability
from bayeskit.metrics.calibration import coverage as coverage
from bayeskit.metrics.calibration import expected_calibration_error as expected_calibration_error
from bayeskit.metrics.calibration import pit as pit
from bayeskit.metrics.calibration import reliability as reliability
from bayeskit.metrics.distances import pointwise_wasserstein2 as pointwise_wasserstein2
from bayeskit.metrics.distances import total_variation as total_variation
from bayeskit.metrics.distances import wasserstein2 as wasserstein2
from bayeskit.metrics.ood import ood_aupr as ood_aupr
from bayeskit.metrics.ood import ood_auroc as ood_auroc
from bayeskit.metrics.ood import ood_fpr95 as ood_fpr95
from bayeskit.metrics.scoring_rules import accuracy as accuracy
from bayeskit.metrics.scoring_rules import brier as brier
from bayeskit.metrics.scoring_rules import crps as crps
from bayeskit.metrics.scoring_rules import interval_score as interval_score
from bayeskit.metrics.scoring_rules import negative_log_likelihood as negative_log_likelihood
from bayeskit.metrics.scoring_rules import rmse as rmse
from bayeskit.metrics.selective import aurc as aurc
from bayeskit.metrics.selective import risk_coverage as risk_coverage
