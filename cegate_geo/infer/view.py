"""Three grids: the scene's, the one that the model sees, and the one that outputs lie on.

Mostly they are one. Where the scene's GSD is not the model's, tiles lie on a grid of their own over the same ground,
and outputs on either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cegate_geo.domain.manifest import Manifest
from cegate_geo.domain.windows import Window
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.gsd import GridChoice, GroundMeasure, ResampleMode, check_gsd, measure, model_shape
from cegate_geo.infer.reader import AnyScene, Area
from cegate_geo.infer.resample import Resampling
from cegate_geo.infer.rescaled import AreaAround


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of the output that is computed and written as one."""

    target: Window
    """What is written, on the output's grid."""
    region: Window
    """What is computed for it, on the grid of the tiles; the same where both grids are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How the model sees a scene, and where its outputs lie."""

    scene: AnyScene
    georeference: Georeference
    """Of the outputs."""
    ground: GroundMeasure | None = None
    """Measures the outputs' pixels; None where nothing says how large they are."""
    resampling: Resampling | None = None
    """From the scene's grid to that of the tiles; None where they are one."""
    restores: bool = False
    """Whether outputs lie on the scene's grid although tiles do not."""
    asked: Area | None = None
    """What is asked for, on the output's grid; None for everything."""

    @property
    def back(self) -> Resampling | None:
        """From the grid of the tiles to the output's; None where they are one."""
        return self.resampling.inverse if self.resampling is not None and self.restores else None

    @property
    def needed(self) -> Area | None:
        """What has to be computed, on the grid of the tiles; None for everything."""
        return self.asked if self.asked is None or self.back is None else AreaAround(self.asked, self.back)

    @property
    def tile_grid(self) -> tuple[int, int]:
        """(height, width) of what the model sees."""
        return self.scene.shape if self.resampling is None else self.resampling.target_shape

    @property
    def output_grid(self) -> tuple[int, int]:
        """(height, width) of the outputs."""
        return self.scene.shape if self.restores else self.tile_grid

    def shard(self, target: Window) -> Shard:
        """The shard that writes a window of the outputs."""
        return Shard(target=target, region=target if self.back is None else self.back.support(target))

    def describe(self) -> dict[str, Any] | None:
        """The grid that the model sees, as JSON values; None where that is the scene's."""
        if self.resampling is None:
            return None
        ground = measure(self.scene.georeference.rescaled(self.tile_grid))
        height, width = self.tile_grid
        return {
            "grid": "source" if self.restores else "model",
            "width": width,
            "height": height,
            "x_m": ground.size().x_m if ground else None,
            "y_m": ground.size().y_m if ground else None,
        }


def settle_view(scene: AnyScene, manifest: Manifest, *, gsd: GridChoice, resample: ResampleMode, force: bool) -> View:
    """Decide at which GSD a model sees a scene, and where the outputs lie; warn of or refuse what does not fit.

    Args:
        scene: The scene.
        manifest: The model's contract.
        gsd: Where outputs lie if the scene is resampled.
        resample: When it is.
        force: Go on however far its GSD is off.
    """
    ground = measure(scene.georeference)
    shape = model_shape(ground, manifest, scene.shape, resample=resample)
    check_gsd(ground, manifest, force=force, is_resampled=shape is not None)
    if shape is None:
        return View(scene=scene, georeference=scene.georeference, ground=ground)
    resampling = Resampling.between(scene.shape, shape)
    if gsd == "source":
        return View(scene=scene, georeference=scene.georeference, ground=ground, resampling=resampling, restores=True)
    georeference = scene.georeference.rescaled(shape)
    return View(scene=scene, georeference=georeference, ground=measure(georeference), resampling=resampling)
