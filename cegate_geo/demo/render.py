"""Light and camera: sun, sky, cast shadows, haze, blur, noise, eight bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cegate_geo.demo.season import Color
from cegate_geo.demo.surface import Surface
from cegate_geo.demo.texture import FloatArray, box_blur, gaussian_blur, halve, white_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Sun, air and sensor of one flight."""

    sun_azimuth_deg: float
    """Clockwise from north; where the sun stands."""
    sun_elevation_deg: float
    sun: Color
    sky: Color
    """Light that also reaches shadows."""
    haze: float
    """Share of the picture that is air, 0 to 1."""
    haze_color: Color
    blur_px: float
    noise: float
    """Standard deviation at mid grey, in units of full scale."""
    gain: Color
    """White balance and exposure."""
    gamma: float


def cast_shadows(height: FloatArray, *, pixel_m: float, azimuth_deg: float, elevation_deg: float) -> FloatArray:
    """How much of the sun each pixel loses, 0 to 1.

    Args:
        height: (H, W) metres above ground.
        pixel_m: Metres a pixel; row 0 is in the north.
        azimuth_deg: Direction of the sun, clockwise from north.
        elevation_deg: Height of the sun above the horizon, above 0.

    Returns:
        (H, W) float32. A flat roof of h metres shades the ground up to h / tan(elevation) from its edge.
    """
    azimuth, drop = np.radians(azimuth_deg), np.tan(np.radians(elevation_deg)) * pixel_m
    east, north = np.sin(azimuth), np.cos(azimuth)
    ceiling = np.full_like(height, -1e3)
    rows, cols = height.shape
    for step in range(1, int(float(height.max(initial=0.0)) / drop) + 2):
        dc, dr = round(step * east), round(-step * north)
        if abs(dr) >= rows or abs(dc) >= cols:
            break
        here = (slice(max(0, -dr), rows - max(0, dr)), slice(max(0, -dc), cols - max(0, dc)))
        there = (slice(max(0, dr), rows - max(0, -dr)), slice(max(0, dc), cols - max(0, -dc)))
        np.maximum(ceiling[here], height[there] - np.float32(step * drop), out=ceiling[here])
    return np.asarray(np.clip((ceiling - height - np.float32(0.12)) / np.float32(0.35), 0, 1), np.float32)


def take_picture(surface: Surface, camera: Camera, *, seed: int) -> npt.NDArray[np.uint8]:
    """Light a surface and photograph it at half its pixel count a side.

    Args:
        surface: At twice the wanted number of pixels a side.
        camera: Sun, air and sensor.
        seed: Of the sensor's noise.

    Returns:
        (3, H, W) uint8, red, green, blue; 1 to 255, so that 0 can say "no data".
    """
    radiance = _light(surface, camera)
    picture = gaussian_blur(halve(radiance), camera.blur_px)
    del radiance
    rng = np.random.default_rng([seed, 31])
    picture += (np.asarray(camera.haze_color, np.float32) - picture) * np.float32(camera.haze)
    picture *= np.asarray(camera.gain, np.float32)
    for c in range(3):
        deviation = np.sqrt(np.clip(picture[..., c], 0.01, None) / 0.2) * np.float32(camera.noise)
        picture[..., c] += deviation * white_noise(deviation.shape, rng)
    tone = _shoulder(np.clip(picture, 0, None)) ** np.float32(1 / camera.gamma)
    return np.ascontiguousarray(np.clip(np.rint(tone * 255), 1, 255).astype(np.uint8).transpose(2, 0, 1))


def _shoulder(picture: FloatArray) -> FloatArray:
    """Linear below 0.6, then a soft approach to 1."""
    over = np.maximum(picture - np.float32(0.6), 0)
    return np.asarray(np.minimum(picture, 0.6) + np.float32(0.4) * over / (over + np.float32(0.4)), np.float32)


def _light(surface: Surface, camera: Camera) -> FloatArray:
    """(H, W, 3) radiance: sun on slopes outside shadows, sky everywhere, less of it in corners."""
    half = halve(surface.height)
    shadow = cast_shadows(
        half, pixel_m=2 * surface.pixel_m, azimuth_deg=camera.sun_azimuth_deg, elevation_deg=camera.sun_elevation_deg
    )
    shadow = gaussian_blur(shadow.repeat(2, 0).repeat(2, 1), 1.0)
    azimuth, elevation = np.radians(camera.sun_azimuth_deg), np.radians(camera.sun_elevation_deg)
    to_sun = np.array(
        [np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation)], np.float32
    )
    length = np.sqrt(1 + surface.slope_x**2 + surface.slope_y**2)
    facing = (to_sun[2] - surface.slope_x * to_sun[0] - surface.slope_y * to_sun[1]) / (length * to_sun[2])
    direct = np.clip(facing, 0, 2.2) * (1 - np.float32(0.94) * shadow)
    corner = box_blur(half, max(1, int(1.4 / (2 * surface.pixel_m)))) - half
    open_sky = (1 - 0.35 * np.clip(corner / 3.0, 0, 1)).repeat(2, 0).repeat(2, 1)
    radiance = np.empty_like(surface.albedo)
    for c in range(3):
        radiance[..., c] = surface.albedo[..., c] * (camera.sun[c] * direct + camera.sky[c] * open_sky)
        radiance[..., c] += surface.gloss * np.float32(camera.sky[c] * 2.2)
    return radiance
