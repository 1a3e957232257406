"""A whole region: land, houses, plants and cars, turned into place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from shapely.affinity import rotate
from shapely.geometry import Point, box
from shapely.geometry.base import BaseGeometry

from cegate_geo.demo.housing import Settlement, build_houses, lay_beds, lay_gardens
from cegate_geo.demo.planting import plant_trees
from cegate_geo.demo.scene import Car, Ground, Layout, Tree
from cegate_geo.demo.terrain import REACH_M, Terrain, lay_terrain, road_markings


def make_layout(settlement: Settlement, seed: int) -> Layout:
    """Lay out a region. The same settlement and seed give the same layout."""
    rng = np.random.default_rng([seed, 11])
    terrain = lay_terrain(
        rng,
        is_river=settlement.is_river,
        kinds=settlement.field_kinds,
        block_m=settlement.block_m,
        parcel_m=settlement.parcel_m,
    )
    buildings, drives = build_houses(rng, terrain, settlement)
    gardens = lay_gardens(rng, terrain, buildings)
    trees = plant_trees(rng, terrain, settlement, buildings, gardens)
    ground = [
        Ground(kind="meadow", shape=box(-REACH_M, -REACH_M, REACH_M, REACH_M)),
        *terrain.fields,
        Ground(kind="lawn", shape=terrain.village),
        *gardens,
        *lay_beds(rng, gardens, buildings),
        Ground(kind="bank", shape=terrain.water.buffer(3.0)),
        Ground(kind="water", shape=terrain.water),
        *drives,
        Ground(kind="pavement", shape=terrain.roads),
        *(Ground(kind="asphalt" if s.is_main else "lane", shape=s.surface) for s in reversed(terrain.streets)),
        Ground(kind="asphalt", shape=terrain.streets[0].surface),
        *road_markings(terrain.streets),
    ]
    plan = Layout(
        width_m=settlement.width_m,
        height_m=settlement.height_m,
        ground=tuple(ground),
        buildings=tuple(buildings),
        trees=tuple(trees),
        cars=tuple(_cars(rng, terrain, drives)),
        roads=terrain.roads,
        water=terrain.water.difference(terrain.roads),
    )
    return _turned(plan, settlement.rotation)


def _cars(rng: np.random.Generator, terrain: Terrain, drives: list[Ground]) -> list[Car]:
    """Cars on the streets, on the right side, and on drives."""
    cars = []
    for street in terrain.streets:
        for along in np.arange(6, street.line.length - 6, 11.0):
            if rng.random() < (0.28 if street.is_main else 0.16):
                a, b = street.line.interpolate(along), street.line.interpolate(along + 1)
                way = 1 if rng.random() < 0.5 else -1
                angle = float(np.arctan2(b.y - a.y, b.x - a.x)) + (0.0 if way > 0 else np.pi)
                aside = street.width_m / 4
                x, y = a.x + aside * np.sin(angle), a.y - aside * np.cos(angle)
                cars.append(Car(x=x, y=y, angle=angle, paint=int(rng.integers(8))))
    for drive in drives:
        if rng.random() < 0.45:
            spot = drive.shape.centroid
            cars.append(Car(x=spot.x, y=spot.y, angle=drive.angle, paint=int(rng.integers(8))))
    return cars


def _turned(layout: Layout, angle: float) -> Layout:
    """The layout turned around the origin, without what lies far outside the region."""
    near = layout.frame.buffer(25)
    c, s = float(np.cos(angle)), float(np.sin(angle))

    def spot(x: float, y: float) -> tuple[float, float]:
        return c * x - s * y, s * x + c * y

    def shape(geometry: BaseGeometry) -> BaseGeometry:
        return rotate(geometry, angle, origin=(0, 0), use_radians=True)

    ground = [replace(g, shape=shape(g.shape), angle=g.angle + angle) for g in layout.ground]
    buildings = [
        replace(
            b, wings=tuple(replace(w, x=p[0], y=p[1], angle=w.angle + angle) for w in b.wings for p in [spot(w.x, w.y)])
        )
        for b in layout.buildings
    ]
    trees = [_turned_tree(t, spot(t.x, t.y), angle) for t in layout.trees]
    cars = [replace(k, x=p[0], y=p[1], angle=k.angle + angle) for k in layout.cars for p in [spot(k.x, k.y)]]
    return replace(
        layout,
        ground=tuple(g for g in ground if g.shape.intersects(near)),
        buildings=tuple(b for b in buildings if b.footprint.intersects(near)),
        trees=tuple(t for t in trees if near.contains(Point(t.x, t.y))),
        cars=tuple(k for k in cars if near.contains(Point(k.x, k.y))),
        roads=shape(layout.roads),
        water=shape(layout.water),
    )


def _turned_tree(tree: Tree, spot: tuple[float, float], angle: float) -> Tree:
    steps = round(angle / (2 * np.pi) * len(tree.radii)) % len(tree.radii)
    radii = tree.radii[-steps:] + tree.radii[:-steps] if steps else tree.radii
    return replace(tree, x=spot[0], y=spot[1], radii=radii)
