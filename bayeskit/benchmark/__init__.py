"""Comparison of methods on one data set: predictive scores, calibration, distances between posteriors and costs."""

from bayeskit.benchmark.comparison import Comparison as Comparison
from bayeskit.benchmark.comparison import compare as compare
from bayeskit.benchmark.data.datasets import Dataset as Dataset
from bayeskit.benchmark.data.datasets import load as load
from bayeskit.benchmark.data.datasets import names as names
