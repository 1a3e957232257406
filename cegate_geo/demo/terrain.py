"""The lie of the land: roads with their markings, water, fields. The first half of making a layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from shapely.geometry import LineString, MultiLineString, Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.ops import substring

from cegate_geo.demo.scene import Ground, GroundKind

REACH_M = 128.0
"""Half the side of the square in which land is laid out; wider than any region, so that nothing ends at its edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Street:
    """A road along a line."""

    line: LineString
    width_m: float
    is_main: bool

    @property
    def surface(self) -> BaseGeometry:
        """The carriageway."""
        return self.line.buffer(self.width_m / 2, cap_style="flat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terrain:
    """Roads, water and fields, before anything is built or planted."""

    streets: tuple[Street, ...]
    carriageway: BaseGeometry
    roads: BaseGeometry
    """Carriageway and pavement: the class 'road'."""
    water: BaseGeometry
    village: BaseGeometry
    fields: tuple[Ground, ...]


def _wave(xs: np.ndarray, rng: np.random.Generator, *, amplitude: float, length: float) -> np.ndarray:
    phase = rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(2 * np.pi * xs / length + phase[0]) + 0.4 * np.sin(5 * np.pi * xs / length + phase[1])
    return np.asarray(amplitude * wave)


def lay_streets(rng: np.random.Generator, *, block_m: float, is_river: bool) -> tuple[Street, ...]:
    """A main road from west to east, side streets to the north and a back street that joins them."""
    xs = np.arange(-REACH_M, REACH_M + 1, 2.0)
    main = LineString(np.column_stack([xs, -12 + _wave(xs, rng, amplitude=3.5, length=190)]))
    streets = [Street(line=main, width_m=7.0, is_main=True)]
    back_y = 34 + _wave(xs, rng, amplitude=2.0, length=120)
    places = np.arange(-58, 60, block_m) + rng.uniform(-4, 4)
    back = LineString(np.column_stack([xs, back_y])[(xs > places[0] - 14) & (xs < places[-1] + 22)])
    streets.append(Street(line=back, width_m=5.0, is_main=False))
    for n, x in enumerate(places):
        foot = main.interpolate(main.project(shapely.Point(x, -12)))
        top = back.interpolate(back.project(shapely.Point(x + rng.uniform(-6, 6), 34)))
        end = np.array([top.x + rng.uniform(-8, 8), REACH_M]) if n == 1 else np.array([top.x, top.y])
        bend = np.array([(foot.x + top.x) / 2 + rng.uniform(-2, 2), (foot.y + top.y) / 2])
        line = LineString([(foot.x, foot.y), tuple(bend), (top.x, top.y), tuple(end)][: 4 if n == 1 else 3])
        streets.append(Street(line=_smooth(line), width_m=5.0, is_main=False))
    x = float(places[len(places) // 2] + rng.uniform(10, 16))
    foot = main.interpolate(main.project(shapely.Point(x, -12)))
    south = -REACH_M if is_river else -62.0
    lane = LineString([(foot.x, foot.y), (x + 3, -30), (x + 9, (south - 30) / 2), (x + 4, south)])
    streets.append(Street(line=_smooth(lane), width_m=4.6, is_main=False))
    return tuple(streets)


def _smooth(line: LineString) -> LineString:
    """Corners cut three times (Chaikin): a bend that a car can take."""
    points = np.asarray(line.coords)
    for _ in range(3):
        inner = np.stack([0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]], 1)
        points = np.concatenate([points[:1], inner.reshape(-1, 2), points[-1:]])
    return LineString(points)


def lay_water(rng: np.random.Generator, *, is_river: bool) -> BaseGeometry:
    """A river from west to east in the south, or a pond there."""
    if is_river:
        xs = np.arange(-REACH_M, REACH_M + 1, 2.0)
        middle = -52 + _wave(xs, rng, amplitude=5.0, length=150)
        half = 6.0 + 0.9 * _wave(xs, rng, amplitude=1.0, length=60)
        north, south = np.column_stack([xs, middle + half]), np.column_stack([xs, middle - half])
        return Polygon(np.concatenate([north, south[::-1]])).buffer(1.0).buffer(-1.0)
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    lobes = sum(rng.uniform(0.3, 1.0) / n**1.6 * np.cos(n * angle + rng.uniform(0, 6.3)) for n in (2, 3, 4, 5))
    r = 1 + 0.22 * np.asarray(lobes)
    return Polygon(np.column_stack([-30 + 25 * r * np.cos(angle), -50 + 15 * r * np.sin(angle)]))


def lay_fields(
    rng: np.random.Generator, open_land: BaseGeometry, kinds: tuple[GroundKind, ...], *, parcel_m: float
) -> tuple[Ground, ...]:
    """Cut the open land into long parcels of about `parcel_m` in width, with a grass strip between them."""
    angle = rng.uniform(0.15, 0.45)
    strips, offset, n = [], -1.7 * REACH_M, 0
    while offset < 1.7 * REACH_M:
        width = parcel_m * rng.uniform(0.7, 1.4)
        cut = rng.uniform(-40, 40)
        for left, right in ((-1.7 * REACH_M, cut), (cut, 1.7 * REACH_M)):
            strip = shapely.affinity.rotate(box(left, offset, right, offset + width), angle, (0, 0), use_radians=True)
            strips.append(strip.buffer(-0.5, join_style="mitre"))
        offset += width
    fields = []
    for strip in strips:
        for part in shapely.get_parts(strip.intersection(open_land)):
            if isinstance(part, Polygon) and part.area > 40:
                n += 1
                kind = kinds[int(rng.integers(len(kinds)))]
                turn = angle + (np.pi / 2 if rng.random() < 0.2 else 0.0)
                fields.append(Ground(kind=kind, shape=part, angle=turn, tint=float(rng.uniform(-1, 1))))
    return tuple(fields)


def lay_terrain(
    rng: np.random.Generator, *, is_river: bool, kinds: tuple[GroundKind, ...], block_m: float, parcel_m: float
) -> Terrain:
    """Streets, water, the village around the back streets, fields in what remains."""
    streets = lay_streets(rng, block_m=block_m, is_river=is_river)
    carriageway = shapely.union_all([s.surface for s in streets]).buffer(2.5).buffer(-2.5)
    walk = shapely.union_all([s.line.buffer(s.width_m / 2 + 1.5, cap_style="flat") for s in streets if s.is_main])
    roads = carriageway.union(walk)
    water = lay_water(rng, is_river=is_river)
    core = shapely.union_all([s.line for s in streets[1:-1]]).intersection(box(-95, -40, 90, 62))
    village = core.buffer(24).union(streets[0].line.intersection(box(-85, -60, 70, 40)).buffer(23))
    village = village.simplify(7.0).difference(water.buffer(5))
    open_land = box(-REACH_M, -REACH_M, REACH_M, REACH_M).difference(
        shapely.union_all([village, roads.buffer(1.2), water.buffer(4.5)])
    )
    fields = lay_fields(rng, open_land, kinds, parcel_m=parcel_m)
    return Terrain(streets=streets, carriageway=carriageway, roads=roads, water=water, village=village, fields=fields)


def road_markings(streets: tuple[Street, ...]) -> list[Ground]:
    """Edge lines, centre dashes and crossings of the main road; nothing on junctions and side streets."""
    others = shapely.union_all([s.surface.buffer(1.5) for s in streets if not s.is_main])
    paint: list[BaseGeometry] = []
    for street in streets:
        if not street.is_main:
            continue
        edge = street.width_m / 2 - 0.3
        sides = MultiLineString([street.line.offset_curve(edge), street.line.offset_curve(-edge)])
        paint.append(sides.buffer(0.07, cap_style="flat").difference(others))
        starts = np.arange(0, street.line.length, 7.5)
        dashes = [substring(street.line, s, s + 3.0).buffer(0.08, cap_style="flat") for s in starts]
        paint.append(shapely.union_all(dashes).difference(others))
    paint += _crossings(streets)
    return [Ground(kind="paint", shape=shapely.union_all(paint))]


def _crossings(streets: tuple[Street, ...]) -> list[BaseGeometry]:
    main = streets[0]
    bars: list[BaseGeometry] = []
    for street in streets[2::2]:
        start = main.line.project(shapely.Point(street.line.coords[0])) + 7.0
        for n in range(6):
            offset = -main.width_m / 2 + 0.8 + n * 1.08
            bar = substring(main.line, start, start + 2.6).offset_curve(offset)
            bars.append(bar.buffer(0.25, cap_style="flat"))
    return bars
