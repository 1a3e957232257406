"""Where the command `cegate-geo` and `python -m cegate_geo` begin: before anything that takes time to load."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from cegate_geo.cli.starter import STARTER, give_up, is_watched

CANCELLED = b"cegate-geo: Cancelled.\n"
CANCELLED_EVENT = b'{"event": "error", "code": "cancelled", "message": "Cancelled.", "hint": ""}\n'


def main() -> int:
    """Load and run the command line; gives the exit code.

    Until the command is loaded SIGINT ends the process at once: nothing is begun yet, and what the interpreter and the
    libraries make of an exception in the middle of an import is a traceback, or an import that failed.
    """
    if is_watched(sys.argv[1:], os.environ):
        STARTER.listen(0, give_up=give_up)
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell's job in the background
        signal.signal(signal.SIGINT, _leave)
    from cegate_geo.cli.main import main as command_line

    return command_line(loaded=lambda: signal.signal(signal.SIGINT, before))


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
    if any("jsonl" in word for word in sys.argv):
        os.write(1, CANCELLED_EVENT)
    os.write(2, CANCELLED)
    os._exit(130)


if __name__ == "__main__":
    raise SystemExit(main())
