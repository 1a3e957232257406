"""Real and odd rasters: right grid or one clear refusal, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC

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


CORNERS = {"rio-tiler/cog_world.tif": (10.0, 40.0, 20.0, 50.0)}
"""So large that only a corner is predicted here; the grid is that of the whole all the same."""


def corner(folder: Path, name: str) -> Path:
    """A polygon in EPSG:4326."""
    left, bottom, right, top = CORNERS[name]
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    path = folder / "corner.geojson"
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}), encoding="utf-8")
    return path


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
    predict(
        scene, output, model=model, force=True, max_memory_mb=2048, aoi=CORNERS.get(name) and corner(tmp_path, name)
    )
    assert sorted(p.name for p in output.parent.iterdir()) == ["mask.qml", "mask.tif", "mask.tif.aux.xml"]
    with open_quietly(scene) as source, open_quietly(output) as mask:
        same_place(source, mask)
        assert mask.dtypes == ("uint8",)
        assert mask.nodata == 255
        assert mask.profile["compress"] == "deflate"
        assert mask.count == 1


def georeferences() -> dict[str, dict[str, Any]]:
    """Every kind of georeference that a raster can have."""
    points = [
        GroundControlPoint(row=r, col=c, x=85 + c / 1e4, y=27 - r / 1e4, z=3.0)
        for r, c in ((0, 0), (0, 90), (70, 0), (70, 90))
    ]
    coefficients = [1.0, *[0.0] * 19]
    rpcs = RPC(
        height_off=100.0, height_scale=500.0, lat_off=27.0, lat_scale=0.1, long_off=85.0, long_scale=0.1,
        line_off=35.0, line_scale=35.0, samp_off=45.0, samp_scale=45.0, err_bias=None, err_rand=None,
        line_num_coeff=coefficients, line_den_coeff=coefficients, samp_num_coeff=coefficients,
        samp_den_coeff=coefficients,
    )  # fmt: skip
    north = Affine(0.13, 0, 300_000, 0, -0.13, 3_000_000)
    return {
        "north-up": {"crs": "EPSG:32645", "transform": north},
        "south-up": {"crs": "EPSG:32645", "transform": Affine(0.13, 0, 300_000, 0, 0.13, 3_000_000)},
        "rotated": {"crs": "EPSG:32645", "transform": north @ Affine.rotation(30)},
        "sheared": {"crs": "EPSG:3857", "transform": north @ Affine.shear(10, 5)},
        "degrees": {"crs": "EPSG:4326", "transform": Affine(1e-6, 0, 85, 0, -1e-6, 27)},
        "feet": {"crs": "EPSG:2263", "transform": Affine(0.4, 0, 9e5, 0, -0.4, 2e5)},
        "no crs": {"crs": None, "transform": north},
        "nothing": {"crs": None, "transform": None},
        "gcps": {"gcps": points, "crs": "EPSG:4326"},
        "rpcs": {"crs": None, "transform": None, "rpcs": rpcs},
    }


@pytest.mark.filterwarnings(
    "ignore::cegate_geo.errors.CegateWarning", "ignore::rasterio.errors.NotGeoreferencedWarning"
)
@pytest.mark.parametrize("kind", georeferences())
@pytest.mark.parametrize("area_or_point", ["Area", "Point"])
def test_the_output_lies_where_the_scene_lies(tmp_path: Path, kind: str, area_or_point: str) -> None:
    profile = georeferences()[kind]
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)), **profile)
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT=area_or_point)
    outputs = {name: tmp_path / f"{name}.tif" for name in ("confidence", "probabilities")}
    predict(scene, tmp_path / "mask.tif", model=toys.brightness(tmp_path / "m.onnx"), force=True, **outputs)
    for path in (tmp_path / "mask.tif", *outputs.values()):
        with rasterio.open(scene) as source, rasterio.open(path) as result:
            same_place(source, result)
            assert result.profile["tiled"]


@pytest.mark.filterwarnings("ignore::cegate_geo.errors.CegateWarning")
def test_no_crs_is_made_up_for_a_grid_of_points_without_one(tmp_path: Path) -> None:
    """An ASCII grid by the centres of its cells, which GDAL calls points."""
    rows = "\n".join(" ".join(f"{row * col % 250}.5" for col in range(12)) for row in range(9))
    scene = tmp_path / "scene.asc"
    scene.write_text(f"ncols 12\nnrows 9\nxllcenter 100\nyllcenter 200\ncellsize 0.5\n{rows}\n", encoding="utf-8")
    model = toys.brightness(tmp_path / "m.onnx", channels=1, bands=("height",), dtype="float32")
    outputs = {"confidence": tmp_path / "confidence.tif"}
    predict(scene, tmp_path / "mask.tif", model=model, force=True, **outputs)
    for path in (tmp_path / "mask.tif", *outputs.values()):
        with open_quietly(scene) as source, open_quietly(path) as result:
            assert source.tags()["AREA_OR_POINT"] == "Point"
            assert result.crs is None
            assert result.transform == source.transform
            assert result.shape == source.shape


def test_a_crs_that_geotiff_can_not_hold_stays_beside_the_outputs(tmp_path: Path) -> None:
    rotated_pole = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174532925199433"
    where = Affine(1.2e-6, 0, 3, 0, -1.2e-6, 2)
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)), crs=rotated_pole, transform=where)
    outputs = {name: tmp_path / f"{name}.tif" for name in ("confidence", "probabilities")}
    predict(scene, tmp_path / "mask.tif", model=toys.brightness(tmp_path / "m.onnx"), force=True, **outputs)
    for path in (tmp_path / "mask.tif", *outputs.values()):
        with rasterio.open(scene) as source, rasterio.open(path) as result:
            assert source.crs.to_dict()["proj"] == "ob_tran"
            same_place(source, result)
    table = (tmp_path / "mask.tif.aux.xml").read_text(encoding="utf-8")
    assert "<F>building</F>" in table


def test_the_mask_is_a_cog_with_colours_names_and_provenance(tmp_path: Path) -> None:
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((1200, 1100)))
    model = toys.brightness(tmp_path / "m.onnx", size=512)
    result = predict(scene, tmp_path / "mask.tif", model=model)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert mask.overviews(1) == [2, 4]
        legend = toys.manifest(2).legend
        for c in legend:
            assert mask.colormap(1)[c.id] == (*c.color, 255)
        assert mask.colormap(1)[255][3] == 0
        assert mask.descriptions == ("class",)
        assert (
            mask.tags()["CEGATE_MODEL_SHA256"] == result.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
        )
        assert json.loads(mask.tags()["CEGATE_PARAMETERS"])["halo"] == 8
        # Overviews by mode: every value is a class, none an average.
        assert set(np.unique(mask.read(1, out_shape=(300, 275)))) <= {0, 1}
    table = (tmp_path / "mask.tif.aux.xml").read_text(encoding="utf-8")
    style = (tmp_path / "mask.qml").read_text(encoding="utf-8")
    for c in legend:
        assert f"<F>{c.name}</F>" in table
        assert f'label="{c.name}"' in style
        assert c.hex in style
    assert f"<F>{result.classes[1].pixels}</F>" in table


@pytest.mark.filterwarnings("ignore::cegate_geo.errors.CegateWarning")
def test_a_path_with_accents_and_spaces_works(tmp_path: Path) -> None:
    folder = tmp_path / "Çédille Ünïcode 数据"
    folder.mkdir()
    scene = toys.write_raster(folder / "scène d'été.tif", toys.noise((70, 90)))
    model = toys.brightness(folder / "modèle à moi.onnx")
    predict(scene, folder / "résultat final.tif", model=model, vector=folder / "bâti.gpkg")
    made = {"résultat final.tif", "résultat final.tif.aux.xml", "résultat final.qml", "bâti.gpkg"}
    assert {p.name for p in folder.iterdir()} == {"scène d'été.tif", "modèle à moi.onnx"} | made


@pytest.mark.shared_data
def test_holes_of_the_drone_scene_are_found_and_bright_roofs_kept(shared_data: Path, tmp_path: Path) -> None:
    """A window of the real JPEG scene with a hole at its right edge; the hole is white, 254..255 after compression."""
    with rasterio.open(shared_data / "scene" / "banepa_11264x8704_rgb.tif") as source:
        window = rasterio.windows.Window(7680, 5632, 1536, 1536)
        values, where = source.read(window=window), source.transform @ Affine.translation(7680, 5632)
    scene = toys.write_raster(
        tmp_path / "scene.tif", values, crs="EPSG:3857", transform=where, compress="JPEG", photometric="YCBCR",
        jpeg_quality=70, tiled=True, blockxsize=512, blockysize=512,
    )  # fmt: skip
    model = toys.brightness(tmp_path / "m.onnx", size=512, halo=32)
    predict(scene, tmp_path / "mask.tif", model=model, nodata=[255, 255, 255])
    empty = toys.read(tmp_path / "mask.tif")[0] == 255
    white = (toys.read(scene) == 255).all(axis=0)
    assert 395_000 < empty.sum() < 410_000, "the hole, its frayed rim included, has about 404,000 pixels"
    assert (white & ~empty).sum() > 5, "white specks on roofs are data"
    assert (white & ~empty).sum() < 0.01 * empty.sum()
    hole = [tuple(map(int, (v.min(), v.max()))) for v in np.nonzero(empty)]
    assert abs(hole[0][0] - (5830 - 5632)) < 15
    assert abs(hole[1][0] - (8380 - 7680)) < 15
