"""One figure of an explanation that a person understands without a caption."""

from collections.abc import Callable

from PIL import Image, ImageDraw

from .explain import Case, Explanation
from .heat_maps import HeatMap
from .painting import (
    INK,
    QUIET,
    crop_side,
    fitted,
    font,
    heated,
    marked,
    marked_crop,
    shortened,
    wrapped,
)

#: Of the figure, in pixels: what is explained stands left, its cases right; a row for each of the two classes.
EDGE, GAP = 20, 8
QUESTION, CASE = 192, 128  # sides of the pictures
TITLE, WORDS, SMALL = 24, 15, 13
LINE = 18

#: The colour of the predicted class's similarities, and of the runner-up's.
FOR, AGAINST = (213, 94, 0), (0, 114, 178)


class _Sheet:
    """A white sheet and what is the same for all that is put on it."""

    def __init__(self, why: Explanation, size: tuple[int, int], see: Callable[[Image.Image], Image.Image]):
        self.image = Image.new("RGB", size, "white")
        self.draw = ImageDraw.Draw(self.image)
        self.why, self.see = why, see
        peaks = [float(heat.values.max()) for case in why.cases for heat in case.maps.values()]
        self.top = max([*peaks, 0.0])  # one scale for all maps, so that they can be compared
        self.mapped = bool(peaks)

    def words(self, corner: tuple[int, int], text: str, width: int, colour=QUIET, size: int = WORDS) -> None:
        self.draw.text(corner, shortened(text, width, size), colour, font(size))

    def picture(self, corner: tuple[int, int], picture: Image.Image) -> None:
        self.image.paste(picture, corner)

    def heat(self, picture: Image.Image, heat: HeatMap, colour: tuple[int, int, int], side: int) -> Image.Image:
        """A picture as the model sees it, under its map, brought into a square of this side."""
        shown = fitted(picture, side, side)
        return heated(shown, heat.on_pixels().numpy(), colour, self.top)


def explanation_figure(
    why: Explanation,
    picture: Image.Image,
    read: Callable[[int], Image.Image],
    name: str = "",
    see: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """What was asked about, the nearest cases of the predicted class and of the runner-up as images, and the rule;
    where the explanation has heat maps, each image beside its own.

    Args:
        why: see :func:`dnc_lib.explain.explain`.
        picture: the image that was explained, at its own resolution.
        read: number of a training image to the image.
        name: what to call the picture.
        see: a picture to the part of it that the model sees, which the heat maps are about; all of it if None.

    Returns:
        An RGB image, 1300 pixels wide with three cases and their maps.
    """
    mapped = any(case.maps for case in why.cases)
    columns = max(2, *(len(why.of(label)) for label in (why.predicted, why.runner_up)))
    left = 2 * QUESTION + GAP  # the picture, and a map or what is around the pixel
    cell = (2 * CASE + GAP if mapped else CASE + 2 * GAP) + 2 * GAP
    width = 3 * EDGE + left + columns * cell
    note = why.map_note if why.at is not None or not mapped else ""  # of an image the legend says it
    words = [line for text in (why.rule, why.change, why.caveat, note) if text
             for line in wrapped(text, width - 2 * EDGE, WORDS)]  # fmt: skip
    top, band = EDGE + TITLE + 2 * WORDS + EDGE, WORDS + 2 * GAP + QUESTION + 3 * GAP
    height = top + 2 * band + len(words) * round(1.5 * WORDS) + EDGE
    sheet = _Sheet(why, (width, height), see or (lambda seen: seen))
    _title(sheet, name, width - 2 * EDGE)
    _question(sheet, picture.convert("RGB"), top, band)
    for number, (label, colour) in enumerate(((why.predicted, FOR), (why.runner_up, AGAINST))):
        corner = 2 * EDGE + left, top + number * band
        heading = f"nearest cases of {why.classes[label]}, {('with their similarity', 'the runner-up')[number]}"
        sheet.words(corner, heading, columns * cell, colour)
        for place, case in enumerate(why.of(label)):
            _case(sheet, case, read, (corner[0] + place * cell, corner[1] + WORDS + GAP), colour)
    for number, line in enumerate(words):
        sheet.words((EDGE, top + 2 * band + number * round(1.5 * WORDS)), line, width, INK)
    return sheet.image


def _title(sheet: _Sheet, name: str, width: int) -> None:
    why = sheet.why
    share = {label: f"{100 * why.shares[label]:.1f} %" for label in (why.predicted, why.runner_up)}
    subject = why.subject(name)
    sheet.words((EDGE, EDGE), f"{why.classes[why.predicted]}, {share[why.predicted]}", width, INK, TITLE)
    second = f"{subject}{': ' * bool(subject)}nearer to {why.classes[why.predicted]} than to "
    second += f"{why.classes[why.runner_up]} ({share[why.runner_up]}) by {why.margin:.3f} in similarity"
    sheet.words((EDGE, EDGE + TITLE + GAP), second, width)


def _question(sheet: _Sheet, picture: Image.Image, top: int, band: int) -> None:
    """Left: the picture; of a pixel, where it lies and what is around it. Beside it what makes it similar to the
    nearest case of either class."""
    why, below, beside = sheet.why, WORDS + GAP, EDGE + QUESTION + GAP
    sheet.words((EDGE, top), "what is explained", QUESTION)
    whole = not sheet.mapped and why.at is None
    shown = fitted(picture, *((2 * QUESTION + GAP,) * 2 if whole else (QUESTION, QUESTION)))
    if why.at is not None:
        scale = shown.width / picture.width
        shown = marked(shown, tuple((place + 0.5) * scale for place in why.at))
        around = marked_crop(picture, why.at, QUESTION, QUESTION)
        corner = (EDGE, top + band) if sheet.mapped else (beside, top)
        sheet.words(corner, f"around it, {crop_side(picture)} pixels wide", QUESTION)
        sheet.picture((corner[0], corner[1] + below), around)
    sheet.picture((EDGE, top + below), shown)
    if not sheet.mapped:
        return
    seen = sheet.see(picture)
    for number, (label, colour) in enumerate(((why.predicted, FOR), (why.runner_up, AGAINST))):
        case = why.of(label)[0]
        corner = beside, top + number * band
        sheet.words(corner, f"what is near to case {case.subcentroid}", QUESTION, colour)
        sheet.picture((corner[0], corner[1] + below), sheet.heat(seen, case.here, colour, QUESTION))
    if why.at is None:
        sheet.words((EDGE, top + band), "shares of the classes", QUESTION)
        _shares(sheet, (EDGE, top + band + below))
        _legend(sheet, (EDGE, top + band + below + 4 * LINE + GAP))


def _shares(sheet: _Sheet, corner: tuple[int, int], rows: int = 4) -> None:
    """The largest shares as bars."""
    why, (left, top) = sheet.why, corner
    largest = sorted(range(len(why.shares)), key=lambda c: -why.shares[c])[:rows]
    for number, label in enumerate(largest):
        line = top + number * LINE
        colour = {why.predicted: FOR, why.runner_up: AGAINST}.get(label, QUIET)
        sheet.words((left, line), why.classes[label], 80, QUIET, SMALL)
        sheet.draw.rectangle((left + 84, line + 3, left + 84 + round(60 * why.shares[label]), line + 12), fill=colour)
        text = f"{100 * why.shares[label]:.1f} %"
        sheet.draw.text((left + QUESTION, line + 8), text, INK, font(SMALL), anchor="rm")


def _legend(sheet: _Sheet, corner: tuple[int, int]) -> None:
    """Two ramps of colour, from nothing to the largest value of all maps."""
    left, top = corner
    for number, colour in enumerate((FOR, AGAINST)):
        for x in range(QUESTION - 40):
            share = x / (QUESTION - 41)
            shade = tuple(round(255 + share * (channel - 255)) for channel in colour)
            sheet.draw.line((left + x, top + 16 * number, left + x, top + 16 * number + 11), shade)
    sheet.draw.text((left, top + 34), "0", QUIET, font(SMALL))
    sheet.draw.text((left + QUESTION - 40, top + 34), f"{sheet.top:.1f}", QUIET, font(SMALL), anchor="ra")
    text = "similarity, place by place; "
    if not all(heat.exact for case in sheet.why.cases for heat in case.maps.values()):
        text += "to first order, so the mean of a map misses the bar"
    elif all(abs(case.there.similarity - case.similarity) < 1e-3 for case in sheet.why.cases if case.there):
        text += "the mean of a map is the bar beside it"
    else:  # not anchored: a case is near to its image, not the same
        text += "of a case's image, to the explained image itself"
    for number, line in enumerate(wrapped(text, QUESTION - GAP, SMALL)):
        sheet.draw.text((left, top + 56 + number * LINE), line, QUIET, font(SMALL))


def _case(
    sheet: _Sheet,
    case: Case,
    read: Callable[[int], Image.Image],
    corner: tuple[int, int],
    colour: tuple[int, int, int],
) -> None:
    """A case: its training image, or the crop around its pixel, its heat map, its similarity as a bar, its name."""
    left, top = corner
    width = 2 * CASE + GAP if sheet.mapped else CASE
    if case.exemplar is None:
        sheet.draw.rectangle((left, top, left + CASE, top + CASE), outline=QUIET)
        sheet.draw.multiline_text(
            (left + 6, top + CASE // 2 - 14), "no training image\nis left for it", QUIET, font(SMALL)
        )
    else:
        picture = sheet.see(read(case.exemplar.image).convert("RGB"))
        place = case.exemplar.row, case.exemplar.column
        shown = fitted(picture, CASE, CASE) if place[0] is None else marked_crop(picture, place, CASE, CASE)
        sheet.picture((left, top), shown)
        if case.there is not None:
            shown = sheet.heat(picture, case.there, colour, CASE)
            if place[0] is not None:
                scale = shown.width / picture.width
                shown = marked(shown, tuple((pixel + 0.5) * scale for pixel in place), 5)
            sheet.picture((left + CASE + GAP, top), shown)
    top += CASE + 6
    full = width - 48
    sheet.draw.rectangle((left, top + 2, left + full, top + 12), fill=(235, 235, 235))
    if case.similarity > 0:
        end = left + round(full * min(case.similarity, 1))
        sheet.draw.rectangle((left, top + 2, end, top + 12), fill=colour)
    sheet.draw.text((left + full + 6, top + 7), f"{case.similarity:.3f}", INK, font(SMALL), anchor="lm")
    if case.exemplar is not None:
        lines = [f"case {case.subcentroid}: {case.exemplar.name}"]
        if case.exemplar.row is not None:
            lines.append(f"row {case.exemplar.row}, column {case.exemplar.column}")
        for number, line in enumerate(lines):
            sheet.words((left, top + LINE + number * LINE), line, width, QUIET, SMALL)
