"""Time of `import bayeskit` beyond that of torch, gpytorch and scikit-learn's base: median of several processes.

python benchmarks/import_time.py [repeats]
"""

import statistics
import subprocess
import sys

CODE = """
import time
import torch, gpytorch, sklearn.base
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""
STATEMENTS = {
    "import bayeskit": "import bayeskit",
    "the four estimators": "from bayeskit import BNNClassifier, BNNRegressor, GPClassifier, GPRegressor",
    "estimators, gp and bnn": "from bayeskit import GPRegressor, BNNRegressor, bnn, gp",
}


def seconds(statement: str) -> float:
    result = subprocess.run([sys.executable, "-c", CODE.format(statement=statement)], capture_output=True, check=True)
    return float(result.stdout)


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print("| statement | seconds, median | min | max |\n|---|---|---|---|")
    for name, statement in STATEMENTS.items():
        times = [seconds(statement) for _ in range(repeats)]
        print(f"| {name} | {statistics.median(times):.3f} | {min(times):.3f} | {max(times):.3f} |")
