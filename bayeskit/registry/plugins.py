"""Methods of other packages: `register` for this process, entry points for every process of an installation.

A package adds methods in its `pyproject.toml`:

    [project.entry-points."bayeskit.methods"]
    my_method = "my_package.module:MyInference"
"""

import re
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from bayeskit.core import checks
from bayeskit.core.inference import Inference
from bayeskit.registry.entries import METHODS, PRIORS, Family, Method, load

ENTRY_POINTS = "bayeskit.methods"
"""The group of entry points by which other packages add methods."""

_BUILT_IN = frozenset(METHODS)
_unread = [ENTRY_POINTS]  # groups of entry points that have not been read


def register(
    name: str,
    method: type[Inference] | str,
    *,
    family: Family | None = None,
    settings: Mapping[str, Any] | None = None,
    experimental: str = "",
) -> None:
    """Add a method of your own to the estimators, `compare` and `bayeskit methods`, for this process.

    Worker processes of `compare` receive the entry with each trial. A class is sent by its import path, so its module
    must be importable there; a class of a notebook or script (`__main__`) is sent by value. For every process of an
    installation, use entry points (see this module's docstring).

    Args:
        name: Lower-case letters, digits and underscores.
        method: A subclass of `Inference`, or its import path "module:class".
        family: "gp" or "bnn"; read off the class's `priors` if None.
        settings: Fields of the class that the name stands for, such as `{"kernel": MyKernel}` of `bnn.MCMC`; a class
            or an import path is constructed without arguments.
        experimental: The reason why the method is experimental; empty for a stable one.

    Raises:
        ValueError: The name is invalid or taken, or the family cannot be inferred.
        TypeError: `method` is not an `Inference`.

    >>> from bayeskit import bnn, registry
    >>> register("wide_ensemble", bnn.DeepEnsemble, settings={"num_members": 20})
    >>> registry.get("wide_ensemble")()
    DeepEnsemble(num_members=20)
    >>> del registry.METHODS["wide_ensemble"]
    """
    if not (isinstance(name, str) and re.fullmatch("[a-z][a-z0-9_]*", name)):
        raise ValueError(
            f"`name` must be lower-case letters, digits and underscores, such as 'my_method'; got {name!r}"
        )
    read_entry_points()
    cls = load(method) if isinstance(method, str) else method
    if not (isinstance(cls, type) and issubclass(cls, Inference)):
        raise TypeError(
            "`method` must be a subclass of bayeskit.core.inference.Inference or its path 'module:class'; got "
            f"{method!r}"
        )
    if family is None:
        family = _family(cls)
    checks.choice(family, name="family", options=PRIORS)
    entry = Method(family, method, dict(settings or {}), experimental)
    # A notebook cell that defines and registers a class may run twice.
    if name in _BUILT_IN or (name in METHODS and METHODS[name].path != entry.path):
        raise ValueError(f"`name` {name!r} is taken by {METHODS[name].path}; choose another")
    METHODS[name] = entry


def added() -> dict[str, Method]:
    """The entries that this process registered beyond those of the library, for its worker processes."""
    return {name: entry for name, entry in METHODS.items() if name not in _BUILT_IN}


def read_entry_points() -> None:
    """Register the entry points of installed packages, once; one that fails is left out with a warning."""
    while _unread:
        for point in entry_points(group=_unread.pop()):
            try:
                register(point.name, point.load())
            except Exception as error:  # a broken package must not take the library down
                package = "?" if point.dist is None else point.dist.name
                warnings.warn(
                    f"the method {point.name!r} of the package {package} could not be registered: {error}", stacklevel=2
                )


def _family(cls: type[Inference]) -> Family:
    """The family whose priors the class takes."""
    priors: tuple[tuple[Family, str], ...] = (("gp", "bayeskit.gp:GaussianProcess"), ("bnn", "bayeskit.bnn:BayesNet"))
    found: list[Family] = [
        family for family, path in priors if any(issubclass(prior, load(path)) for prior in cls.priors)
    ]
    if len(found) != 1:
        raise ValueError(f"`family` must be given ('gp' or 'bnn'): the `priors` of {cls.__name__} do not determine it")
    return found[0]
