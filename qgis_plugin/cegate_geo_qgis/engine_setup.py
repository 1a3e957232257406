# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes, checks and removes the environment of the engine in the user's profile. No qgis.

After a failure the next run starts afresh: an environment in which pip was killed may look whole and not be. What was
downloaded lies in pip's or uv's cache and is not fetched again.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Optional, Protocol, Sequence

from .child import Ended, run_child, typed_words
from .engine import COMMAND, EngineCommand, engine_script
from .install_advice import explain
from .interpreters import Maker, find_maker
from .managed_place import Place
from .network import Network, installer_environment, offline_environment, write_bundle
from .outcome import EngineError, check_hello, tail
from .predict_job import describe_command
from .protocol import CREEP, Conversation
from .setup_recipe import NEEDED_MB, Recipe, install_percent, install_words, interpreter_of, make_words
from .words import tr

NO_NETWORK = Network()
"""Nothing is known of QGIS' settings: those of the environment count."""
ASK_S = 30.0
HELLO_S = 180.0
"""A first start on a slow disk compiles all its modules."""


class Log(Protocol):
    """What is needed of QgsProcessingFeedback."""

    def isCanceled(self) -> bool:
        """Whether the user wants to stop."""

    def setProgress(self, progress: float) -> None:
        """Percent, 0 to 100."""

    def pushInfo(self, info: Optional[str]) -> None:
        """A line for the log."""

    def pushWarning(self, warning: Optional[str]) -> None:
        """A warning for the log."""

    def pushCommandInfo(self, info: Optional[str]) -> None:
        """A command line for the log."""

    def pushConsoleInfo(self, info: Optional[str]) -> None:
        """What a program said."""


@dataclass(frozen=True)
class Engine:
    """An engine that has said hello."""

    folder: Path
    version: str
    protocol: int


class EngineSetup:
    """The environment of the engine and the ways to change it."""

    def __init__(
        self, environment: Path, environ: Mapping[str, str], log: Log, *,
        network: Network = NO_NETWORK, host_folders: Sequence[str] = (), windows: Optional[bool] = None,
    ) -> None:  # fmt: skip
        """Nothing is touched yet.

        Args:
            environment: The environment's folder. Its parent belongs to the plugin too.
            environ: Environment of this process, without what QGIS set for itself.
            log: Where progress goes and cancelling comes from.
            network: QGIS' network settings.
            host_folders: Folders of a QGIS that brings its own Python.
            windows: Whether paths are those of Windows; default: as this system's.
        """
        self._environ, self._log, self._network = dict(environ), log, network
        self._place = Place(environment, log.pushInfo)
        self._windows = os.name == "nt" if windows is None else windows
        self._hosts = tuple(host_folders)
        self._folder, self._scratch = self._place.folder, self._place.scratch
        self._bundle = self._scratch / "certificates.pem"
        self._percent = 0.0

    def set_up(self, recipe: Recipe) -> Engine:
        """Make the environment, in the place of one that may be there.

        Raises:
            EngineCancelledError: If the user cancelled. All is as before.
            EngineError: If something is missing or failed, with the mend. All is as before.
        """
        recipe.check()
        with self._place.alone(), self._place.temporary():
            self._check_space(recipe)
            environ = self._installer_environment(recipe)
            self._log.pushInfo(tr("Looking for Python ..."))
            maker = find_maker(
                recipe.maker, environ, ask=lambda words: self._ask(words, environ), versions=recipe.pythons(),
                host_folders=self._hosts, windows=self._windows,
            )  # fmt: skip
            self._log.pushInfo(tr("Found {maker}.").format(maker=maker))
            with self._place.replacing():
                self._make(maker, recipe, environ)
                engine = self.hello()
                self._examine(engine)
                self._place.mark({**_told(engine), "variant": recipe.variant, "maker": str(maker)})
        self._show(100.0)
        return engine

    def check(self) -> Engine:
        """Ask the engine that is installed.

        Raises:
            EngineError: If there is none, it is half-made, or can't work, with what to do.
        """
        if not self._folder.exists():
            raise EngineError(
                tr("There is no engine in {folder}: run 'Set up the engine' with 'install'.").format(
                    folder=self._folder
                )
            )
        if not self._place.is_ready():
            raise EngineError(
                tr("The engine in {folder} is half-made: run 'Set up the engine' again.").format(folder=self._folder)
            )
        engine = self.hello()
        self._examine(engine)
        self._show(100.0)
        return engine

    def remove(self) -> bool:
        """Remove the environment and all that belongs to it; False if there was nothing.

        Raises:
            EngineError: If a file is in use.
        """
        return self._place.remove()

    def hello(self) -> Engine:
        """Ask the engine who it is.

        Raises:
            EngineError: If it does not run, or speaks another protocol than this plugin, with what to do.
        """
        script = engine_script(self._folder, self._windows)
        if not script.is_file():
            raise EngineError(
                tr("{script} is missing: the environment holds no engine. Run 'Set up the engine' again.").format(
                    script=script
                )
            )
        said = Conversation()
        words = [str(script), "predict", str(self._scratch / "no-scene.tif"), "--output"]
        words += [str(self._scratch / "no-mask.tif"), "--events", "jsonl"]

        def listen(line: str) -> None:
            said.feed(f"{line}\n".encode())

        ended = self._child(words, self._environ, listen, HELLO_S)
        if said.hello is None:
            why = (
                str(said.failure)
                if said.failure
                else tail(ended.text) or tr("Exit code {code}.").format(code=ended.code)
            )
            raise EngineError(tr("The engine in {folder} does not run:\n{why}").format(folder=self._folder, why=why))
        check_hello(said.hello)
        return Engine(self._folder, said.hello.version, said.hello.protocol)

    def _check_space(self, recipe: Recipe) -> None:
        free = shutil.disk_usage(self._folder.parent).free // 1_000_000
        if free < NEEDED_MB[recipe.variant]:
            raise EngineError(
                tr(
                    "Too little room on the disk: {free} MB are free in {parent}, about {needed} MB are "
                    "needed for '{variant}'."
                ).format(
                    free=free, parent=self._folder.parent, needed=NEEDED_MB[recipe.variant], variant=recipe.variant
                )
            )

    def _installer_environment(self, recipe: Recipe) -> dict[str, str]:
        base = offline_environment(self._environ) if recipe.folder else self._environ
        if recipe.folder is None:
            write_bundle(self._bundle, self._network, self._environ)
            if self._network.proxy is not None:
                self._log.pushInfo(tr("By QGIS' proxy {proxy}.").format(proxy=self._network.proxy))
        return installer_environment(base, self._network, scratch=self._scratch, bundle=self._bundle)

    def _make(self, maker: Maker, recipe: Recipe, environ: dict[str, str]) -> None:
        self._log.pushInfo(tr("Making an environment in {folder} ...").format(folder=self._folder))
        self._step(make_words(maker, self._folder, recipe.pythons()), environ, recipe)
        self._show(8.0)
        python = interpreter_of(self._folder, windows=self._windows)
        if self._bundle.is_file():  # pip's own certificates count as well
            write_bundle(self._bundle, self._network, self._environ, sorted(self._folder.rglob("certifi/cacert.pem")))
        self._log.pushInfo(
            tr("Installing {requirement} from {source} ...").format(
                requirement=recipe.requirement(), source=recipe.source()
            )
        )
        self._step(install_words(maker, python, recipe), environ, recipe)
        self._show(90.0)

    def _step(self, words: Sequence[str], environ: Mapping[str, str], recipe: Recipe) -> None:
        program, *arguments = typed_words(words)
        command = describe_command(EngineCommand(program, (), ""), arguments, windows=self._windows)
        self._log.pushCommandInfo(command)

        def listen(line: str) -> None:
            self._log.pushConsoleInfo(self._hide(line))
            self._percent = max(self._percent, install_percent(line, self._percent))

        ended = self._child(words, environ, listen, 0.0)
        if ended.code != 0:
            raise EngineError(explain(self._hide(ended.text), source=recipe.source()))

    def _examine(self, engine: Engine) -> None:
        """Let the engine examine itself: a library may be missing that no package brings."""
        self._log.pushInfo(
            tr("The engine says hello: version {version}, protocol {protocol}.").format(
                version=engine.version, protocol=engine.protocol
            )
        )
        words = [str(engine_script(self._folder, self._windows)), "doctor", "--json"]
        ended = self._child(words, self._environ, _ignore, HELLO_S)
        findings = _findings(ended.text)
        for words_of_note in _lines(findings, "note"):
            self._log.pushInfo(words_of_note)
        broken = _lines(findings, "broken")
        if broken or ended.code != 0:
            why = "\n".join(broken) or tail(ended.text)
            raise EngineError(tr("The engine was installed, but can't work here:\n{why}").format(why=why))

    def _ask(self, words: Sequence[str], environ: Mapping[str, str]) -> str:
        ended = self._child(words, environ, _ignore, ASK_S)
        if ended.code != 0:
            raise EngineError(
                tr("{program} failed: {why}.").format(
                    program=words[0], why=tail(ended.text, lines=1) or tr("exit code {code}").format(code=ended.code)
                )
            )
        return ended.text

    def _child(
        self, words: Sequence[str], environ: Mapping[str, str], listen: Callable[[str], None], timeout_s: float
    ) -> Ended:
        def hear(line: str) -> None:
            if line.strip():
                listen(line)
            self._show(min(self._percent + CREEP, 99.0))

        return run_child(words, environ, listen=hear, is_cancelled=self._log.isCanceled, timeout_s=timeout_s)

    def _show(self, percent: float) -> None:
        self._percent = max(self._percent, percent)
        self._log.setProgress(self._percent)

    def _hide(self, line: str) -> str:
        for secret in self._network.secrets():
            line = line.replace(secret, "****")
        return line


def _told(engine: Engine) -> dict[str, object]:
    return {"version": engine.version, "protocol": engine.protocol}


def version_advice(engine: Engine, plugin: str) -> str:
    """What to do where engine and plugin are of different versions; empty where they are not."""
    if engine.version == plugin:
        return ""
    return tr(
        "The engine is version {version}, this plugin {plugin}; both speak protocol {protocol} "
        "and work together. To have the same: install the plugin of version {version}, or "
        "{command} {plugin}."
    ).format(version=engine.version, plugin=plugin, protocol=engine.protocol, command=COMMAND)


def _ignore(line: str) -> None:
    del line


def _findings(text: str) -> list[dict[str, object]]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                return [dict(item) for item in json.loads(line)["findings"]]
            except (ValueError, KeyError, TypeError):
                continue
    return []


def _lines(findings: Sequence[Mapping[str, object]], state: str) -> list[str]:
    return [f"{f.get('name')}: {f.get('value')} {f.get('hint') or ''}" for f in findings if f.get("state") == state]
