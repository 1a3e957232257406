"""Several rasters as one scene: what a model sees, and what comes out, is what one raster of them all would give."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from cegate_geo.api import merge, plan, predict
from cegate_geo.cli.main import main
from cegate_geo.errors import CancelledError, InputError
from cegate_geo.infer import mosaic
from cegate_geo.infer.georeference import quiet_about_georeference
from tests import toy_models as toys

SHAPE, CUT = (700, 420), (301, 190)
"""Of the whole, and where it is cut into four."""
GSD = 0.13


def place(col: float, row: float, gsd: float = GSD) -> dict[str, Any]:
    return {"crs": "EPSG:32645", "transform": Affine(gsd, 0, 300_000 + col * GSD, 0, -gsd, 3_000_000 - row * GSD)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.convolutions(tmp_path_factory.mktemp("model") / "conv.onnx", layers=3, size=128)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A scene with holes, what it gives in one piece, and the same in four, each with another way to flag them."""
    folder = tmp_path_factory.mktemp("whole")
    values = np.kron(toys.noise((SHAPE[0] // 20, SHAPE[1] // 20)), np.ones((1, 20, 20), np.uint8)) // 2 + 20
    values += toys.noise(SHAPE, seed=1) // 16
    valid = np.ones(SHAPE, np.bool_)
    valid[200:380, 120:230] = valid[650:] = False
    values[:, ~valid] = 0
    toys.write_raster(folder / "scene.tif", values, nodata=0, **place(0, 0))
    predict(folder / "scene.tif", folder / "mask.tif", model=model, confidence=folder / "c.tif")
    (row, col), (height, width) = CUT, SHAPE
    parts = {
        "value.tif": (slice(0, row), slice(0, col)),
        "alpha.tif": (slice(0, row), slice(col, width)),
        "mask.tif": (slice(row, height), slice(0, col)),
        "other.tif": (slice(row, height), slice(col, width)),
    }
    pieces = folder / "pieces"
    pieces.mkdir()
    for name, (rows, cols) in parts.items():
        part, data, where = values[:, rows, cols], valid[rows, cols], place(cols.start, rows.start)
        if name == "alpha.tif":
            part = np.concatenate([part, np.where(data, 255, 0).astype(np.uint8)[None]])
            toys.write_raster(pieces / name, part, photometric="RGB", alpha="YES", **where)
        elif name == "mask.tif":
            toys.write_raster(pieces / name, part, **where)
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(pieces / name, "r+") as dataset:
                dataset.write_mask(data)
        else:
            nodata = 0 if name == "value.tif" else 7
            toys.write_raster(pieces / name, np.where(data, part, nodata).astype(np.uint8), nodata=nodata, **where)
    return {"folder": folder, "values": values, "pieces": pieces}


def same(first: Path, second: Path) -> bool:
    with rasterio.open(first) as one, rasterio.open(second) as other:
        assert (one.shape, one.crs) == (other.shape, other.crs)
        assert one.transform.almost_equals(other.transform, precision=1e-6)
        return bool((one.read() == other.read()).all())


def test_a_mosaic_gives_what_its_rasters_in_one_piece_give(whole: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """No pixel differs where they meet, although each says in its own way what is data."""
    result = predict(
        sorted(whole["pieces"].iterdir()), tmp_path / "mask.tif", model=model, confidence=tmp_path / "c.tif"
    )
    assert same(tmp_path / "mask.tif", whole["folder"] / "mask.tif")
    assert same(tmp_path / "c.tif", whole["folder"] / "c.tif")
    assert result.nodata_pixels > 0
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.tags()["CEGATE_SCENE"] == "alpha.tif and 3 more"


def test_where_rasters_overlap_the_first_that_holds_data_counts(tmp_path: Path) -> None:
    model = toys.brightness(tmp_path / "m.onnx")
    dark, bright = np.full((3, 100, 100), 20, np.uint8), np.full((3, 100, 100), 230, np.uint8)
    dark[:, 60:] = 0
    toys.write_raster(tmp_path / "dark.tif", dark, nodata=0, **place(0, 0))
    toys.write_raster(tmp_path / "bright.tif", bright, **place(40, 0))
    for order, seen in ((("dark", "bright"), 0), (("bright", "dark"), 1)):
        predict([tmp_path / f"{n}.tif" for n in order], tmp_path / "m.tif", model=model, overwrite=True)
        mask = toys.read(tmp_path / "m.tif")[0]
        assert mask.shape == (100, 140)
        assert set(mask[:50, 45:95].ravel()) == {seen}, "the overlap"
        assert set(mask[70:, 45:95].ravel()) == {1}, "where the dark one holds no data"
        assert set(mask[70:, :30].ravel()) == {255}, "where none does"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({**place(100, 0), "crs": "EPSG:32644"}, "EPSG:32644, that of .* is EPSG:32645"),
        (place(100, 0, gsd=0.26), r"pixels of 0\.26 x 0\.26 against 0\.13 x 0\.13"),
        (place(100.5, 0), r"off by up to 0\.5 px"),
        ({"crs": None, "transform": None}, "has no transform"),
    ],
)
def test_rasters_that_lie_on_no_common_grid_are_refused(tmp_path: Path, where: dict[str, Any], said: str) -> None:
    toys.write_raster(tmp_path / "a.tif", toys.noise((100, 100)), **place(0, 0))
    with quiet_about_georeference():
        toys.write_raster(tmp_path / "b.tif", toys.noise((100, 100)), **where)
    before = sorted(tmp_path.iterdir())
    model = toys.brightness(tmp_path.parent / f"{tmp_path.name}.onnx")
    with pytest.raises(InputError, match=said) as told:
        predict([tmp_path / "a.tif", tmp_path / "b.tif"], tmp_path / "mask.tif", model=model)
    assert "gdalwarp" in told.value.hint
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in Linux' /proc")
def test_many_rasters_do_not_take_many_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic, "OPEN_FILES", 3)
    values, pieces = toys.noise((480, 320)), tmp_path / "pieces"
    pieces.mkdir()
    for row in range(0, 480, 40):
        for col in range(0, 320, 80):
            part = values[:, row : row + 40, col : col + 80]
            toys.write_raster(pieces / f"{row:03}_{col:03}.tif", part, **place(col, row))
    most = 0

    def count(_: Any) -> None:
        nonlocal most
        targets = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                targets.append(str(link.readlink()))
        most = max(most, sum(str(pieces) in target for target in targets))

    model = toys.identity(tmp_path / "m.onnx")
    predict([pieces], tmp_path / "mask.tif", model=model, progress=count)
    assert 1 <= most <= 3
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], values.argmax(axis=0))


def test_shards_of_a_mosaic_agree_and_know_it_again(whole: dict[str, Any], model: Path, tmp_path: Path) -> None:
    pieces = sorted(whole["pieces"].iterdir())
    asked = {"output": tmp_path / "mask.tif", "model": model, "shard_rows": 512}
    predict(pieces, **asked, shard="2/2")
    seen = [0.0]
    with pytest.raises(InputError, match="scene was 4 rasters"):
        predict(pieces[::-1], **asked, shard="1/2")
    with pytest.raises(InputError, match="scene was 4 rasters"):
        predict([whole["pieces"] / p.name for p in pieces[:3]], **asked, shard="1/2")
    with pytest.raises(CancelledError):
        predict(pieces, **asked, shard="1/2", progress=lambda at: seen.append(at.done), cancel=lambda: seen[-1] > 3)
    predict(pieces, **asked, shard="1/2")
    with pytest.raises(InputError, match="is an input and an output"):
        merge(tmp_path / "mask.tif.job", pieces[2], overwrite=True)
    merge(tmp_path / "mask.tif.job")
    assert same(tmp_path / "mask.tif", whole["folder"] / "mask.tif")


def test_the_command_line_takes_folders_and_patterns(
    whole: dict[str, Any], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-o", str(tmp_path / "mask.tif"), "-m", str(model), "--mosaic", "--vector", str(tmp_path / "v.fgb")]
    assert main(["predict", str(whole["pieces"]), *words, "--dry-run"]) == 0
    assert "grid      420 x 700 px" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main(["predict", str(whole["pieces"] / "*.tif"), *words]) == 0
    assert same(tmp_path / "mask.tif", whole["folder"] / "mask.tif")
    assert (tmp_path / "v.fgb").exists()
    capsys.readouterr()
    for nothing in (tmp_path / "*.jp2", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main(["predict", str(nothing), *words, "--overwrite"]) == 2
        assert str(nothing) in capsys.readouterr().err


def test_a_plan_of_a_mosaic_says_so(whole: dict[str, Any], model: Path, tmp_path: Path) -> None:
    planned = plan([whole["pieces"]], tmp_path / "mask.tif", model=model)
    assert planned.scene == "alpha.tif and 3 more"
    assert json.loads(json.dumps(planned.to_json()))["grid"]["height"] == SHAPE[0]


@pytest.mark.parametrize("name", ["mosaic:", "mosaic:scene.tif", "mosaic:[]", "mosaic:{}", "mosaic:1"])
def test_a_name_that_looks_like_that_of_a_mosaic_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no rasters") as caught:
        predict(name, tmp_path / "mask.tif", model=toys.brightness(tmp_path / "m.onnx"))
    assert "--mosaic" in caught.value.hint
