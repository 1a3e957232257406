"""What stands on the ground of a made region, in metres, and the exact truth that follows from it.

Coordinates are local: x to the east, y to the north, the origin in the middle of the region. Angles are in radians,
anticlockwise from east.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from cegate_geo.domain.legend import Legend

RoofKind = Literal["gable", "hip", "flat"]
GroundKind = Literal[
    "meadow", "lawn", "plough", "crop", "stubble", "orchard", "bank", "water", "asphalt", "lane", "pavement", "paint",
    "drive", "bed", "gravel",
]  # fmt: skip

CLASS_NAMES = ("other", "building", "road", "tree", "water")
CLASS_COLORS = {"other": "#d9d4c5", "building": "#d1495b", "road": "#5b5f6b", "tree": "#3f8f4f", "water": "#2f7fc1"}


def demo_legend() -> Legend:
    """The five classes of the demo with their colours."""
    return Legend.from_names(CLASS_NAMES, colors=CLASS_COLORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wing:
    """A rectangular body of a building with a roof of its own."""

    x: float
    y: float
    half_length: float
    """Metres from the middle to the gable end, along `angle`."""
    half_width: float
    """Metres from the ridge to the eave."""
    angle: float
    eave_m: float
    """Height of the eave above ground."""
    slope: float
    """Rise of the roof in metres a metre; 0 for flat roofs."""
    kind: RoofKind

    @property
    def footprint(self) -> Polygon:
        """Outline of the roof seen from above."""
        return rectangle(self.x, self.y, half_length=self.half_length, half_width=self.half_width, angle=self.angle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """Wings under one roof material."""

    wings: tuple[Wing, ...]
    roof: int
    """Place of the roof material in the season's list; negative places, counted from its end, are sheds and halls."""

    @property
    def footprint(self) -> BaseGeometry:
        """Outline of all roofs seen from above."""
        return shapely.union_all([w.footprint for w in self.wings])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A crown: irregular outline, height, species."""

    x: float
    y: float
    radii: tuple[float, ...]
    """Distance of the outline from the middle in metres, at equal angles from east, anticlockwise."""
    height_m: float
    species: int

    @property
    def outline(self) -> Polygon:
        """The crown seen from above."""
        angle = np.linspace(0, 2 * np.pi, len(self.radii), endpoint=False)
        r = np.asarray(self.radii)
        return Polygon(np.column_stack([self.x + r * np.cos(angle), self.y + r * np.sin(angle)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A patch of ground of one kind."""

    kind: GroundKind
    shape: BaseGeometry
    angle: float = 0.0
    """Direction of rows, where the kind has some."""
    tint: float = 0.0
    """-1 to 1: how far its colour leans to the first or the second of its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Car:
    """A car; the truth below it stays what it stands on."""

    x: float
    y: float
    angle: float
    paint: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything in a region, and the size of the region around the origin."""

    width_m: float
    height_m: float
    ground: tuple[Ground, ...]
    """In painting order."""
    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    cars: tuple[Car, ...]
    roads: BaseGeometry
    water: BaseGeometry

    @property
    def frame(self) -> Polygon:
        """The region itself."""
        return box(-self.width_m / 2, -self.height_m / 2, self.width_m / 2, self.height_m / 2)


def rectangle(x: float, y: float, *, half_length: float, half_width: float, angle: float) -> Polygon:
    """A rectangle around (x, y) with its long side along `angle`."""
    along = np.array([np.cos(angle), np.sin(angle)]) * half_length
    across = np.array([-np.sin(angle), np.cos(angle)]) * half_width
    middle = np.array([x, y])
    return Polygon([middle + along + across, middle - along + across, middle - along - across, middle + along - across])


def truth_polygons(layout: Layout, within: Polygon) -> list[tuple[int, Polygon]]:
    """The exact truth as (class id, polygon): what is seen from above, cut to `within`, without overlap or gap.

    A crown hides what is below it; then roofs, roads and water; the rest is 'other'.
    """
    crowns = shapely.union_all([t.outline for t in layout.trees])
    roofs = shapely.union_all([b.footprint for b in layout.buildings])
    taken: BaseGeometry = Polygon()
    result: list[tuple[int, Polygon]] = []
    order = (("tree", crowns), ("building", roofs), ("road", layout.roads), ("water", layout.water), ("other", within))
    for name, shape in order:
        seen = shape.intersection(within).difference(taken)
        taken = taken.union(shape)
        parts = [g for g in shapely.get_parts(seen) if isinstance(g, Polygon) and not g.is_empty]
        result += [(CLASS_NAMES.index(name), p) for p in parts]
    return result
