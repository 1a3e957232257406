"""The entry point `cegate-geo`: finds commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import click

from cegate_geo import __version__
from cegate_geo.cli.events import EventStream, wants_events
from cegate_geo.errors import (
    EXIT_CANCELLED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INPUT,
    CegateError,
    CegateWarning,
    RuntimeMissingError,
)
from cegate_geo.infer.progress import LEFT_BEHIND

COMMANDS: dict[str, tuple[str, str]] = {
    "predict": ("cegate_geo.cli.predict", "Predict a scene into a georeferenced mask."),
    "merge": ("cegate_geo.cli.merge", "Join the shards of a prediction."),
    "adapt": ("cegate_geo.cli.adapt", "Adapt a backbone to labelled rasters and export a model."),
    "self-label": ("cegate_geo.cli.self_label", "Make labels of a prediction, where the model is sure."),
    "dataset": ("cegate_geo.cli.dataset", "Write the configuration that reads a published dataset."),
    "export": ("cegate_geo.cli.export", "Export a run as one ONNX file with its manifest."),
    "evaluate": ("cegate_geo.cli.evaluate", "Compare a mask or a model with labels."),
    "benchmark": ("cegate_geo.cli.benchmark", "Methods x settings x seeds, with a table."),
    "pretrain": ("cegate_geo.cli.pretrain", "Pre-train a small ViT on unlabelled rasters."),
    "info": ("cegate_geo.cli.info", "Say what a model, a raster or a run is."),
    "check": ("cegate_geo.cli.check", "Test a model on a part of a scene, with numbers to report."),
    "doctor": ("cegate_geo.cli.doctor", "Check this installation, and say how to mend it."),
    "demo": ("cegate_geo.cli.demo", "The whole way on regions made by code."),
}
"""Name → module whose `command` is loaded when it is called, and what the help says."""

TRAINING_PACKAGES = frozenset({"torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "PIL"})


class LazyGroup(click.Group):
    """A group that imports a command when it is called, not before: `predict` never pays for training."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        try:
            command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        except ModuleNotFoundError as error:
            raise missing_package(error) from error
        ctx.find_root().obj.get("loaded", _nothing)()
        if all(p.name != "verbose" for p in command.params):
            command.params.append(_verbose_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The table of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _nothing() -> None:
    """What is done when a command is loaded, unless something is asked for."""


def missing_package(error: ModuleNotFoundError) -> RuntimeMissingError:
    """What to say when a package is not there: which, and how to get it."""
    package = (error.name or "").partition(".")[0]
    extra = "train" if package in TRAINING_PACKAGES else "cpu"
    return RuntimeMissingError(
        f"This command needs the package {error.name}, which is not installed.",
        hint=f'Install it: pip install "cegate-geo[{extra}]".',
    )


def _verbose_option() -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().obj["verbose"] = True

    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=remember,
        is_eager=True,
        help="Tell more; tracebacks.",
    )


@click.group(
    cls=LazyGroup, params=[_verbose_option()], context_settings={"help_option_names": ["-h", "--help"], "obj": {}}
)
@click.version_option(__version__, prog_name="cegate-geo")
def cli() -> None:
    """Adapt a vision foundation model to your scenes, and predict georeferenced masks of any size.

    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong input, 3 model or runtime
    unusable, 130 cancelled.
    """


def main(arguments: Sequence[str] | None = None, *, loaded: Callable[[], object] = _nothing) -> int:
    """Run the command line; gives the exit code.

    Args:
        arguments: Its words; None for those of the process.
        loaded: Called when the command is imported, before it is run.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    state: dict[str, Any] = {"verbose": False, "loaded": loaded}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show is no reason to fail
    events = EventStream(sys.stdout) if wants_events(words) else None
    with _say_warnings(events, state):
        code = _run(words, state, events)
    return _leave(code)


def _run(words: list[str], state: dict[str, Any], events: EventStream | None) -> int:
    try:
        state["events"] = events
        code = cli.main(args=words or ["--help"], prog_name="cegate-geo", standalone_mode=False, obj=state)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "cegate-geo"
        return _fail(
            "usage", error.format_message(), f"See {name} --help.", EXIT_INPUT, events=events, state=state, error=error
        )
    except CegateError as error:
        return _fail(error.code, error.message, error.hint, error.exit_code, events=events, state=state, error=error)
    except (KeyboardInterrupt, click.Abort) as error:
        return _fail("cancelled", "Cancelled.", "", EXIT_CANCELLED, events=events, state=state, error=error)
    except BrokenPipeError as error:
        return _fail("cancelled", "Nobody reads the output.", "", EXIT_CANCELLED, events=None, state=state, error=error)
    except ModuleNotFoundError as error:
        known = missing_package(error)
        return _fail(known.code, known.message, known.hint, known.exit_code, events=events, state=state, error=error)
    except MemoryError as error:
        return _fail(
            "memory",
            "The memory does not suffice.",
            "Lower --max-memory, --tile-size or --batch-size.",
            EXIT_FAILED,
            events=events,
            state=state,
            error=error,
        )
    except Exception as error:  # the last resort: a fault of ours, said in one line
        hint = "This is a fault of cegate-geo: please report it, with what -v says."
        text = f"{type(error).__name__}: {error}"
        return _fail("internal", text, hint, EXIT_FAILED, events=events, state=state, error=error)
    return code if isinstance(code, int) else EXIT_DONE  # click gives the code of ctx.exit() back


def _fail(
    code: str,
    message: str,
    hint: str,
    exit_code: int,
    *,
    events: EventStream | None,
    state: dict[str, Any],
    error: BaseException,
) -> int:
    """Say what went wrong: one line on stderr, one event."""
    if events is not None:
        events.send("error", code=code, message=message, hint=hint)
    with suppress(OSError):
        if state["verbose"]:
            traceback.print_exception(error)
        line = " ".join(f"{message} {hint}".split())
        click.echo(f"cegate-geo: {line}", err=True)
    return exit_code


@contextmanager
def _say_warnings(events: EventStream | None, state: dict[str, Any]) -> Iterator[None]:
    """Our warnings as one line each on stderr, or as events; others only with -v."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001 - the signature of warnings.showwarning
        line: str | None = None,
    ) -> None:
        if isinstance(message, CegateWarning):
            if events is not None:
                events.send("warning", code=message.code, message=str(message))
            click.echo(f"cegate-geo: warning: {message}", err=True)
        elif state["verbose"]:
            click.echo(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), err=True)

    quiet = logging.NullHandler()
    logging.getLogger("rasterio").addHandler(quiet)  # GDAL's own messages come back as our errors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", CegateWarning)
            warnings.showwarning = show
            yield
    finally:
        logging.getLogger("rasterio").removeHandler(quiet)


def _leave(code: int) -> int:
    """Leave at once where a thread is still busy with what was cancelled; else give the code back."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if any(t.name == LEFT_BEHIND for t in threading.enumerate()):
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
