"""Whether what is written comes back: a part of the output of `check`, its place and its classes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio

from cegate_geo.domain.windows import Window
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.predictor import Predictor
from cegate_geo.infer.settle import Run
from cegate_geo.infer.stitch import winners
from cegate_geo.infer.verdicts import State, Verdict
from cegate_geo.infer.writer import RasterWriter, class_raster, make_cog

SHIFT_LIMIT_PX = 1e-3
"""By how much a corner of the output may lie beside that of the scene."""
WRITTEN_SIDE = 256


def write_and_read(run: Run, predictor: Predictor, probabilities: npt.NDArray[np.float32]) -> Verdict:
    """Write a part of the output, read it back, and compare where it lies and what it holds."""
    whole, legend = run.view.georeference, predictor.manifest.legend
    shape = tuple(min(WRITTEN_SIDE, *sides) for sides in zip(whole.shape, probabilities.shape[1:], strict=True))
    row, col = ((length - part) // 2 for length, part in zip(whole.shape, shape, strict=True))
    window = Window(col_off=col, row_off=row, width=shape[1], height=shape[0])
    kind = class_raster(legend)
    ids = np.array(legend.ids, kind.dtype)[winners(probabilities[:, : shape[0], : shape[1]])[0]]
    wanted = cut_georeference(whole, window)
    with tempfile.TemporaryDirectory(prefix="cegate-check-") as folder:
        scratch, cog = Path(folder) / "classes.tif", Path(folder) / "classes.cog.tif"
        with RasterWriter(scratch, wanted, kind, tags={}) as writer:
            writer.write(Window.of_shape(window.shape), ids)
        make_cog(scratch, cog, kind)
        with rasterio.open(cog) as dataset:
            found, written = Georeference.read(dataset), dataset.read(1)
    shift = _shift_px(wanted, found)

    def verdict(state: State, message: str, hint: str = "") -> Verdict:
        return Verdict(name="georeference", state=state, message=message, hint=hint, number=shift, limit=SHIFT_LIMIT_PX)

    if not np.array_equal(written, ids):
        return verdict("fail", "The classes that are read are not those written.", "Report it with GDAL's version.")
    same_crs = (not wanted.crs and not found.crs) or wanted.crs == found.crs
    if not same_crs or wanted.kind != found.kind or not shift <= SHIFT_LIMIT_PX:
        message = f"written as {wanted.kind} in {wanted.crs}, read as {found.kind} in {found.crs}, {shift:.3g} px off"
        return verdict("fail", message, "Report it with the scene's gdalinfo.")
    kinds = {"transform": "grid and CRS", "gcps": "control points", "rpcs": "RPCs", "none": "the lack of a place"}
    message = f"{kinds[wanted.kind]} kept; {window.width} x {window.height} px written and read"
    if not wanted.crs and wanted.kind != "rpcs":
        return verdict("warning", message, "The scene has no CRS, so the mask will have none: gdal_edit.py -a_srs.")
    return verdict("ok", message)


def cut_georeference(whole: Georeference, window: Window) -> Georeference:
    """Where a window of a raster lies."""
    from affine import Affine
    from rasterio.control import GroundControlPoint

    down, right = window.row_off, window.col_off
    points = tuple(
        GroundControlPoint(row=p.row - down, col=p.col - right, x=p.x, y=p.y, z=p.z, id=p.id, info=p.info)
        for p in whole.gcps
    )
    is_placed = whole.kind == "transform"
    return replace(
        whole,
        transform=whole.transform @ Affine.translation(right, down) if is_placed else whole.transform,
        shape=window.shape,
        gcps=points,
        rpcs=None if whole.rpcs is None else _moved_rpcs(whole.rpcs, down, right),
    )


def _moved_rpcs(rpcs: Any, down: int, right: int) -> Any:
    import copy

    moved = copy.copy(rpcs)
    moved.line_off, moved.samp_off = rpcs.line_off - down, rpcs.samp_off - right
    return moved


def _shift_px(wanted: Georeference, found: Georeference) -> float:
    """Pixels between the corners, or the control points, of two georeferences."""
    if wanted.shape != found.shape or len(wanted.gcps) != len(found.gcps):
        return float("inf")
    if wanted.gcps:
        pairs = zip(wanted.gcps, found.gcps, strict=True)
        return float(max(max(abs(a.row - b.row), abs(a.col - b.col)) for a, b in pairs))
    height, width = wanted.shape
    back = ~found.transform
    corners = ((0, 0), (width, 0), (0, height), (width, height))
    moved = [back @ (wanted.transform @ corner) for corner in corners]
    return float(max(abs(a - b) for p, q in zip(moved, corners, strict=True) for a, b in zip(p, q, strict=True)))
