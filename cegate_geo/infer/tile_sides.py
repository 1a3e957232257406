"""How large a tile is: fixed by a graph, asked for, or the manifest's."""

from __future__ import annotations

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import InputError, ModelError
from cegate_geo.infer.tta import TtaMode


def tile_sides(
    shape: tuple[int, int],
    *,
    asked: int | None,
    fixed: tuple[int | None, int | None],
    manifest: Manifest,
    tta: TtaMode,
    name: str,
) -> tuple[int, int]:
    """Height and width of what a graph is fed with for a scene of `shape`; see `Predictor.tile_shape`.

    Args:
        shape: (height, width) of the scene.
        asked: Side that the user wants; None for the model's.
        fixed: (height, width) where the graph fixes them.
        manifest: The model's.
        tta: Views of a tile that are shown.
        name: Of the model, for errors.

    Raises:
        ModelError: If it takes no tiles of the size that is asked for.
        InputError: If its tiles can't be turned, and are to be.
    """
    sides = []
    for side, length in zip(fixed, shape, strict=True):
        if side is not None:
            if asked not in (None, side):
                raise ModelError(f"{name} takes tiles of {side} px only, not {asked}.", hint="Leave out --tile-size.")
            sides.append(side)
            continue
        size, multiple = asked or manifest.tile_size, manifest.size_multiple
        if asked and asked % multiple:
            raise ModelError(f"{asked} px is no multiple of {multiple}.", hint=f"Use a multiple of {multiple}.")
        sides.append(min(size, -(-length // multiple) * multiple))
    if tta == "d4" and sides[0] != sides[1] and fixed != (None, None):
        raise InputError(
            f"--tta d4 turns tiles by a quarter, and {name} takes tiles of {sides[1]} x {sides[0]} px.",
            hint="Use --tta flips.",
        )
    return sides[0], sides[1]
