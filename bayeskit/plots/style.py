"""The look that every figure shares: colors, line styles, bare axes."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
GRAY = "#8C8C8C"
_LINES = ("-", "--", ":", "-.")


def style(index: int) -> dict[str, Any]:
    """Color and line style of the method number `index`: 24 different pairs.

    >>> style(0)["color"], style(6)["linestyle"]
    ('#0072B2', '--')
    """
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": _LINES[index // len(PALETTE) % len(_LINES)]}


def new_axes(ax: "Axes | None") -> "Axes":
    """The axes given, or those of a new figure, without the upper and right spines."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
        assert ax is not None
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def write_cells(ax: "Axes", matrix: np.ndarray) -> None:
    """A heat map from zero on, each number written in its cell, on axes without ticks or spines."""
    ax.imshow(matrix, cmap="cividis", vmin=min(0.0, matrix.min()))
    low, high = ax.images[-1].get_clim()
    for i, j in np.ndindex(*matrix.shape):
        color = "black" if matrix[i, j] > (low + high) / 2 else "white"
        ax.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=color, fontsize="small")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
