"""What may come of any input: a finite answer, or one sentence that names the argument at fault."""

import re
import traceback
import warnings
from pathlib import Path

import bayeskit

number = 0
"""Cases tried in this process."""


def answer(call, *arguments):
    """What `call` returns, or None where it refuses its input properly.

    A proper refusal is a ValueError or TypeError that names one of `arguments`, raised by bayeskit and not by torch or
    NumPy.
    """
    global number  # noqa: PLW0603  # a count for the summary of the run
    number += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except (ValueError, TypeError) as error:
        message, raised = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
        named = any(re.search(rf"(`|\b){re.escape(name)}\b", message) for name in arguments)
        assert named, f"no argument is named: {message!r}"
        assert Path(bayeskit.__file__).parent in Path(raised).parents, f"raised by {raised}: {message!r}"
        assert len(message) < 1000, message
        return None
