"""Pictures of the page: imagery, class maps and errors, as data URIs. rasterio encodes them; nothing else is needed."""

from __future__ import annotations

import base64
import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from cegate_geo.domain.legend import IGNORE_INDEX, Legend

Format = Literal["PNG", "JPEG"]
OUTSIDE = (244, 242, 236)
"""Colour of what is no data: the page's paper."""
RIGHT, WRONG = (222, 226, 221), (196, 41, 66)


def data_uri(picture: npt.NDArray[np.uint8], kind: Format) -> str:
    """An image file as text that a page can embed.

    Args:
        picture: (C, H, W); 3 channels, or 4 with alpha in a PNG.
        kind: JPEG for imagery, PNG for class maps.
    """
    options = {"quality": 88} if kind == "JPEG" else {"zlevel": 9}
    count, height, width = picture.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture of a page lies nowhere
        with MemoryFile() as memory:
            with memory.open(driver=kind, dtype="uint8", count=count, height=height, width=width, **options) as target:
                target.write(picture)
            content = memory.read()
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode('ascii')}"


def paint_imagery(picture: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Imagery (3, H, W) with the page's paper where there is no data."""
    return np.where(valid, picture, np.array(OUTSIDE, np.uint8)[:, None, None])


def paint_classes(class_map: npt.NDArray[np.integer], legend: Legend) -> npt.NDArray[np.uint8]:
    """A class map (H, W) in the legend's colours, as (3, H, W); paper where it is no class."""
    table = np.tile(np.array(OUTSIDE, np.uint8), (IGNORE_INDEX + 1, 1))
    for entry in legend:
        table[entry.id] = entry.color
    return np.ascontiguousarray(table[class_map].transpose(2, 0, 1))


def paint_over(
    picture: npt.NDArray[np.uint8], class_map: npt.NDArray[np.integer], legend: Legend, *, opacity: float
) -> npt.NDArray[np.uint8]:
    """Imagery (3, H, W) under the colours of its class map; the first class stays clear."""
    colors = paint_classes(class_map, legend).astype(np.float32)
    cover = np.where(class_map == legend.ids[0], 0.0, opacity).astype(np.float32)
    cover[class_map == IGNORE_INDEX] = 1.0
    return np.rint(picture * (1 - cover) + colors * cover).astype(np.uint8)


def paint_errors(truth: npt.NDArray[np.integer], prediction: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """(3, H, W): red where truth and prediction differ, grey where they agree, paper where one of them is no class."""
    compared = (truth != IGNORE_INDEX) & (prediction != IGNORE_INDEX)
    table = np.array([OUTSIDE, RIGHT, WRONG], np.uint8)
    kind = np.where(compared, np.where(truth == prediction, 1, 2), 0)
    return np.ascontiguousarray(table[kind].transpose(2, 0, 1))
