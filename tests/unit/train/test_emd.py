"""The Esri definition of a model: it has what ArcGIS' published classifier reads, and our own reader finds the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from train_files import MANIFEST, noise, without_contract, write_model, write_raster

from cegate_geo.api import describe_model, predict
from cegate_geo.cli import export as cli_export
from cegate_geo.errors import ContractWarning, ModelError
from cegate_geo.train import export as train_export
from cegate_geo.train.emd import make_definition, write_definition


def mask(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        values: np.ndarray = dataset.read(1)
    return values


def test_by_the_definition_a_scene_becomes_the_same_mask(tmp_path: Path) -> None:
    """With the contract in the weights, and then without: all that is left is the definition."""
    model = write_model(tmp_path / "roofs.onnx")
    scene = write_raster(tmp_path / "scene.tif", noise((70, 50)))
    predict(scene, tmp_path / "by_manifest.tif", model=model)
    definition = write_definition(model)
    assert definition == tmp_path / "roofs.emd"
    predict(scene, tmp_path / "by_both.tif", model=definition)
    without_contract(model)
    info = describe_model(definition)
    assert info.sources["classes"] == info.sources["bands"] == "ArcGIS .emd"
    for name in ("legend", "bands", "tile_size", "dtype", "input_maximum"):
        assert getattr(info.manifest, name) == getattr(MANIFEST, name), name
    assert "0.5 m per pixel" in info.manifest.description
    with pytest.warns(ContractWarning, match=r"values / 255 \(--scale\)"):
        predict(
            scene, tmp_path / "by_definition.tif", model=definition, halo=MANIFEST.halo, output_kind="probabilities"
        )
    expected = mask(tmp_path / "by_manifest.tif")
    assert set(np.unique(expected)) == {0, 2, 9}
    np.testing.assert_array_equal(mask(tmp_path / "by_both.tif"), expected)
    np.testing.assert_array_equal(mask(tmp_path / "by_definition.tif"), expected)


def test_the_definition_has_what_the_published_classifier_reads() -> None:
    """The keys of github.com/Esri/raster-deep-learning, docs/writing_model_definition.md, in their types."""
    table = make_definition(MANIFEST, "roofs.onnx")
    assert json.loads(json.dumps(table)) == table
    assert (table["Framework"], table["ModelType"], table["ModelFile"]) == ("ONNX", "ImageClassification", "roofs.onnx")
    assert (table["ImageHeight"], table["ImageWidth"], table["ExtractBands"]) == (32, 32, [0, 1, 2])
    assert [(c["Value"], c["Name"]) for c in table["Classes"]] == [(0, "other"), (2, "building"), (9, "road")]
    assert table["Classes"][1]["Color"] == [0xD6, 0x45, 0x41]
    assert not {"InferenceFunction", "ModelConfiguration", "DataRange", "ModelPadding"} & table.keys(), "not proved"
    for told in ("roofs-15cm", "divided by 255", "padding 4", "CC-BY-4.0"):
        assert told in table["Description"]


def test_a_model_with_another_contract_gets_no_definition() -> None:
    with pytest.raises(ModelError, match="scaling='none'"):
        make_definition(dataclasses.replace(MANIFEST, scaling="none"), "m.onnx")


def test_export_writes_what_is_asked_for_and_replaces_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.onnx"
    report = train_export.ExportReport(
        path=model, bytes=1, precision="fp32", parameters=1, modules_kept=(), modules_total=0, parity={}
    )
    monkeypatch.setattr(train_export, "export_run", lambda *args, **kwargs: write_model(model) and report)

    def beside(*options: str) -> set[str]:
        words = [str(tmp_path / "run"), "-o", str(model), "--json", *options]
        result = CliRunner().invoke(cli_export.command, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return {path.name for path in tmp_path.iterdir()}

    assert beside() == {"m.onnx"}
    (tmp_path / "m.emd").write_text("of an older model", encoding="utf-8")
    assert beside("--emd") == {"m.onnx", "m.emd"}
    assert json.loads((tmp_path / "m.emd").read_text(encoding="utf-8"))["ModelFile"] == "m.onnx"
    assert beside("--emd", "--stac") == {"m.onnx", "m.emd", "m.stac.json"}
