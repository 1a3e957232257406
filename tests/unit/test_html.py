"""Laws of the pieces that pages are made of."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cegate_geo import html


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6) | st.floats(0, 1e-3), st.integers(2, 12))
def test_ticks_enclose_the_range_evenly(low: float, span: float, count: int) -> None:
    marks = html.ticks(low, low + span, count)
    tolerance = 1e-6 * max(abs(low), span, 1)
    assert len(marks) >= 2
    assert marks[0] <= low + tolerance
    assert marks[-1] >= low + span - tolerance
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0], atol=1e-9 * max(1, abs(low)))


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), max_size=50), st.integers(1, 20))
def test_thinning_stays_within_the_values(values: list[float], count: int) -> None:
    points = [(float(n), v) for n, v in enumerate(values)]
    fewer = html.thin(points, count)
    assert len(fewer) <= count
    if len(points) <= count:
        assert fewer == points
    if values:
        assert min(values) - 1e-9 <= min(y for _, y in fewer)
        assert max(y for _, y in fewer) <= max(values) + 1e-9


def test_a_chart_maps_points_to_places_in_order() -> None:
    series = html.Series(name="a < b", points=[(0, 0.0), (5, 1.0), (10, 0.5)])
    drawing = ET.fromstring(html.line_chart([series], label="x", x_label="step"))
    (line,) = drawing.iter("polyline")
    places = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    assert xs == sorted(xs)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] > ys[2] > ys[1]  # y grows downwards
    assert html.line_chart([], label="x", x_label="step") == ""
    constant = html.Series(name="flat", points=[(3, 0.0)])
    ET.fromstring(html.line_chart([constant], label="x", x_label="step"))


def test_text_on_a_colour_can_be_read() -> None:
    assert html.ink_on("#ffffff") == "dark"
    assert html.ink_on("#2f6f9f") == "light"
    assert html.mix("#2f6f9f", 1) == "#2f6f9f"


def test_only_markup_is_taken_as_it_is() -> None:
    assert html.html("a < b") == "a &lt; b"
    assert html.html(html.Markup("<i></i>")) == "<i></i>"
    page = html.page("<t>", html.section("empty"), html.table(["<h>"], [["<c>", html.swatch("#ffffff")]]))
    assert "<title>&lt;t&gt;</title>" in page
    assert "<th>&lt;h&gt;</th>" in page
    assert "<td>&lt;c&gt;</td>" in page
    assert '<td><i style="background:#ffffff"></i></td>' in page
    assert "empty" not in page
