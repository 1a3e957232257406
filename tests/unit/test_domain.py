"""Laws of the value types."""

from __future__ import annotations

import json

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from cegate_geo import errors
from cegate_geo.domain.confusion import ConfusionMatrix
from cegate_geo.domain.grid import RasterGrid
from cegate_geo.domain.legend import Legend, LegendClass, parse_color
from cegate_geo.domain.manifest import METADATA_KEY, Manifest
from cegate_geo.domain.windows import Window, iter_blocks

windows = st.builds(
    Window,
    col_off=st.integers(-20, 20),
    row_off=st.integers(-20, 20),
    width=st.integers(1, 30),
    height=st.integers(1, 30),
)
names = st.text("abcdefgh ij-é", min_size=1, max_size=8)


def pixels(window: Window) -> set[tuple[int, int]]:
    return {(r, c) for r in range(window.row_off, window.row_end) for c in range(window.col_off, window.col_end)}


@settings(deadline=None)
@given(windows, windows)
def test_intersection_is_the_set_of_shared_pixels(a: Window, b: Window) -> None:
    both = a.intersection(b)
    assert (pixels(both) if both else set()) == pixels(a) & pixels(b)
    assert both == b.intersection(a)


@settings(deadline=None)
@given(windows, windows)
def test_slices_cut_the_window_out_of_its_surroundings(inner: Window, outer: Window) -> None:
    if not outer.contains(inner):
        with pytest.raises(errors.InputError):
            inner.slices(outer)
        return
    rows = np.arange(outer.row_off, outer.row_end)[:, None]
    cols = np.arange(outer.col_off, outer.col_end)[None, :]
    cut_rows, cut_cols = inner.slices(outer)
    assert rows[cut_rows].ravel().tolist() == list(range(inner.row_off, inner.row_end))
    assert cols[:, cut_cols].ravel().tolist() == list(range(inner.col_off, inner.col_end))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(1, 70))
def test_blocks_partition_the_raster(height: int, width: int, block_height: int, block_width: int) -> None:
    seen = np.zeros((height, width), int)
    for block in iter_blocks((height, width), block_height=block_height, block_width=block_width):
        seen[block.slices(Window.of_shape((height, width)))] += 1
    assert (seen == 1).all()


def test_a_window_without_pixels_does_not_exist() -> None:
    with pytest.raises(errors.InputError, match="width=0"):
        Window(col_off=0, row_off=0, width=0, height=1)


@settings(deadline=None)
@given(windows, st.floats(-80, 80), st.floats(0.1, 3), st.sampled_from([-1.0, 1.0]))
def test_a_crop_keeps_every_pixel_where_it_was(window: Window, angle: float, size: float, up: float) -> None:
    transform = Affine.translation(500000, 4e6) @ Affine.rotation(angle) @ Affine.scale(size, up * size)
    grid = RasterGrid(crs_wkt=None, transform=transform, shape=(10, 12))
    crop = grid.crop(window)
    assert crop.transform @ (3, 4) == pytest.approx(transform @ (3 + window.col_off, 4 + window.row_off))
    assert crop.shape == window.shape


def manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "name": "toy",
        "legend": Legend.from_names({0: "other", 7: "building é"}),
        "bands": ("red", "green", "blue"),
        "gsd_m": 0.15,
        "gsd_range_m": (0.1, 0.3),
        "tile_size": 512,
        "halo": 64,
        "parity": {"max_abs": 1e-6},
        "provenance": {"seeds": [0, 1]},
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.lists(names, min_size=2, max_size=5, unique=True),
    st.floats(0.01, 100),
    st.integers(16, 2048),
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
)
def test_a_manifest_survives_its_json(classes: list[str], gsd: float, tile: int, dtype: str) -> None:
    original = manifest(
        legend=Legend.from_names(classes), gsd_m=gsd, gsd_range_m=(gsd / 2, gsd * 2), tile_size=tile, halo=tile // 8,
        dtype=dtype,
    )  # fmt: skip
    assert Manifest.from_json(original.to_json()) == original


def test_peers_find_their_keys_as_json() -> None:
    metadata = manifest().to_metadata()
    values = {key: json.loads(value) for key, value in metadata.items()}
    assert values["model_type"] == "Segmentor"
    assert values["class_names"] == {"0": "other", "1": "building é"}
    assert values["resolution"] == 15.0
    assert isinstance(values["tiles_overlap"], int)
    assert isinstance(values["seg_small_segment"], int)
    assert Manifest.from_json(metadata[METADATA_KEY]).legend.ids == (0, 7)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 99}', "null"])
def test_an_unreadable_manifest_is_a_model_error(text: str) -> None:
    with pytest.raises(errors.ModelError):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "changes", [{"bands": ()}, {"gsd_m": 0.0}, {"halo": 256}, {"gsd_range_m": (2.0, 1.0)}, {"bands": ("a", "a")}]
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(errors.ModelError, match="not usable"):
        manifest(**changes)


def test_a_legend_refuses_what_can_not_be_told_apart() -> None:
    grey = (1, 2, 3)
    with pytest.raises(errors.InputError, match="more than once"):
        Legend((LegendClass(id=0, name="a", color=grey), LegendClass(id=0, name="b", color=grey)))
    with pytest.raises(errors.InputError, match="255"):
        LegendClass(id=255, name="a", color=grey)
    with pytest.raises(errors.InputError, match="'red'"):
        parse_color("red")


def test_confusion_equals_a_hand_count() -> None:
    matrix = ConfusionMatrix(Legend.from_names({0: "other", 10: "house"}))
    truth = np.array([[0, 0, 10], [10, 255, 10]])
    said = np.array([[0, 10, 10], [0, 0, 255]])
    matrix.update(truth, said)
    metrics = matrix.metrics()
    assert metrics["confusion"] == [[1, 1], [1, 1]]
    assert metrics["accuracy"] == 0.5
    assert [c["iou"] for c in metrics["per_class"]] == [pytest.approx(1 / 3)] * 2
    assert metrics["per_class"][1]["pixels"] == 2


def test_confusion_refuses_values_outside_the_legend() -> None:
    matrix = ConfusionMatrix(Legend.from_names(["a", "b"]))
    with pytest.raises(errors.LabelError, match=r"\[7\]"):
        matrix.update(np.array([[0, 7]]), np.array([[0, 0]]))
    with pytest.raises(errors.LabelError, match="same grid"):
        matrix.update(np.zeros((2, 2), int), np.zeros((2, 3), int))


def test_a_class_that_never_occurs_does_not_count() -> None:
    matrix = ConfusionMatrix(Legend.from_names(["a", "b", "c"]))
    matrix.update(np.array([[0, 1]]), np.array([[0, 1]]))
    metrics = matrix.metrics()
    assert metrics["miou"] == 1.0
    assert metrics["per_class"][2]["iou"] is None


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(errors.RasterError, OSError), (errors.ConfigError, KeyError), (errors.OutputExistsError, FileExistsError),
     (errors.RuntimeMissingError, ImportError), (errors.SiteError, LookupError)],
)  # fmt: skip
def test_errors_are_also_the_builtin_that_they_resemble(kind: type[errors.CegateError], builtin: type) -> None:
    error = kind("It is so.", hint="Do this.")
    assert isinstance(error, builtin)
    assert str(error) == "It is so. Do this."
