# SPDX-License-Identifier: GPL-2.0-or-later
"""The texts of the plugin in the user's language. No qgis: `plugin.py` says who translates.

Every text that people read stands in `tr("...")`, literally, so that `translations.py` finds it; values go in by
`.format(...)`. Constants are made before the language is known: they stand in `mark("...")`, and in `tr` where used.
"""

from __future__ import annotations

from typing import Callable

CONTEXT = "CegateGeo"
"""Of all texts, in the translation files."""


def _as_it_is(text: str) -> str:
    return text


_translate: Callable[[str], str] = _as_it_is


def tr(text: str) -> str:
    """The text in the user's language, where there is a translation."""
    return _translate(text)


def mark(text: str) -> str:
    """The text as it is, to be found by `translations.py`."""
    return text


def translate_by(translate: Callable[[str], str]) -> None:
    """Say who translates from here on."""
    global _translate  # noqa: PLW0603, one language a process
    _translate = translate
