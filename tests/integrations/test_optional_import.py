"""Without its library, an adapter says in one sentence how to install it."""

import json
import subprocess
import sys

LIBRARIES = {
    "skorch": ("skorch", "skorch", "skorch"),
    "skactiveml": ("skactiveml", "scikit-activeml", "skactiveml"),
    "avalanche": ("avalanche", "avalanche-lib", "avalanche"),
    "botorch": ("botorch", "BoTorch", "botorch"),
}
"""Adapter to what it imports, what that is called, and the extra."""

CODE = """
import importlib, json, sys
found = {}
for adapter, library in json.loads(sys.argv[1]).items():
    sys.modules[library] = None
    try:
        importlib.import_module(f"bayeskit.integrations.{adapter}")
    except ImportError as error:
        found[adapter] = str(error)
print(json.dumps(found))
"""


def test_every_adapter_says_what_to_install():
    missing = {adapter: library for adapter, (library, _, _) in LIBRARIES.items()}
    command = [sys.executable, "-c", CODE, json.dumps(missing)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for adapter, (_, name, extra) in LIBRARIES.items():
        expected = f"this needs {name}; install it with `pip install 'bayeskit[{extra}]'`"
        assert json.loads(result.stdout)[adapter] == expected
