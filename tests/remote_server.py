"""A web server on loopback that serves a folder by ranges, counts what it is asked, and can be made to fail.

It runs in a process of its own: rasterio holds the interpreter's lock while it opens a file, and a thread of the same
process could never answer. With `keys` it is an object store with S3's addresses (path style): requests have to be
signed by that access key.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CONTROL = "/.control/"


@dataclass(frozen=True)
class Served:
    """A running server."""

    address: str
    """host:port."""

    def fail(self, times: int) -> None:
        """Answer so many of the next range requests beyond a file's beginning with 503."""
        self._ask(f"fail/{times}")

    def state(self) -> dict[str, Any]:
        """What it was asked: `requests` (method, path with query, range), `failed` and `bytes` sent."""
        return json.loads(self._ask("state"))

    def _ask(self, what: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}{CONTROL}{what}", timeout=10) as answer:
            return answer.read()


@contextmanager
def serve(folder: Path, *, keys: str = "") -> Iterator[Served]:
    """Serve a folder until the context is left."""
    words = [sys.executable, __file__, str(folder), keys]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(f"127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.terminate()


class Handler(BaseHTTPRequestHandler):
    """Answers with ranges of files."""

    protocol_version = "HTTP/1.1"
    folder, keys = Path(), ""
    failures = 0
    counts: dict[str, Any] = {"requests": [], "failed": 0, "bytes": 0}  # noqa: RUF012 - shared by all requests
    lock = threading.Lock()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        if self.path.startswith(CONTROL):
            what, _, number = self.path.removeprefix(CONTROL).partition("/")
            if what == "fail":
                Handler.failures = int(number)
            self.send(200, json.dumps(Handler.counts).encode())
        else:
            self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        with self.lock:
            self.counts["requests"].append((self.command, self.path, wanted))
        if self.keys and f"Credential={self.keys}/" not in self.headers.get("Authorization", ""):
            self.send(403)
            return
        if not path.is_file():
            self.send(404)
            return
        data = path.read_bytes()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), min(int(last) + 1 if last else len(data), len(data))
        with self.lock:
            fails = start > 0 and Handler.failures > 0
            Handler.failures -= fails
            self.counts["failed"] += fails
            self.counts["bytes"] += 0 if fails or not body else stop - start
        if fails:
            self.send(503)
        elif not wanted:
            self.send(200, data, body=body)
        else:
            self.send(206, data[start:stop], body=body, place=f"bytes {start}-{stop - 1}/{len(data)}")

    def send(self, code: int, data: bytes = b"", *, body: bool = True, place: str = "") -> None:
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        if body:
            self.wfile.write(data)


if __name__ == "__main__":
    Handler.folder, Handler.keys = Path(sys.argv[1]), sys.argv[2]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
