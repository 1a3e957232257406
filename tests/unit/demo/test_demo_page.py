"""Laws of the page: it stands alone, tells the figures it was given, and hides nothing."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cegate_geo.demo.charts import iou_table, text_table
from cegate_geo.demo.page import render_page
from cegate_geo.demo.pictures import OUTSIDE, data_uri, paint_classes, paint_errors, paint_over
from cegate_geo.demo.regions import REGION_A, REGION_B, Region, RegionSpec
from cegate_geo.demo.scene import demo_legend
from cegate_geo.demo.shipped import shared_truth
from cegate_geo.demo.story import GateView, Outcome, Story
from cegate_geo.domain.confusion import ConfusionMatrix
from cegate_geo.domain.legend import Legend

SHAPE = (24, 32)
VOID = {"meta", "img", "input", "br"}


def made_up_region(spec: RegionSpec, seed: int) -> Region:
    """Noise with a truth and a nodata corner; nothing is rendered."""
    rng = np.random.default_rng(seed)
    valid = np.ones(SHAPE, bool)
    valid[:5, :6] = False
    truth = np.where(valid, rng.integers(0, 5, SHAPE), 255).astype(np.uint8)
    picture = rng.integers(1, 256, (3, *SHAPE)).astype(np.uint8)
    return Region(spec=replace(spec, shape=SHAPE), picture=picture, truth=truth, valid=valid, polygons=())


def outcome(title: str, region: Region, wrong: float, seed: int) -> Outcome:
    """A prediction with about `wrong` of its pixels wrong, and its true figures."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(SHAPE) < wrong, rng.integers(0, 5, SHAPE), region.truth)
    said = np.where(region.valid, said, 255).astype(np.uint8)
    matrix = ConfusionMatrix(demo_legend())
    matrix.update(region.truth, said)
    return Outcome(title=title, class_map=said, metrics=matrix.metrics(), trained_parameters=1000)


@pytest.fixture
def story() -> Story:
    unseen = made_up_region(REGION_B, 1)
    kinds = ("spatial", "semantic", "frequency")
    scores = {(layer, kind): 1 / 4 for layer in range(4) for kind in kinds}
    chosen = frozenset({(0, "semantic"), (3, "frequency")})
    return Story(
        legend=demo_legend(),
        unseen=unseen,
        labelled=made_up_region(REGION_A, 2),
        frozen=outcome("Frozen backbone", unseen, 0.7, 3),
        adapted=outcome("Adapted", unseen, 0.3, 4),
        gate=GateView(layers=4, kinds=kinds, scores=scores, active=chosen, kept=chosen, selections=3),
        backbone="A made-up backbone <of no weights> & more.",
        steps=12,
        model_bytes=12_300_000,
        model_parameters=5_600_000,
        parity=1e-6,
        polygons=42,
        timings=(("make regions", 3.0), ("adapt", 60.5)),
        files=(("mask.tif", "classes"),),
        commands=(("Adapt:", "cegate-geo adapt --images 'a/*.tif' < x"),),
        notes=("One run & one seed.",),
    )


class Reader(HTMLParser):
    """Collects what a page refers to, and refuses tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def decode(uri: str) -> npt.NDArray[np.uint8]:
    """(H, W, 3), by another library than the one that encoded it."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize("is_whole", [True, False], ids=["adapted", "shipped"])
def test_the_page_refers_to_nothing_outside_itself(story: Story, is_whole: bool) -> None:
    if not is_whole:
        story = replace(story, labelled=None, frozen=None, gate=None)
    page = render_page(story)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    references = read(page).references
    assert len(references) >= (10 if is_whole else 5)
    assert all(r.startswith("data:image/") for r in references)


def test_every_picture_of_the_page_can_be_decoded_and_has_the_size_of_its_region(story: Story) -> None:
    for uri in read(render_page(story)).references:
        assert decode(uri).shape == (*SHAPE, 3)


def test_the_page_tells_the_figures_it_was_given(story: Story) -> None:
    text = read(render_page(story)).text
    assert story.frozen is not None
    for result in (story.frozen, story.adapted):
        assert result.metrics is not None
        for value in (result.metrics["miou"], *(c["iou"] for c in result.metrics["per_class"])):
            assert value is not None
            assert f"{100 * value:.1f}" in text
    for fact in (
        "12.3 MB",
        "42 polygons",
        "60.5 s",
        "One run & one seed.",
        "mask.tif",
        "EPSG:3035",
        "made-up backbone",
    ):
        assert fact in text


def test_a_loss_is_shown_as_one(story: Story) -> None:
    worse = replace(story, frozen=story.adapted, adapted=story.frozen)
    assert 'class="up"' in iou_table(story)
    assert 'class="down"' in iou_table(worse)
    assert re.search(r"-\d+\.\d", text_table(worse).splitlines()[-1])


def test_a_class_that_occurs_nowhere_has_no_figure(story: Story) -> None:
    matrix = ConfusionMatrix(demo_legend())
    matrix.update(np.array([[0, 1]]), np.array([[0, 1]]))
    shown = text_table(replace(story, frozen=None, adapted=replace(story.adapted, metrics=matrix.metrics())))
    rows = {line.split()[0]: line.split()[-1] for line in shown.splitlines()[1:]}
    assert rows == {"other": "100.0", "building": "100.0", "road": "-", "tree": "-", "water": "-", "mean": "100.0"}


def test_without_training_the_page_says_so_and_how_to_get_it(story: Story) -> None:
    shipped = replace(story, labelled=None, frozen=None, gate=None, commands=(("Get it:", "pip install x"),))
    text = read(render_page(shipped)).text
    assert "Nothing was trained" in text
    assert "pip install x" in text
    assert "gate chose" not in text


def test_a_class_map_survives_its_picture_bit_for_bit(story: Story) -> None:
    painted = paint_classes(story.unseen.truth, story.legend)
    again = decode(data_uri(painted, "PNG")).transpose(2, 0, 1)
    assert np.array_equal(painted, again)
    assert (again[:, ~story.unseen.valid].T == OUTSIDE).all()


def test_errors_are_red_exactly_where_truth_and_prediction_differ(story: Story) -> None:
    truth, said = story.unseen.truth, story.adapted.class_map
    red = (paint_errors(truth, said)[0] == 196) & story.unseen.valid
    assert np.array_equal(red, (truth != said) & story.unseen.valid)


def test_the_first_class_leaves_the_imagery_clear(story: Story) -> None:
    region = story.unseen
    painted = paint_over(region.picture, region.truth, story.legend, opacity=0.7)
    assert np.array_equal(painted[:, region.truth == 0], region.picture[:, region.truth == 0])


def test_truth_is_translated_by_name_into_another_legend() -> None:
    truth = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    legend = Legend.from_names({3: "background", 7: "building"})
    translated = shared_truth(truth, legend)
    assert translated is not None
    assert translated.tolist() == [[3, 7, 3], [3, 3, 255]]
    assert shared_truth(truth, Legend.from_names(["other", "glacier"])) is None


def test_where_nothing_can_be_measured_no_truth_is_shown(story: Story) -> None:
    """The truth's ids would be painted in the colours of another legend."""
    alone = replace(story, labelled=None, frozen=None, gate=None, adapted=replace(story.adapted, metrics=None))
    reader = read(render_page(alone))
    assert len(reader.references) == 3
    assert "Truth." not in reader.text
    assert text_table(alone) == ""
