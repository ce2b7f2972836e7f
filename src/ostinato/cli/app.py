"""Application, shared arguments, consoles and reporters of the commands."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ostinato.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ostinato.distributed import ProcessGroup
    from ostinato.report.console import Reporter

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from ostinato import __version__
        from ostinato.printing import say

        say(f"ostinato {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Teach a frozen pre-trained transformer new classes, task after task."""


Options = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Options such as data=photos/ or train.epochs=5."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results (fractions) instead of tables.")]


MACHINE = ("backbone.weights", "device", "precision", "method")
"""Options that :func:`machine_of` reads."""


class GoesOn(TyperCommand):
    """Command that continues a run; its help lists the options that it may change."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help and the options that may change."""
        from ostinato.config import changeable  # pydantic, which no other help needs

        command: Any = self.name
        self.help = f"{self.help}\n\nOptions that may change: {', '.join(changeable(command))}"
        super().format_help(ctx, formatter)


def plain_console(as_json: bool) -> Console:
    """Make a console that prints control characters as text."""
    from ostinato.report.console import PlainConsole

    # With --json, standard output holds the result only.
    return PlainConsole(stderr=as_json, quiet=as_json)


@contextmanager
def reporting(as_json: bool) -> Iterator[tuple[Console, Reporter]]:
    """Yield a console and a reporter, and close the reporter at the end."""
    from ostinato.report.console import ConsoleReporter, Reporter

    console = plain_console(as_json)
    reporter = Reporter() if as_json else ConsoleReporter(console)
    try:
        yield console, reporter
    finally:
        reporter.close()


def refuse_several(command: str) -> None:
    """Refuse to run under a launcher, whose processes would all write the same files."""
    from ostinato.distributed import world_size

    if world_size() > 1:
        raise InputError(
            f"{command} needs one process, got {world_size()}. Share single runs: torchrun -m ostinato run."
        )


@contextmanager
def running(as_json: bool, device: str) -> Iterator[tuple[Console, Reporter, ProcessGroup]]:
    """Yield a console, a reporter and the process group; only the main process prints."""
    from ostinato.distributed import process_group

    with process_group(device) as processes, reporting(as_json or not processes.is_main) as (console, reporter):
        yield console, reporter, processes


def say_changed(run: Path, said: str, as_json: bool) -> None:
    """Print the sentence about a change of a run's model."""
    from ostinato.printing import say, say_json

    if as_json:
        say_json({"run": str(run), "changed": said})
    else:
        say(said)


def take(tree: dict[str, Any], key: str) -> Any:
    """Remove and return a top-level option that is not part of the configuration."""
    value = tree.pop(key, None)
    if isinstance(value, dict):
        raise InputError(f"{key}: takes one value, got {key}.{next(iter(value))}.")
    return value


def sort_words(words: Sequence[str], keys: Sequence[str], context: typer.Context) -> tuple[list[str], list[str]]:
    """Separate options from names of files.

    Args:
        words: of the command line.
        keys: options of the command that are written KEY=VALUE.
        context: of the command.

    Returns:
        Options, and names.

    Raises:
        InputError: if a word is written as an option, is none of the command, and there is no file of that name.
    """
    options: list[str] = []
    names: list[str] = []
    for word in words:
        key, sign, value = word.partition("=")
        if sign and key in keys:
            options.append(word)
        elif sign and re.fullmatch(r"[A-Za-z_][\w.-]*", key) and not os.path.lexists(word):
            flag = f"--{key.replace('_', '-')}"
            flags = [name for option in context.command.params for name in option.opts]
            hint = f"Write {flag} {shlex.quote(value)}." if flag in flags else _takes(keys)
            command = context.info_name
            raise InputError(f"{command}: {word} is neither a file nor an option of {command}. {hint}")
        else:
            names.append(word)
    return options, names


def _takes(keys: Sequence[str]) -> str:
    *most, last = [f"{key}=" for key in keys]
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"It takes {listed}; its other options begin with --."


def machine_of(given: dict[str, Any]) -> dict[str, Any]:
    """Remove and return the arguments of :meth:`ostinato.Learner.load`.

    Raises:
        InputError: if another option of the method or backbone is given; those are fixed after training.
    """
    machine = {key: given.pop(key) for key in ("device", "precision") if key in given}
    method = given.pop("method", {})
    if set(method) - {"name"}:
        raise InputError(
            f"method: only method=FILE may be given here, got {next(key for key in method if key != 'name')}."
        )
    if method:
        machine["method"] = method["name"]
    backbone = given.pop("backbone", {})
    if set(backbone) - {"weights"}:
        raise InputError("backbone: only backbone.weights=FILE may be given here; other options are fixed.")
    return machine | backbone
