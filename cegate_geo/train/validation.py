"""Figures and pictures of a model on held-out areas."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cegate_geo.domain.confusion import ConfusionMatrix
from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.train.raster_input import RasterInput
from cegate_geo.train.run_files import write_tensors
from cegate_geo.train.segmenter import Segmenter

TILES = "tiles.safetensors"
"""Tiles as the model takes them, beside the pictures."""
SAMPLE_TILES = 4
"""Tiles that a run's export is compared on."""
MAX_SAMPLE = 32 * 2**20
"""Bytes that they may take."""

Tile = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Image (C, H, W) as the model takes it and labels (H, W) as channel indices."""


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context for "bf16", or none for "fp32"."""
    if precision == "bf16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return contextlib.nullcontext()


def choose_precision(requested: str, device: str) -> str:
    """What "auto" means here: bf16 where the hardware computes in it, else fp32."""
    if requested != "auto":
        return requested
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


@torch.no_grad()
def validate(
    segmenter: Segmenter, tiles: Sequence[Tile], legend: Legend, *, device: str, precision: str
) -> ConfusionMatrix:
    """Confusion matrix over all tiles."""
    matrix = ConfusionMatrix(legend)
    for image, labels in tiles:
        matrix.update(to_ids(labels, legend), to_ids(predict_tile(segmenter, image, device, precision), legend))
    return matrix


@torch.no_grad()
def predict_tile(
    segmenter: Segmenter, image: npt.NDArray[np.float32], device: str, precision: str
) -> npt.NDArray[np.int64]:
    """(C, H, W) as the model takes it → (H, W) channel indices."""
    segmenter.eval()
    with autocast(device, precision):
        logits = segmenter(torch.from_numpy(image)[None].to(device))
    prediction: npt.NDArray[np.int64] = logits.float().argmax(1)[0].cpu().numpy()
    return prediction


def save_pictures(
    segmenter: Segmenter,
    tiles: Sequence[Tile],
    legend: Legend,
    folder: Path,
    *,
    taken: RasterInput,
    device: str,
    precision: str,
) -> None:
    """PNGs of image, truth and prediction side by side; white = left out.

    Where these can't hold what the model was given, some tiles lie beside them as they were: an export is compared on
    them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = to_pictures([image for image, _ in tiles], taken)
    if tiles and not taken.is_plain:
        count = max(1, min(SAMPLE_TILES, MAX_SAMPLE // tiles[0][0].nbytes))
        kept = torch.from_numpy(np.stack([image for image, _ in tiles[:count]]))
        write_tensors({"tiles": kept}, folder / TILES)
    for n, ((image, labels), rgb) in enumerate(zip(tiles, pictures, strict=True)):
        prediction = predict_tile(segmenter, image, device, precision)
        row = np.concatenate([rgb, _paint(labels, legend), _paint(prediction, legend)], axis=1)
        Image.fromarray(row).save(folder / f"tile-{n:02d}.png")


def to_pictures(images: Sequence[npt.NDArray[np.float32]], taken: RasterInput) -> list[npt.NDArray[np.uint8]]:
    """Images (C, H, W) as a model takes them as (H, W, 3) uint8.

    8-bit RGB as it is; of others red, green and blue, or the first bands, from the 2nd to the 98th percentile of all
    images together, so that they can be compared.
    """
    if taken.is_plain:
        return [(np.moveaxis(np.clip(image, 0, 1), 0, 2) * 255).round().astype(np.uint8) for image in images]
    if not images:
        return []
    shown = [image[list(taken.shown)] for image in images]
    values = np.concatenate([image.reshape(3, -1) for image in shown], axis=1)
    low, high = (p.reshape(3, 1, 1) for p in np.percentile(values, (2, 98), axis=1))
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    return [(np.moveaxis(np.clip((image - low) / span, 0, 1), 0, 2) * 255).round().astype(np.uint8) for image in shown]


def to_ids(channels: npt.NDArray[np.int64], legend: Legend) -> npt.NDArray[np.int64]:
    """Channel indices, 255 for none, as class ids."""
    table = np.full(IGNORE_INDEX + 1, IGNORE_INDEX, np.int64)
    table[: len(legend)] = legend.ids
    return table[channels]


def _paint(channels: npt.NDArray[np.int64], legend: Legend) -> npt.NDArray[np.uint8]:
    table = np.full((IGNORE_INDEX + 1, 3), 255, np.uint8)
    table[: len(legend)] = [c.color for c in legend]
    return table[channels]
