"""What `check` tells: a verdict for each test, and all of them with what they were found on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import rasterio

from cegate_geo import __version__

State = Literal["ok", "warning", "fail", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one test found."""

    name: str
    state: State
    message: str
    number: float | None = None
    """What was measured; None where nothing is."""
    limit: float | None = None
    """What it may be at most."""
    hint: str = ""
    """What to do, where it is not ok."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All verdicts, and what they were found on."""

    scene: str
    model: str
    model_sha256: str
    provider: str
    tile_shape: tuple[int, int] | None
    """(height, width); None where no tile was run."""
    seconds_per_tile: float | None
    verdicts: tuple[Verdict, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing failed."""
        return all(verdict.state != "fail" for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The object of `check --json`."""
        import onnxruntime

        return {
            "ok": self.is_good,
            "scene": self.scene,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "provider": self.provider,
            "tile_shape": None if self.tile_shape is None else list(self.tile_shape),
            "seconds_per_tile": self.seconds_per_tile,
            "versions": {
                "cegate-geo": __version__,
                "onnxruntime": onnxruntime.__version__,
                "gdal": str(rasterio.__gdal_version__),
            },
            "verdicts": [
                {name: getattr(v, name) for name in ("name", "state", "number", "limit", "message", "hint")}
                for v in self.verdicts
            ],
        }
