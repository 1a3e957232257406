"""The STAC item of a model says what its manifest says: read back by the engine, and rule by rule of the extension."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from train_files import MANIFEST, noise, without_contract, write_model, write_raster

from cegate_geo.api import describe_model, predict
from cegate_geo.domain.legend import Legend
from cegate_geo.errors import ModelError
from cegate_geo.train.stac import make_item, write_item


def test_the_item_alone_says_what_the_manifest_says(tmp_path: Path) -> None:
    """The weights lose their own contract first, so that only the item is left to read."""
    model = write_model(tmp_path / "roofs.onnx")
    scene = write_raster(tmp_path / "scene.tif", noise((70, 50)))
    predict(scene, tmp_path / "by_manifest.tif", model=model)
    item = write_item(model)
    assert item == tmp_path / "roofs.stac.json"
    without_contract(model)
    info = describe_model(item)
    read = info.manifest
    assert info.sources["classes"] == info.sources["scaling"] == "STAC MLM item"
    for name in ("name", "legend", "bands", "gsd_m", "tile_size", "dtype", "description", "licence"):
        assert getattr(read, name) == getattr(MANIFEST, name), name
    assert (read.scaling, set(read.mean), set(read.std)) == ("none", {0.0}, {255.0})
    predict(scene, tmp_path / "by_item.tif", model=item, halo=MANIFEST.halo, output_kind="probabilities")
    with rasterio.open(tmp_path / "by_manifest.tif") as one, rasterio.open(tmp_path / "by_item.tif") as two:
        assert set(np.unique(one.read(1))) == {0, 2, 9}
        np.testing.assert_array_equal(one.read(1), two.read(1))


@pytest.mark.parametrize("name", ["roofs-15cm", "15 cm", "Dächer/2026", "é", "x"])
def test_the_item_keeps_the_rules_of_the_extension(name: str) -> None:
    """Of the schema of MLM v1.5.0: required fields, patterns, and references between them."""
    legend = Legend.from_names({0: "other", 1: "bâtiment élevé", 2: "low_veg"})
    manifest = dataclasses.replace(MANIFEST, name=name, legend=legend, licence="Apache-2.0; labels ODbL")
    item = make_item(manifest, "m.onnx", created=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC))
    assert json.loads(json.dumps(item)) == item
    assert (item["type"], item["stac_version"], item["geometry"], item["links"]) == ("Feature", "1.1.0", None, [])
    assert "bbox" not in item
    properties = item["properties"]
    assert properties["datetime"] == "2026-01-02T03:04:05Z"
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= properties.keys()
    assert not {"mlm:artifact_type", "mlm:compile_method", "mlm:entrypoint"} & properties.keys()
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    (given,), (gives,) = properties["mlm:input"], properties["mlm:output"]
    assert "bands" in given["input"]["dim_order"]
    assert set(given["bands"]) <= {band["name"] for band in properties["bands"]}
    assert len(given["input"]["shape"]) == len(given["input"]["dim_order"]) == 4
    assert gives["result"]["shape"][1] == len(gives["classification:classes"]) == 3
    for entry in gives["classification:classes"]:
        assert re.fullmatch(r"[0-9A-Za-z-_]+", entry["name"])
        assert re.fullmatch(r"[0-9A-F]{6}", entry["color_hint"])
    assert [c["description"] for c in gives["classification:classes"]] == list(legend.names)
    (asset,) = item["assets"].values()
    assert "mlm:model" in asset["roles"]
    assert asset["mlm:artifact_type"]
    assert not {"mlm:name", "mlm:input", "mlm:output", "mlm:hyperparameters"} & asset.keys()
    assert properties["license"] == "other"
    assert "Apache-2.0; labels ODbL" in properties["description"]


def test_a_model_with_another_contract_gets_no_item() -> None:
    with pytest.raises(ModelError, match="scaling='none'"):
        make_item(dataclasses.replace(MANIFEST, scaling="none"), "m.onnx")
