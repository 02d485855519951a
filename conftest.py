"""What pytest leaves out: the tests of Avalanche and BaaL where these are not; `make test-avalanche` has them."""

from importlib.util import find_spec

collect_ignore = ["bayeskit/integrations/avalanche.py"]  # has no doctest, and its requirements warn when imported
for library, tests in {"avalanche": "test_avalanche.py", "baal": "test_baal_library.py"}.items():
    if find_spec(library) is None:
        collect_ignore.append(f"tests/integrations/{tests}")
