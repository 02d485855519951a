"""One question to every method: given the same data, what does each believe, how good is it and what did it cost?"""

from bayeskit.benchmark.data.datasets import Dataset as Dataset
from bayeskit.benchmark.data.datasets import load as load
from bayeskit.benchmark.data.datasets import names as names
from bayeskit.benchmark.run.comparison import Comparison as Comparison
from bayeskit.benchmark.run.runner import compare as compare
