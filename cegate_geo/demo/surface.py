"""From a layout to rasters of reflectance, height and slope, on the pixel grid of a region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.features import rasterize

from cegate_geo.demo.scene import Car, Ground, GroundKind, Layout, Tree, Wing
from cegate_geo.demo.season import Color, Cover, Season
from cegate_geo.demo.texture import FloatArray, box_blur, smooth_noise, white_noise

TRACK_EVERY_M = 14.0


@dataclass(slots=True)
class Surface:
    """What light falls on. All arrays are float32 and filled in place while things are put on the ground."""

    pixel_m: float
    transform: Affine
    """(column, row) to local metres."""
    albedo: FloatArray
    """(H, W, 3), 0 to 1, linear."""
    height: FloatArray
    """(H, W) metres above ground."""
    slope_x: FloatArray
    """(H, W) rise to the east, metres a metre."""
    slope_y: FloatArray
    """(H, W) rise to the north."""
    gloss: FloatArray
    """(H, W) share of the sky that is mirrored."""
    fine: FloatArray
    """(H, W) noise from pixel to pixel; these three serve all textures."""
    middle: FloatArray
    """(H, W) noise of about a metre."""
    coarse: FloatArray
    """(H, W) noise of about ten metres."""

    def part(self, x: float, y: float, reach_m: float) -> tuple[slice, slice, FloatArray, FloatArray] | None:
        """Slices of the square of `reach_m` around (x, y), and offsets from (x, y) in metres; None outside."""
        col, row = ~self.transform @ (x, y)
        r = reach_m / self.pixel_m + 1
        height, width = self.height.shape
        rows = slice(max(0, int(row - r)), min(height, int(row + r) + 1))
        cols = slice(max(0, int(col - r)), min(width, int(col + r) + 1))
        if rows.stop - rows.start < 2 or cols.stop - cols.start < 2:
            return None
        dx = (np.arange(cols.start, cols.stop, dtype=np.float32) + np.float32(0.5 - col)) * np.float32(self.pixel_m)
        dy = (np.float32(row - 0.5) - np.arange(rows.start, rows.stop, dtype=np.float32)) * np.float32(self.pixel_m)
        return rows, cols, dx[None, :], dy[:, None]


def make_surface(layout: Layout, season: Season, *, shape: tuple[int, int], seed: int) -> Surface:
    """Put a layout on a grid of `shape` = (height, width) that covers its frame."""
    rng = np.random.default_rng([seed, 23])
    pixel_m = layout.width_m / shape[1]
    transform = Affine(pixel_m, 0, -layout.width_m / 2, 0, -pixel_m, layout.height_m / 2)
    surface = Surface(
        pixel_m=pixel_m,
        transform=transform,
        albedo=np.zeros((*shape, 3), np.float32),
        height=np.zeros(shape, np.float32),
        slope_x=np.zeros(shape, np.float32),
        slope_y=np.zeros(shape, np.float32),
        gloss=np.zeros(shape, np.float32),
        fine=white_noise(shape, rng),
        middle=smooth_noise(shape, 0.9 / pixel_m, rng),
        coarse=smooth_noise(shape, 9.0 / pixel_m, rng),
    )
    _paint_ground(surface, layout.ground, season)
    for car in layout.cars:
        _put_car(surface, car, season.cars[car.paint % len(season.cars)])
    for building in layout.buildings:
        tint = float(rng.normal(0, 0.07))
        for wing in building.wings:
            _put_wing(surface, wing, season.roofs[building.roof], tint=tint)
        if building.roof >= 0:
            _fit_out(surface, building.wings[0], rng)
    for tree in layout.trees:
        _put_tree(surface, tree, season.crowns[tree.species], tint=float(rng.normal(0, 0.12)))
    return surface


def _paint_ground(surface: Surface, ground: tuple[Ground, ...], season: Season) -> None:
    """Colours and rows of all patches, each pixel by the patch that lies on top."""
    shape = surface.height.shape
    index = rasterize(
        [(g.shape, n) for n, g in enumerate(ground)], out_shape=shape, transform=surface.transform, dtype="uint16"
    )
    covers = [season.covers[g.kind] for g in ground]
    mix = 0.5 + 0.5 * np.array([g.tint for g in ground], np.float32)[index]
    mix += np.float32(0.22) * surface.coarse + np.float32(0.12) * surface.middle
    np.clip(mix, 0, 1, out=mix)
    light = _contrast(surface, covers, index)
    light *= _rows(surface, ground, covers, index)
    for c in range(3):
        first = np.array([k.first[c] for k in covers], np.float32)[index]
        second = np.array([k.second[c] for k in covers], np.float32)[index]
        surface.albedo[..., c] = (first + (second - first) * mix) * light
    kinds: list[GroundKind] = list(get_args(GroundKind))
    kind = np.array([kinds.index(g.kind) for g in ground], np.uint8)[index]
    _wet(surface, kind == kinds.index("water"))


def _contrast(surface: Surface, covers: list[Cover], index: npt.NDArray[np.uint16]) -> FloatArray:
    light = np.array([c.fine for c in covers], np.float32)[index] * surface.fine
    light += np.array([c.middle for c in covers], np.float32)[index] * surface.middle
    light += np.array([c.coarse for c in covers], np.float32)[index] * surface.coarse
    return np.clip(1 + light, 0.3, 2.0, out=light)


def _rows(
    surface: Surface, ground: tuple[Ground, ...], covers: list[Cover], index: npt.NDArray[np.uint16]
) -> FloatArray:
    """(H, W) factor of the rows and wheel tracks of fields."""
    row_m = np.array([c.row_m for c in covers], np.float32)
    factor = np.ones(index.shape, np.float32)
    rows, cols = np.nonzero((row_m > 0)[index])
    here = index[rows, cols]
    x = (cols + 0.5) * np.float32(surface.pixel_m) + np.float32(surface.transform.c)
    y = np.float32(surface.transform.f) - (rows + 0.5) * np.float32(surface.pixel_m)
    angle = np.array([g.angle for g in ground], np.float32)
    across = y * np.cos(angle)[here] - x * np.sin(angle)[here] + np.float32(0.12) * surface.coarse[rows, cols]
    wave = np.sin(np.float32(2 * np.pi) * across / row_m[here])
    result = 1 + np.array([c.row for c in covers], np.float32)[here] * wave
    wheel = np.abs(np.mod(across, TRACK_EVERY_M) - 7.0)
    track = np.array([c.tracks for c in covers], np.float32)[here]
    result *= 1 - track * (np.abs(wheel - 0.95) < 0.28)
    factor[rows, cols] = result
    return factor


def _wet(surface: Surface, water: npt.NDArray[np.bool_]) -> None:
    """Shallow, muddy banks; a mirror further out."""
    depth = box_blur(water.astype(np.float32), int(2.2 / surface.pixel_m))
    shallow = np.clip((0.95 - depth) * 1.6, 0, 1) * water
    mud = np.array([0.135, 0.130, 0.080], np.float32)
    surface.albedo += (mud - surface.albedo) * (shallow * np.float32(0.65))[..., None]
    ripple = 1 + 0.20 * surface.coarse + 0.05 * surface.middle
    surface.gloss += np.where(water, 0.055 * ripple, 0).astype(np.float32)
    bare = box_blur(water.astype(np.float32), int(0.8 / surface.pixel_m))
    rim = (bare > 0.02) & ~water
    surface.albedo[rim] *= np.float32(0.78)


def _put_car(surface: Surface, car: Car, color: Color) -> None:
    part = surface.part(car.x, car.y, 2.6)
    if part is None:
        return
    rows, cols, dx, dy = part
    u, v = dx * np.cos(car.angle) + dy * np.sin(car.angle), dy * np.cos(car.angle) - dx * np.sin(car.angle)
    body = (np.abs(u) / 2.2) ** 4 + (np.abs(v) / 0.92) ** 4 < 1
    cabin = ((np.abs(u + 0.25) / 1.35) ** 4 + (np.abs(v) / 0.78) ** 4) < 1
    roof = (np.abs(u + 0.35) < 0.75) & (np.abs(v) < 0.68)
    height = np.where(cabin, 1.45, 0.85).astype(np.float32)
    surface.height[rows, cols][body] = height[body]
    surface.albedo[rows, cols][body] = color
    surface.albedo[rows, cols][cabin & ~roof] = (0.03, 0.035, 0.04)
    surface.gloss[rows, cols][body] = 0.06


def _put_wing(surface: Surface, wing: Wing, color: Color, *, tint: float) -> None:
    """A roof: planes, courses of tiles along the eave, a lighter ridge; the higher of two wings hides the other."""
    part = surface.part(wing.x, wing.y, float(np.hypot(wing.half_length, wing.half_width)))
    if part is None:
        return
    rows, cols, dx, dy = part
    cos, sin = np.float32(np.cos(wing.angle)), np.float32(np.sin(wing.angle))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    to_end, to_eave = wing.half_length - np.abs(u), wing.half_width - np.abs(v)
    hipped = (to_end < to_eave) if wing.kind == "hip" else np.zeros(u.shape, bool)
    run = np.where(hipped, to_end, to_eave)
    height = (wing.eave_m + wing.slope * run).astype(np.float32)
    seen = (to_end > 0) & (to_eave > 0) & (height > surface.height[rows, cols] - 0.01)
    rise_u = np.where(hipped, -np.sign(u), 0) * wing.slope
    rise_v = np.where(hipped, 0, -np.sign(v)) * wing.slope
    light = 1 + tint + 0.07 * surface.fine[rows, cols] + 0.06 * surface.middle[rows, cols]
    if wing.kind == "flat":
        edge = np.minimum(to_end, to_eave) < 0.35
        light = np.where(edge, 1.25 * light, light)
        height = np.where(edge, height + 0.4, height).astype(np.float32)
    else:
        light = light * (1 + 0.10 * np.sin(2 * np.pi * run / 0.42))
        ridge = wing.half_width - run < 0.16
        light = np.where(ridge, light * 1.25, light)
    color3 = np.asarray(color, np.float32) * light[..., None].astype(np.float32)
    surface.height[rows, cols][seen] = height[seen]
    surface.albedo[rows, cols][seen] = color3[seen]
    surface.slope_x[rows, cols][seen] = (rise_u * cos - rise_v * sin)[seen]
    surface.slope_y[rows, cols][seen] = (rise_u * sin + rise_v * cos)[seen]
    surface.gloss[rows, cols][seen] = 0.0


def _fit_out(surface: Surface, wing: Wing, rng: np.random.Generator) -> None:
    """A chimney, and on one roof in four solar panels on its southern side."""
    part = surface.part(wing.x, wing.y, wing.half_length)
    has_panels = rng.random() < 0.25 and wing.kind != "hip"
    along, aside = rng.uniform(-0.6, 0.6) * wing.half_length, rng.uniform(0.15, 0.4) * wing.half_width
    if part is None:
        return
    rows, cols, dx, dy = part
    u = dx * np.cos(wing.angle) + dy * np.sin(wing.angle)
    south = -1.0 if np.cos(wing.angle) > 0 else 1.0
    v = (dy * np.cos(wing.angle) - dx * np.sin(wing.angle)) * south
    albedo, height = surface.albedo[rows, cols], surface.height[rows, cols]
    if has_panels:
        panel = (np.abs(u) < 0.62 * wing.half_length) & (v > 0.22 * wing.half_width) & (v < 0.82 * wing.half_width)
        seam = (np.mod(u, 1.05) < 0.09) | (np.mod(v, 1.7) < 0.09)
        albedo[panel] = (0.022, 0.028, 0.052)
        albedo[panel & seam] = (0.20, 0.21, 0.23)
        surface.gloss[rows, cols][panel] = 0.10
    chimney = (np.abs(u - along) < 0.42) & (np.abs(v + aside) < 0.36)
    if chimney.any():
        height[chimney] = height[chimney].max() + 1.1
        albedo[chimney] = (0.22, 0.15, 0.12)
        albedo[(np.abs(u - along) < 0.2) & (np.abs(v + aside) < 0.16)] = (0.03, 0.03, 0.03)
        surface.slope_x[rows, cols][chimney] = 0.0
        surface.slope_y[rows, cols][chimney] = 0.0


def _put_tree(surface: Surface, tree: Tree, color: Color, *, tint: float) -> None:
    """A crown: a dome with tufts of leaves, darker and lower at the rim."""
    part = surface.part(tree.x, tree.y, max(tree.radii))
    if part is None:
        return
    rows, cols, dx, dy = part
    share = np.hypot(dx, dy) / _polygon_radius(tree, np.mod(np.arctan2(dy, dx), np.float32(2 * np.pi)))
    seen = share <= 1
    dome = np.sqrt(np.clip(1 - share**2, 0, 1))
    radius = float(np.mean(tree.radii))
    tufts = 0.16 * surface.middle[rows, cols] + 0.10 * surface.fine[rows, cols]
    height = (tree.height_m * (0.55 + 0.45 * dome) + min(1.0, radius / 2) * tufts).astype(np.float32)
    round_m = np.float32(0.62 * radius)
    tilt_y, tilt_x = np.gradient(0.55 * surface.middle[rows, cols] + 0.12 * surface.fine[rows, cols])
    slope = np.clip(share, 0, 0.93) / np.sqrt(1 - np.clip(share, 0, 0.93) ** 2) * (round_m / radius)
    away = np.maximum(np.hypot(dx, dy), 1e-3)
    reach = np.float32(0.10 / surface.pixel_m)
    surface.height[rows, cols][seen] = height[seen]
    light = (
        (1 + tint) * (0.72 + 0.40 * dome) * (1 + 0.16 * surface.fine[rows, cols] + 0.13 * surface.middle[rows, cols])
    )
    warm = np.array([1.12, 1.0, 0.9], np.float32) ** (0.8 * surface.middle[rows, cols][..., None])
    color3 = np.asarray(color, np.float32) * np.clip(light, 0.25, 2)[..., None] * warm
    surface.albedo[rows, cols][seen] = color3[seen]
    surface.slope_x[rows, cols][seen] = (-slope * dx / away + tilt_x * reach)[seen]
    surface.slope_y[rows, cols][seen] = (-slope * dy / away - tilt_y * reach)[seen]
    surface.gloss[rows, cols][seen] = 0.0


def _polygon_radius(tree: Tree, direction: FloatArray) -> FloatArray:
    """Distance in metres from the middle to the outline, in directions from 0 to 2 pi: straight between corners."""
    radii = np.asarray(tree.radii, np.float32)
    step = 2 * np.pi / len(radii)
    turn = direction / np.float32(step)
    left = np.floor(turn).astype(np.intp) % len(radii)
    a, b = radii[left], radii[(left + 1) % len(radii)]
    t = (turn - np.floor(turn)) * step
    return np.asarray(a * b * np.sin(step) / (a * np.sin(t) + b * np.sin(step - t)), np.float32)
