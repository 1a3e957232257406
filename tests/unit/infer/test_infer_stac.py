"""STAC items as scenes: which asset becomes which band, on which grid, with which values."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from cegate_geo.api import predict
from cegate_geo.domain.windows import Window
from cegate_geo.errors import BandWarning, InputError, RasterError
from cegate_geo.infer.reader import Scene
from tests import toy_models as toys
from tests.remote_server import serve

ORIGIN = (300_000, 3_000_000)


def write_band(path: Path, values: np.ndarray, *, gsd: float, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"crs": "EPSG:32645", "transform": Affine(gsd, 0, ORIGIN[0], 0, -gsd, ORIGIN[1])}
    return toys.write_raster(path, values[None], **(where | more))


def write_item(path: Path, assets: dict[str, Any], **more: Any) -> Path:
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "properties": {}, "assets": assets, **more}
    path.write_text(json.dumps(item))
    return path


def asset(href: str, common: str, name: str, **more: Any) -> dict[str, Any]:
    return {"href": href, "roles": ["data"], "eo:bands": [{"name": name, "common_name": common}], **more}


@pytest.fixture
def sentinel(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Bands of 10, 20 and 60 m over the same ground, and an RGB picture of it that must not be taken."""
    values = {
        name: toys.noise((sides, sides), seed=n, channels=1)[0].astype(np.uint16) * 20 + 100
        for n, (name, sides) in enumerate({"red": 120, "nir": 120, "swir16": 60, "coastal": 20}.items())
    }
    gsd = {"red": 10, "nir": 10, "swir16": 20, "coastal": 60}
    for name, band in values.items():
        write_band(tmp_path / "bands" / f"{name}.tif", band, gsd=gsd[name], nodata=0)
    visual = [{"name": "B04", "common_name": "red"}]
    assets = {
        "visual": {"href": "missing.tif", "roles": ["visual"], "eo:bands": visual},
        **{name: asset(f"./bands/{name}.tif", name, f"B{n}") for n, name in enumerate(values)},
    }
    return write_item(tmp_path / "item.json", assets), values


def read_all(path: Path, contract: Any, **more: Any) -> Any:
    with closing(Scene(str(path), contract, **more)) as scene:
        return scene.read(Window.of_shape(scene.shape)), scene.georeference


def wants(*bands: str, dtype: str = "uint16") -> Any:
    return toys.manifest(3, bands=bands, dtype=dtype, gsd_m=10.0, gsd_range_m=(5, 20), input_maximum=10_000.0)


def test_bands_are_found_by_common_name_on_the_finest_grid(sentinel: Any) -> None:
    item, values = sentinel
    strip, reference = read_all(item, wants("nir", "red", "swir16"))
    assert reference.shape == (120, 120)
    assert reference.transform.almost_equals(Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]))
    np.testing.assert_array_equal(strip.values[0], values["nir"])
    np.testing.assert_array_equal(strip.values[1], values["red"])
    assert strip.valid.all()
    # By hand: between the centres of coarse pixels a quarter of one and three quarters of the other.
    coarse = values["swir16"].astype(float)
    expected = 0.75 * coarse[30, 30] + 0.25 * coarse[30, 31]
    expected = 0.75 * expected + 0.25 * (0.75 * coarse[31, 30] + 0.25 * coarse[31, 31])
    assert strip.values[2][61, 61] == pytest.approx(expected, abs=1)


def test_the_finest_that_is_wanted_decides(sentinel: Any) -> None:
    item, values = sentinel
    strip, reference = read_all(item, wants("swir16", "coastal"))
    assert reference.shape == (60, 60)
    np.testing.assert_array_equal(strip.values[0], values["swir16"])


def test_a_pixel_has_the_same_value_in_every_window(sentinel: Any) -> None:
    """Shards and strips read different windows: what is interpolated may not depend on them."""
    contract = wants("red", "swir16", "coastal")
    with closing(Scene(str(sentinel[0]), contract)) as scene:
        whole = scene.read(Window.of_shape(scene.shape)).values
        for row, col, height, width in ((0, 0, 40, 120), (37, 0, 41, 120), (11, 23, 64, 57), (119, 119, 1, 1)):
            window = Window(col_off=col, row_off=row, width=width, height=height)
            part = scene.read(window).values
            np.testing.assert_array_equal(part, whole[:, row : row + height, col : col + width])


def test_bands_can_be_named_by_band_or_asset(sentinel: Any) -> None:
    item, values = sentinel
    strip, _ = read_all(item, wants("a", "b"), bands=("B1", "red"))
    np.testing.assert_array_equal(strip.values[0], values["nir"])
    np.testing.assert_array_equal(strip.values[1], values["red"])
    with pytest.raises(InputError, match=r"no band 'green'.*It offers: red, nir, swir16, coastal"):
        read_all(item, wants("red", "green"))


def test_nodata_that_only_the_item_says_counts_and_is_not_smeared(tmp_path: Path) -> None:
    fine = np.full((40, 40), 500, np.uint16)
    coarse = np.full((20, 20), 700, np.uint16)
    fine[20:28, 20:28], coarse[10:14, 10:14] = 9, 0
    write_band(tmp_path / "fine.tif", fine, gsd=10)
    write_band(tmp_path / "coarse.tif", coarse, gsd=20)
    assets = {
        "red": asset("fine.tif", "red", "B4", **{"raster:bands": [{"nodata": 9}]}),
        "nir": asset("coarse.tif", "nir", "B8", **{"raster:bands": [{"nodata": 0}]}),
    }
    strip, _ = read_all(write_item(tmp_path / "item.json", assets), wants("red", "nir", dtype="uint16"))
    assert set(np.unique(strip.values[1])) <= {0, 700}, "the hole's value is mixed with nothing"
    assert not strip.values[1, 21:27, 21:27].any()
    assert not strip.valid[21:27, 21:27].any()
    assert strip.valid[:20].all()
    assert strip.valid[28:].all()


def test_floats_are_scaled_and_whole_numbers_are_not(tmp_path: Path) -> None:
    values = np.full((30, 30), 3000, np.uint16)
    values[0, 0] = 0
    write_band(tmp_path / "red.tif", values, gsd=10)
    more = {"raster:bands": [{"nodata": 0, "scale": 1e-4, "offset": -0.1}]}
    item = write_item(tmp_path / "item.json", {"red": asset("red.tif", "red", "B4", **more)})
    strip, _ = read_all(item, wants("red", dtype="float32"))
    assert strip.values.dtype == np.float32
    assert strip.values[0][5, 5] == pytest.approx(0.2)
    assert not strip.valid[0, 0]
    assert strip.valid.sum() == 899
    with pytest.warns(BandWarning, match="scale 0.0001 and offset -0.1"):
        strip, _ = read_all(item, wants("red"))
    assert strip.values[0][5, 5] == 3000


def test_an_item_of_stac_1_1_is_read(tmp_path: Path) -> None:
    values = toys.noise((30, 30))
    where = {"crs": "EPSG:32645", "transform": Affine(10, 0, *ORIGIN[:1], 0, -10, ORIGIN[1])}
    toys.write_raster(tmp_path / "all.tif", values, **where)
    bands = [{"name": n, "eo:common_name": c} for n, c in (("B4", "red"), ("B3", "green"), ("B2", "blue"))]
    item = write_item(tmp_path / "item.json", {"image": {"href": "all.tif", "bands": bands}}, stac_version="1.1.0")
    strip, _ = read_all(item, wants("blue", "red", dtype="uint8"))
    np.testing.assert_array_equal(strip.values, values[[2, 0]])


def test_what_is_no_item_or_does_not_go_together_is_said(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    for name, words in (("list", "no STAC item"), ("broken", "can't be read"), ("missing", "no file")):
        with pytest.raises(RasterError, match=words):
            read_all(tmp_path / f"{name}.json", wants("red"))
    write_band(tmp_path / "red.tif", np.ones((9, 9), np.uint16), gsd=10)
    write_band(tmp_path / "nir.tif", np.ones((9, 9), np.uint16), gsd=10, crs="EPSG:32644")
    write_band(tmp_path / "turned.tif", np.ones((9, 9), np.uint16), gsd=10, transform=Affine.rotation(30))
    assets = {name: asset(f"{name}.tif", name, name) for name in ("red", "nir", "turned", "gone")}
    item = write_item(tmp_path / "item.json", assets)
    with pytest.raises(InputError, match="different CRSs"):
        read_all(item, wants("red", "nir"))
    with pytest.raises(InputError, match="turned"):
        read_all(item, wants("turned"))
    with pytest.raises(RasterError, match=r"An asset of .*gone\.tif"):
        read_all(item, wants("red", "gone"))
    with pytest.raises(RasterError, match="https address"):
        Scene("s3://bucket/item.json", wants("red"))


def test_an_item_on_a_server_is_predicted_by_its_relative_assets(
    tmp_path: Path, sentinel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    item, values = sentinel
    more = {"bands": ("red", "nir", "coastal"), "gsd_m": 10.0, "gsd_range_m": (5, 20), "dtype": "uint16"}
    model = toys.identity(tmp_path / "m.onnx", input_maximum=10_000.0, **more)
    with serve(tmp_path) as served:
        result = predict(f"http://{served.address}/item.json", tmp_path / "mask.tif", model=model)
        asked = {path for _, path, _ in served.state()["requests"]}
    predict(item, tmp_path / "local.tif", model=model)
    assert {"/item.json", "/bands/red.tif", "/bands/coastal.tif"} <= asked
    assert result.grid["crs"] == "EPSG:32645"
    mask = toys.read(tmp_path / "mask.tif")
    np.testing.assert_array_equal(mask, toys.read(tmp_path / "local.tif"))
    assert (mask[0][values["red"] > 5195] != 1).any()
