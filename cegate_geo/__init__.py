"""CEGate-Geo: adapt a vision foundation model to your scenes, and predict georeferenced masks of any size.

`cegate_geo.predict` and the other functions of `cegate_geo.api` are loaded when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cegate_geo.api import check, describe_model, merge, plan, predict, predict_many

__version__ = "0.1.0"
__all__ = ["__version__", "check", "describe_model", "merge", "plan", "predict", "predict_many"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cegate_geo import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
