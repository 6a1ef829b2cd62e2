"""Which pixel of a scene stands in the middle of each place of a decoder's grid, and which place a pixel lies in.

A scene of H x W pixels is brought to the height and width that the network sees, perhaps padded below and at the
right to a multiple that its backbone can cut, and comes out as a grid of h x w embeddings.
"""

from typing import NamedTuple


class Axis(NamedTuple):
    """One direction, down or across.

    Attributes:
        pixels: of the scene itself.
        seen: pixels that the network sees of it.
        padded: with what is added to them.
        places: of the grid.
    """

    pixels: int
    seen: int
    padded: int
    places: int

    def pixel(self, place: int) -> int:
        """The pixel in the middle of a place; ``pixels`` or more where that lies in the padding.

        The label of this pixel is the place's, see :func:`dnc_lib.pixels.labels_at`.
        """
        return (2 * place + 1) * self.pixels * self.padded // (2 * self.places * self.seen)

    def place(self, pixel: int) -> int:
        """The place that a pixel lies in, as far as its middle tells."""
        return (2 * pixel + 1) * self.seen * self.places // (2 * self.pixels * self.padded)


def axes(size: tuple[int, int], seen: tuple[int, int], grid: tuple[int, int], multiple: int = 1) -> tuple[Axis, Axis]:
    """Down and across.

    Args:
        size: (H, W) of the scene.
        seen: (height, width) of what the network is given.
        grid: (h, w) of the decoder's embeddings.
        multiple: to which the network pads.
    """
    down, across = (
        Axis(pixels, side, side + -side % multiple, places)
        for pixels, side, places in zip(size, seen, grid, strict=True)
    )
    return down, across
