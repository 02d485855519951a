"""The registry of methods: `names`, `get` and `default` look them up, `register` adds a method of your own.

What a method can do is read off its class (`likelihoods`, `priors`, `kind`).

>>> "laplace" in names("classification")
True
>>> get("laplace")()
Laplace()
"""

from bayeskit.registry.entries import CYCLES as CYCLES
from bayeskit.registry.entries import METHODS as METHODS
from bayeskit.registry.entries import POST_HOC as POST_HOC
from bayeskit.registry.entries import PRIORS as PRIORS
from bayeskit.registry.entries import Family as Family
from bayeskit.registry.entries import Method as Method
from bayeskit.registry.entries import Status as Status
from bayeskit.registry.entries import Task as Task
from bayeskit.registry.entries import load as load
from bayeskit.registry.lookup import MAX_COLLAPSED_ROWS as MAX_COLLAPSED_ROWS
from bayeskit.registry.lookup import MAX_EXACT_ROWS as MAX_EXACT_ROWS
from bayeskit.registry.lookup import default as default
from bayeskit.registry.lookup import description as description
from bayeskit.registry.lookup import family_of as family_of
from bayeskit.registry.lookup import get as get
from bayeskit.registry.lookup import inference_class as inference_class
from bayeskit.registry.lookup import names as names
from bayeskit.registry.lookup import parts as parts
from bayeskit.registry.lookup import prior as prior
from bayeskit.registry.lookup import quick as quick
from bayeskit.registry.lookup import tasks as tasks
from bayeskit.registry.plugins import added as added
from bayeskit.registry.plugins import register as register
