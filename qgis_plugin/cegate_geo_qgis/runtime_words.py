# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a run is, in words. No qgis."""

from __future__ import annotations

from typing import Optional

from .protocol import Progress
from .words import tr


class ToldSteps:
    """Which steps of a training are worth a line in the log: after each twentieth of them, and each validation."""

    PARTS = 20

    def __init__(self) -> None:
        self._part = -1
        self._miou: Optional[float] = None

    def line(self, at: Progress) -> str:
        """The line for a step; empty where it is not worth one."""
        part = int(at.fraction * self.PARTS)
        if at.loss is None or (part == self._part and at.miou == self._miou):
            return ""
        words = [tr("step {done} of {total}: loss {loss:.3f}").format(done=at.done, total=at.total, loss=at.loss)]
        if at.miou is not None:
            words.append(tr("validation mIoU {miou:.3f}").format(miou=at.miou))
        if at.eta_s and at.done < at.total:
            words.append(tr("about {time} left").format(time=describe_seconds(at.eta_s)))
        if at.done >= at.total:
            words.append(tr("now the model is exported"))
        self._part, self._miou = part, at.miou
        return ", ".join(words)


def describe_seconds(seconds: float) -> str:
    """'45 s', '3 min', '2 h 05 min'."""
    whole = max(round(seconds), 1)
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
