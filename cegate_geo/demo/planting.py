"""What grows: trees in gardens and hedges around them, along road and water, a wood, orchards."""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry import Point
from shapely.geometry.base import BaseGeometry

from cegate_geo.demo.housing import Settlement
from cegate_geo.demo.scene import Building, Ground, Tree
from cegate_geo.demo.terrain import Terrain

CROWN_CORNERS = 22


def make_tree(rng: np.random.Generator, x: float, y: float, radius: float, *, species: int | None = None) -> Tree:
    """A crown of about `radius` metres with an outline of its own."""
    angle = np.linspace(0, 2 * np.pi, CROWN_CORNERS, endpoint=False)
    r = 1 + 0.06 * rng.standard_normal(CROWN_CORNERS)
    for n in (2, 3, 5):
        r += rng.uniform(0.02, 0.09) * np.cos(n * angle + rng.uniform(0, 6.3))
    return Tree(
        x=x,
        y=y,
        radii=tuple(float(v) for v in radius * r),
        height_m=float(radius * rng.uniform(1.7, 2.4) + 0.8),
        species=int(rng.integers(6)) if species is None else species,
    )


def plant_trees(
    rng: np.random.Generator,
    terrain: Terrain,
    settlement: Settlement,
    buildings: list[Building],
    gardens: list[Ground],
) -> list[Tree]:
    """Trees in gardens and hedges around them, along the main road and the water, a wood and orchards."""
    trees = _garden_trees(rng, settlement, gardens)
    line = terrain.streets[0].line
    for along in np.arange(3, line.length, 9.5):
        spot = line.interpolate(along)
        if not terrain.village.contains(spot):
            trees.append(make_tree(rng, spot.x + rng.normal(0, 0.3), spot.y - 7.6, rng.uniform(2.0, 2.9), species=1))
    shore = shapely.get_parts(terrain.water.buffer(3.5).boundary)[0]
    for along in np.arange(0, shore.length, 5.0):
        if rng.random() < 0.6:
            spot = shore.interpolate(along + rng.uniform(0, 3))
            trees.append(make_tree(rng, spot.x, spot.y, rng.uniform(1.4, 4.0)))
    for _ in range(90):
        x, y = 58 + rng.normal(0, 14), -72 + rng.normal(0, 12)
        trees.append(make_tree(rng, x, y, rng.uniform(2.2, 4.8), species=int(rng.integers(3))))
    for field in terrain.fields:
        if field.kind == "orchard":
            trees += _orchard(rng, field)
        elif rng.random() < 0.45:
            trees += _hedgerow(rng, field)
    crowns = shapely.polygons([np.asarray(t.outline.exterior.coords) for t in trees])
    solid = shapely.union_all([b.footprint for b in buildings])
    blocked = shapely.union_all([terrain.roads.buffer(-1.2), terrain.water.buffer(-1.0)])
    clear = ~shapely.intersects(crowns, solid.buffer(0.4)) & ~shapely.intersects(crowns, blocked)
    return [t for t, keep in zip(trees, clear, strict=True) if keep]


def _garden_trees(rng: np.random.Generator, settlement: Settlement, gardens: list[Ground]) -> list[Tree]:
    trees = []
    for garden in gardens:
        left, bottom, right, top = garden.shape.bounds
        for _ in range(int(rng.poisson(settlement.garden_trees))):
            x, y = rng.uniform(left, right), rng.uniform(bottom, top)
            if garden.shape.contains(Point(x, y)):
                trees.append(make_tree(rng, x, y, rng.gamma(9, 0.28) + 0.7))
        if rng.random() < settlement.hedge_share:
            hedge = garden.shape.buffer(-0.9).boundary
            first, length = rng.uniform(0, 1) * hedge.length, rng.uniform(0.25, 0.5) * hedge.length
            for along in np.arange(first, first + length, 0.8):
                spot = hedge.interpolate((along + rng.normal(0, 0.15)) % hedge.length)
                x, y = spot.x + rng.normal(0, 0.12), spot.y + rng.normal(0, 0.12)
                trees.append(make_tree(rng, x, y, rng.uniform(0.7, 1.15), species=0))
    return trees


def _hedgerow(rng: np.random.Generator, field: Ground) -> list[Tree]:
    """Trees along a part of a field's edge."""
    edge = field.shape.boundary
    first, length = rng.uniform(0, 1) * edge.length, rng.uniform(0.2, 0.45) * edge.length
    trees = []
    for along in np.arange(first, first + length, 4.2):
        if rng.random() < 0.85:
            spot = edge.interpolate((along + rng.normal(0, 0.6)) % edge.length)
            trees.append(
                make_tree(rng, spot.x + rng.normal(0, 0.5), spot.y + rng.normal(0, 0.5), rng.uniform(1.3, 3.4))
            )
    return trees


def _orchard(rng: np.random.Generator, field: Ground) -> list[Tree]:
    middle = field.shape.centroid
    inside: BaseGeometry = field.shape.buffer(-2.0)
    trees = []
    for u in np.arange(-60, 60, 5.2):
        for v in np.arange(-60, 60, 5.2):
            x = middle.x + u * np.cos(field.angle) - v * np.sin(field.angle) + rng.normal(0, 0.25)
            y = middle.y + u * np.sin(field.angle) + v * np.cos(field.angle) + rng.normal(0, 0.25)
            if rng.random() < 0.93 and inside.contains(Point(x, y)):
                trees.append(make_tree(rng, x, y, rng.uniform(1.3, 1.9), species=3))
    return trees
