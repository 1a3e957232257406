"""Compare predictions with labels: a mask that is there, or a model on rasters."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack
from xml.etree import ElementTree as ET

import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio.windows import Window as RasterioWindow

from cegate_geo.api import ContractKeywords, PredictKeywords, describe_model, predict
from cegate_geo.domain.confusion import ConfusionMatrix, Metrics
from cegate_geo.domain.grid import RasterGrid
from cegate_geo.domain.legend import DEFAULT_COLORS, IGNORE_INDEX, Legend, LegendClass, parse_color
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateWarning, InputError, LabelError
from cegate_geo.infer.georeference import Georeference, quiet_about_georeference
from cegate_geo.infer.reader import raster_errors
from cegate_geo.train.byte_rasters import expand
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.regions import LabelFiles, RegionLabels, strips

LEGEND_TAG = "CEGATE_LEGEND"
NO_LABEL = -1


class LabelKeywords(TypedDict, total=False):
    """How labels are to be read; `train.config.SourceConfig` says what each means."""

    label_field: str
    label_class: str
    background: str
    remap: dict[str, str]
    aoi: str
    rows: tuple[int, int] | None
    cols: tuple[int, int] | None


def evaluate_mask(
    mask: Path | Sequence[Path],
    labels: str | Path,
    *,
    legend: Legend | None = None,
    **options: Unpack[LabelKeywords],
) -> Metrics:
    """Figures of class masks, all pixels together, against labels. Reads both in strips.

    Labelled pixels that the mask leaves at nodata do not count; a warning tells how many there are. A class raster has
    to lie on the mask's grid exactly: resampled truth is no truth.

    Args:
        mask: Class ids, one band; or several of them, with the same classes.
        labels: Polygons in any CRS, or a class raster; of several masks one for each, in their order, or one vector
            file for all.
        legend: The mask's classes; None to read them from the mask.
        **options: See `LabelKeywords`.

    Raises:
        LabelError: If labels do not fit the mask, or no pixel has both a label and a prediction.
        InputError: If a mask can't be read or does not say what its classes are, or masks differ in them.
    """
    masks = [mask] if isinstance(mask, Path) else list(mask)
    matrix = ConfusionMatrix(legend if legend is not None else _common_legend(masks))
    config = SourceConfig(images=", ".join(str(path) for path in masks), labels=str(labels), **options)
    files = LabelFiles(config, matrix.legend, count=len(masks))
    missing = 0
    for number, path in enumerate(masks):
        if len(masks) == 1 or files.on(_grid(path), number, path) is not None:
            missing += _add(matrix, path, files, number)
    files.require_polygons()
    return _figures(matrix, missing)


def evaluate_model(
    model: str | Path,
    images: str | Sequence[str],
    labels: str,
    *,
    predicting: PredictKeywords | None = None,
    **options: Unpack[LabelKeywords],
) -> Metrics:
    """Figures of a model over all rasters that match `images`, predicted as `cegate-geo predict` does.

    Only what `rows`, `cols` or `aoi` leave is predicted.

    Args:
        model: What `api.predict` takes for a model.
        images: Path or glob pattern of rasters, or several.
        labels: One label file for each raster in sorted order, or one vector file for all.
        predicting: Keywords of `api.predict`, for example bands and nodata.
        **options: See `LabelKeywords`.

    Raises:
        LabelError: If labels do not fit the rasters.
        InputError: If a raster can't be used.
        ModelError: If the model can't be used.
    """
    stated: Any = {k: v for k, v in (predicting or {}).items() if k in ContractKeywords.__annotations__}
    matrix = ConfusionMatrix(describe_model(model, **stated).manifest.legend)
    patterns = [images] if isinstance(images, str) else list(images)
    paths = list(dict.fromkeys(path for pattern in patterns for path in expand(pattern)))
    config = SourceConfig(images=", ".join(patterns), labels=labels, **options)
    files = LabelFiles(config, matrix.legend, count=len(paths))
    missing = 0
    with tempfile.TemporaryDirectory(prefix="cegate-evaluate-") as folder:
        for number, path in enumerate(paths):
            region = files.on(_grid(path), number, path)
            if region is None:
                continue
            mask = Path(folder) / "mask.tif"
            wanted: PredictKeywords = {**(predicting or {}), "overwrite": True}
            wanted["aoi"] = _write_window(_grid(path), region, Path(folder) / "window.gpkg")
            predict(path, mask, model=model, **wanted)
            missing += _add(matrix, mask, files, number)
    files.require_polygons()
    return _figures(matrix, missing)


def _add(matrix: ConfusionMatrix, mask: Path, files: LabelFiles, number: int) -> int:
    """Count a mask's pixels; gives the number of labelled ones without prediction."""
    missing = 0
    ids = np.full(IGNORE_INDEX + 1, NO_LABEL, np.int64)
    ids[: len(matrix.legend)] = matrix.legend.ids
    with raster_errors(str(mask)), quiet_about_georeference(), rasterio.open(mask) as dataset:
        if dataset.count != 1 or not np.issubdtype(np.dtype(dataset.dtypes[0]), np.integer):
            raise InputError(
                f"{mask} has {dataset.count} bands of {dataset.dtypes[0]}; a class mask has one of whole numbers.",
                hint="Give the mask that cegate-geo predict wrote.",
            )
        region = files.on(Georeference.read(dataset).grid, number, mask)
        if region is None:
            raise LabelError(f"rows, cols and aoi leave nothing of {mask}.", hint="rows and cols count from 0.")
        nodata = IGNORE_INDEX if dataset.nodata is None else int(dataset.nodata)
        for strip in strips(region.window):
            truth = ids[region.read(strip)]
            area = RasterioWindow(strip.col_off, strip.row_off, strip.width, strip.height)
            said = dataset.read(1, window=area).astype(np.int64)
            missing += int(((truth != NO_LABEL) & (said == nodata)).sum())
            matrix.update(truth, said, ignore=NO_LABEL, prediction_nodata=nodata)
        region.close()
    return missing


def _figures(matrix: ConfusionMatrix, missing: int) -> Metrics:
    counted = int(matrix.counts.sum())
    if not counted:
        raise LabelError(
            f"No pixel has both a label and a prediction; {missing} have a label only.",
            hint="Check that labels and mask lie on the same ground, and aoi, rows and cols.",
        )
    if missing:
        share = missing / (missing + counted)
        warnings.warn(
            CegateWarning(f"{missing} labelled pixels ({share:.1%}) have no prediction and do not count."), stacklevel=3
        )
    return matrix.metrics()


def _grid(path: Path) -> RasterGrid:
    with raster_errors(str(path)), quiet_about_georeference(), rasterio.open(path) as dataset:
        return Georeference.read(dataset).grid


def _write_window(grid: RasterGrid, region: RegionLabels, path: Path) -> str | None:
    """Write the part of a raster that is to be predicted as polygons; None for all of it."""
    whole: Window = grid.window
    if region.window == whole or (grid.crs_wkt is None and grid.transform.is_identity):
        return None
    w = region.window
    corners = [(w.col_off, w.row_off), (w.col_end, w.row_off), (w.col_end, w.row_end), (w.col_off, w.row_end)]
    outline = shapely.Polygon([grid.transform @ corner for corner in corners])
    path.unlink(missing_ok=True)
    pyogrio.raw.write(
        path,
        geometry=np.array([shapely.to_wkb(outline)], dtype=object),
        field_data=[],
        fields=[],
        geometry_type="Polygon",
        crs=grid.crs_wkt,
        driver="GPKG",
    )
    return str(path)


def _common_legend(masks: Sequence[Path]) -> Legend:
    """The classes of all masks."""
    legends = [read_legend(path) for path in masks]
    for path, legend in zip(masks, legends, strict=True):
        if [(c.id, c.name) for c in legend.classes] != [(c.id, c.name) for c in legends[0].classes]:
            raise InputError(
                f"{path} has other classes than {masks[0]}: {', '.join(legend.names)} instead of "
                f"{', '.join(legends[0].names)}.",
                hint="Evaluate masks of the same classes together.",
            )
    return legends[0]


def read_legend(mask: Path) -> Legend:
    """The classes of a mask: from its tag, else from the raster attribute table or the category names beside it.

    Raises:
        InputError: If it says nothing of its classes.
    """
    with raster_errors(str(mask)), quiet_about_georeference(), rasterio.open(mask) as dataset:
        text = dataset.tags().get(LEGEND_TAG)
    try:
        if text is not None:
            return Legend(
                tuple(LegendClass(id=c["id"], name=c["name"], color=parse_color(c["color"])) for c in json.loads(text))
            )
        aux = mask.with_name(mask.name + ".aux.xml")
        names = _names_beside(ET.parse(aux).getroot()) if aux.is_file() else {}
    except (json.JSONDecodeError, ET.ParseError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The class names of {mask} can't be read: {error}.", hint="Name the classes.") from error
    if len(names) < 2:
        raise InputError(
            f"{mask} does not say what its classes are.", hint="Name them: --class other --class building for 0 and 1."
        )
    return Legend(
        tuple(
            LegendClass(id=i, name=name, color=DEFAULT_COLORS[n % len(DEFAULT_COLORS)])
            for n, (i, name) in enumerate(sorted(names.items()))
        )
    )


def _names_beside(root: Any) -> dict[int, str]:
    """Id → name from GDAL's .aux.xml."""
    table = root.find("PAMRasterBand/GDALRasterAttributeTable")
    if table is not None:
        usages = [int(f.findtext("Usage", "0")) for f in table.findall("FieldDefn")]
        if {2, 5} <= set(usages):  # GDAL: 2 = class name, 5 = class value
            rows = [[f.text or "" for f in row.findall("F")] for row in table.findall("Row")]
            return {int(float(row[usages.index(5)])): row[usages.index(2)] for row in rows}
    categories = [c.text or "" for c in root.findall("PAMRasterBand/CategoryNames/Category")]
    return {n: name for n, name in enumerate(categories) if name}
