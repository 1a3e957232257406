"""Colours of the ground, the roofs and the leaves: one season, one place. Reflectances, 0 to 1, linear light."""

from __future__ import annotations

from dataclasses import dataclass

from cegate_geo.demo.scene import GroundKind

Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """How one kind of ground looks."""

    first: Color
    second: Color
    """Noise and the patch's tint mix the two."""
    fine: float = 0.08
    """Contrast from pixel to pixel."""
    middle: float = 0.08
    """Contrast over about a metre."""
    coarse: float = 0.06
    """Contrast over about ten metres."""
    row_m: float = 0.0
    """Distance of rows; 0 for none."""
    row: float = 0.0
    """Contrast of rows."""
    tracks: float = 0.0
    """Darkness of the wheel tracks that run along the rows every 14 m."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Season:
    """What things look like in one region."""

    covers: dict[GroundKind, Cover]
    roofs: tuple[Color, ...]
    crowns: tuple[Color, ...]
    """By species."""
    cars: tuple[Color, ...]


CARS: tuple[Color, ...] = (
    (0.75, 0.75, 0.74), (0.03, 0.03, 0.035), (0.32, 0.33, 0.35), (0.45, 0.03, 0.03), (0.04, 0.10, 0.30),
    (0.12, 0.13, 0.14), (0.70, 0.71, 0.70), (0.50, 0.50, 0.48),
)  # fmt: skip

SUMMER = Season(
    covers={
        "meadow": Cover(first=(0.115, 0.155, 0.045), second=(0.190, 0.195, 0.075), fine=0.12, middle=0.10, coarse=0.10),
        "lawn": Cover(first=(0.095, 0.150, 0.040), second=(0.165, 0.185, 0.070), fine=0.10, middle=0.08, coarse=0.08),
        "plough": Cover(first=(0.190, 0.130, 0.085), second=(0.260, 0.190, 0.130), fine=0.10, middle=0.08,
                        row_m=0.9, row=0.16, tracks=0.10),
        "crop": Cover(first=(0.085, 0.165, 0.035), second=(0.135, 0.200, 0.055), fine=0.10, row_m=0.6, row=0.10,
                      tracks=0.40),
        "stubble": Cover(first=(0.400, 0.330, 0.165), second=(0.480, 0.405, 0.215), fine=0.07, row_m=1.5, row=0.09,
                         tracks=0.18),
        "orchard": Cover(first=(0.120, 0.160, 0.050), second=(0.180, 0.190, 0.080), fine=0.10, row_m=5.2, row=0.08),
        "bank": Cover(first=(0.080, 0.110, 0.035), second=(0.160, 0.150, 0.070), fine=0.15, middle=0.16),
        "water": Cover(first=(0.020, 0.045, 0.048), second=(0.032, 0.062, 0.055), fine=0.03, middle=0.03, coarse=0.10),
        "asphalt": Cover(first=(0.130, 0.130, 0.133), second=(0.150, 0.148, 0.146), fine=0.07, middle=0.03,
                         coarse=0.02),
        "lane": Cover(first=(0.172, 0.168, 0.160), second=(0.198, 0.193, 0.183), fine=0.07, middle=0.04, coarse=0.02),
        "pavement": Cover(first=(0.285, 0.275, 0.260), second=(0.330, 0.320, 0.300), fine=0.05, row_m=0.8, row=0.03),
        "paint": Cover(first=(0.700, 0.700, 0.680), second=(0.640, 0.640, 0.620), fine=0.06),
        "drive": Cover(first=(0.330, 0.300, 0.265), second=(0.260, 0.215, 0.190), fine=0.07, row_m=0.5, row=0.05),
        "bed": Cover(first=(0.120, 0.085, 0.055), second=(0.105, 0.150, 0.050), fine=0.20, middle=0.15, row_m=0.7,
                     row=0.35),
        "gravel": Cover(first=(0.370, 0.350, 0.315), second=(0.420, 0.395, 0.350), fine=0.10, middle=0.05),
    },
    roofs=((0.280, 0.125, 0.080), (0.225, 0.095, 0.068), (0.310, 0.175, 0.120), (0.190, 0.110, 0.085),
           (0.170, 0.170, 0.180), (0.480, 0.470, 0.455), (0.330, 0.320, 0.310)),
    crowns=((0.050, 0.090, 0.028), (0.062, 0.112, 0.030), (0.038, 0.072, 0.028), (0.078, 0.122, 0.040),
            (0.090, 0.125, 0.038), (0.046, 0.084, 0.034)),
    cars=CARS,
)  # fmt: skip
"""Lush, with red tiles."""

DRY_SEASON = Season(
    covers={
        "meadow": Cover(first=(0.225, 0.190, 0.105), second=(0.300, 0.250, 0.145), fine=0.10, middle=0.10, coarse=0.12),
        "lawn": Cover(first=(0.180, 0.170, 0.085), second=(0.270, 0.225, 0.130), fine=0.10, middle=0.10, coarse=0.10),
        "plough": Cover(first=(0.230, 0.170, 0.125), second=(0.330, 0.260, 0.195), fine=0.08, middle=0.08,
                        row_m=1.0, row=0.13, tracks=0.08),
        "crop": Cover(first=(0.160, 0.165, 0.070), second=(0.230, 0.205, 0.095), fine=0.09, row_m=0.8, row=0.14,
                      tracks=0.25),
        "stubble": Cover(first=(0.360, 0.300, 0.190), second=(0.430, 0.365, 0.240), fine=0.07, row_m=1.6, row=0.08,
                         tracks=0.12),
        "orchard": Cover(first=(0.210, 0.175, 0.110), second=(0.260, 0.225, 0.140), fine=0.09, row_m=5.2, row=0.08),
        "bank": Cover(first=(0.200, 0.165, 0.090), second=(0.290, 0.240, 0.160), fine=0.13, middle=0.16),
        "water": Cover(first=(0.060, 0.075, 0.060), second=(0.085, 0.092, 0.070), fine=0.03, middle=0.03, coarse=0.10),
        "asphalt": Cover(first=(0.182, 0.177, 0.171), second=(0.208, 0.202, 0.193), fine=0.07, middle=0.03,
                         coarse=0.02),
        "lane": Cover(first=(0.232, 0.219, 0.200), second=(0.262, 0.245, 0.218), fine=0.07, middle=0.04, coarse=0.03),
        "pavement": Cover(first=(0.300, 0.285, 0.265), second=(0.340, 0.325, 0.300), fine=0.05, row_m=0.8, row=0.03),
        "paint": Cover(first=(0.600, 0.595, 0.570), second=(0.500, 0.495, 0.470), fine=0.08),
        "drive": Cover(first=(0.310, 0.285, 0.250), second=(0.270, 0.240, 0.205), fine=0.07, row_m=0.5, row=0.05),
        "bed": Cover(first=(0.190, 0.140, 0.095), second=(0.190, 0.175, 0.090), fine=0.16, middle=0.14, row_m=0.7,
                     row=0.25),
        "gravel": Cover(first=(0.360, 0.330, 0.285), second=(0.400, 0.365, 0.310), fine=0.09, middle=0.06),
    },
    roofs=((0.300, 0.140, 0.095), (0.150, 0.150, 0.160), (0.250, 0.125, 0.095), (0.110, 0.112, 0.122),
           (0.400, 0.215, 0.150), (0.430, 0.425, 0.415), (0.260, 0.250, 0.240)),
    crowns=((0.088, 0.088, 0.038), (0.200, 0.120, 0.038), (0.060, 0.072, 0.036), (0.155, 0.125, 0.045),
            (0.235, 0.165, 0.050), (0.110, 0.100, 0.042)),
    cars=CARS,
)  # fmt: skip
"""Yellowed grass, leaves turning, slate among the tiles."""
