"""One figure of an explanation that a person understands without a caption."""

from collections.abc import Callable

from PIL import Image, ImageDraw

from .explain import Case, Explanation
from .painting import INK, QUIET, crop_side, fitted, font, marked, marked_crop, shortened, wrapped

#: Of the figure, in pixels: what is explained stands left, its cases right, in cells.
EDGE, LEFT, CELL, BAND = 20, 340, 180, 290
PICTURE, CROP = (340, 280), (210, 210)
TITLE, WORDS, SMALL = 24, 15, 13

#: The colour of the predicted class's similarities, and of the runner-up's.
FOR, AGAINST = (213, 94, 0), (0, 114, 178)


def explanation_figure(
    why: Explanation, picture: Image.Image, read: Callable[[int], Image.Image], name: str = ""
) -> Image.Image:
    """What was asked about, the nearest cases of the predicted class and of the runner-up as images, and the rule.

    Args:
        why: see :func:`dnc_lib.explain.explain`.
        picture: the image that was explained, at its own resolution.
        read: number of a training image to the image.
        name: what to call the picture.

    Returns:
        An RGB image about 1000 pixels wide.
    """
    columns = max(2, *(len(why.of(label)) for label in (why.predicted, why.runner_up)))
    width = 3 * EDGE + LEFT + columns * CELL
    words = [line for text in (why.rule, why.change, why.caveat) for line in wrapped(text, width - 2 * EDGE, WORDS)]
    words = [line for line in words if line]
    top = EDGE + TITLE + 2 * WORDS + EDGE
    height = top + 2 * BAND + len(words) * round(1.5 * WORDS) + EDGE
    whole = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(whole)
    _title(draw, why, name, width - 2 * EDGE)
    _question(whole, why, picture, top)
    left = 2 * EDGE + LEFT
    for number, (label, colour) in enumerate(((why.predicted, FOR), (why.runner_up, AGAINST))):
        below = top + number * BAND
        heading = f"nearest cases of {why.classes[label]}{', the runner-up' * number}, with their similarity"
        draw.text((left, below), shortened(heading, columns * CELL, WORDS), colour, font(WORDS))
        for place, case in enumerate(why.of(label)):
            _case(whole, case, read, (left + place * CELL, below + WORDS + 8), colour)
    for number, line in enumerate(words):
        draw.text((EDGE, top + 2 * BAND + number * round(1.5 * WORDS)), line, INK, font(WORDS))
    return whole


def _title(draw: ImageDraw.ImageDraw, why: Explanation, name: str, width: int) -> None:
    share = {label: f"{100 * why.shares[label]:.1f} %" for label in (why.predicted, why.runner_up)}
    subject = why.subject(name)
    draw.text((EDGE, EDGE), shortened(f"{why.classes[why.predicted]}, {share[why.predicted]}", width, TITLE), INK,
              font(TITLE))  # fmt: skip
    second = f"{subject}{': ' * bool(subject)}nearer to {why.classes[why.predicted]} than to "
    second += f"{why.classes[why.runner_up]} ({share[why.runner_up]}) by {why.margin:.3f} in similarity"
    draw.text((EDGE, EDGE + TITLE + 8), shortened(second, width, WORDS), QUIET, font(WORDS))


def _question(whole: Image.Image, why: Explanation, picture: Image.Image, top: int) -> None:
    """Left: the picture; of a pixel, where it lies and what is around it."""
    draw = ImageDraw.Draw(whole)
    draw.text((EDGE, top), "what is explained", QUIET, font(WORDS))
    shown = fitted(picture.convert("RGB"), *PICTURE)
    below = top + WORDS + 8
    if why.at is None:
        whole.paste(shown, (EDGE, below))
        return
    scale = shown.width / picture.width
    shown = marked(shown, tuple((place + 0.5) * scale for place in why.at))
    whole.paste(shown, (EDGE, below))
    below += shown.height + 14
    draw.text((EDGE, below), f"around it, {crop_side(picture)} pixels wide", QUIET, font(WORDS))
    whole.paste(marked_crop(picture.convert("RGB"), why.at, *CROP), (EDGE, below + WORDS + 8))


def _case(
    whole: Image.Image,
    case: Case,
    read: Callable[[int], Image.Image],
    corner: tuple[int, int],
    colour: tuple[int, int, int],
) -> None:
    """A case: its training image, or the crop around its pixel, its similarity as a bar, and what it is called."""
    left, top = corner
    side = CELL - 16
    draw = ImageDraw.Draw(whole)
    if case.exemplar is None:
        draw.rectangle((left, top, left + side, top + side), outline=QUIET)
        draw.multiline_text((left + 12, top + side // 2), "no training image\nis left for it", QUIET, font(SMALL))
    else:
        picture = read(case.exemplar.image).convert("RGB")
        if case.exemplar.row is None:
            shown = fitted(picture, side, side)
        else:
            shown = marked_crop(picture, (case.exemplar.row, case.exemplar.column), side, side)
        whole.paste(shown, (left, top))
    top += side + 6
    full = side - 48
    draw.rectangle((left, top + 2, left + full, top + 12), fill=(235, 235, 235))
    if case.similarity > 0:
        draw.rectangle((left, top + 2, left + round(full * min(case.similarity, 1)), top + 12), fill=colour)
    draw.text((left + full + 6, top + 7), f"{case.similarity:.3f}", INK, font(SMALL), anchor="lm")
    if case.exemplar is not None:
        lines = [f"case {case.subcentroid}: {case.exemplar.name}"]
        if case.exemplar.row is not None:
            lines.append(f"row {case.exemplar.row}, column {case.exemplar.column}")
        for number, line in enumerate(lines):
            text = shortened(line, side, SMALL)
            draw.text((left, top + 18 + number * 17), text, QUIET, font(SMALL))
