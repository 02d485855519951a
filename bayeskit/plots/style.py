"""The look that every figure shares: colors, line styles, bare axes."""

from typing import TYPE_CHECKING, Any

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
