"""Save and load fitted estimators without running code from the file.

A file is a safetensors file: its tensors are the arrays, its header a JSON tree that says how they fit together. Only
classes of bayeskit, torch.nn, GPyTorch and linear_operator are rebuilt, by setting their attributes; a class of the
user's own is rebuilt by a factory passed to `load`. Nothing is ever unpickled.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator

from bayeskit.persistence.reader import Reader
from bayeskit.persistence.writer import Writer

FORMAT = 2
"""2: modules of `gp`, `bnn`, `mcmc` lie in folders; `moved_classes` finds the classes that files of format 1 name."""


def save(estimator: BaseEstimator, path: str | Path) -> None:
    """Write a fitted estimator to one file.

    What predictions need is written. Priors over the hyperparameters of a kernel are not: to learn them anew, build
    the kernel anew.

    Args:
        estimator: A fitted bayeskit estimator.
        path: Where to write; an existing file is replaced only when the new one is complete.

    Raises:
        TypeError: Some part of the estimator cannot be written; the message says which.

    Examples:
        >>> import tempfile, os
        >>> from bayeskit import GPRegressor
        >>> model = GPRegressor(random_state=0).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 0.5])
        >>> path = os.path.join(tempfile.mkdtemp(), "model.bayeskit")
        >>> save(model, path)
        >>> bool((load(path).predict([[0.5]]) == model.predict([[0.5]])).all())
        True
    """
    if not isinstance(estimator, BaseEstimator) or not type(estimator).__module__.startswith("bayeskit."):
        raise TypeError(f"`estimator` must be a bayeskit estimator; got {type(estimator).__name__}")
    writer = Writer()
    tree = writer.encode(estimator, "estimator")
    header = {"bayeskit": json.dumps({"format": FORMAT, "tree": tree})}
    path = Path(path)
    partial_file = path.with_name(path.name + ".part")
    save_file(writer.tensors, partial_file, metadata=header)
    partial_file.replace(path)


def load(path: str | Path, *, network: Any = None, kernel: Any = None, likelihood: Any = None) -> Any:
    """Read an estimator written by `save`; its predictions are the same to the bit on the same machine.

    Args:
        path: The file.
        network: For a network of the user's own class: the callable `(in_features, out_features) -> Module` that
            built it, or a module of the same architecture.
        kernel: For a kernel that is or contains one of the user's own class, or of BoTorch: the whole kernel as it was
            given, or a callable without arguments that builds it.
        likelihood: For a likelihood of the user's own class: likewise.

    Returns:
        The fitted estimator.

    Raises:
        ValueError: The file is not one of bayeskit's, is of a newer format, or needs a factory that was not given.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("bayeskit")
            if header is None:
                raise ValueError(f"{path} is a safetensors file, but was not written by bayeskit.save")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file written by bayeskit.save, or it is damaged: {error}") from None
    document = json.loads(header)
    if document["format"] > FORMAT:
        raise ValueError(f"{path} has format {document['format']}; this version reads up to {FORMAT}: update bayeskit")
    factories = {"network": network, "kernel": kernel, "likelihood": likelihood}
    return Reader(tensors, factories).decode(document["tree"])
