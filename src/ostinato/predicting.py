"""What ``predict`` is given, one input at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ostinato.errors import DataError, InputError, did_you_mean
from ostinato.streams.tables import SUFFIXES, TEXT_NAMES, read_table
from ostinato.streams.texts import EMPTY, is_empty

Given = tuple[str, str | DataError]
"""What to call a text, and the text, or why there is none."""


def image_files(paths: list[Path]) -> Iterator[Path]:
    """The files themselves, and the images in the folders.

    Raises:
        DataError: if a folder holds no image.
    """
    from ostinato.streams.folder import EXTENSIONS

    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
            if not found:
                raise DataError(f"{path}: there is no image in this folder.")
            yield from found
        else:
            yield path


def texts_of(texts: list[str], files: list[Path], column: str | None, learned: str | None = None) -> Iterator[Given]:
    """The texts themselves, then those of the files.

    Args:
        texts: given as such.
        files: a table by its ending (csv, tsv, jsonl, parquet); any other holds a text a line, in UTF-8.
        column: of the texts in the tables; None finds it by its name.
        learned: what it was called where texts were learned; taken where there is such a column and none was given.

    Yields:
        Name and text; where it is empty or not UTF-8, the error in its place.

    Raises:
        DataError: if a file cannot be read.
        InputError: if a table has no such column.
    """
    read = (_rows(file, column, learned) if file.suffix.lower() in SUFFIXES else _lines(file) for file in files)
    typed: list[Given] = [(f"text {i}", text) for i, text in enumerate(texts)]
    for name, text in chain(typed, chain.from_iterable(read)):
        empty = isinstance(text, str) and is_empty(text)
        yield name, DataError(f"{name}: {EMPTY}.") if empty else text


def _lines(file: Path) -> Iterator[Given]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from None
    if lines[-1] == b"":
        lines.pop()
    for i, line in enumerate(lines, start=1):
        name = f"{file}:{i}"
        try:
            yield name, line.decode("utf-8-sig" if i == 1 else "utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            yield name, DataError(f"{name}: byte {error.start} is not UTF-8; save the file in UTF-8.")


def _rows(file: Path, column: str | None, learned: str | None) -> Iterator[Given]:
    import pyarrow as pa

    try:
        table = read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as {file.suffix[1:]} in UTF-8 ({error}).") from None
    names = table.column_names
    found = column or next((name for name in (learned, *TEXT_NAMES) if name in names), None)
    if found is None:
        raise InputError(f"{file} has no column {', '.join(TEXT_NAMES)}, only {', '.join(names)}: say --column NAME.")
    if found not in names:
        raise InputError(f"--column {found!r} is no column of {file}. {did_you_mean(found, names)}")
    for i, value in enumerate(table.column(found).to_pylist()):
        yield f"{file} row {i}", "" if value is None else str(value)
