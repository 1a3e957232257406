"""Laws of what tells whether a run still sees the same data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_files import LEGEND, noise, pixel_box, write_polygons, write_raster

from cegate_geo.train.chips import ChipSampler, read_tile, validation_tiles
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.fingerprint import Seen, changes, refusal, seen_tiles, to_json
from cegate_geo.train.ranks import alone
from cegate_geo.train.scenes import LabelledScene, open_scenes
from cegate_geo.train.splits import whole

SHAPE = (300, 260)
BOXES = (pixel_box(20, 20, 60, 50), pixel_box(100, 150, 200, 250))


def open_one(folder: Path, labels: str = "labels.gpkg", **more: Any) -> LabelledScene:
    source = SourceConfig(images=str(folder / "scene.tif"), labels=str(folder / labels), label_field="class", **more)
    (scene,) = open_scenes(source, LEGEND)
    return scene


def write(folder: Path, image: np.ndarray, boxes: Any = BOXES, **profile: Any) -> LabelledScene:
    folder.mkdir()
    write_raster(folder / "scene.tif", image, **profile)
    write_polygons(folder / "labels.gpkg", boxes, **{"class": ["building", "road"]})
    return open_one(folder)


def seen(scene: LabelledScene) -> list[Seen]:
    area = whole(scene)
    chips = ChipSampler([area], crop=32, scale=(1.0, 1.0), balance=0.5, classes=3, photometric=0.0)
    places = validation_tiles([area], crop=64)
    own = range(len(places))
    return [*chips.seen(), *seen_tiles(places, own, [read_tile(*places[n]) for n in own], alone("cpu"))]


def test_a_copy_of_another_place_time_and_format_is_the_same(tmp_path: Path) -> None:
    first = seen(write(tmp_path / "a", noise(SHAPE)))
    assert [(part.use, part.name) for part in first] == [("training", "scene.tif"), ("validation", "scene.tif")]
    copy = tmp_path / "b"
    write(copy, noise(SHAPE), compress="zstd", tiled=True, blockxsize=128, blockysize=128)
    write_polygons(copy / "labels.geojson", BOXES, **{"class": ["building", "road"]})
    os.utime(copy / "scene.tif", (0, 0))
    again = seen(open_one(copy, labels="labels.geojson"))
    assert again == first
    assert changes(to_json(first), again) == []


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 299, 259), (1, 140, 77)])
def test_one_pixel_is_enough_wherever_it_lies(tmp_path: Path, place: tuple[int, int, int]) -> None:
    first = seen(write(tmp_path / "a", noise(SHAPE)))
    image = noise(SHAPE)
    image[place] ^= 1
    now = seen(write(tmp_path / "b", image))
    assert changes(to_json(first), now) == [
        "the pixels of scene.tif (training)",
        "the pixels of scene.tif (validation)",
    ]


def test_a_hole_that_is_flagged_by_now_is_a_change_where_nothing_is_labelled_too(tmp_path: Path) -> None:
    """It is filled from around, so chips beside it look otherwise."""
    image = noise(SHAPE)
    image[:, 30, 120] = 0
    for name, profile in (("a", {}), ("b", {"nodata": 0})):
        write(tmp_path / name, image, **profile)
    first, now = (seen(open_one(tmp_path / name, background="ignore")) for name in "ab")
    assert changes(to_json(first), now) == ["the pixels of scene.tif (training)"]  # no tile lies there


@pytest.mark.parametrize(
    ("boxes", "fields"),
    [
        ((pixel_box(21, 20, 61, 50), BOXES[1]), ["building", "road"]),  # as many pixels in the same cells of 64
        (BOXES, ["road", "road"]),
    ],
    ids=["moved", "renamed"],
)
def test_labels_that_moved_by_a_pixel_or_have_another_class_are_a_change(
    tmp_path: Path, boxes: Any, fields: list[str]
) -> None:
    first = seen(write(tmp_path / "a", noise(SHAPE)))
    scene = write(tmp_path / "b", noise(SHAPE))
    write_polygons(tmp_path / "b" / "labels.gpkg", boxes, **{"class": fields})
    now = seen(open_one(tmp_path / "b"))
    assert scene.name == "scene.tif"
    assert changes(to_json(first), now) == [
        "the labels of scene.tif (training)",
        "the labels of scene.tif (validation)",
    ]


def test_held_out_tiles_sum_up_the_same_in_any_number_of_processes(tmp_path: Path) -> None:
    places = validation_tiles([whole(write(tmp_path / "a", noise(SHAPE)))], crop=64)

    def part(own: range) -> np.ndarray:
        (found,) = seen_tiles(places, own, [read_tile(*places[n]) for n in own], alone("cpu"))
        return np.array([found.pixels, found.labels])

    middle = len(places) // 3
    assert middle > 2
    np.testing.assert_array_equal(part(range(middle)) + part(range(middle, len(places))), part(range(len(places))))


def test_rasters_that_came_went_or_changed_places_are_named() -> None:
    a, b, c = (Seen(use="training", name=name, pixels=n, labels=n) for n, name in enumerate("abc"))
    assert changes(to_json([a, b]), [a, c]) == ["b is gone (training)", "c is new (training)"]
    assert changes(to_json([a, b]), [b, a]) == ["the rasters are others in number or order"]
    assert changes(to_json([a, a]), [a]) == ["the rasters are others in number or order"]
    assert changes(to_json([]), []) == []
    told = refusal(changes(to_json([]), [a] * 8))
    assert "a is new (training), and 3 more." in told.message
    assert "--accept-changes" in told.hint
