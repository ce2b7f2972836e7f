"""Reader of tables from untrusted files: csv, tsv, jsonl and parquet, each in bounded memory.

Text files take a multiple of their size. A parquet file may unpack to far more than its size; it is read in small
batches and refused as soon as they exceed the limit. A single page cannot be bounded: the library unpacks it as a
whole, up to 2 GB.
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
"""Maximum bytes of a row of a csv, tsv or jsonl file: a field without an end would be kept in memory as it is read."""

MAX_COLUMNS = 1_000
"""Maximum columns of a table, since each takes memory in every row and batch."""

MAX_UNPACKED_BYTES = 2**31
MAX_UNPACKED_TIMES = 20
"""Maximum unpacked bytes of a parquet file, and maximum ratio to its size where that allows more; real files unpack to
two to five times their size."""

MAX_ROWS = 1_000_000
MAX_VALUES = 10_000_000
"""Maximum rows of a parquet file, and values of a column of one or of a jsonl file; files of more bytes may have more,
one a byte."""

_BATCH_ROWS = 256
"""Rows of parquet that are unpacked at a time: few, as each may repeat one large value."""

_CAST_ROWS = 2**16
"""Rows whose dictionaries are decoded at a time, since one array cannot hold texts of more than 2 GB."""

_CHUNK_BYTES = 2**26
"""Bytes of rows that are kept in one array."""

_CELLS = 2**22
"""Values of jsonl that are kept as Python objects at a time."""

_HEADER = re.compile(rb'\s*+((?:[^"\r\n]++|"[^"]*+"?)*+)')
"""The first row of a csv file; a field in quotes may hold line breaks."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which cannot be encoded."""


def read_table(file: Path) -> pa.Table:
    """Read a table from a file, in the format of its suffix; csv and tsv start with a line of column names.

    Raises:
        DataError: if it cannot be read, or has another format.
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
    except Exception as error:  # pyarrow's errors on damaged files have no common base
        hint = " Save it in UTF-8." if "utf" in str(error).lower() else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{file} cannot be read as {kind} ({reason}).{hint}") from error
    return table


def _native(file: Path) -> pa.OSFile:
    """Open a file by Arrow: its threads may end the process when a Python file raises in them."""
    return pa.OSFile(os.fsencode(file))


def _separated(file: Path, head: bytes) -> pa.Table:
    """Read a csv or tsv file, all fields as text."""
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
        # "001" is not "1": no field is a number, a date or a truth value.
        options = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with _native(file) as source:
            return csv.read_csv(source, blocks, lines, options)
    except pa.ArrowInvalid as error:
        if "straddl" not in str(error):
            raise
        row = _rows_before_the_error(file, lines)
        raise DataError(
            f"{file} row {row} must have at most {MAX_ROW_BYTES // 2**20} MB and closed quotes: repair or remove it."
        ) from error


def _rows_before_the_error(file: Path, lines: csv.ParseOptions) -> int:
    n = 0
    blocks = csv.ReadOptions(block_size=MAX_ROW_BYTES, use_threads=False)
    try:
        with _native(file) as source, csv.open_csv(source, blocks, lines) as reader:
            for batch in reader:
                n += batch.num_rows
    except pa.ArrowInvalid:
        pass  # the error to locate
    return n


def _json_lines(file: Path, lines: io.BufferedReader, size: int) -> pa.Table:
    """Read a file with an object a line: texts, numbers, truth values and nulls."""
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
                f"{file} line {number}: the table must not have more values than the file has bytes, but has "
                f"{n + 1:,} rows of {len(wider):,} columns."
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
        if name in nested:  # keep the type, so that using the column is refused as a list
            table = table.set_column(i, name, pa.nulls(table.num_rows, pa.list_(pa.null())))
    return table


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    """Parse the object of a line, whose numbers and texts must fit Arrow."""
    where = f"{file} cannot be read as jsonl: line {number}"
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 at byte {error.start}. Save it in UTF-8.") from None
    except RecursionError:
        raise DataError(f"{where} is nested too deeply.") from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} must be an object with a text for each column.")
    for name, value in row.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise DataError(f"{where}: {name!r} must be a number of at most 64 bits; write it as a text.")
        if b"\\u" in line and isinstance(value, str) and _SURROGATE.search(name + value):
            raise DataError(f"{where}: {name!r} holds half a character (a surrogate).")
    return row


def _lines(file: Path, lines: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their numbers, counted from 1."""
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
    """Read a parquet file, counting its bytes before and while it is unpacked; lists, never used, are left empty.

    Sizes of single columns are not read: on damaged files that ends the process.
    """
    limit = max(MAX_UNPACKED_BYTES, MAX_UNPACKED_TIMES * size)
    with _native(file) as source, _native(file) as again:
        reader = pq.ParquetFile(source)
        metadata, schema = reader.metadata, reader.schema_arrow
        leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        _check_columns(file, metadata.num_columns)
        if metadata.num_rows > max(MAX_ROWS, size):
            raise DataError(f"{file} claims {metadata.num_rows:,} rows, more than it has bytes: it is damaged.")
        _check_unpacked(file, sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)), limit)
        _check_unpacked(file, metadata.num_rows * sum(leaf.length for leaf in leaves if leaf.length > 0), limit)
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        counted = pq.ParquetFile(again, read_dictionary=texts)
        columns = [field.name for field in schema if not _holds_lists(field.type)]
        kept = pa.schema([field for field in schema if not _holds_lists(field.type)], schema.metadata)
        parts, used = [pa.Table.from_batches([], kept)], 0
        for i in range(reader.num_row_groups):
            pending, pending_bytes = [], 0
            for batch in _batches(reader, counted, i, columns):
                size_of_batch = sum(_unpacked_bytes(column) for column in batch.columns)
                used, pending_bytes = used + size_of_batch, pending_bytes + size_of_batch
                _check_unpacked(file, used, limit)
                whole = pa.Table.from_batches([batch])
                pending += [whole.slice(k, _CAST_ROWS).cast(kept) for k in range(0, batch.num_rows, _CAST_ROWS)]
                if pending_bytes > _CHUNK_BYTES:
                    parts.append(pa.concat_tables(pending).combine_chunks())
                    pending, pending_bytes = [], 0
            parts += [pa.concat_tables(pending).combine_chunks()] if pending else []
    read = iter(pa.concat_tables(parts).columns)
    filled = (pa.nulls(metadata.num_rows, f.type) if _holds_lists(f.type) else next(read) for f in schema)
    return pa.Table.from_arrays(list(filled), schema=schema)


def _batches(reader: pq.ParquetFile, counted: pq.ParquetFile, i: int, columns: list[str]) -> Iterable[pa.RecordBatch]:
    """Rows of a group; a large one is read as dictionaries, so that a repeated value is in memory once."""
    group = reader.metadata.row_group(i)
    if group.num_rows * group.total_byte_size <= MAX_UNPACKED_BYTES // 8:
        return reader.iter_batches(_BATCH_ROWS, row_groups=[i], columns=columns)
    try:
        return counted.read_row_group(i, columns=columns).to_batches()
    except OSError as error:  # delta encodings cannot be read as dictionaries
        if "Not yet implemented" not in str(error):
            raise
        rows = max(1, min(_BATCH_ROWS, _CHUNK_BYTES // max(1, group.total_byte_size)))
        return reader.iter_batches(rows, row_groups=[i], columns=columns)


def _holds_lists(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_lists(field.type) for field in kind)
    return pa.types.is_nested(kind)


def _unpacked_bytes(values: pa.Array) -> int:
    """Bytes of values, with dictionaries decoded."""
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
            f"{file} must unpack to at most {limit // 10**6:,} MB, but takes {n // 10**6:,} MB or more: divide it into "
            "smaller files if it is not damaged."
        )


def plain(table: pa.Table) -> pa.Table:
    """Decode dictionary columns (categories) to their values, and truth values to "true" and "false"."""
    for i, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        word = pa.string() if pa.types.is_boolean(kind) else kind
        if word != field.type:
            table = table.set_column(i, field.with_type(word), table.column(i).cast(word))
    return table
