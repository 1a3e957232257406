"""Scenes over http and from an object store, from servers on loopback that count what they are asked."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from cegate_geo.api import predict
from cegate_geo.cli.main import main
from cegate_geo.errors import RasterError
from cegate_geo.infer.remote import SETTINGS, gdal_name, is_remote, remote_settings
from tests import toy_models as toys
from tests.remote_server import serve

KEY = "AKIDEXAMPLE"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second between two tries."""
    monkeypatch.setitem(SETTINGS, "GDAL_HTTP_RETRY_DELAY", "0.01")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toys.identity(tmp_path / "m.onnx")


def write_cog(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = toys.write_raster(path.with_suffix(".plain.tif"), values)
    rasterio.shutil.copy(str(plain), str(path), driver="COG", compress="DEFLATE", blocksize=256)
    plain.unlink()
    return path


def is_listing(path: str) -> bool:
    """Whether a request asks what there is: by a folder's address, or with S3's query.

    GDAL asks S3 for a missing side file once more, as for a folder of that name: that lists nothing.
    """
    prefix = parse_qs(urlsplit(path).query).get("prefix", [""])[0]
    return urlsplit(path).path.endswith("/") and prefix in ("", "deep/")


def test_a_cog_is_read_by_ranges_once_and_nothing_is_listed(tmp_path: Path, model: Path) -> None:
    values = toys.noise((700, 900))
    path = write_cog(tmp_path / "web" / "scene.tif", values)
    with serve(tmp_path / "web") as served:
        predict(f"http://{served.address}/scene.tif", tmp_path / "mask.tif", model=model)
        state = served.state()
    asked = {path for _, path, _ in state["requests"]}
    ranges = [r for method, path, r in state["requests"] if method == "GET" and r and path == "/scene.tif"]
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], values.argmax(axis=0))
    assert not any(is_listing(path) for path in asked), asked
    assert len(ranges) <= 12 + 4, f"{len(ranges)} ranges for 12 blocks"
    assert state["bytes"] < 1.2 * path.stat().st_size, "no block is fetched twice"


def test_a_small_area_fetches_a_small_part(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "web" / "scene.tif", toys.noise((2048, 2048)))
    area = tmp_path / "area.geojson"
    (left, top), (right, bottom) = (toys.UTM["transform"] @ corner for corner in ((1100, 1100), (1200, 1200)))
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    area.write_text(
        '{"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": "EPSG:32645"}}, "features": '
        f'[{{"type": "Feature", "properties": {{}}, "geometry": {{"type": "Polygon", "coordinates": [{ring}]}}}}]}}'
    )
    model = toys.identity(tmp_path / "small.onnx")
    with serve(tmp_path / "web") as served:
        predict(f"http://{served.address}/scene.tif", tmp_path / "mask.tif", model=model, aoi=area)
        assert served.state()["bytes"] < path.stat().st_size / 8


def test_a_busy_server_is_asked_again(tmp_path: Path, model: Path, quick: None) -> None:
    values = toys.noise((700, 900))
    write_cog(tmp_path / "web" / "scene.tif", values)
    with serve(tmp_path / "web") as served:
        served.fail(3)
        predict(f"http://{served.address}/scene.tif", tmp_path / "mask.tif", model=model)
        assert served.state()["failed"] == 3
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], values.argmax(axis=0))


def test_a_busy_server_is_asked_again_from_any_thread(tmp_path: Path, model: Path, quick: None) -> None:
    """rasterio's options hold for one thread unless that is the main one, and the scene is read in another."""
    values = toys.noise((700, 900))
    write_cog(tmp_path / "web" / "scene.tif", values)
    failures: list[BaseException] = []

    def work(url: str) -> None:
        try:
            predict(url, tmp_path / "mask.tif", model=model)
        except BaseException as error:
            failures.append(error)

    with serve(tmp_path / "web") as served:
        served.fail(3)
        thread = threading.Thread(target=work, args=(f"http://{served.address}/scene.tif",))
        thread.start()
        thread.join()
        assert served.state()["failed"] == 3
    assert not failures
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], values.argmax(axis=0))


def test_a_server_that_stays_busy_is_one_line_and_leaves_nothing(
    tmp_path: Path, model: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cog(tmp_path / "web" / "scene.tif", toys.noise((700, 900)))
    (tmp_path / "out").mkdir()
    with serve(tmp_path / "web") as served:
        served.fail(10**6)
        url = f"http://{served.address}/scene.tif"
        assert main(["predict", url, "-o", str(tmp_path / "out" / "mask.tif"), "-m", str(model)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert url in line
    assert "network" in line
    assert not list((tmp_path / "out").iterdir())


def test_what_is_not_there_is_said(tmp_path: Path, model: Path) -> None:
    (tmp_path / "web").mkdir()
    with serve(tmp_path / "web") as served:
        address = served.address
        with pytest.raises(RasterError, match=r"404.*Check the address"):
            predict(f"http://{address}/scene.tif", tmp_path / "mask.tif", model=model)
    with pytest.raises(RasterError, match="Check the address"):
        predict(f"http://{address}/nobody/listens.tif", tmp_path / "mask.tif", model=model)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object store with one bucket, and GDAL told of it."""
    values = toys.noise((300, 400))
    write_cog(tmp_path / "web" / "bucket" / "deep" / "scene one.tif", values)
    with serve(tmp_path / "web", keys=KEY) as served:
        for name, value in {
            "AWS_S3_ENDPOINT": served.address,
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield served, values


@pytest.mark.parametrize("prefix", ["s3://", "/vsis3/"])
def test_an_object_store_is_asked_by_signed_requests(tmp_path: Path, model: Path, store: Any, prefix: str) -> None:
    served, values = store
    predict(f"{prefix}bucket/deep/scene one.tif", tmp_path / "mask.tif", model=model)
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], values.argmax(axis=0))
    listings = [p for _, p, _ in served.state()["requests"] if is_listing(p)]
    assert not listings, listings


def test_an_object_store_that_refuses_is_said(
    tmp_path: Path, model: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ANOTHER")
    with pytest.raises(RasterError, match=r"AWS_\*"):
        predict("s3://bucket/deep/scene one.tif", tmp_path / "mask.tif", model=model)


@pytest.mark.parametrize(
    ("name", "remote", "as_gdal"),
    [
        ("https://host/a.tif", True, "/vsicurl/https://host/a.tif"),
        ("S3://bucket/a.tif", True, "/vsis3/bucket/a.tif"),
        ("gs://bucket/a.tif", True, "/vsigs/bucket/a.tif"),
        ("az://box/a.tif", True, "/vsiaz/box/a.tif"),
        ("/vsis3/bucket/a.tif", True, "/vsis3/bucket/a.tif"),
        ("file:///data/a.tif", False, "file:///data/a.tif"),
        ("zip://data.zip!a.tif", False, "zip://data.zip!a.tif"),
        ("C:\\data\\a.tif", False, "C:\\data\\a.tif"),
        ("NETCDF:a.nc:band", False, "NETCDF:a.nc:band"),
    ],
)
def test_names_of_remote_scenes(name: str, remote: bool, as_gdal: str) -> None:
    assert (is_remote(name), gdal_name(name)) == (remote, as_gdal)
    assert bool(remote_settings(name)) == remote


def test_what_the_environment_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    assert "GDAL_HTTP_MAX_RETRY" not in remote_settings("https://host/a.tif")
