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


_NO_MEMORY = ("can't allocate memory", "not enough memory", "error: out of memory", "ALLOC_FAILED")


def explained(error: BaseException) -> OstinatoError | None:
    """What of a machine's own errors a user can act on: no memory, no space, no permission, no such file.

    Args:
        error: of Python, torch or safetensors.

    Returns:
        An error that says so in a line, which one of ours is already; None for anything else, which is a defect.
    """
    if isinstance(error, OstinatoError):
        return error
    kind, text = type(error).__name__, str(error)
    # torch's own errors by name and words, since this module must not import it; most have no kind of their own.
    full = isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or full:
        return DataError(
            "Out of memory. Lower train.batch_size or raise train.accumulate, lower eval.batch_size, or take "
            "precision=bf16 or another device."
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return DataError(f"{where}{error.strerror or text}.")
    if kind == "SafetensorError" and "os error" in text:
        return DataError(f"Tensors cannot be written or read ({text}).")
    return None


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
