"""Setting up the engine without QGIS: with a Python, a uv and an engine that are faked."""

# ruff: noqa: N802, the names are QGIS'

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fake_python
import psutil
import pytest
from cegate_geo_qgis import engine_setup
from cegate_geo_qgis.child import WATCHED, module_words, run_child
from cegate_geo_qgis.engine import READY, clean_environment, find_engine
from cegate_geo_qgis.engine_setup import Engine, EngineSetup, version_advice
from cegate_geo_qgis.install_advice import explain
from cegate_geo_qgis.interpreters import (
    Maker,
    examine,
    find_maker,
    host_folders,
    launcher_paths,
    python_candidates,
    search_folders,
    wheel_pythons,
)
from cegate_geo_qgis.network import Network, Proxy, hosts_of, installer_environment, offline_environment, write_bundle
from cegate_geo_qgis.outcome import EngineCancelledError, EngineError
from cegate_geo_qgis.setup_recipe import EXTRAS, Recipe, install_percent, install_words, make_words, plugin_version
from qgis_here import missing

RECIPE = Recipe(version="0.1.0")


class Log:
    """Feedback that remembers, and cancels when a line is seen."""

    def __init__(self, *, cancel_at: str = "never said") -> None:
        self.lines, self.warnings, self.commands, self.percents = [], [], [], []
        self._cancel_at = cancel_at

    def isCanceled(self):
        return any(self._cancel_at in line for line in self.lines)

    def setProgress(self, progress):
        self.percents.append(progress)

    def pushInfo(self, info):
        self.lines.append(info)

    def pushConsoleInfo(self, info):
        self.lines.append(info)

    def pushWarning(self, warning):
        self.warnings.append(warning)

    def pushCommandInfo(self, info):
        self.commands.append(info)


@pytest.fixture
def place(tmp_path) -> Path:
    """The managed environment, in a profile with a space and an accent."""
    return tmp_path / "un profil é" / "cegate_geo" / "engine"


@pytest.fixture
def fake(tmp_path):
    """Sets up with a fake Python; gives the log."""

    def set_up(place: Path, recipe: Recipe = RECIPE, *, program="bin/python3.12", log=None, network=None, **environ):
        python = fake_python.install(tmp_path / "a Python" / program)
        log = log or Log()
        recipe = Recipe(recipe.version, recipe.variant, recipe.wheel, recipe.folder, recipe.maker or str(python))
        environ = {**os.environ, "FAKE_PIP_LOG": str(tmp_path / "log"), **environ}
        log.setup = EngineSetup(place, clean_environment(environ), log, network=network or Network())
        log.engine = log.setup.set_up(recipe)
        return log

    return set_up


def given(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


def left(place: Path) -> set[str]:
    return {path.name for path in place.parent.iterdir()} - {"setup.lock"}


@pytest.mark.parametrize("program", ["bin/python3.12", "bin/uv"])
def test_a_set_up_engine_is_the_one_that_is_found(fake, place, program):
    log = fake(place, program=program)
    assert log.engine == Engine(place, "0.1.0", 1)
    found = find_engine(setting="", environ={}, managed=place)
    assert found.program == str(place / "bin" / "cegate-geo")
    told = json.loads((place / READY).read_text())
    assert (told["version"], told["variant"]) == ("0.1.0", "cpu")
    assert left(place) == {"engine"}


def test_progress_never_falls_and_ends_at_hundred(fake, place):
    percents = fake(place).percents
    assert percents == sorted(percents)
    assert percents[-1] == 100.0
    assert any(8 < percent < 90 for percent in percents)


def test_what_pip_says_and_how_it_was_called_is_logged(fake, place):
    log = fake(place)
    assert "Successfully installed cegate-geo-0.1.0" in log.lines
    assert log.commands[1].startswith(f"'{place}/bin/python' -m pip install --only-binary :all: ")
    assert log.commands[1].endswith("'cegate-geo[cpu]==0.1.0'")
    assert not any("runpy" in command for command in log.commands)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("no-network", r"can't be reached. Check the network and the proxy"),
        ("full", "The disk is full"),
        ("certificate", "certificate that is not trusted"),
        ("proxy", "The proxy does not let it through"),
        ("not-there", r"no cegate-geo\[cpu\]==0.1.0 in the package index for this Python"),
        ("half", r"It failed.\nIts last words:(.|\n)*something broke"),
        ("no-venv", "sudo apt install python3-venv"),
    ],
)
def test_a_failure_says_why_and_leaves_nothing(fake, place, mode, words):
    with pytest.raises(EngineError, match=words):
        fake(place, FAKE_PIP_MODE=mode)
    assert left(place) == set()
    with pytest.raises(EngineError, match="'Set up the engine'"):
        find_engine(setting="", environ={}, managed=place)


@pytest.mark.parametrize("environ", [{"FAKE_PIP_MODE": "half"}, {"FAKE_PROTOCOL": "2"}, {"FAKE_DOCTOR": "broken"}])
def test_after_a_failure_the_engine_of_before_is_back(fake, place, environ):
    fake(place)
    (place / "mine").write_text("of the first")
    with pytest.raises(EngineError):
        fake(place, **environ)
    assert (place / "mine").is_file()
    assert find_engine(setting="", environ={}, managed=place).origin == "the plugin's own environment"
    assert left(place) == {"engine"}
    fake(place)
    assert not (place / "mine").exists()


def test_a_half_made_environment_is_never_used_and_made_afresh(fake, place):
    fake(place)
    (place / READY).unlink()
    with pytest.raises(EngineError, match="is half installed"):
        find_engine(setting="", environ={}, managed=place)
    log = Log()
    with pytest.raises(EngineError, match="half-made"):
        EngineSetup(place, {}, log).check()
    (place / "stale").write_text("")
    (place.parent / "scratch").mkdir()
    fake(place)
    assert not (place / "stale").exists()
    assert left(place) == {"engine"}


@pytest.mark.parametrize("environ", [{"FAKE_PIP_MODE": "half"}, {"FAKE_VERSION_OF_PYTHON": "3.9"}])
def test_an_engine_that_was_set_aside_when_qgis_was_killed_returns(fake, place, environ):
    fake(place)
    (place / "mine").write_text("")
    place.rename(place.with_name("engine.previous"))
    (place / "bin").mkdir(parents=True)
    with pytest.raises(EngineError):
        fake(place, **environ)
    assert (place / "mine").is_file()
    assert (place / READY).is_file()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never happened")


def test_cancelling_ends_pip_and_what_it_started(fake, place, tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(EngineCancelledError):
        fake(place, log=Log(cancel_at="Downloading"), FAKE_PIP_MODE="deaf", FAKE_PIP_PIDS=str(pids))
    wait_until(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))
    assert left(place) == set()


def test_a_killed_qgis_leaves_no_installer(place, tmp_path):
    """The watcher ends pip, and what pip started, with the input that QGIS held open."""
    fake_python.install(place / "bin" / "python")
    pids = tmp_path / "pids"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from cegate_geo_qgis.child import module_words, run_child\n"
        "run_child(module_words(sys.argv[2], 'pip', 'install'), dict(os.environ), listen=print, "
        "is_cancelled=lambda: False)"
    )
    environ = {**os.environ, "FAKE_PIP_MODE": "orphan", "FAKE_PIP_PIDS": str(pids)}
    plugins = str(Path(engine_setup.__file__).parents[1])
    words = [sys.executable, "-c", code, plugins, str(place / "bin" / "python")]
    with subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL) as qgis:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        installer, helper = map(int, pids.read_text().split())
        assert not gone(installer)
        qgis.send_signal(signal.SIGKILL)
    wait_until(lambda: gone(installer) and gone(helper))


def test_two_at_once_do_not_disturb_each_other(fake, place):
    setup = EngineSetup(place, {}, Log())
    with setup._place.alone(), pytest.raises(EngineError, match="Another QGIS"):
        fake(place)
    fake(place)


def test_removing_leaves_nothing(fake, place):
    log = fake(place)
    assert log.setup.remove()
    assert not place.parent.exists()
    assert not log.setup.remove()
    (place.parent / "mine").mkdir(parents=True)
    fake(place).setup.remove()
    assert left(place) == {"mine"}


def test_another_protocol_is_refused_with_what_to_do(fake, place):
    with pytest.raises(
        EngineError, match=r"speaks protocol 2, this plugin protocol 1. Update the plugin to version 9.0"
    ):
        fake(place, FAKE_PROTOCOL="2", FAKE_VERSION="9.0")
    with pytest.raises(EngineError, match=r"protocol 0.*run 'Set up the engine'"):
        fake(place, FAKE_PROTOCOL="0")


def test_another_version_of_the_same_protocol_is_told(fake, place):
    engine = fake(place, FAKE_VERSION="0.1.5").engine
    assert version_advice(engine, "0.1.5") == ""
    assert "install the plugin of version 0.1.5, or cegate-geo 0.1.0" in version_advice(engine, "0.1.0")


def test_an_engine_that_does_not_run_is_none(fake, place):
    with pytest.raises(EngineError, match=r"does not run(.|\n)*libY.so"):
        fake(place, FAKE_HELLO="none")
    with pytest.raises(EngineError, match=r"can't work here(.|\n)*libX.so is missing Install libX."):
        fake(place, FAKE_DOCTOR="broken")
    assert left(place) == set()


def test_checking_asks_the_installed_engine(fake, place):
    with pytest.raises(EngineError, match="There is no engine"):
        EngineSetup(place, {}, Log()).check()
    assert fake(place).setup.check() == Engine(place, "0.1.0", 1)


def test_too_little_room_is_said_before_anything_is_made(fake, place, tmp_path, monkeypatch):
    monkeypatch.setitem(engine_setup.NEEDED_MB, "cpu", 10**9)
    with pytest.raises(EngineError, match=r"Too little room .* 1000000000 MB are needed for 'cpu'"):
        fake(place)
    assert not (tmp_path / "log").exists()
    assert left(place) == set()


def test_a_profile_that_can_not_be_written_to_is_told(tmp_path, fake):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="profile can't be written to"):
        fake(tmp_path / "file" / "cegate_geo" / "engine")


# --- Python and uv


def ask(words):
    ended = run_child(words, dict(os.environ), listen=lambda line: None, is_cancelled=lambda: False)
    if ended.code:
        raise EngineError(ended.text)
    return ended.text


def test_the_real_python_is_examined_and_seen_through_its_environment():
    maker = examine(sys.executable, ask)
    assert maker.version == sys.version_info[:2]
    assert Path(maker.program).resolve() == Path(sys._base_executable).resolve()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"version": [3, 10]}, "is Python 3.10, too old: 3.11 or newer"),
        ({"whole": False}, r"lacks the modules venv and ensurepip.*apt install python3.12-venv"),
        ({"bits": 32}, "32-bit"),
        ({"version": "new"}, "is no Python"),
    ],
)
def test_a_python_that_will_not_do_is_refused_with_the_reason(told, words):
    good = {"version": [3, 12], "whole": True, "bits": 64, "program": "/p"}
    assert examine("/x/python3", lambda _: json.dumps(good)) == Maker("/p", (3, 12))
    with pytest.raises(EngineError, match=words):
        examine("/x/python3", lambda _: json.dumps({**good, **told}))


def test_a_good_python_is_taken_then_uv_then_all_reasons_are_told(tmp_path):
    home, tools = tmp_path / "home", tmp_path / "tools"
    fake_python.install(home / "python3.12")
    environ = {"PATH": str(home), "HOME": str(tmp_path / "nobody")}
    real = os.environ.copy()

    def asks(**more):
        def ask(words):
            if not words[0].startswith(str(tmp_path)):
                raise EngineError(f"{words[0]}: not of this test")
            return run_child(
                words, {**real, **more}, listen=lambda line: None, is_cancelled=lambda: False
            ).text  # fmt: skip

        return ask

    assert find_maker("", environ, ask=asks(), windows=False) == Maker(str(home / "python3.12"), (3, 12))
    old = asks(FAKE_VERSION_OF_PYTHON="3.9")
    with pytest.raises(EngineError, match=r"none was found(.|\n)*Python 3.9, too old(.|\n)*python3-venv"):
        find_maker("", environ, ask=old, windows=False)
    uv = fake_python.install(tools / "uv")
    environ["PATH"] += f":{tools}"
    assert find_maker("", environ, ask=old, windows=False) == Maker(str(uv), (0, 0))
    lacking = asks(FAKE_WHOLE="no")
    with pytest.raises(EngineError, match=r"python3\.12-venv"):
        find_maker(str(home / "python3.12"), environ, ask=lacking, windows=False)


def test_the_python_is_one_that_the_wheels_are_for(tmp_path):
    fake_python.install(tmp_path / "python3.12")
    environ = {"PATH": str(tmp_path)}
    maker = find_maker(str(tmp_path / "python3.12"), environ, ask=ask, versions=frozenset({(3, 12)}))
    assert maker.version == (3, 12)
    with pytest.raises(EngineError, match=r"Python 3.12 .*the wheels at hand are for 3.11, 3.13"):
        find_maker(str(tmp_path / "python3.12"), environ, ask=ask, versions=frozenset({(3, 13), (3, 11)}))


WHEELS = [
    "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl", "numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl",
    "tqdm-4.70.1-py3-none-any.whl", "six-1-py2.py3-none-any.whl", "pyogrio-0.13.0-cp311-abi3-linux_x86_64.whl",
    "protobuf-7.36.2-1-cp310-abi3-manylinux2014_x86_64.whl", "notes.txt",
]  # fmt: skip


def test_the_names_of_wheels_tell_for_which_python_they_are():
    assert wheel_pythons(WHEELS) == {(3, 11), (3, 12)}
    assert wheel_pythons([*WHEELS, "gdal-3-cp312-cp312-win_amd64.whl"]) == {(3, 12)}
    assert wheel_pythons([*WHEELS, "old-3-py2-none-any.whl"]) == set()
    assert (3, 19) in wheel_pythons(WHEELS[2:6])


LISTED = r"""
 -V:3.13 *        C:\Users\Zoë B\AppData\Local\Programs\Python\Python313\python.exe
 -V:3.12          C:\OSGeo4W\apps\Python312\python.exe
 -V:3.11          C:\Users\Zoë B\AppData\Local\Microsoft\WindowsApps\python3.11.exe
 -3.10-32         C:\Python310\python.exe *
No installed Pythons found!
"""


def test_the_launcher_of_windows_is_read_and_qgis_and_the_store_left_out(tmp_path):
    assert len(launcher_paths(LISTED)) == 4
    launcher = tmp_path / "py.exe"
    fake_python.install(launcher)
    found = python_candidates(
        [str(tmp_path)], windows=True, host_folders=(r"C:\OSGeo4W",), ask=lambda words: LISTED
    )  # fmt: skip
    assert found == [r"C:\Users\Zoë B\AppData\Local\Programs\Python\Python313\python.exe", r"C:\Python310\python.exe"]


def test_on_windows_qgis_own_folders_and_the_store_are_not_searched():
    environ = {
        "Path": r'C:\OSGeo4W\bin;"C:\Tools";C:\Users\z\AppData\Local\Microsoft\WindowsApps;C:\OSGeo4W\apps\Python312',
        "LocalAppData": r"C:\Users\z\AppData\Local", "USERPROFILE": r"C:\Users\z", "ProgramFiles": r"C:\Program Files",
    }  # fmt: skip
    folders = search_folders(environ, windows=True, host_folders=("C:/OSGeo4W",))
    assert folders[0] == r"C:\Tools"
    assert r"C:\Users\z\AppData\Local\Programs\Python\Python313" in folders
    assert r"C:\Program Files\Python312" in folders
    assert not [folder for folder in folders if "osgeo" in folder.lower() or "windowsapps" in folder.lower()]


def test_the_folders_of_qgis_are_known_on_each_system():
    assert host_folders("C:/Program Files/QGIS 3.40.4/apps/qgis-ltr", {}, "win32") == ("C:/Program Files/QGIS 3.40.4",)
    assert host_folders(r"C:\OSGeo4W\apps\qgis", {"OSGEO4W_ROOT": "C:\\OSGeo4W"}, "win32")[0] == "C:\\OSGeo4W"
    assert host_folders("/Applications/QGIS.app/Contents/MacOS", {}, "darwin") == ("/Applications/QGIS.app",)
    assert host_folders("/usr", {}, "linux") == ()  # the system's Python serves both


def test_the_watcher_passes_arguments_and_exit_code_on(tmp_path):
    (tmp_path / "mod.py").write_text("")
    words = module_words(sys.executable, "calendar", "2024", "99")
    ended = run_child(words, dict(os.environ), listen=lambda line: None, is_cancelled=lambda: False)
    assert ended.code != 0
    lines = []
    words = module_words(sys.executable, "platform", "terse")
    assert run_child(words, dict(os.environ), listen=lines.append, is_cancelled=lambda: False).code == 0
    assert any(lines)
    assert compile(WATCHED, "watched", "exec")


def test_a_program_that_does_not_start_or_end_is_told():
    def run(*words, timeout_s=0.0):
        run_child(words, {}, listen=lambda line: None, is_cancelled=lambda: False, timeout_s=timeout_s)

    with pytest.raises(EngineError, match="/no/python can't be started"):
        run("/no/python")
    with pytest.raises(EngineError, match="sleep has not ended within 1 s"):
        run("/usr/bin/sleep", "60", timeout_s=0.6)


# --- what is installed


def test_the_version_is_the_plugins_own():
    import cegate_geo

    assert plugin_version() == cegate_geo.__version__


def test_every_extra_is_one_that_the_package_has():
    import tomllib

    table = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    project = table["project"]
    assert {name for extras in EXTRAS.values() for name in extras.split(",")} <= set(project["optional-dependencies"])
    assert project["requires-python"] == ">=3.11"


def test_words_for_index_wheel_and_folder(tmp_path):
    wheel = tmp_path / "é" / "cegate_geo-0.1.0-py3-none-any.whl"
    python, uv = Maker("/p/python3", (3, 12)), Maker("/p/uv", (0, 0))
    target = Path("/env/bin/python")
    assert install_words(python, target, Recipe("0.1.0", "train"))[-1] == "cegate-geo[cpu,train]==0.1.0"
    by_wheel = install_words(python, target, Recipe("0.1.0", wheel=wheel))[-1]
    assert by_wheel == f"cegate-geo[cpu] @ {tmp_path.as_uri()}/%C3%A9/cegate_geo-0.1.0-py3-none-any.whl"
    offline = Recipe("0.1.0", folder=tmp_path)
    for maker in (python, uv):
        words = install_words(maker, target, offline)
        assert words[words.index("--no-index") + 1 :][:2] == ["--find-links", str(tmp_path)]
        assert "--no-index" not in install_words(maker, target, Recipe("0.1.0"))
    assert make_words(uv, Path("/env"), None)[-2:] == [">=3.11", "/env"]
    assert make_words(uv, Path("/env"), frozenset({(3, 11), (3, 12)}))[-2:] == ["3.12", "/env"]


def test_what_can_not_work_is_said_before_anything_runs(tmp_path):
    wheel = tmp_path / "cegate_geo-0.1.0-py3-none-any.whl"
    wheel.touch()
    Recipe("0.1.0", wheel=wheel).check()
    Recipe("0.1.0", folder=tmp_path).check()
    for recipe, words in (
        (Recipe("0.1.0", wheel=wheel, folder=tmp_path), "not both"),
        (Recipe("0.1.0", wheel=tmp_path), "is no wheel"),
        (Recipe("0.2.0", folder=tmp_path), r"holds cegate-geo 0.1.0; this plugin needs 0.2.0. Gather"),
        (Recipe("0.1.0", folder=tmp_path.parent / "none"), r"holds no wheel of cegate-geo; .* pip download -d"),
    ):
        with pytest.raises(EngineError, match=words):
            recipe.check()


def test_lines_of_pip_and_uv_move_the_progress_forward_only():
    percent = 8.0
    for line in ["Collecting x"] * 99 + ["noise", "Installing collected packages: x", "Successfully installed x"]:
        assert percent <= (percent := install_percent(line, percent)) <= 90.0
    assert percent == 90.0
    assert install_percent("Installed 18 packages in 40ms", 10.0) == 90.0


# --- the network


NETWORK = Network(
    Proxy("proxy.lan", 3128, "me", "ge:heim é"), ("https://intern.lan/", "http://10.0.0.1:80/x"), b"PEM OF QGIS", True
)


def test_the_proxy_of_qgis_goes_before_that_of_the_environment(tmp_path):
    environ = {"https_proxy": "http://other:1", "no_proxy": "localhost", "PIP_INDEX_URL": "https://mirror/simple"}
    made = installer_environment(environ, NETWORK, scratch=tmp_path, bundle=tmp_path / "none")
    url = "http://me:ge%3Aheim%20%C3%A9@proxy.lan:3128"
    assert made["HTTPS_PROXY"] == made["HTTP_PROXY"] == made["ALL_PROXY"] == url
    assert "https_proxy" not in made
    assert made["NO_PROXY"] == "localhost,intern.lan,10.0.0.1"
    assert made["PIP_INDEX_URL"] == "https://mirror/simple"
    assert made["TMPDIR"] == str(tmp_path)
    assert Proxy("s", 0, is_socks=True).url() == "socks5h://s"
    plain = installer_environment(environ, Network(), scratch=tmp_path, bundle=tmp_path / "none")
    assert (plain["https_proxy"], plain["no_proxy"]) == ("http://other:1", "localhost")
    assert hosts_of(["a.b", "https://c.d:8/e", ""]) == ["a.b", "c.d"]


def test_variables_that_would_install_elsewhere_are_dropped(tmp_path):
    environ = {"PIP_TARGET": "/elsewhere", "PIP_USER": "1", "UV_PYTHON": "3.9", "CONDA_PREFIX": "/conda"}
    made = installer_environment(environ, Network(), scratch=tmp_path, bundle=tmp_path / "none")
    assert made["PIP_USER"] == "0"
    assert not {"PIP_TARGET", "UV_PYTHON", "CONDA_PREFIX"} & set(made)


def test_certificates_add_up_and_nothing_that_was_trusted_is_lost(tmp_path):
    bundle, own = tmp_path / "bundle.pem", tmp_path / "own.pem"
    own.write_text("PEM OF THE USER\n")
    environ = {"REQUESTS_CA_BUNDLE": str(own), "SSL_CERT_FILE": "/missing"}
    write_bundle(bundle, Network(), environ)
    assert not bundle.exists()
    write_bundle(bundle, NETWORK, environ, [own])
    assert bundle.read_text() == "PEM OF QGIS\nPEM OF THE USER\n"
    made = installer_environment({}, NETWORK, scratch=tmp_path, bundle=bundle)
    assert made["REQUESTS_CA_BUNDLE"] == made["SSL_CERT_FILE"] == str(bundle)
    system = installer_environment({}, Network(certificates=b"x"), scratch=tmp_path, bundle=bundle)
    assert (system["UV_NATIVE_TLS"], "SSL_CERT_FILE" in system) == ("true", False)


def test_the_installer_gets_qgis_network_settings_and_the_log_no_password(fake, place, tmp_path):
    log = Log()
    network = Network(Proxy("proxy", 3128, "me", "geheim"), (), b"PEM", True)
    with pytest.raises(EngineError) as caught:
        fake(place, log=log, network=network, FAKE_PIP_MODE="proxy")
    pip = given(tmp_path)[-1]
    assert "install" in pip["words"]
    assert pip["environ"]["HTTPS_PROXY"] == "http://me:geheim@proxy:3128"
    assert pip["environ"]["REQUESTS_CA_BUNDLE"].endswith("certificates.pem")
    assert "geheim" not in f"{log.lines}{log.commands}{caught.value}"
    assert "http://me:****@proxy:3128" in str(caught.value)


class Recorder(BaseHTTPRequestHandler):
    """A proxy that lets nobody through, or an index that has nothing; keeps what it was asked."""

    def do_CONNECT(self):
        self.server.asked.append((self.path, self.headers.get("Proxy-Authorization", "")))
        self.send_error(403)

    def do_GET(self):
        self.server.asked.append((self.path, ""))
        self.send_error(404)

    def log_message(self, *words):
        pass


@contextmanager
def recorder(certificate: Path | None = None) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.asked = []
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask_pip(index: str, network: Network, folder: Path) -> None:
    """The real pip, as it is run to install, looks for the engine."""
    bundle = folder / "certificates.pem"
    bundle.unlink(missing_ok=True)
    plain = {"PATH": os.environ["PATH"], "HOME": str(folder), "PIP_CONFIG_FILE": os.devnull}
    write_bundle(bundle, network, plain)
    environ = installer_environment(plain, network, scratch=folder, bundle=bundle)
    options = ["--no-deps", "--retries", "0", "--no-cache-dir", "--index-url", index]
    words = module_words(sys.executable, "pip", "download", *options, "cegate-geo")
    assert run_child(words, environ, listen=str, is_cancelled=lambda: False).code != 0


def test_the_real_pip_goes_by_the_proxy_of_qgis_with_its_user(tmp_path):
    with recorder() as proxy:
        network = Network(Proxy("127.0.0.1", proxy.server_port, "me", "ge:heim"), ("https://intern.invalid/x",))
        ask_pip("https://index.invalid/simple", network, tmp_path)
        ask_pip("https://intern.invalid/simple", network, tmp_path)
    assert {path for path, _ in proxy.asked} == {"index.invalid:443"}
    kind, _, login = proxy.asked[0][1].partition(" ")
    assert (kind, base64.b64decode(login)) == ("Basic", b"me:ge:heim")


def test_the_real_pip_trusts_what_qgis_trusts(tmp_path):
    if shutil.which("openssl") is None:
        missing("openssl makes the certificate, and is not installed")
    both, own = tmp_path / "both.pem", tmp_path / "own.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-keyout", both, "-out", own], check=True, capture_output=True)
    both.write_bytes(both.read_bytes() + own.read_bytes())
    with recorder(both) as index:
        url = f"https://localhost:{index.server_port}/simple"
        ask_pip(url, Network(), tmp_path)
        assert index.asked == []
        ask_pip(url, Network(certificates=own.read_bytes(), has_own_certificates=True), tmp_path)
        assert index.asked[0][0] == "/simple/cegate-geo/"


def test_offline_means_no_index_of_any_configuration(fake, place, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "cegate_geo-0.1.0-py3-none-any.whl").touch()
    fake(place, Recipe("0.1.0", folder=folder), network=NETWORK, PIP_EXTRA_INDEX_URL="https://x", UV_INDEX="https://x")
    got = given(tmp_path)[-3]
    assert {"--no-index", "--find-links", str(folder)} <= set(got["words"])
    assert not {"PIP_EXTRA_INDEX_URL", "UV_INDEX"} & set(got["environ"])
    assert got["environ"]["PIP_CONFIG_FILE"] == os.devnull
    assert offline_environment({})["UV_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("error: Failed to fetch: https://x/\n  Caused by: dns error: failed to lookup", "can't be reached"),
        ("invalid peer certificate: UnknownIssuer", "not trusted"),
        ("error: failed to write: No space left on device (os error 28)", "disk is full"),
        (
            "No solution found when resolving dependencies:\n Because cegate-geo was not found in the",
            "no cegate-geo in",
        ),
        ("OSError: [WinError 206] The filename or extension is too long", "too long for Windows"),
        ("PermissionError: [WinError 5] Access is denied: 'x.pyd'", "a file is in use"),
        ("ERROR: Could not install: Missing dependencies for SOCKS support.", "SOCKS proxy"),
        ("zipfile.BadZipFile: File is not a zip file", "damaged"),
        ("HTTP error 403 Forbidden for url", "refuses"),
        ("", "^It failed.$"),
    ],
)
def test_the_cause_of_a_failure_is_named(text, words):
    import re

    assert re.search(words, explain(text, source="the package index"))
