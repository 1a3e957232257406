# SPDX-License-Identifier: GPL-2.0-or-later
"""Cards of models for the panel: asked of the engine beside the window, and remembered."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

from qgis.core import QgsApplication, QgsTask

from .ask import ask_engine
from .engine import EngineCommand
from .engine_algorithm import current_engine, engine_environment
from .model_card import ModelCard, Verdict, class_chip, metres, read_card
from .model_information import DEMO_MODEL
from .outcome import EngineError
from .words import tr

Answer = Union[ModelCard, EngineError]
Key = tuple[EngineCommand, float, str, float]
"""An engine, when it was made, a model, when that was made."""
MARKS = {"good": ("✓", "#2e7d32"), "note": ("●", "#b26a00"), "bad": ("✗", "#c62828")}
"""Sign and colour of a verdict; the sign tells them apart without the colour."""


class _CardTask(QgsTask):
    def __init__(self, command: EngineCommand, model: str, when_done: Callable[[Answer], None]) -> None:
        super().__init__("CEGate-Geo: " + Path(model).name, QgsTask.Flag.CanCancel)
        self._command, self._model, self._when_done = command, model, when_done
        self._environment = engine_environment()
        self._answer: Answer = EngineError(tr("The engine was not asked."))

    def run(self) -> bool:
        """In another thread."""
        try:
            words = ["info", self._model, "--json"]
            told = ask_engine(self._command, words, self._environment, is_cancelled=self.isCanceled)
            self._answer = read_card(told)
        except EngineError as error:
            self._answer = error
        return True

    def finished(self, result: bool) -> None:
        """In the window's thread."""
        del result
        self._when_done(self._answer)


class CardShelf:
    """Asks each model once, as long as its file and the engine stay the same."""

    def __init__(self) -> None:
        self._cards: dict[Key, Answer] = {}
        self._tasks: dict[Key, _CardTask] = {}
        self._is_open = True

    def get(self, model: str, when_known: Callable[[], None]) -> Optional[Answer]:
        """What is known of a model at once; None where it has to be asked: `when_known` is called then, later.

        Args:
            model: An existing file; empty for the demo model.
            when_known: Called in the window's thread; ask again then.
        """
        try:
            engine = current_engine()
            changed = Path(model).stat().st_mtime if model else 0.0
        except (EngineError, OSError) as error:
            if isinstance(error, EngineError):
                return error
            return EngineError(tr("{model} can't be read: {why}.").format(model=model, why=error.strerror))
        key = (engine, _changed(engine.program), model, changed)  # an engine may be set up anew in its place
        tasks = QgsApplication.taskManager()
        if key in self._cards or key in self._tasks or tasks is None:
            return self._cards.get(key)

        def answered(answer: Answer) -> None:
            self._tasks.pop(key, None)
            if self._is_open:
                self._cards[key] = answer
                when_known()

        self._tasks[key] = _CardTask(engine, model or DEMO_MODEL, answered)
        tasks.addTask(self._tasks[key])
        return None

    def close(self) -> None:
        """Ask no more."""
        self._is_open = False
        for task in list(self._tasks.values()):  # one that has not begun is finished at once, and leaves
            task.cancel()


def _changed(program: str) -> float:
    try:
        return Path(program).stat().st_mtime
    except OSError:  # told where it is started
        return 0.0


def short_html(card: ModelCard, found: Sequence[Verdict]) -> str:
    """The card and whether it suits the scene, for a narrow panel."""
    classes = ", ".join(class_chip(item) for item in card.classes[:24])
    more = tr(" and {count} more").format(count=len(card.classes) - 24) if len(card.classes) > 24 else ""
    lines = [f"<b>{escape(card.name)}</b>"]
    lines += [escape(card.description)] if card.description else []
    lines += [f"{classes}{more}"]
    size = "" if card.gsd_m is None else tr("{size} per pixel; ").format(size=metres(card.gsd_m))
    lines += [f"{size}{escape(', '.join(card.bands))}"]
    lines += [tr("Licence: {licence}").format(licence=escape(card.licence))] if card.licence else []
    lines += [f"<small>{escape(card.attribution)}</small>"] if card.attribution else []
    text = "".join(f'<p style="margin:2px 0">{line}</p>' for line in lines)
    for verdict in found:
        mark, color = MARKS[verdict.level]
        text += f'<p style="margin:3px 0"><span style="color:{color}"><b>{mark}</b></span> {escape(verdict.text)}</p>'
    return text
