# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failed installation means, in plain words, from what pip, uv or venv said. No qgis."""

from __future__ import annotations

import re

from .outcome import tail
from .words import mark, tr

CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|Errno 28|os error 28|not enough space|WinError 112|os error 112",
        mark("The disk is full. Make room where the profile lies, or move the cache (PIP_CACHE_DIR, UV_CACHE_DIR)."),
    ),
    (
        r"Missing dependencies for SOCKS",
        mark(
            "pip can't use a SOCKS proxy. Name an HTTP proxy in QGIS, let uv install (under 'Python or uv'), or "
            "install "
            "from a folder of wheels."
        ),
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification|invalid peer certificate|UnknownIssuer",
        mark(
            "The package index shows a certificate that is not trusted, as behind a company's proxy. Add the company's "
            "root certificate in QGIS (Settings > Options > Authentication > Manage Certificates > Authorities)."
        ),
    ),
    (
        r"ProxyError|Cannot connect to proxy|Tunnel connection failed|\b407\b.{0,40}Proxy|proxy authentication",
        mark(
            "The proxy does not let it through. Check its address, user and password in QGIS: Settings > Options > "
            "Network."
        ),
    ),
    (
        r"\b(401|403)\b.{0,60}(Unauthorized|Forbidden|error)|(Unauthorized|Forbidden).{0,60}\b(401|403)\b",
        mark(
            "The package index or the proxy refuses. Check the index' address and password in pip's or uv's "
            "configuration."
        ),
    ),
    (
        r"NewConnectionError|Failed to establish a new connection|name resolution|Name or service not known|"
        r"getaddrinfo failed|ConnectTimeout|ReadTimeout|Read timed out|Network is unreachable|Connection refused|"
        r"dns error|tcp connect error|error sending request|Failed to fetch|client error \(Connect\)",
        mark(
            "The package index can't be reached. Check the network and the proxy (Settings > Options > Network), or "
            "install from a "
            "folder of wheels."
        ),
    ),
    (
        r"ensurepip is not available|No module named '?ensurepip|No module named '?venv|No module named '?pip\b|"
        r"ensurepip.{0,80}returned non-zero",
        mark("This Python can't make environments. On Debian and Ubuntu: sudo apt install python3-venv."),
    ),
    (
        r"BadZipFile|corrupt|DO NOT MATCH THE HASHES|invalid zip|Invalid wheel|has an invalid wheel",
        mark("A package is damaged. Run it again; if it comes from a folder of wheels, copy the wheels anew."),
    ),
    (
        r"WinError 206|filename or extension is too long|Enable Long Paths|long path support",
        mark(
            "A path is too long for Windows. Switch long paths on in Windows, or use a QGIS profile with a shorter "
            "path."
        ),
    ),
    (
        r"Permission denied|Access is denied|WinError 5\b|os error 13|os error 5\b|Read-only file system|Errno 13",
        mark(
            "Writing is not allowed, or a file is in use. Close other QGIS windows and running jobs, and check who "
            "owns "
            "the profile folder."
        ),
    ),
    (
        r"not a supported wheel on this platform|no wheels with a matching|has no wheels",
        mark(
            "A wheel is made for another system or Python. Gather the wheels with the same Python on the same system."
        ),
    ),
)
"""Pattern and advice, the first that is found counts. What is said of the network stands before 'no such package'."""
MISSING = r"No matching distribution found for (?P<pip>[^\s(]+)|Because (?P<uv>\S+) was not found"


def explain(text: str, *, source: str) -> str:
    """Why an installation failed, and how to mend it.

    Args:
        text: What the installer said, its last part.
        source: Where packages came from, in words: 'the package index', 'the folder X'.
    """
    for pattern, advice in CAUSES:
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            return f"{tr(advice)}{_last_words(text)}"
    missing = re.search(MISSING, text)
    if missing or "No solution found" in text:
        what = (missing and (missing["pip"] or missing["uv"])) or tr("a package that is needed")
        advice = tr(
            "There is no {what} in {source} for this Python and system. Install from a wheel or a folder of wheels, or "
            "with another Python."
        ).format(what=what, source=source)
        return f"{advice}{_last_words(text)}"
    return f"{tr('It failed.')}{_last_words(text)}"


def _last_words(text: str) -> str:
    words = tail(text, lines=8)
    return f"\n{tr('Its last words:')}\n{words}" if words else ""
