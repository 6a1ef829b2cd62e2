"""Pictures of labels and of heat maps: colours of classes, label maps, overlays, legends, marked crops; Pillow is all
they need."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .metrics import IGNORED

#: Ink of words, and of what stands back.
INK, QUIET = (25, 25, 25), (110, 110, 110)

#: Pictures with a longer side below this are enlarged before classes are painted on them.
READABLE = 480

#: An image whose longer side is shorter than this is enlarged pixel by pixel, so that its pixels can be seen.
FEW_PIXELS = 64


def class_colours(num_classes: int, given: Sequence | np.ndarray = ()) -> np.ndarray:
    """(C, 3) uint8: the colours that a data set paints its classes in, or else hues far apart.

    Args:
        num_classes: C, at most 255.
        given: (C, 3), 0 to 255; empty where the data set has none.

    Raises:
        ValueError: for another number of colours than classes.
    """
    if len(given):
        colours = np.asarray(given, dtype=np.uint8)
        if colours.shape != (num_classes, 3):
            raise ValueError(f"{num_classes} classes need as many colours (R, G, B), got {colours.shape}")
        return colours
    # Steps of the golden ratio: each hue falls into the widest gap that is left; two strengths in turn.
    hues = ((c * 0.618034) % 1 for c in range(num_classes))
    made = [colorsys.hsv_to_rgb(hue, (0.85, 0.55)[c % 2], (0.95, 0.7, 0.5)[c % 3]) for c, hue in enumerate(hues)]
    return (np.array(made).reshape(-1, 3) * 255).round().astype(np.uint8)


def label_map(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Labels (H, W) uint8 as a palette image: its numbers are the classes, its colours theirs; 255 is black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colours)] = colours
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(palette.tobytes())
    return image


def overlay(picture: Image.Image, labels: np.ndarray, colours: np.ndarray, strength: float = 0.55) -> Image.Image:
    """A picture with its labels laid over it, lines where classes meet; places without a class show the picture.

    Args:
        picture: (H, W) RGB.
        labels: (H, W) uint8, 255 for no class.
        colours: (C, 3) uint8.
        strength: share of the colours, 0 to 1.

    Raises:
        ValueError: for labels of another size than the picture.
    """
    if labels.shape != (picture.height, picture.width):
        raise ValueError(
            f"labels are {labels.shape[1]}x{labels.shape[0]} but the picture is {picture.width}x{picture.height}"
        )
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    shown = labels != IGNORED
    mixed = pixels.copy()
    mixed[shown] += np.float32(strength) * (colours[labels[shown]] - pixels[shown])
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[edges] *= 0.6
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def painted(
    picture: Image.Image, labels: np.ndarray, colours: np.ndarray, entries: Sequence[tuple[str, Sequence[int]]] = ()
) -> Image.Image:
    """The overlay and below it the legend; a small picture is enlarged, so that both can be read.

    Args:
        picture: (H, W) RGB.
        labels: (H, W) uint8, 255 for no class.
        colours: (C, 3) uint8.
        entries: see :func:`with_legend`.
    """
    times = max(1, READABLE // max(picture.size))
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        labels = labels.repeat(times, 0).repeat(times, 1)
    return with_legend(overlay(picture, labels, colours), entries)


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Sequence[int]]], size: int = 14) -> Image.Image:
    """A picture with a legend below it.

    Args:
        picture: of any size.
        entries: words and colour (R, G, B) of each.
        size: of the words, in pixels.
    """
    picture = picture.convert("RGB")
    if not entries:
        return picture
    box, gap = size, size // 2
    widths = [box + gap + round(font(size).getlength(text)) + 2 * gap for text, _ in entries]
    width = max(picture.width, max(widths) + gap)
    columns = max(1, (width - gap) // max(widths))
    step = (width - gap) // columns
    rows = -(-len(entries) // columns)
    line = round(size * 1.5)
    whole = Image.new("RGB", (width, picture.height + rows * line + 2 * gap), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for n, (text, colour) in enumerate(entries):
        row, column = n % rows, n // rows  # down first, as one reads a list
        left, top = gap + column * step, picture.height + gap + row * line
        draw.rectangle((left, top + 2, left + box, top + 2 + box), fill=tuple(map(int, colour)), outline=QUIET)
        draw.text((left + box + gap, top + 2 + box // 2), text, INK, font(size), anchor="lm")
    return whole


def as_seen(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """What a network is given, as a picture: the normalisation undone.

    Args:
        image: (3, H, W), normalised.
        mean: of each channel, of pixel values in 0..1.
        std: of each channel.
    """
    pixels = np.moveaxis(np.asarray(image, dtype=np.float32), 0, -1) * np.float32(std) + np.float32(mean)
    return Image.fromarray((255 * pixels).round().clip(0, 255).astype(np.uint8))


def heated(picture: Image.Image, heat: np.ndarray, colour: Sequence[int], top: float) -> Image.Image:
    """A picture in pale grey under one colour, the stronger the larger the heat; none where it is below 0.

    Args:
        picture: of any size.
        heat: (H, W), brought to the picture's size by straight lines.
        colour: (R, G, B) of the largest heat.
        top: the heat that has all of the colour.
    """
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    heat = Image.fromarray(np.asarray(heat, dtype=np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    share = (np.asarray(heat) / max(top, 1e-12)).clip(0, 1)[..., None]
    paper = 255 * (0.35 + 0.65 * grey)  # pale, so that the colour is seen on dark pictures too
    ink = np.float32(colour) * (0.45 + 0.75 * grey)  # and the picture through the colour
    return Image.fromarray((paper + share * (ink - paper)).round().clip(0, 255).astype(np.uint8))


def crop(picture: Image.Image, at: tuple[int, int], side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The square around a pixel, moved inward where it would leave the picture, and cut where that is smaller.

    Args:
        picture: of any size.
        at: (row, column) of the pixel.
        side: of the square.

    Returns:
        The crop, and the pixel's (row, column) within it.
    """
    top, left = (
        max(0, min(place - side // 2, whole - side)) for place, whole in zip(at, picture.size[::-1], strict=True)
    )
    box = (left, top, min(left + side, picture.width), min(top + side, picture.height))
    return picture.crop(box), (at[0] - top, at[1] - left)


def crop_side(picture: Image.Image) -> int:
    """Side of a crop that shows a pixel's surroundings: two fifths of the picture's shorter side, 16 at least."""
    return max(16, round(0.4 * min(picture.size)))


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture brought into width x height in its own proportions; one of few pixels keeps them visible."""
    scale = min(width / picture.width, height / picture.height)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    few = max(picture.size) < FEW_PIXELS
    return picture.resize(size, Image.Resampling.NEAREST if few and scale > 1 else Image.Resampling.LANCZOS)


def marked(picture: Image.Image, at: tuple[float, float], radius: int = 7) -> Image.Image:
    """A copy with a ring around (row, column), black and white, so that it is seen on any ground."""
    picture = picture.convert("RGB")
    draw = ImageDraw.Draw(picture)
    row, column = at
    for r, colour, width in ((radius + 1, "black", 4), (radius, "white", 2)):
        draw.ellipse((column - r, row - r, column + r, row + r), outline=colour, width=width)
    return picture


def marked_crop(picture: Image.Image, at: tuple[int, int], width: int, height: int, side: int = 0) -> Image.Image:
    """The surroundings of a pixel, brought into width x height, with a ring around it.

    Args:
        picture: of any size.
        at: (row, column).
        width: of the result, at most.
        height: of the result, at most.
        side: of the crop; :func:`crop_side` if 0.
    """
    part, (row, column) = crop(picture, at, side or crop_side(picture))
    shown = fitted(part, width, height)
    return marked(shown, ((row + 0.5) * shown.height / part.height, (column + 0.5) * shown.width / part.width))


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def wrapped(text: str, width: int, size: int) -> list[str]:
    """Words in lines no longer than ``width`` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def shortened(text: str, width: int, size: int) -> str:
    """A text that fits into ``width`` pixels: its middle gives way, since names differ at their ends."""
    if font(size).getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: kept // 2]}...{text[len(text) - (kept + 1) // 2 :]}"
        if font(size).getlength(shorter) <= width:
            return shorter
    return "..."
