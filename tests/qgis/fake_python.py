"""Stands in for a Python with venv and pip, for uv, and for the engine that they install.

Called as `fake_python.py NAME ARGUMENTS...`, by the scripts that `install` writes; misbehaves as FAKE_PIP_MODE says.
FAKE_PIP_LOG names a file that takes what each was given: arguments and environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

MODE = os.environ.get("FAKE_PIP_MODE", "ok")
SAID = {
    "no-network": "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...: Failed to "
    "establish a new connection: [Errno -3] Temporary failure in name resolution')'\n"
    "ERROR: No matching distribution found for cegate-geo==0.1.0",
    "full": "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    "certificate": "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] self-signed'))\n"
    "ERROR: No matching distribution found for cegate-geo==0.1.0",
    "proxy": "ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 authentication')) at "
    "http://me:geheim@proxy:3128",
    "not-there": "ERROR: No matching distribution found for cegate-geo[cpu]==0.1.0",
    "half": "Installing collected packages: numpy, cegate-geo\nERROR: something broke",
}


def install(path: Path) -> Path:
    """Write a program that is this one under another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -X utf8 "{Path(__file__).resolve()}" "$0" "$@"\n')
    path.chmod(0o755)
    return path


def engine(words: list[str]) -> None:
    if words[0] == "doctor":
        state = os.environ.get("FAKE_DOCTOR", "ok")
        finding = {"name": "onnxruntime", "state": state, "value": "libX.so is missing", "hint": "Install libX."}
        print(json.dumps({"ok": state == "ok", "findings": [finding]}))
        sys.exit(3 if state == "broken" else 0)
    if os.environ.get("FAKE_HELLO") == "none":
        sys.exit("ImportError: libY.so")
    said = {"protocol": int(os.environ.get("FAKE_PROTOCOL", "1")), "version": os.environ.get("FAKE_VERSION", "0.1.0")}
    print(json.dumps({"event": "hello", "command": "predict", **said}), flush=True)
    print(json.dumps({"event": "error", "code": "scene", "message": "no scene", "hint": ""}), flush=True)
    sys.exit(2)


def make(environment: Path) -> None:
    if MODE == "no-venv":
        sys.exit("The virtual environment was not created successfully because ensurepip is not available.")
    install(environment / "bin" / "python")


def pip(environment: Path) -> None:
    print("Collecting cegate-geo\nCollecting numpy", flush=True)
    (environment / "lib").mkdir()
    (environment / "lib" / "half.py").write_text("half")
    if MODE in ("half", "deaf", "orphan"):
        install(environment / "bin" / "cegate-geo")
    if MODE in ("deaf", "orphan"):
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # what it starts ends with it
        Path(os.environ["FAKE_PIP_PIDS"]).write_text(f"{os.getpid()} {helper.pid}")
        print("Downloading numpy", flush=True)
        time.sleep(60)
    if MODE in SAID:
        sys.exit(SAID[MODE])
    install(environment / "bin" / "cegate-geo")
    print("Installing collected packages: cegate-geo\nSuccessfully installed cegate-geo-0.1.0", flush=True)


def main() -> None:
    name, *words = sys.argv[1:]
    if "FAKE_PIP_LOG" in os.environ:
        with Path(os.environ["FAKE_PIP_LOG"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "words": words, "environ": dict(os.environ)}) + "\n")
    here = Path(name)
    if here.name == "cegate-geo":
        engine(words)
    elif here.name == "uv":
        if words[0] == "--version":
            print("uv 0.13.8")
        elif words[0] == "venv":
            make(Path(words[-1]))
        else:
            pip(Path(words[words.index("--python") + 1]).parents[1])
    elif words[:2] == ["-I", "-c"]:
        version = [int(part) for part in os.environ.get("FAKE_VERSION_OF_PYTHON", "3.12").split(".")]
        whole = os.environ.get("FAKE_WHOLE", "yes") == "yes"
        print(json.dumps({"version": version, "whole": whole, "bits": 64, "program": str(here)}))
    elif "venv" in words:
        make(Path(words[-1]))
    elif MODE == "orphan":  # in the real watcher
        code = words[words.index("-c") + 1]
        sys.argv = ["-c", "fake_python", "--orphan", str(here)]
        sys.path.insert(0, str(Path(__file__).parent))
        exec(code, {"__name__": "__main__"})
    else:
        pip(here.parents[1])


if __name__ == "__main__" and sys.argv[1:2] == ["--orphan"]:
    pip(Path(sys.argv[2]).parents[1])
elif __name__ == "__main__":
    main()
