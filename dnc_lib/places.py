"""Where the places of a decoder's grid lie in a scene: which pixel stands at the middle of each, and the way back.

A scene of H x W pixels is brought to the height and width that the network sees, perhaps padded below and at the
right to a multiple that its backbone can cut, and comes out as a grid of h x w embeddings.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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

    def pixel(self, device: torch.device | str = "cpu") -> Tensor:
        """(places,) the pixel in the middle of each place; ``pixels`` or more where that lies in the padding."""
        middle = (torch.arange(self.places, device=device) + 0.5) * self.padded / self.places
        return (middle * self.pixels / self.seen).long()

    def place(self, pixel: int) -> int:
        """The place that a pixel lies in."""
        return min(int((pixel + 0.5) * self.seen / self.pixels * self.places / self.padded), self.places - 1)


def axes(
    size: tuple[int, int], seen: tuple[int, int], grid: tuple[int, int], multiple: int = 1
) -> tuple[Axis, Axis]:
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


def labels_in_places(labels: Tensor, down: Axis, across: Axis, ignored: int) -> Tensor:
    """The label of the pixel in the middle of each place: (H, W) -> (h, w), ``ignored`` in the padding."""
    rows, columns = down.pixel(labels.device), across.pixel(labels.device)
    inside = (rows < down.pixels)[:, None] & (columns < across.pixels)
    there = labels[rows.clamp_max(down.pixels - 1)][:, columns.clamp_max(across.pixels - 1)]
    return torch.where(inside, there.long(), ignored)
