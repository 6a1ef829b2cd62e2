"""Figures used by more than one chapter, and one colour for each arm in the whole book."""

import io
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: The colour of an arm, everywhere (Okabe and Ito's palette: told apart by colour-blind readers too).
ARM_COLOURS = {
    "softmax": "#0072B2",
    "cosine": "#E69F00",
    "frozen": "#7F7F7F",
    "dnc": "#D55E00",
    "kmeans": "#009E73",
    "random": "#CC79A7",
}

#: Colours for the ten classes of digits and CIFAR-10, in order.
CLASS_COLOURS = plt.get_cmap("tab10").colors


def use_style() -> None:
    """Set the book's figure style for this process: white ground, quiet axes, small files."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.facecolor": "white",
            "savefig.bbox": "tight",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": "gray_r",
        }
    )


def show_image(ax: Axes, image, title: str = "", colour: str | None = None) -> None:
    """Draw one image without axes.

    Args:
        ax: where.
        image: (H, W) or (H, W, 3); uint8 or any float range for grey images.
        title: above it.
        colour: of a frame around it; none without.
    """
    ax.imshow(np.asarray(image), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(colour is not None)
        spine.set_color(colour or "black")
        spine.set_linewidth(2.5)
    if title:
        ax.set_title(title, loc="center", fontsize=9)


def image_grid(
    images: Sequence,
    titles: Sequence[str] | None = None,
    columns: int = 10,
    size: float = 0.9,
    colours: Sequence[str | None] | None = None,
) -> Figure:
    """Images in rows, each without axes.

    Args:
        images: M images (H, W) or (H, W, 3).
        titles: M short texts, or none.
        columns: images a row.
        size: width of one image in inches.
        colours: M frame colours, or none.

    Returns:
        The figure.
    """
    rows = -(-len(images) // columns)
    height = size * (1.25 if titles else 1.05)
    fig, axes = plt.subplots(rows, columns, figsize=(size * columns, height * rows), squeeze=False)
    for index, ax in enumerate(axes.flat):
        if index < len(images):
            title = titles[index] if titles else ""
            show_image(ax, images[index], title, colours[index] if colours else None)
        else:
            ax.axis("off")
    fig.tight_layout(pad=0.4)
    return fig


def similarity_bars(ax: Axes, names: Sequence[str], values: Sequence[float], colours=None, label: str = "") -> None:
    """Horizontal bars, the first on top, the value written at the end of each.

    Args:
        ax: where.
        names: M names.
        values: M numbers.
        colours: one colour or M of them.
        label: of the value axis.
    """
    places = np.arange(len(names))
    bars = ax.barh(places, values, color=colours or ARM_COLOURS["dnc"], height=0.7)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)


def show_photographs(fig: Figure) -> None:
    """Show a figure made of photographs in a notebook, as JPEG: as PNG a few dozen outweigh the rest of a chapter.

    Args:
        fig: closed afterwards.
    """
    from IPython.display import Image, display

    buffer = io.BytesIO()
    fig.savefig(buffer, format="jpg", dpi=80, pil_kwargs={"quality": 80})
    plt.close(fig)
    display(Image(buffer.getvalue(), format="jpeg"))


#: The colour of a verdict; none of them is an arm's. Beside it the verdict always stands in words.
VERDICT_COLOURS = {
    "held here": "#1B7837",
    "contradicted on this recipe": "#762A83",
    "equivalent": "#1A1A1A",
    "inconclusive": "#8C6D1F",
    "not run": "#707070",
}


def forest(rows: Sequence, reach: float | None = None) -> Figure:
    """Every claim of the ledger, a line a recipe: the published difference, ours, the margin, the verdict.

    Args:
        rows: see :func:`dnc_lib.ledger.ledger`.
        reach: half of the axis, in points; without it, 2 or less, so that intervals which decide fit.

    Returns:
        The figure. An interval that leaves the axis ends in an arrow there.
    """
    if reach is None:
        known = [difference.value or 0.0 for row in rows for difference in row.published]
        ours = [row.ours for row in rows if row.ours.n]
        ends = [
            end for each in ours for end in (each.low, each.high) if each.n >= each.claim.pairs and end is not None
        ]
        reach = min(2.0, 1.35 * max(map(abs, [1.0, *known, *ends, *(each.mean for each in ours)])))
    height = 0.25 * len(rows) + 0.95  # inches
    fig, ax = plt.subplots(figsize=(9.2, height))
    fig.subplots_adjust(left=0.43, right=0.82, bottom=0.85 / height, top=1 - 0.1 / height)
    ax.axvline(0, color="black", linewidth=0.8, zorder=1)
    for place, row in enumerate(rows):
        colour, margin = VERDICT_COLOURS[row.ours.verdict], row.claim.margin
        ax.add_patch(plt.Rectangle((-margin, place - 0.5), 2 * margin, 1, color="#ECECEC", linewidth=0))
        _forest_words(ax, place, row, colour, first=not place or rows[place - 1].claim != row.claim)
        known = [difference for difference in row.published if difference.value is not None]
        shift = 0.2 if known and row.ours.n else 0.0  # so that the two do not cover each other
        for difference in known:
            ax.plot(difference.value, place - shift, "D", ms=5, mfc="white", mec="black", mew=1, zorder=3)
            spot = {"textcoords": "offset points", "va": "center", "fontsize": 6.5, "color": "#505050"}
            ax.annotate(difference.verified, (difference.value, place - shift), (6, 0), **spot)
        if row.ours.n:
            _forest_interval(ax, row.ours, place + shift, reach, colour)
        elif row.published and not known:
            words = "published, but not known to us"
            ax.text(0, place, words, fontsize=6.5, color="#505050", ha="center", va="center")
        elif not known:
            ax.plot([-reach, reach], [place, place], ":", color="#B0B0B0", lw=0.8, zorder=1)
    ax.set(xlim=(-reach, reach), ylim=(len(rows) - 0.5, -0.5), yticks=[], xlabel="first arm minus second, in points")
    ax.spines["left"].set_visible(False)
    handles = [
        ax.plot([], [], "D", ms=5, mfc="white", mec="black", mew=1, label="published")[0],
        ax.plot([], [], "o-", ms=4.5, lw=2, color="black", label="ours, 95 % interval")[0],
        plt.Rectangle((0, 0), 1, 1, color="#ECECEC", label="margin: no difference that matters"),
    ]
    fig.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.03, 0.0), fontsize=7.5)
    return fig


def _forest_words(ax: Axes, place: int, row, colour: str, first: bool) -> None:
    """Left of the axis the claim, on its first line, and the recipe; right of it the verdict."""
    style = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8}  # x in shares of the axis
    if first:
        ax.text(-1.1, place, row.claim.id, fontweight="bold", **style)
        ax.plot([-1.1, 1.48], [place - 0.5] * 2, transform=style["transform"], color="#CFCFCF", lw=0.6, clip_on=False)
    recipe = row.recipe if len(row.recipe) < 38 else row.recipe[:36] + "…"
    ax.text(-0.03, place, recipe, ha="right", color="black" if row.ours.n else colour, **style)
    n, wanted = row.ours.n, row.claim.pairs
    pairs = f", {n} of {wanted} pairs" if n < wanted else f", {n} pairs"
    ax.text(1.03, place, row.ours.verdict + pairs * bool(n), color=colour, **style)


def _forest_interval(ax: Axes, ours, place: float, reach: float, colour: str) -> None:
    """A dot for the mean, a line for the interval, and an arrow where it leaves the axis."""
    ends = [ours.mean if end is None else end for end in (ours.low, ours.high)]
    ax.plot(np.clip(ends, -reach, reach), [place, place], color=colour, lw=2, zorder=3)
    for end, side, marker in ((ends[0], -1, "<"), (ends[1], 1, ">")):
        if side * end > reach:
            ax.plot(side * reach, place, marker, color=colour, ms=6, clip_on=False, zorder=4)
    if abs(ours.mean) <= reach:
        ax.plot(ours.mean, place, "o", color=colour, ms=4.5, zorder=4)
    else:  # the most decisive lines lie outside: their mean in words
        side = math.copysign(1, ours.mean)
        words = {"ha": "left" if side < 0 else "right", "va": "center", "fontsize": 7, "color": colour}
        ax.annotate(f"{ours.mean:+.1f}", (side * reach, place), (-8 * side, 0), textcoords="offset points", **words)
