"""What an export says of a run: the manifest of its model, and the tiles that it is compared on."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from cegate_geo.domain.manifest import Manifest
from cegate_geo.peft import ModuleKey
from cegate_geo.train.config_file import to_table
from cegate_geo.train.raster_input import RasterInput
from cegate_geo.train.run import Run
from cegate_geo.train.validation import SAMPLE_TILES, TILES


def run_manifest(run: Run, kept: frozenset[ModuleKey], total: int) -> Manifest:
    """The contract of a run's model; folders of the machine that it was trained on stay out of it."""
    config, facts = run.config, dict(run.facts)
    gsd_m, gsd_range_m = facts.pop("gsd_m"), facts.pop("gsd_range_m")
    facts.pop("bands")
    taken = run.taken
    settings = {name: to_table(getattr(config, name)) for name in ("model", "peft", "train")}
    settings["model"]["weights"] = Path(config.model.weights).name
    if "command" in facts:
        facts["command"] = shlex.join(_without_folder(word) for word in shlex.split(facts["command"]))
    patch = run.segmenter.patch
    return Manifest(
        name=config.name,
        legend=config.legend,
        bands=taken.bands,
        dtype=taken.dtype,
        input_maximum=taken.scale,
        gsd_m=gsd_m,
        gsd_range_m=(gsd_range_m[0], gsd_range_m[1]),
        tile_size=config.model.tile_size,
        halo=config.model.tile_size // 8 // patch * patch,
        description=config.description,
        licence=config.licence,
        attribution=config.attribution,
        architecture=f"{config.model.backbone} + {config.model.head}",
        modules_kept=tuple(str(key) for key in sorted(kept)),
        modules_total=total,
        provenance={**facts, "settings": settings},
    )


def _without_folder(word: str) -> str:
    """The name of a file that is given by its absolute path, also behind an `=`: where it lay is nobody's business."""
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def sample_tiles(run: Run) -> torch.Tensor:
    """(N, C, S, S) as the model takes them: held-out tiles that the run left, else smooth noise with grain."""
    size = run.config.model.tile_size
    if not run.taken.is_plain:
        return _within(_kept_tiles(run), run.taken)
    tiles = []
    for path in sorted((run.folder / "pictures").glob("*.png"))[:SAMPLE_TILES]:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if pixels.shape[0] == size and pixels.shape[1] >= size:
            tiles.append(torch.from_numpy(pixels[:, :size].copy()).permute(2, 0, 1).float() / 255)
    return torch.stack(tiles) if tiles else _noise(3, size).clamp(0, 1)


def _kept_tiles(run: Run) -> torch.Tensor:
    """The tiles that a run kept because pictures can't hold them; else noise as large as its bands are."""
    path, taken = run.folder / "pictures" / TILES, run.taken
    shape = (len(taken.bands), run.config.model.tile_size, run.config.model.tile_size)
    try:
        tiles = load_file(path)["tiles"] if path.is_file() else torch.empty(0)
    except SafetensorError:
        tiles = torch.empty(0)
    if tiles.shape[1:] == shape and len(tiles):
        return tiles
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (taken.mean or (0.5,), taken.std or (0.25,)))
    return mean + 4 * std * (_noise(*shape[:2]) - 0.5)


def _within(tiles: torch.Tensor, taken: RasterInput) -> torch.Tensor:
    """Tiles of values that a raster of the run's type can hold: noise and scenes of another type go beyond."""
    if taken.dtype == "float32":
        return tiles
    limits = np.iinfo(taken.dtype)
    return tiles.clamp(limits.min / taken.scale, limits.max / taken.scale)


def _noise(channels: int, size: int) -> torch.Tensor:
    """(N, channels, size, size), mostly within 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(SAMPLE_TILES, channels, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
