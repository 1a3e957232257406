# SPDX-License-Identifier: GPL-2.0-or-later
"""QGIS' network settings as the variables that pip and uv read. No qgis.

| QGIS | pip | uv |
| --- | --- | --- |
| proxy, user, password | HTTP_PROXY, HTTPS_PROXY | the same, and ALL_PROXY |
| hosts without proxy | NO_PROXY | NO_PROXY |
| trusted certificates | REQUESTS_CA_BUNDLE | SSL_CERT_FILE, else UV_NATIVE_TLS and UV_SYSTEM_CERTS |

What was said to pip or uv themselves (pip.conf, PIP_PROXY, PIP_CERT, uv.toml, an index of one's own) stays in force.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence
from urllib.parse import quote, urlsplit

UNWANTED = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_PYTHON", "UV_PYTHON",
            "UV_PROJECT_ENVIRONMENT", "UV_SYSTEM_PYTHON", "CONDA_PREFIX")  # fmt: skip
"""Variables that would send the packages to another place than the environment."""
CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Proxy:
    """A proxy as QGIS knows it."""

    host: str
    port: int
    """0 for the scheme's own."""
    user: str = ""
    password: str = ""
    is_socks: bool = False

    def url(self) -> str:
        """With user and password, percent-encoded."""
        scheme = "socks5h" if self.is_socks else "http"
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        return f"{scheme}://{login}{self.host}{f':{self.port}' if self.port else ''}"

    def __str__(self) -> str:
        return f"{self.host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class Network:
    """QGIS' network settings."""

    proxy: Optional[Proxy] = None
    without_proxy: tuple[str, ...] = ()
    """URLs, or beginnings of URLs."""
    certificates: bytes = b""
    """All that QGIS trusts, PEM; empty if it does not say."""
    has_own_certificates: bool = False
    """Whether the user added some to those of the system."""

    def secrets(self) -> tuple[str, ...]:
        """What must not be shown."""
        if self.proxy is None or not self.proxy.password:
            return ()
        return (quote(self.proxy.password, safe=""), self.proxy.password)


def hosts_of(urls: Sequence[str]) -> list[str]:
    """The hosts of beginnings of URLs, as NO_PROXY wants them: 'https://a.b/c' is 'a.b'."""
    hosts = [urlsplit(url if "//" in url else f"//{url}").hostname for url in urls]
    return [host for host in hosts if host]


def installer_environment(
    environ: Mapping[str, str], network: Network, *, scratch: Path, bundle: Path
) -> dict[str, str]:
    """The environment for pip and uv.

    Args:
        environ: An environment without what QGIS set for itself.
        network: QGIS' settings.
        scratch: Folder for temporary files, on the disk of the profile.
        bundle: File of certificates that `write_bundle` has written; need not exist.
    """
    made = {key: value for key, value in environ.items() if key.upper() not in UNWANTED}
    for name in ("TMPDIR", "TEMP", "TMP"):
        made[name] = str(scratch)
    made.update(PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", NO_COLOR="1", UV_NO_PROGRESS="1")
    if network.proxy is not None:
        given = {key.upper(): key for key in made}
        kept = made.get(given.get("NO_PROXY", ""), "")
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
        made = {key: value for key, value in made.items() if key.upper() not in names}
        made.update(dict.fromkeys(names[:3], network.proxy.url()))
        without = ",".join([*filter(None, kept.split(",")), *hosts_of(network.without_proxy)])
        made.update({"NO_PROXY": without} if without else {})
    if bundle.is_file():
        if network.has_own_certificates or made.get("SSL_CERT_FILE"):
            made["SSL_CERT_FILE"] = str(bundle)
        else:
            made.update(UV_NATIVE_TLS="true", UV_SYSTEM_CERTS="true")  # the older and the newer name
        made["REQUESTS_CA_BUNDLE"] = str(bundle)
    return made


def write_bundle(bundle: Path, network: Network, environ: Mapping[str, str], more: Sequence[Path] = ()) -> None:
    """Write what QGIS trusts into one file, with what the environment's own variables and other files hold.

    A superset, so that nothing is refused that was trusted before. Nothing is written where QGIS says nothing.

    Args:
        bundle: File to write.
        network: QGIS' settings.
        environ: Environment whose certificate variables count.
        more: Other files of certificates; those that are missing are left out.
    """
    if not network.certificates:
        return
    files = [Path(environ[name]) for name in CERTIFICATE_VARIABLES if environ.get(name)]
    parts = [network.certificates] + [path.read_bytes() for path in dict.fromkeys([*files, *more]) if path.is_file()]
    bundle.write_bytes(b"\n".join(part.strip() for part in parts) + b"\n")


def offline_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """For installing from a folder of wheels: without indexes and folders that pip's or uv's configuration names."""
    made = {key: value for key, value in environ.items() if not key.upper().startswith(("PIP_", "UV_"))}
    made.update(PIP_CONFIG_FILE=os.devnull, PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", UV_OFFLINE="1")
    made.update(UV_NO_CONFIG="1", UV_NO_PROGRESS="1", UV_PYTHON_DOWNLOADS="never")
    return made
