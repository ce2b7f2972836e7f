"""Inputs of ``predict`` from files and texts, one at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import chain
from pathlib import Path

from ostinato.errors import DataError, InputError, did_you_mean
from ostinato.paths import open_file, refuse_url
from ostinato.streams.readers import MAX_ROW_BYTES, SUFFIXES, read_table
from ostinato.streams.tables import TEXT_NAMES
from ostinato.streams.text_sets import columns_of_text, join_columns
from ostinato.streams.texts import unfit

Given = tuple[str, str | DataError]
"""Name of a text, and the text or its error."""

_ROWS = 1_000
"""Rows per batch when a table is read."""


_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|BM....\0\0|P[1-6]\s|....ftyp", re.DOTALL
)
"""Begin of an image; no name of a file that a list has first looks like it."""

STDIN = "standard input"
"""Name of the image on standard input."""


def images_of(files: Iterable[Path | BufferedReader]) -> Iterator[Path | bytes]:
    """Yield image files, the images in folders, and those that standard input holds or names.

    Raises:
        DataError: if a folder has no images.
        InputError: if standard input names a URL.
    """
    for file in files:
        yield from image_files([file]) if isinstance(file, Path) else _on_stdin(file)


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield image files, and the images in folders.

    Raises:
        DataError: if a folder has no images.
    """
    from ostinato.streams.folder import EXTENSIONS

    for path in paths:
        if _is_folder(path):
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
            if not found:
                raise DataError(f"{path}: the folder must have images, got none.")
            yield from found
        else:
            yield path


def _on_stdin(file: BufferedReader) -> Iterator[Path | bytes]:
    """Yield the image that a stream holds, or the files that it names, one a line."""
    from ostinato.streams.decode import MAX_FILE_BYTES

    if _SIGNATURE.match(file.peek(16)):
        yield file.read(MAX_FILE_BYTES + 1)
        return
    while line := file.readline(MAX_ROW_BYTES):
        if name := os.fsdecode(line.rstrip(b"\r\n")):
            refuse_url(name, "predict")
            yield from image_files([Path(name)])


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # reading it will explain the error
        return False


def texts_of(
    texts: list[str], files: Sequence[Path | BufferedReader], column: str | None, learned: str | None = None
) -> Iterator[Given]:
    """Yield texts, then those of files.

    Args:
        texts: texts.
        files: tables (csv, tsv, jsonl, parquet), or UTF-8 files with a text a line; standard input is one of these.
        column: text column of the tables; None finds it by its name, or joins the columns of a public set.
        learned: name of the text column in training, tried first if ``column`` is None.

    Yields:
        Name and text, or name and error if the text is empty or not UTF-8.

    Raises:
        DataError: if a file cannot be read.
        InputError: if a table has no such column.
    """
    read = (
        _rows(file, column, learned) if isinstance(file, Path) and file.suffix.lower() in SUFFIXES else _lines(file)
        for file in files
    )
    typed: list[Given] = [(f"text {i}", text) for i, text in enumerate(texts)]
    for name, text in chain(typed, chain.from_iterable(read)):
        reason = unfit(text) if isinstance(text, str) else None
        yield name, DataError(f"{name}: {reason}.") if reason else text


def _lines(file: Path | BufferedReader) -> Iterator[Given]:
    if not isinstance(file, Path):
        yield from _lines_in(file, STDIN)
        return
    try:
        with open_file(file) as lines:
            yield from _lines_in(lines, str(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from None


def _lines_in(lines: BufferedReader, file: str) -> Iterator[Given]:
    number = 0
    while line := lines.readline(MAX_ROW_BYTES):
        number += 1
        name = f"{file}:{number}"
        whole = line.endswith(b"\n") or len(line) < MAX_ROW_BYTES
        yield name, _text(name, line, number == 1) if whole else _too_long(name, lines)


def _text(name: str, line: bytes, first: bool) -> str | DataError:
    try:
        return line.removesuffix(b"\n").decode("utf-8-sig" if first else "utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        return DataError(f"{name}: byte {error.start} is not UTF-8; save the file in UTF-8.")


def _too_long(name: str, lines: BufferedReader) -> DataError:
    """Skip the rest of a line, and make its error."""
    while (rest := lines.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
        pass
    return DataError(f"{name}: the line must have at most {MAX_ROW_BYTES // 2**20} MB.")


def _rows(file: Path, column: str | None, learned: str | None) -> Iterator[Given]:
    import pyarrow as pa

    table = read_table(file)
    if column is None and learned is None and (joined := columns_of_text(table.schema)):
        table = join_columns(table, joined)
    names = table.column_names
    found = column or next((name for name in (learned, *TEXT_NAMES) if name in names), None)
    if found is None:
        raise InputError(f"{file} has no column {', '.join(TEXT_NAMES)}, only {', '.join(names)}. Give --column NAME.")
    if found not in names:
        raise InputError(f"--column {found!r} is no column of {file}. {did_you_mean(found, names)}")
    if names.count(found) > 1:
        raise DataError(f"{file} must have each column once, but has {found!r} {names.count(found)} times.")
    if pa.types.is_nested(kind := table.schema.field(found).type):
        raise InputError(f"{file} must have texts in the column {found!r}, got {kind}.")
    rows = (row for batch in table.select([found]).to_batches(_ROWS) for row in batch.column(0).to_pylist())
    for i, value in enumerate(rows):
        yield f"{file} row {i}", "" if value is None else str(value)
