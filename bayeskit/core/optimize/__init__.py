"""Optimization: the one training loop, L-BFGS for deterministic losses, and natural-gradient ascent."""

from bayeskit.core.optimize.lbfgs import minimize_lbfgs as minimize_lbfgs
from bayeskit.core.optimize.natural_gradient_ascent import Ascent as Ascent
from bayeskit.core.optimize.natural_gradient_ascent import natural_gradient_ascent as natural_gradient_ascent
from bayeskit.core.optimize.temperature import temperature as temperature
from bayeskit.core.optimize.training_loop import minimize as minimize
from bayeskit.core.optimize.training_run import Callback as Callback
from bayeskit.core.optimize.training_run import TrainingRun as TrainingRun
from bayeskit.core.optimize.training_settings import Training as Training
from bayeskit.core.optimize.training_settings import split as split
from bayeskit.core.types import History as History
