"""Errors that a user can act on; each kind carries the exit code of the command line."""


class OstinatoError(Exception):
    """Base of every error raised on purpose: what must hold, where, what was given, what to do."""

    exit_code = 2


class InputError(OstinatoError, ValueError):
    """A wrong option, name or combination of options."""

    exit_code = 2


class DataError(OstinatoError):
    """Data that cannot be used as it is; the message names the file or sample."""

    exit_code = 3


class Interrupted(OstinatoError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved its state."""

    exit_code = 130


def did_you_mean(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """A hint with the closest known names, or the list of all when nothing is close.

    Args:
        name: what was given.
        known: the valid names.

    Returns:
        A sentence to append to an error message.
    """
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "Known: " + ", ".join(sorted(known)) + "."
