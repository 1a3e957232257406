"""Rectangles of pixels.

A window is in the pixel grid of one raster. It may look past the raster's edge; `Window.intersection` with
`Window.of_shape` gives the part that exists. Columns and rows are never passed by position: what is asked for is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cegate_geo.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A rectangle of whole pixels: `col_off`, `row_off`, `width`, `height`.

    Laws: `w.intersection(w) == w`; intersection commutes; a window with no pixels does not exist.
    """

    col_off: int
    """First column; negative left of the raster."""
    row_off: int
    """First row; negative above the raster."""
    width: int
    """Columns, at least 1."""
    height: int
    """Rows, at least 1."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(
                f"A window needs at least one pixel, not width={self.width}, height={self.height}.",
                hint="Check the sizes that it was made from.",
            )

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Window:
        """The window that covers a whole raster of `shape` = (height, width)."""
        return cls(col_off=0, row_off=0, width=shape[1], height=shape[0])

    @property
    def col_end(self) -> int:
        """First column to the right of the window."""
        return self.col_off + self.width

    @property
    def row_end(self) -> int:
        """First row below the window."""
        return self.row_off + self.height

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    def intersection(self, other: Window) -> Window | None:
        """The pixels that both windows hold, or None where they share none."""
        col, row = max(self.col_off, other.col_off), max(self.row_off, other.row_off)
        width, height = min(self.col_end, other.col_end) - col, min(self.row_end, other.row_end) - row
        if width < 1 or height < 1:
            return None
        return Window(col_off=col, row_off=row, width=width, height=height)

    def contains(self, other: Window) -> bool:
        """Whether every pixel of `other` lies in this window."""
        return self.intersection(other) == other

    def expanded(self, pixels: int) -> Window:
        """The window grown by `pixels` on each side (shrunk, if negative)."""
        return Window(
            col_off=self.col_off - pixels,
            row_off=self.row_off - pixels,
            width=self.width + 2 * pixels,
            height=self.height + 2 * pixels,
        )

    def slices(self, within: Window) -> tuple[slice, slice]:
        """Row and column slices that cut this window out of an array (..., H, W) that covers `within`.

        Raises:
            InputError: If this window reaches out of `within`.
        """
        if not within.contains(self):
            raise InputError(f"{self} does not lie within {within}.", hint="Intersect the two first.")
        row, col = self.row_off - within.row_off, self.col_off - within.col_off
        return slice(row, row + self.height), slice(col, col + self.width)


def iter_blocks(shape: tuple[int, int], *, block_height: int, block_width: int) -> Iterator[Window]:
    """Cut a raster of `shape` = (height, width) into blocks, row by row; the last ones may be smaller.

    Law: the blocks partition the raster.
    """
    if block_height < 1 or block_width < 1:
        raise InputError(f"Blocks need at least one pixel, not {block_height} x {block_width}.")
    for row in range(0, shape[0], block_height):
        for col in range(0, shape[1], block_width):
            yield Window(
                col_off=col,
                row_off=row,
                width=min(block_width, shape[1] - col),
                height=min(block_height, shape[0] - row),
            )
