"""What pytest leaves out: Avalanche's tests where Avalanche is not; `make test-avalanche` installs and runs them."""

from importlib.util import find_spec

collect_ignore = ["bayeskit/integrations/avalanche.py"]  # has no doctest, and its requirements warn when imported
if find_spec("avalanche") is None:
    collect_ignore.append("tests/integrations/test_avalanche.py")
