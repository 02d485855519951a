"""Figures: functions of data that draw on a Matplotlib `Axes` and return it.

Every function takes an optional `ax` (a new figure is made without one) and draws in a palette for color blindness
(Okabe and Ito, 2008); where several methods share one figure, the line style varies too. Matplotlib is imported at the
first call.
"""

from bayeskit.plots.calibration_plots import coverage_curve as coverage_curve
from bayeskit.plots.calibration_plots import pit_histogram as pit_histogram
from bayeskit.plots.calibration_plots import reliability_diagram as reliability_diagram
from bayeskit.plots.continual_plots import score_curves as score_curves
from bayeskit.plots.continual_plots import score_matrix as score_matrix
from bayeskit.plots.distance_plots import distance_map as distance_map
from bayeskit.plots.learning_plots import learning_curve as learning_curve
from bayeskit.plots.ranking_plots import ood_histogram as ood_histogram
from bayeskit.plots.ranking_plots import risk_coverage_curve as risk_coverage_curve
from bayeskit.plots.regression_plots import regression_band as regression_band
from bayeskit.plots.regression_plots import regression_bands as regression_bands
from bayeskit.plots.style import PALETTE as PALETTE
from bayeskit.plots.style import style as style
