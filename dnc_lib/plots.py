"""Figures used by more than one chapter, and one colour for each arm in the whole book."""

import io
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
