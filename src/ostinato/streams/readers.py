"""Tables from files, whatever these hold: csv, tsv, jsonl and parquet, each read in a bounded memory.

Text files take a multiple of their own size. A parquet file may say much in few bytes; it is read in small batches and
refused as soon as they are too much. What cannot be bounded is one page of it, which the library unpacks as a whole: up
to 2 GB.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from ostinato.errors import DataError
from ostinato.paths import open_file

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")

MAX_ROW_BYTES = 2**24
"""Bytes of a row of a csv, tsv or jsonl file: a field without an end would be kept in memory as it is read."""

MAX_COLUMNS = 1_000
"""Columns of a table, since each takes memory in every row and batch."""

MAX_UNPACKED_BYTES = 2**31
MAX_UNPACKED_TIMES = 20
"""A parquet file may unpack to so many bytes, and to so many times its own size where that is more; real ones take
two to five times as much."""

MAX_ROWS = 1_000_000
MAX_VALUES = 10_000_000
"""Rows of a parquet file, and values of a column of one or of a jsonl file; those of more bytes may have as many."""

_BATCH_ROWS = 256
"""Rows of parquet that are unpacked at a time: few, as each may repeat one large value."""

_CAST_ROWS = 2**16
"""Rows whose dictionaries are replaced at a time, since texts of more than 2 GB are no one piece of memory."""

_CHUNK_BYTES = 2**26
"""Bytes of rows that are kept as one piece of memory."""

_CELLS = 2**22
"""Values of jsonl that are kept as objects of Python at a time."""

_HEADER = re.compile(rb'\s*+((?:[^"\r\n]++|"[^"]*+"?)*+)')
"""The first row of a csv file; a field in quotes may hold line breaks."""


def read_table(file: Path) -> pa.Table:
    """Read a table from a file, by its ending; csv and tsv start with a line of column names.

    Raises:
        DataError: if it cannot be read, or is not what its ending says.
    """
    kind = file.suffix.lower()[1:]
    try:
        with open_file(file) as source:
            size = source.seek(0, io.SEEK_END)
            source.seek(0)
            if kind == "jsonl":
                return plain(_json_lines(file, source, size))
            if kind != "parquet":
                return _separated(file, source.read(MAX_ROW_BYTES))
        table = plain(_parquet(file, size))
        table.validate(full=True)  # damaged texts would raise when they are read
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{file} cannot be read as {kind}: it takes more memory than there is.") from None
    except Exception as error:  # what pyarrow raises on damaged files has no common base
        hint = " Save it in UTF-8." if "utf" in str(error).lower() else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{file} cannot be read as {kind} ({reason}).{hint}") from error
    return table


def _native(file: Path) -> pa.OSFile:
    """A file as Arrow reads it: threads that read a file of Python may end the process when an error ends them."""
    return pa.OSFile(os.fsencode(file))


def _separated(file: Path, head: bytes) -> pa.Table:
    """A csv or tsv file, all of whose fields stay as they are written."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file} cannot be read as {file.suffix[1:]}: it is in UTF-16. Save it in UTF-8.")
    found = _HEADER.match(head)
    header = b"" if found is None else found[1]
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ";" if b";" in header and b"," not in header else ","
    _check_columns(file, header.count(delimiter.encode()) + 1)
    lines = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    blocks = csv.ReadOptions(block_size=MAX_ROW_BYTES)
    try:
        with _native(file) as source, csv.open_csv(source, blocks, lines) as reader:
            names = reader.schema.names
        # Even where all look like numbers, dates or truth values: "001" is not "1".
        options = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with _native(file) as source:
            return csv.read_csv(source, blocks, lines, options)
    except pa.ArrowInvalid as error:
        if "straddl" not in str(error):
            raise
        row = _rows_before_the_error(file, lines)
        raise DataError(
            f"{file} row {row} must have at most {MAX_ROW_BYTES // 2**20} MB, and quotes that end: repair or remove it."
        ) from error


def _rows_before_the_error(file: Path, lines: csv.ParseOptions) -> int:
    n = 0
    blocks = csv.ReadOptions(block_size=MAX_ROW_BYTES, use_threads=False)
    try:
        with _native(file) as source, csv.open_csv(source, blocks, lines) as reader:
            for batch in reader:
                n += batch.num_rows
    except pa.ArrowInvalid:
        pass  # the one that is looked for
    return n


def _json_lines(file: Path, lines: io.BufferedReader, size: int) -> pa.Table:
    """A file with an object a line: texts, numbers, truth values and what is missing."""
    known: dict[str, None] = {}
    nested: set[str] = set()
    parts: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    n = used = 0

    def keep() -> None:
        if rows and not known:
            raise DataError(f"{file} cannot be read as jsonl: its objects have no columns.")
        parts.append(pa.table({name: pa.array([row.get(name) for row in rows]) for name in known}))

    for number, line in _lines(file, lines):
        row = _object(file, number, line)
        wider = known if row.keys() <= known.keys() else known | dict.fromkeys(row)
        _check_columns(file, len(wider))
        if (n + 1) * len(wider) > max(MAX_VALUES, size):
            raise DataError(
                f"{file} line {number}: {n + 1:,} rows of {len(wider):,} columns are more values than bytes."
            )
        if used > _CHUNK_BYTES // 4 or len(rows) * len(wider) > _CELLS:
            keep()
            rows, used = [], 0
        known = wider
        for name in [name for name, value in row.items() if isinstance(value, dict | list)]:
            nested.add(name)
            row[name] = None
        rows.append(row)
        n, used = n + 1, used + len(line)
    keep()
    table = pa.concat_tables(parts, promote_options="permissive")
    for i, name in enumerate(table.column_names):
        if name in nested:  # whoever asks for it is told that it is a list
            table = table.set_column(i, name, pa.nulls(table.num_rows, pa.list_(pa.null())))
    return table


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    """The object of a line, whose numbers and texts Arrow can hold."""
    where = f"{file} cannot be read as jsonl: line {number}"
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 at byte {error.start}. Save it in UTF-8.") from None
    except RecursionError:
        raise DataError(f"{where} is nested too deeply.") from None
    except ValueError as error:
        raise DataError(f"{where} is no JSON ({error}).") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} must be an object with a text for each column.")
    for name, value in row.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise DataError(f"{where}: {name!r} must be a number of at most 64 bits; write it as a text.")
        if b"\\u" in line and isinstance(value, str) and not _is_unicode(name + value):
            raise DataError(f"{where}: {name!r} holds half a character (a surrogate).")
    return row


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(file: Path, lines: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    number, any_line = 0, False
    while line := lines.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise DataError(f"{file} line {number} must have at most {MAX_ROW_BYTES // 2**20} MB: repair or remove it.")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            any_line = True
            yield number, line
    if not any_line:
        raise DataError(f"{file} cannot be read as jsonl: it is empty.")


def _parquet(file: Path, size: int) -> pa.Table:
    """A parquet file, counted before and while it is unpacked; lists, which nobody asks for, are left empty.

    Sizes of single columns are not looked at: on damaged ones, the library ends the process.
    """
    limit = max(MAX_UNPACKED_BYTES, MAX_UNPACKED_TIMES * size)
    with _native(file) as source, _native(file) as again:
        reader = pq.ParquetFile(source)
        about, schema = reader.metadata, reader.schema_arrow
        leaves = [about.schema.column(i) for i in range(about.num_columns)]
        _check_columns(file, about.num_columns)
        if about.num_rows > max(MAX_ROWS, size):
            raise DataError(f"{file} says that it has {about.num_rows:,} rows, more than it has bytes: it is damaged.")
        _check_unpacked(file, sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups)), limit)
        _check_unpacked(file, about.num_rows * sum(leaf.length for leaf in leaves if leaf.length > 0), limit)
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        counted = pq.ParquetFile(again, read_dictionary=texts)
        columns = [field.name for field in schema if not _holds_lists(field.type)]
        kept = pa.schema([field for field in schema if not _holds_lists(field.type)], schema.metadata)
        parts, used = [pa.Table.from_batches([], kept)], 0
        for i in range(reader.num_row_groups):
            waiting, waits = [], 0
            for batch in _batches(reader, counted, i, columns):
                taken = sum(_unpacked_bytes(column) for column in batch.columns)
                used, waits = used + taken, waits + taken
                _check_unpacked(file, used, limit)
                whole = pa.Table.from_batches([batch])
                waiting += [whole.slice(k, _CAST_ROWS).cast(kept) for k in range(0, batch.num_rows, _CAST_ROWS)]
                if waits > _CHUNK_BYTES:
                    parts.append(pa.concat_tables(waiting).combine_chunks())
                    waiting, waits = [], 0
            parts += [pa.concat_tables(waiting).combine_chunks()] if waiting else []
    read = iter(pa.concat_tables(parts).columns)
    filled = (pa.nulls(about.num_rows, field.type) if _holds_lists(field.type) else next(read) for field in schema)
    return pa.Table.from_arrays(list(filled), schema=schema)


def _batches(reader: pq.ParquetFile, counted: pq.ParquetFile, i: int, columns: list[str]) -> Iterable[pa.RecordBatch]:
    """Rows of a group; of a large one so that a value is in memory once before it is repeated."""
    group = reader.metadata.row_group(i)
    if group.num_rows * group.total_byte_size <= MAX_UNPACKED_BYTES // 8:
        return reader.iter_batches(_BATCH_ROWS, row_groups=[i], columns=columns)
    try:
        return counted.read_row_group(i, columns=columns).to_batches()
    except OSError as error:  # such as those that are stored as what distinguishes them from the one before
        if "Not yet implemented" not in str(error):
            raise
        rows = max(1, min(_BATCH_ROWS, _CHUNK_BYTES // max(1, group.total_byte_size)))
        return reader.iter_batches(rows, row_groups=[i], columns=columns)


def _holds_lists(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_lists(field.type) for field in kind)
    return pa.types.is_nested(kind)


def _unpacked_bytes(values: pa.Array) -> int:
    """Bytes of values, those of a dictionary as often as they are taken from it."""
    kind = values.type
    if pa.types.is_dictionary(kind) and (is_string(kind.value_type) or is_binary(kind.value_type)):
        lengths = pc.call_function("binary_length", [values.dictionary]).take(values.indices)
        return values.indices.nbytes + (pc.call_function("sum", [lengths.cast(pa.int64())]).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_unpacked_bytes(field) for field in values.flatten())
    return values.nbytes


def is_string(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _check_columns(file: Path, n: int) -> None:
    if n > MAX_COLUMNS:
        raise DataError(f"{file} must have at most {MAX_COLUMNS:,} columns, but has {n:,} or more.")


def _check_unpacked(file: Path, n: int, limit: int) -> None:
    if n > limit:
        raise DataError(
            f"{file} must hold at most {limit // 10**6:,} MB when it is unpacked, but holds {n // 10**6:,} MB or more: "
            "divide it into smaller files if it is not damaged."
        )


def plain(table: pa.Table) -> pa.Table:
    """Columns of words from a list (categories) as the words themselves, and truth values as "true" and "false"."""
    for i, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        word = pa.string() if pa.types.is_boolean(kind) else kind
        if word != field.type:
            table = table.set_column(i, field.with_type(word), table.column(i).cast(word))
    return table
