# SPDX-License-Identifier: GPL-2.0-or-later
"""Set up the engine: installs it into the user's profile, checks it, removes it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Optional

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsApplication,
    QgsNetworkAccessManager,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputString,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
)
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtNetwork import QNetworkProxy, QNetworkProxyQuery

from .engine import SETTING, clean_environment
from .engine_algorithm import EngineAlgorithm, Parameters, managed_environment
from .engine_setup import Engine, EngineSetup, version_advice
from .interpreters import host_folders
from .network import Network, Proxy
from .outcome import EngineError
from .setup_recipe import EXTRAS, Recipe, plugin_version
from .words import mark, tr

Definition = QgsProcessingParameterDefinition
ACTIONS = ("install", "check", "remove")
INDEX = "https://pypi.org/simple/"
"""For this address QGIS is asked which proxy to take."""
HELP = mark("""
<p>Installs <i>cegate-geo</i>, the engine that does the work, into a Python environment of its own in your QGIS profile.
QGIS' own Python and its packages are not touched. Run it again after an update of this plugin.</p>
<h3>What it needs</h3>
<p>Python 3.11 or newer on this computer (on Debian and Ubuntu with the package <i>python3-venv</i>), or <i>uv</i>; they
are found by themselves. About 0.7 GB of disk for the cpu variant, 2.5 GB for gpu, 9 GB for train.</p>
<h3>Where packages come from</h3>
<p>With both fields empty: from the package index, by QGIS' proxy and certificates. With a <b>wheel</b>: the engine from
that file, what it needs from the index. With a <b>folder of wheels</b>: all from there, without a network.</p>
<h3>When it fails</h3>
<p>The log says what is missing. Nothing half-made is left: the engine that was there before still is. Run it again when
the cause is mended; what was downloaded is not fetched twice.</p>
""")


class SetUpEngine(EngineAlgorithm):
    """Makes the managed environment that `find_engine` looks at."""

    def createInstance(self) -> SetUpEngine:
        """A new one for each run."""
        return SetUpEngine()

    def name(self) -> str:
        """Never changes."""
        return "set_up_engine"

    def displayName(self) -> str:
        """In the toolbox."""
        return tr("Set up the engine")

    def shortDescription(self) -> str:
        """The tooltip in the toolbox."""
        return tr("Install, check or remove the engine that does the work, apart from QGIS.")

    def tags(self) -> list[str]:
        """What the toolbox' search finds it by."""
        return tr("install,update,remove,engine,python,environment,offline,wheel,uv,pip").split(",")

    def shortHelpString(self) -> str:
        """Beside the parameters."""
        return self.help_text(HELP)

    def canExecute(self) -> tuple[bool, Optional[str]]:
        """Always: it makes what the others need."""
        return True, ""

    def initAlgorithm(self, configuration: Optional[dict[Optional[str], Any]] = None) -> None:  # noqa: ARG002
        """Declare the parameters."""
        behaviours = QgsProcessingParameterFile.Behavior
        self.add(
            QgsProcessingParameterEnum("ACTION", tr("What to do"), ACTIONS, False, "install", False, True),
            tr(
                "'install' makes the environment, in the place of an older one; 'check' asks the "
                "installed engine; 'remove' deletes the environment."
            ),
        )
        self.add(
            QgsProcessingParameterEnum("VARIANT", tr("Variant"), list(EXTRAS), False, "cpu", False, True),
            tr(
                "'cpu' runs everywhere; 'gpu' is for NVIDIA cards, with CUDA and cuDNN on this computer; "
                "'train' predicts on the CPU and adapts models too."
            ),
        )
        self.add(
            QgsProcessingParameterFile("WHEEL", tr("Wheel of the engine"), behaviours.File, "whl", None, True),
            tr("A file cegate_geo-VERSION-py3-none-any.whl. What it needs comes from the package index."),
        )
        self.add(
            QgsProcessingParameterFile("FOLDER", tr("Folder of wheels (offline)"), behaviours.Folder, "", None, True),
            tr("A folder that `pip download` filled, on the same kind of system and Python. No network is used."),
        )
        python = QgsProcessingParameterFile("PYTHON", tr("Python or uv (empty: look for one)"), optional=True)
        python.setFlags(python.flags() | Definition.FlagAdvanced)
        self.add(python, tr("The program of a Python 3.11 or newer, or of uv. Never QGIS' own."))
        self.addOutput(QgsProcessingOutputString("ENGINE", tr("Folder of the engine")))
        self.addOutput(QgsProcessingOutputString("VERSION", tr("Version of the engine")))

    def check_values(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """What can't work, before anything runs."""
        if self.parameterAsEnumString(parameters, "ACTION", context) == "install":
            self._recipe(parameters, context).check()

    def _recipe(self, parameters: Parameters, context: QgsProcessingContext) -> Recipe:
        def path(name: str) -> Optional[Path]:
            text = self.parameterAsString(parameters, name, context)
            return Path(text).expanduser() if text else None

        maker = path("PYTHON")
        return Recipe(
            version=plugin_version(),
            variant=self.parameterAsEnumString(parameters, "VARIANT", context),
            wheel=path("WHEEL"),
            folder=path("FOLDER"),
            maker=str(maker) if maker else "",
        )

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read QGIS' settings, in the thread that they belong to."""
        del parameters, context, feedback
        self._network = qgis_network()
        return True

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Install, check or remove."""
        feedback = feedback or QgsProcessingFeedback()
        hosts = host_folders(QgsApplication.prefixPath(), os.environ, sys.platform)
        setup = EngineSetup(
            managed_environment(), clean_environment(os.environ, host_folders=hosts), feedback,
            network=self._network, host_folders=hosts,
        )  # fmt: skip
        action = self.parameterAsEnumString(parameters, "ACTION", context)
        try:
            if action == "remove":
                removed = setup.remove()
                said = tr("{folder} was removed.") if removed else tr("{folder} was not there.")
                feedback.pushInfo(said.format(folder=managed_environment()))
                return {}
            engine = setup.check() if action == "check" else setup.set_up(self._recipe(parameters, context))
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
        _report(engine, feedback)
        return {"ENGINE": str(engine.folder), "VERSION": engine.version}


def _report(engine: Engine, feedback: QgsProcessingFeedback) -> None:
    advice = version_advice(engine, plugin_version())
    if advice:
        feedback.pushWarning(advice)
    feedback.pushInfo(
        tr("The engine {version} in {folder} is ready.").format(version=engine.version, folder=engine.folder)
    )
    for text, origin in (
        (ProcessingConfig.getSetting(SETTING), tr("the setting 'Engine' of the provider")),
        (os.environ.get(SETTING), tr("the variable {name}").format(name=SETTING)),
    ):
        if text and str(text).strip():
            feedback.pushWarning(
                tr("{origin} names another engine, {text}, which goes first: empty it to use this one.").format(
                    origin=origin, text=text
                )
            )


def qgis_network() -> Network:
    """QGIS' proxy, as it would use it for the package index, and the certificates that it trusts."""
    manager = QgsNetworkAccessManager.instance()
    proxy: Optional[Proxy] = None
    without: list[str] = []
    if manager is not None:
        factory = manager.proxyFactory()
        found = factory.queryProxy(QNetworkProxyQuery(QUrl(INDEX))) if factory is not None else []
        proxy = _proxy(found[0]) if found else None
        without = [*manager.excludeList(), *manager.noProxyList()]
    trust = QgsApplication.authManager()
    if trust is None or trust.isDisabled():
        return Network(proxy, tuple(without))
    own = bool(trust.databaseCAs() or trust.extraFileCAs())
    return Network(proxy, tuple(without), trust.trustedCaCertsPemText().data(), own)


def _proxy(found: QNetworkProxy) -> Optional[Proxy]:
    kinds = QNetworkProxy.ProxyType
    if found.type() not in (kinds.HttpProxy, kinds.HttpCachingProxy, kinds.Socks5Proxy) or not found.hostName():
        return None
    is_socks = found.type() == kinds.Socks5Proxy
    return Proxy(found.hostName(), found.port(), found.user(), found.password(), is_socks)
