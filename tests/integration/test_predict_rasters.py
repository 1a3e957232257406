"""Real and odd rasters: right grid or one clear refusal, and nothing half-written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from cegate_geo.api import predict
from cegate_geo.errors import CegateError
from tests import toy_models as toys

# What can't be predicted, and the word of the message that says why.
REFUSED = {
    "gdal/arcgis93_geodataxform_gcp.tif.aux.xml": "not recognized",
    "gdal/byte_gcp.tif.aux.xml": "not recognized",
    "rasterio/RGB.byte.tif.aux.xml": "not recognized",
    "gdal/image_width_above_32bit.tif": "Too large",
    "gdal/unknown_compression.tif": "codec",
    "gdal/byte_truncated.tif": "read",
    "gdal/byte_zstd_corrupted.tif": "read",
    "gdal/excessive-memory-TIFFFillTile.tif": "read",
    "gdal/many_blocks_truncated.tif": "read",
    "gdal/tiled_bad_offset.tif": "read",
    "gdal/zackthecat_corrupted.tif": "read",
    "gdal/corrupted_deflate_singlestrip.tif": "read",
    "gdal/cfloat32.tif": "complex",
    "gdal/cfloat64.tif": "complex",
    "gdal/cint_sar.tif": "complex",
    "rio-cogeo/slc.tif": "complex",
    "rasterio/corrupt.tif": "read",
    "gdal/corrupted_gtiff_tags.tif": "read",
    "gdal/mandrilmini_12bitjpeg.tif": "read",
    "gdal/int16.tif": "int16",
    "gdal/int64.tif": "int64",
    "gdal/int64_full_range.tif": "int64",
    "gdal/uint32.tif": "uint32",
    "rio-cogeo/image_missing_nodata.tif": "int16",
    "rio-tiler/cog_int16.tif": "int16",
    "rio-tiler/cog_scale.tif": "int16",
    "rio-tiler/cog_tags.tif": "int16",
}


def open_quietly(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def same_place(a: Any, b: Any) -> None:
    """Oracle: rasterio says both have the same georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        assert a.shape == b.shape
        assert a.crs == b.crs
        assert a.transform.almost_equals(b.transform, 1e-9)
        gcps_a, gcps_b = a.gcps, b.gcps
        if not gcps_a[0]:
            assert a.tags().get("AREA_OR_POINT", "Area") == b.tags().get("AREA_OR_POINT", "Area")
    assert gcps_a[1] == gcps_b[1]
    points = [[(p.row, p.col, p.x, p.y, p.z) for p in gcps] for gcps in (gcps_a[0], gcps_b[0])]
    np.testing.assert_allclose(*map(np.array, points), atol=1e-9)
    assert (a.rpcs is None) == (b.rpcs is None)
    if a.rpcs is not None:
        assert a.rpcs.to_gdal() == b.rpcs.to_gdal()


def fitting_model(folder: Path, scene: Path) -> Path:
    """A model for whatever the raster holds: its type, its number of bands."""
    try:
        with open_quietly(scene) as dataset:
            dtype, names = dataset.dtypes[0], [c.name for c in dataset.colorinterp]
            count = min(3, dataset.count - names.count("alpha"))
    except rasterio.RasterioIOError:
        return toys.brightness(folder / "model.onnx")
    if dtype in ("uint8", "uint16"):
        limit = 255.0 if dtype == "uint8" else 65535.0
        contract: dict[str, Any] = {"dtype": dtype, "input_maximum": limit}
    else:
        contract = {"dtype": "float32", "input_maximum": 1000.0}
    bands = tuple(f"band {n}" for n in range(1, count + 1))
    return toys.brightness(
        folder / "model.onnx", size=1024, halo=32, channels=count, dynamic=True, bands=bands, **contract
    )


def awkward_files() -> list[str]:
    """Named without the data at hand, so that a missing file is a failing test and not a missing one."""
    listed = (Path(__file__).parent / "awkward_files.txt").read_text(encoding="utf-8").split()
    return sorted(listed)


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore::cegate_geo.errors.CegateWarning")
@pytest.mark.parametrize("name", awkward_files())
def test_awkward_rasters_get_the_right_grid_or_one_clear_line(shared_data: Path, tmp_path: Path, name: str) -> None:
    scene, output = shared_data / "awkward" / name, tmp_path / "out" / "mask.tif"
    output.parent.mkdir()
    model = fitting_model(tmp_path, scene)
    if name in REFUSED:
        with pytest.raises(CegateError) as caught:
            predict(scene, output, model=model, force=True)
        assert REFUSED[name].lower() in str(caught.value).lower()
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        assert caught.value.hint
        assert list(output.parent.iterdir()) == []
        return
    predict(scene, output, model=model, force=True, max_memory_mb=2048)
    assert sorted(p.name for p in output.parent.iterdir()) == ["mask.qml", "mask.tif", "mask.tif.aux.xml"]
    with open_quietly(scene) as source, open_quietly(output) as mask:
        same_place(source, mask)
        assert mask.dtypes == ("uint8",)
        assert mask.nodata == 255
        assert mask.profile["compress"] == "deflate"
        assert mask.count == 1
