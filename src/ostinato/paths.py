"""Paths as users give them: on a command line, in a configuration, in Python."""

import errno
import io
import os
import stat
from pathlib import Path

from ostinato.errors import DataError, InputError


def user_path(text: str, where: str) -> Path:
    """Take a text for the name of a file or folder, which need not exist.

    Args:
        text: may start with ``~`` or ``~user``; bytes that are not UTF-8 may come as Python decodes them in arguments.
        where: the option or argument that it was given for, for messages.

    Returns:
        The path, with the home folder in place of ``~``.

    Raises:
        InputError: if no file can have that name, or there is no such user.
    """
    if "\0" in text:
        raise InputError(f"{where} must be a path, which holds no NUL character, not {_short(text)}.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} must be a path, but character {error.start} of {_short(text)} can be in no file's name."
        ) from None
    path = Path(os.path.expanduser(text))  # that of pathlib takes ./~ for ~
    if str(path).startswith("~") and text.startswith("~"):
        raise InputError(
            f"{where} must be a path, but the home folder in {_short(text)} is not known. Write the folder in full, or "
            "./~ for a name that starts with ~."
        )
    try:
        os.lstat(path)
    except OSError as error:  # whether it is there is for the caller to see
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{where} must be a path, but {_short(text)} is too long for one.") from None
    return path


def _short(text: str) -> str:
    """The text for a message, without characters that a terminal would obey."""
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}... ({len(text)} characters)"


def is_there(path: Path) -> bool:
    """Whether there is a file or folder.

    Raises:
        DataError: if it cannot be looked at.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{path} cannot be looked at ({error.strerror}).") from error


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading bytes.

    A pipe would keep the reader waiting, and a device may do anything when it is opened.

    Raises:
        OSError: if it cannot be read, or is something else than a file.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    _check_regular(mode, path)
    # Should it have changed since, opening it does not wait for another process to write.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(os.fstat(number).st_mode, path)
    except OSError:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def _check_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
