"""Paths from users: on the command line, in a configuration, in Python."""

import errno
import io
import os
import re
import stat
from pathlib import Path

from ostinato.errors import DataError, InputError


def user_path(text: str, where: str) -> Path:
    """Convert a text to a path, which need not exist.

    Args:
        text: path; may start with ``~`` or ``~user``, and hold undecodable bytes as surrogates.
        where: option or argument, for messages.

    Returns:
        The path with the home folder in place of ``~``.

    Raises:
        InputError: if no file can have that name, or there is no such user.
    """
    if "\0" in text:
        raise InputError(f"{where} must be a path without NUL characters, got {_short(text)}.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} must be a path, but no file name can hold character {error.start} of {_short(text)}."
        ) from None
    path = Path(os.path.expanduser(text))  # pathlib would also expand ./~
    if str(path).startswith("~") and text.startswith("~"):
        raise InputError(
            f"{where} must be a path, but the home folder in {_short(text)} is unknown. Write the full path, or ./~ "
            "for a name that starts with ~."
        )
    try:
        os.lstat(path)
    except OSError as error:  # callers check whether it exists
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{where} must be a path, but {_short(text)} is too long.") from None
    return path


def refuse_url(text: str, where: str) -> None:
    """Raise InputError for a URL; ``where`` is the option or argument, for the message."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/+\w", text) and not os.path.lexists(text):
        raise InputError(f"{where}: only local files are read, but {_short(text)} is a URL. Download it first.")


def _short(text: str) -> str:
    """Quote a text for a message, cut to 200 characters."""
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}... ({len(text)} characters)"


def is_there(path: Path) -> bool:
    """Tell whether a file or folder exists.

    Raises:
        DataError: if it cannot be accessed.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{path} cannot be accessed ({error.strerror}).") from error


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading bytes; opening a pipe could wait forever, a device could do anything.

    Raises:
        OSError: if it cannot be read, or is no regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    _check_regular(mode, path)
    # Without O_NONBLOCK, a pipe that replaced the file meanwhile would wait for a writer.
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
