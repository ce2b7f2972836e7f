"""Command line. Commands import heavy modules themselves, so that help is instant."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from typing import NoReturn

import typer

from ostinato import crash
from ostinato.cli.app import app
from ostinato.errors import Interrupted, OstinatoError, explained
from ostinato.printing import OutputClosedError, say

# Importing a module adds its commands, in the order of the help.
from ostinato.cli import runs, models, scoring, comparing, exporting, sharing, serving, tables, about  # isort: skip # noqa: F401

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; report expected errors as one message and an exit code."""
    from ostinato.training.memory import keep_freed_memory
    from ostinato.training.threads import wait_asleep

    wait_asleep()
    keep_freed_memory()
    # Pillow warns at a number of pixels; decoding here limits memory and raises an error.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    words = sys.argv[1:] if arguments is None else arguments
    advice = " 'ostinato resume RUN' continues from the last checkpoint." if set(words[:1]) & _RESUMABLE else ""
    interrupted = f"Interrupted.{advice}"
    try:
        code = app(args=arguments, prog_name="ostinato", standalone_mode=False)
    except OstinatoError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(interrupted, Interrupted.exit_code)
    except Exception as error:
        if (known := explained(error)) is not None:
            _fail(f"{known}{advice}", known.exit_code)
        show_usage = getattr(error, "format_message", None)
        if show_usage is not None and type(error).__name__ == "NoArgsIsHelpError":
            say(show_usage())
            sys.exit(2)
        if show_usage is not None:  # Typer's own usage errors
            _fail(show_usage(), 2)
        if _lost_the_main_process(error):
            _fail("Stopped, because the main process stopped; see its message.", 3)
        _fail(f"{crash.report(error, words)}{advice}", crash.EXIT_CODE)
    if code == Interrupted.exit_code:  # Typer's code for Ctrl-C
        _fail(interrupted, code)
    if code:
        sys.exit(code)


_RESUMABLE = {"run", "resume", "learn"}
"""Commands that write checkpoints."""


def _lost_the_main_process(error: Exception) -> bool:
    """Tell whether this process shares a run and lost its connection to the others."""
    text = f"{type(error).__name__}: {error}".lower()
    exchange = any(word in text for word in ("gloo", "nccl", "connection closed", "connection reset", "distbackend"))
    return int(os.environ.get("RANK", "0")) > 0 and exchange


def _fail(message: str, code: int) -> NoReturn:
    quiet = code in (Interrupted.exit_code, OutputClosedError.exit_code)
    with suppress(OutputClosedError, OSError):  # standard error may be closed, too
        say(message if quiet else f"error: {message}", err=True)
    sys.exit(code)
