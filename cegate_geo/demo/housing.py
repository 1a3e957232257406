"""What is built: houses along the streets with sheds, drives and gardens around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

from cegate_geo.demo.scene import Building, Ground, GroundKind, RoofKind, Wing, rectangle
from cegate_geo.demo.terrain import Street, Terrain


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What makes one region's land unlike another's."""

    width_m: float
    height_m: float
    rotation: float
    """Radians by which the plan is turned around the middle of the region."""
    is_river: bool
    """A river; else a pond."""
    field_kinds: tuple[GroundKind, ...]
    roof_kinds: tuple[RoofKind, ...]
    roof_materials: tuple[int, ...]
    """Drawn from with equal chance; repeat one to make it frequent."""
    house_gap_m: float
    """Least distance of two houses."""
    house_chance: float
    """Share of the free places along a street that are built upon."""
    house_size_m: tuple[float, float]
    """Smallest and largest length of a main wing."""
    garden_trees: float
    """Mean number of trees a garden."""
    hedge_share: float
    """Share of gardens with a hedge."""
    block_m: float
    """Distance of the side streets."""
    parcel_m: float
    """Width of a field."""


def _house(rng: np.random.Generator, x: float, y: float, angle: float, settlement: Settlement) -> Building:
    low, high = settlement.house_size_m
    half_length, half_width = rng.uniform(low, high) / 2, rng.uniform(0.36, 0.44) * rng.uniform(low, 0.5 * (low + high))
    kind = settlement.roof_kinds[int(rng.integers(len(settlement.roof_kinds)))]
    slope = 0.0 if kind == "flat" else float(rng.uniform(0.5, 0.85))
    eave = float(rng.uniform(3.2, 6.2))
    if rng.random() < 0.3:
        angle += np.pi / 2
    wing = Wing(
        x=x, y=y, half_length=half_length, half_width=half_width, angle=angle, eave_m=eave, slope=slope, kind=kind
    )
    wings = [wing]
    if rng.random() < 0.35:
        reach, along = rng.choice([-1, 1]) * (half_width + 0.5), rng.uniform(-0.4, 0.4) * half_length
        wings.append(
            Wing(
                x=x + along * np.cos(angle) - reach * np.sin(angle),
                y=y + along * np.sin(angle) + reach * np.cos(angle),
                half_length=float(rng.uniform(3.2, 4.6)),
                half_width=float(rng.uniform(0.42, 0.6) * half_width),
                angle=angle + np.pi / 2,
                eave_m=eave,
                slope=slope,
                kind=kind,
            )
        )
    materials = settlement.roof_materials
    return Building(wings=tuple(wings), roof=materials[int(rng.integers(len(materials)))])


def _shed(rng: np.random.Generator, house: Building) -> Building:
    main = house.wings[0]
    reach, turn = main.half_length + rng.uniform(4.0, 7.5), main.angle + rng.choice([0.0, np.pi / 2, np.pi])
    wing = Wing(
        x=main.x + reach * np.cos(turn),
        y=main.y + reach * np.sin(turn),
        half_length=float(rng.uniform(1.9, 3.3)),
        half_width=float(rng.uniform(1.4, 2.0)),
        angle=main.angle,
        eave_m=2.4,
        slope=0.0,
        kind="flat",
    )
    return Building(wings=(wing,), roof=-1)


class _Site:
    """The village while it is being built: what stands, and what is in the way."""

    def __init__(self, terrain: Terrain) -> None:
        self.village = terrain.village
        self.blocked = [terrain.roads.buffer(1.0), terrain.water.buffer(4.0)]
        self.buildings: list[Building] = []
        self.drives: list[Ground] = []

    def place(self, building: Building, gap_m: float) -> bool:
        """Build it if it lies in the village, `gap_m` from everything else."""
        shape = building.footprint
        if not self.village.contains(shape):
            return False
        distances = shapely.distance(shape, np.array(self.blocked, object))
        if min(distances[:2]) <= 0 or (len(distances) > 2 and distances[2:].min() < gap_m):
            return False
        self.blocked.append(shape)
        self.buildings.append(building)
        return True


def build_houses(
    rng: np.random.Generator, terrain: Terrain, settlement: Settlement
) -> tuple[list[Building], list[Ground]]:
    """Houses along the streets wherever there is room, their sheds and their drives; one large hall."""
    site = _Site(terrain)
    hall = Wing(x=float(rng.uniform(30, 40)), y=float(rng.uniform(-37, -34)), half_length=12, half_width=7,
                angle=float(rng.uniform(-0.1, 0.1)), eave_m=7.0, slope=0.0, kind="flat")  # fmt: skip
    site.place(Building(wings=(hall,), roof=-2), 0.5)
    for street in terrain.streets:
        for side in (-1.0, 1.0):
            along = rng.uniform(3, 9)
            while along < street.line.length - 3:
                is_built = rng.random() < settlement.house_chance and _settle(
                    rng, site, street, along, side, settlement
                )
                along += settlement.house_size_m[0] if is_built else 3.5
    return site.buildings, site.drives


def _settle(
    rng: np.random.Generator, site: _Site, street: Street, along: float, side: float, settlement: Settlement
) -> bool:
    """Build one house beside a street, `along` metres from its start, if there is room."""
    a, b = street.line.interpolate(along), street.line.interpolate(along + 1)
    angle = float(np.arctan2(b.y - a.y, b.x - a.x))
    setback = street.width_m / 2 + (1.5 if street.is_main else 0.0) + rng.uniform(6.5, 9.5)
    normal = angle + side * np.pi / 2
    x, y = a.x + setback * np.cos(normal), a.y + setback * np.sin(normal)
    house = _house(rng, x, y, angle + rng.normal(0, 0.05), settlement)
    if not site.place(house, settlement.house_gap_m):
        return False
    if rng.random() < 0.5:
        site.place(_shed(rng, house), 1.2)
    aside = house.wings[0].half_length * 0.5
    start = (a.x + aside * np.cos(angle), a.y + aside * np.sin(angle))
    end = (start[0] + setback * np.cos(normal), start[1] + setback * np.sin(normal))
    kind: GroundKind = "drive" if rng.random() < 0.6 else "gravel"
    drive = LineString([start, end]).buffer(1.5, cap_style="flat")
    site.drives.append(Ground(kind=kind, shape=drive, angle=normal, tint=float(rng.uniform(-1, 1))))
    return True


def lay_gardens(rng: np.random.Generator, terrain: Terrain, buildings: list[Building]) -> list[Ground]:
    """The village cut into the plots nearest to each house."""
    houses = [b.wings[0] for b in buildings if b.roof != -1]
    points = shapely.MultiPoint([(h.x, h.y) for h in houses])
    cells = shapely.voronoi_polygons(points, extend_to=terrain.village)
    land = terrain.village.difference(terrain.roads.buffer(0.3))
    gardens = []
    for cell in shapely.get_parts(cells):
        for part in shapely.get_parts(cell.intersection(land)):
            if isinstance(part, Polygon) and part.area > 30:
                gardens.append(Ground(kind="lawn", shape=part, tint=float(rng.uniform(-1, 1))))
    return gardens


def lay_beds(rng: np.random.Generator, gardens: list[Ground], buildings: list[Building]) -> list[Ground]:
    """Vegetable beds and gravel terraces."""
    beds = []
    for building in buildings:
        wing = building.wings[0]
        if building.roof >= 0 and rng.random() < 0.8:
            turn = wing.angle + rng.choice([0.5, 1.5]) * np.pi
            reach = wing.half_width + rng.uniform(0.0, 1.6)
            x, y = wing.x + reach * np.cos(turn), wing.y + reach * np.sin(turn)
            size = rng.uniform(0.4, 0.95) * wing.half_length
            terrace = rectangle(x, y, half_length=size, half_width=rng.uniform(1.2, 2.0), angle=wing.angle)
            kind: GroundKind = "gravel" if rng.random() < 0.5 else "drive"
            beds.append(Ground(kind=kind, shape=terrace, angle=wing.angle, tint=float(rng.uniform(-1, 1))))
    for garden in gardens:
        if rng.random() < 0.4:
            spot = garden.shape.representative_point()
            x, y, angle = spot.x + rng.uniform(-5, 5), spot.y + rng.uniform(-5, 5), float(rng.uniform(0, 3.1))
            bed = rectangle(x, y, half_length=rng.uniform(1.5, 3), half_width=rng.uniform(1, 1.8), angle=angle)
            beds.append(Ground(kind="bed", shape=bed.intersection(garden.shape), angle=angle))
    return beds
