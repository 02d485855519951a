"""One question to every method: given the same data, what does each believe, how good is it and what did it cost?"""

from bayeskit.benchmark.comparison import Comparison as Comparison
from bayeskit.benchmark.datasets import Dataset as Dataset
from bayeskit.benchmark.datasets import load as load
from bayeskit.benchmark.datasets import names as names
from bayeskit.benchmark.runner import compare as compare
