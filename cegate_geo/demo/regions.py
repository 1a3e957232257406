"""The two regions of the demo, as georeferenced files with exact truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyogrio.raw
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry import Polygon

from cegate_geo.demo.housing import Settlement
from cegate_geo.demo.layout import make_layout
from cegate_geo.demo.render import Camera, take_picture
from cegate_geo.demo.scene import CLASS_NAMES, Layout, truth_polygons
from cegate_geo.demo.season import DRY_SEASON, SUMMER, Season
from cegate_geo.demo.surface import make_surface
from cegate_geo.domain.legend import IGNORE_INDEX

LABEL_FIELD = "class"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSpec:
    """One region: where it lies, what is there, how it was photographed."""

    name: str
    title: str
    story: str
    """One sentence for the page."""
    crs: str
    left: float
    """Map x of the left edge."""
    top: float
    """Map y of the upper edge."""
    gsd_m: float
    shape: tuple[int, int]
    """(height, width) in pixels."""
    settlement: Settlement
    season: Season
    camera: Camera
    flight_turn_deg: float = 0.0
    """Turn of the flown rectangle against the raster; what lies outside it is nodata. 0: no nodata."""

    @property
    def transform(self) -> Affine:
        """(column, row) to map coordinates."""
        return Affine(self.gsd_m, 0, self.left, 0, -self.gsd_m, self.top)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A made region in memory."""

    spec: RegionSpec
    picture: npt.NDArray[np.uint8]
    """(3, H, W); 0 where `valid` is False."""
    truth: npt.NDArray[np.uint8]
    """(H, W) class ids; 255 where `valid` is False."""
    valid: npt.NDArray[np.bool_]
    """(H, W), True = data."""
    polygons: tuple[tuple[int, Polygon], ...]
    """(class id, polygon in map coordinates), without overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionFiles:
    """Where a region was written."""

    scene: Path
    """GeoTIFF, uint8 RGB."""
    labels: Path
    """GeoPackage of polygons with the field `class`."""


REGION_A = RegionSpec(
    name="region_a",
    title="Region A",
    story="Summer, high sun in the south-east, a sharp and warm camera, tiles and some slate, a river.",
    crs="EPSG:32632",
    left=612_340.0,
    top=5_271_860.0,
    gsd_m=0.15,
    shape=(1024, 1024),
    settlement=Settlement(
        width_m=153.6,
        height_m=153.6,
        rotation=0.16,
        is_river=True,
        field_kinds=("crop", "plough", "stubble", "meadow", "orchard", "crop"),
        roof_kinds=("gable", "gable", "hip"),
        roof_materials=(0, 0, 1, 2, 3, 4, 4, 4),
        house_gap_m=4.5,
        house_chance=0.85,
        house_size_m=(10.0, 15.0),
        garden_trees=5.0,
        hedge_share=0.3,
        block_m=46.0,
        parcel_m=26.0,
    ),
    season=SUMMER,
    camera=Camera(
        sun_azimuth_deg=142.0,
        sun_elevation_deg=50.0,
        sun=(1.32, 1.24, 1.08),
        sky=(0.26, 0.31, 0.40),
        haze=0.0,
        haze_color=(0.3, 0.3, 0.3),
        blur_px=0.45,
        noise=0.006,
        gain=(1.25, 1.20, 1.10),
        gamma=2.2,
    ),
)

REGION_B = RegionSpec(
    name="region_b",
    title="Region B",
    story="The end of a dry season, low sun in the west, haze, a dull and noisy camera, more slate, a pond.",
    crs="EPSG:3035",
    left=4_402_115.0,
    top=2_611_480.0,
    gsd_m=0.20,
    shape=(768, 896),
    settlement=Settlement(
        width_m=179.2,
        height_m=153.6,
        rotation=2.05,
        is_river=False,
        field_kinds=("stubble", "plough", "meadow", "crop", "orchard"),
        roof_kinds=("gable", "hip", "hip", "flat"),
        roof_materials=(0, 2, 1, 4, 3, 0, 1),
        house_gap_m=4.0,
        house_chance=0.75,
        house_size_m=(9.0, 14.0),
        garden_trees=4.6,
        hedge_share=0.2,
        block_m=40.0,
        parcel_m=34.0,
    ),
    season=DRY_SEASON,
    camera=Camera(
        sun_azimuth_deg=248.0,
        sun_elevation_deg=33.0,
        sun=(1.20, 1.05, 0.84),
        sky=(0.28, 0.33, 0.43),
        haze=0.13,
        haze_color=(0.36, 0.39, 0.43),
        blur_px=0.75,
        noise=0.014,
        gain=(1.02, 1.04, 1.06),
        gamma=2.0,
    ),
    flight_turn_deg=7.0,
)


def make_region(spec: RegionSpec, seed: int) -> Region:
    """Make a region in memory. The same arguments give the same pixels and polygons."""
    layout = make_layout(spec.settlement, seed)
    surface = make_surface(layout, spec.season, shape=(2 * spec.shape[0], 2 * spec.shape[1]), seed=seed)
    picture = take_picture(surface, spec.camera, seed=seed)
    flown = _flown(spec, layout)
    to_map = np.array([spec.left + layout.width_m / 2, spec.top - layout.height_m / 2])
    polygons = tuple(
        (class_id, shapely.transform(polygon, lambda xy: xy + to_map))
        for class_id, polygon in truth_polygons(layout, flown)
    )
    truth = rasterize(
        [(polygon, class_id) for class_id, polygon in polygons],
        out_shape=spec.shape,
        transform=spec.transform,
        fill=IGNORE_INDEX,
        dtype="uint8",
    )
    valid = truth != IGNORE_INDEX
    picture[:, ~valid] = 0
    return Region(spec=spec, picture=picture, truth=truth, valid=valid, polygons=polygons)


def _flown(spec: RegionSpec, layout: Layout) -> Polygon:
    """The part of the frame that was photographed."""
    if spec.flight_turn_deg == 0:
        return layout.frame
    turned = shapely.affinity.rotate(layout.frame.buffer(2.0, join_style="mitre"), spec.flight_turn_deg)
    return Polygon(layout.frame.intersection(turned))


def write_region(region: Region, folder: Path) -> RegionFiles:
    """Write a region as a GeoTIFF and a GeoPackage of labels into an existing folder."""
    spec = region.spec
    files = RegionFiles(scene=folder / f"{spec.name}.tif", labels=folder / f"{spec.name}_labels.gpkg")
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 3, "height": spec.shape[0], "width": spec.shape[1],
        "crs": spec.crs, "transform": spec.transform, "photometric": "RGB", "tiled": True, "blockxsize": 256,
        "blockysize": 256, "compress": "deflate", "predictor": 2,
    }  # fmt: skip
    if not region.valid.all():
        profile["nodata"] = 0
    with rasterio.open(files.scene, "w", **profile) as dataset:
        dataset.write(region.picture)
    names = np.array([CLASS_NAMES[class_id] for class_id, _ in region.polygons], object)
    pyogrio.raw.write(
        files.labels,
        shapely.to_wkb([polygon for _, polygon in region.polygons]),
        [names],
        [LABEL_FIELD],
        geometry_type="Polygon",
        crs=spec.crs,
        driver="GPKG",
        layer="labels",
    )
    return files
