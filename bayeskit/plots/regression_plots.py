"""Posterior predictive means and intervals along one input."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit.core.predictive import ContinuousPredictive
from bayeskit.plots.style import BLUE, PALETTE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def regression_band(
    x: Any,
    predictive: ContinuousPredictive,
    *,
    data: tuple[Any, Any] | None = None,
    levels: Sequence[float] = (0.5, 0.95),
    color: str = BLUE,
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Mean and central intervals of the posterior predictive along one input, over the training data.

    The bands are of y, observation noise included, from its quantiles.

    Args:
        x: Inputs (n,) or (n, 1), where `predictive` was evaluated.
        predictive: Posterior predictive of y at those inputs, of one output.
        data: Training inputs and targets, drawn as points.
        levels: Probabilities of the bands.
        color: Of mean and bands.
        title: Name of the method.
        ax: Where to draw.

    >>> import torch
    >>> from bayeskit.core.predictive import MixturePredictive
    >>> predictive = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 3, 1), torch.ones(1, 3, 1)))
    >>> ax = regression_band([0.0, 1.0, 2.0], predictive, title="prior")
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax, x = new_axes(ax), np.asarray(x, dtype=float).ravel()
    order = np.argsort(x)
    for level in sorted(levels, reverse=True):
        low, high = (end.detach().cpu().numpy().reshape(len(x)) for end in predictive.interval(level))
        ax.fill_between(x[order], low[order], high[order], color=color, alpha=0.2, linewidth=0)
    ax.plot(x[order], predictive.mean.detach().cpu().numpy().reshape(len(x))[order], color=color)
    if data is not None:
        ax.plot(
            np.ravel(data[0]), np.ravel(data[1]), linestyle="", marker=".", markersize=3, color="#333333", alpha=0.7
        )
    ax.set_title(title)
    return ax


def regression_bands(
    x: Any,
    predictives: Mapping[str, ContinuousPredictive],
    *,
    data: tuple[Any, Any] | None = None,
    levels: Sequence[float] = (0.5, 0.95),
    columns: int = 3,
) -> "list[Axes]":
    """Several methods on the same data, one panel each with shared axes, to compare their predictive distributions.

    Args:
        x: Inputs (n,) or (n, 1).
        predictives: Name of a method to its posterior predictive of y at those inputs.
        data: Training inputs and targets.
        levels: Probabilities of the bands.
        columns: Panels in a row.

    Returns:
        The panels; `axes[0].figure` is the figure.

    >>> import torch
    >>> from bayeskit.core.predictive import MixturePredictive
    >>> predictive = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 3, 1), torch.ones(1, 3, 1)))
    >>> len(regression_bands([0.0, 1.0, 2.0], {"a": predictive, "b": predictive}))
    2
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    import matplotlib.pyplot as plt

    columns = min(columns, len(predictives))
    rows = -(-len(predictives) // columns)
    _, grid = plt.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(3.4 * columns, 2.5 * rows),
        layout="constrained",
    )
    axes = list(grid.flat)
    for ax in axes[len(predictives) :]:
        ax.remove()
    for index, (name, predictive) in enumerate(predictives.items()):
        color = PALETTE[index % len(PALETTE)]
        regression_band(x, predictive, data=data, levels=levels, color=color, title=name, ax=axes[index])
    return axes[: len(predictives)]
