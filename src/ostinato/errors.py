"""Errors for users, with exit codes of the command line."""


class OstinatoError(Exception):
    """Base of expected errors; messages name the requirement, the place, the value and the remedy."""

    exit_code = 2


class InputError(OstinatoError, ValueError):
    """Wrong option, name or combination of options."""


class DataError(OstinatoError):
    """Unusable data; the message names the file or sample."""

    exit_code = 3


class NotAcceptedError(OstinatoError):
    """Learned model that was kept aside, since it fails a check; the earlier one stays in place."""

    exit_code = 4


class Interrupted(OstinatoError):
    """Stop of a run by Ctrl-C or SIGTERM, with its state saved."""

    exit_code = 130


_NO_MEMORY = ("can't allocate memory", "not enough memory", "error: out of memory", "ALLOC_FAILED")


def explained(error: BaseException) -> OstinatoError | None:
    """Translate errors of the machine, such as no memory, space, permission or file, into errors for users.

    Args:
        error: error of Python, torch or safetensors.

    Returns:
        An error with a message of one line; None for a defect.
    """
    if isinstance(error, OstinatoError):
        return error
    kind, text = type(error).__name__, str(error)
    # Errors of torch by name and text, since importing torch here would slow every command.
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
    """Suggest the closest known names, or list all if none is close, as a sentence for an error message."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "Known: " + ", ".join(sorted(known)) + "."
