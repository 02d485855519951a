"""Heat map of distances between methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit.plots.style import new_axes, write_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def distance_map(distances: Any, names: Sequence[str], *, ax: "Axes | None" = None) -> "Axes":
    """Heat map of pairwise distances, neighbors side by side, each distance written in its cell.

    Rows are in the order of the leaves of an average-linkage tree, turned so that neighbors are as close as possible.

    Args:
        distances: Symmetric (m, m) with a zero diagonal.
        names: The m methods.
        ax: Where to draw.

    >>> ax = distance_map([[0.0, 1.0], [1.0, 0.0]], ["a", "b"])
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax, matrix = new_axes(ax), np.asarray(distances, dtype=float)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"`distances` must have shape ({len(names)}, {len(names)}) like `names`; got {matrix.shape}")
    order = leaf_order(matrix)
    matrix, labels = matrix[np.ix_(order, order)], [names[i] for i in order]
    write_cells(ax, matrix)
    ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(labels)), labels)
    return ax


def leaf_order(distances: np.ndarray) -> list[int]:
    """The order in which a tree over (m, m) distances puts neighbors side by side.

    >>> leaf_order(np.array([[0.0, 5.0, 1.0], [5.0, 0.0, 4.0], [1.0, 4.0, 0.0]]))
    [0, 2, 1]
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(distances) < 3:
        return list(range(len(distances)))
    order = leaves_list(linkage(squareform(distances, checks=False), "average", optimal_ordering=True)).tolist()
    return order if order[0] < order[-1] else order[::-1]
