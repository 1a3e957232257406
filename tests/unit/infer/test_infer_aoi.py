"""Areas of interest that are none: each is refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from affine import Affine
from rasterio.crs import CRS

from cegate_geo.errors import InputError
from cegate_geo.infer.aoi import read_area
from cegate_geo.infer.georeference import Georeference

SCENE = Georeference(crs=CRS.from_epsg(32645), transform=Affine(0.13, 0, 300_000, 0, -0.13, 3_000_000), shape=(90, 70))


def polygon(path: Path, ring: list[list[float]]) -> str:
    """A GeoJSON file, in EPSG:4326."""
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}), encoding="utf-8")
    return str(path)


@pytest.mark.filterwarnings("ignore:Non closed ring")
def test_a_ring_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a shape that is none"):
        read_area(polygon(tmp_path / "area.geojson", [[87, 27], [87.1, 27]]), SCENE)


@pytest.mark.filterwarnings("ignore::cegate_geo.errors.GeoreferenceWarning")
def test_a_table_without_shapes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "area.csv").write_text("id,name\n1,first\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no polygons"):
        read_area(str(tmp_path / "area.csv"), SCENE)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "area.gpkg")
    with pytest.raises(InputError, match="pipe or a device"):
        read_area(str(tmp_path / "area.gpkg"), SCENE)


def test_a_crs_that_leads_to_no_other_is_refused(tmp_path: Path) -> None:
    site = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
    scene = Georeference(crs=site, transform=SCENE.transform, shape=SCENE.shape)
    area = polygon(tmp_path / "area.geojson", [[87, 27], [87.1, 27], [87.1, 27.1], [87, 27]])
    with pytest.raises(InputError, match="can't be brought from EPSG:4326 to the scene's CRS") as caught:
        read_area(area, scene)
    assert "\n" not in str(caught.value)
