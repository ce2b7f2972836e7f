"""Tables of encoded images or of texts: files on disk and data sets of the Hugging Face hub."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
from PIL import Image

from ostinato.errors import DataError, InputError, did_you_mean
from ostinato.paths import is_there
from ostinato.streams.decode import decode, problems
from ostinato.streams.readers import SUFFIXES, is_binary, is_string, plain, read_table
from ostinato.streams.source import (
    HELD_OUT,
    Source,
    Split,
    check_on_error,
    hold_out,
    listed,
    natural_key,
    refuse,
    without,
)
from ostinato.streams.text_sets import columns_of_text, join_columns
from ostinato.streams.texts import Texts

_IMAGE_NAMES = ("image", "img", "images")
_LABEL_NAMES = ("label", "fine_label", "labels")
TEXT_NAMES = ("text", "content", "sentence")
_TEST_NAMES = ("test", "validation", "valid", "val")
_HUB_NAME = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)

MAX_LABEL = 1_000
"""Characters of a label that is a text, which names a class."""


@dataclass(frozen=True)
class _Part:
    """Rows of one split, and where they come from."""

    table: pa.Table
    files: tuple[str, ...]
    starts: tuple[int, ...]
    folder: Path | None = None

    def name(self, row: int) -> str:
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.files[file]} row {row - self.starts[file]}"


class Table(Split):
    """Rows of a table with a column of images, decoded on access."""

    def __init__(self, part: _Part, column: str, rows: np.ndarray, labels: np.ndarray):
        self.labels = labels
        self._part = part
        self._images = part.table.column(column)
        self._rows = rows

    def load(self, index: int) -> Image.Image:  # noqa: D102
        return decode(self._content(index), self.name(index))

    def name(self, index: int) -> str:  # noqa: D102
        return self._part.name(int(self._rows[index]))

    def _content(self, index: int) -> bytes | Path:
        data = self.encoded(index)
        if data is None:
            raise DataError(f"{self.name(index)}: no image.")
        return data

    def encoded(self, index: int) -> bytes | Path | None:
        """The stored image: bytes of an image file, or the file that the row names; None where the row is empty."""
        value = self._images[int(self._rows[index])].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            if value.get("bytes") is None and isinstance(path, str):
                return (self._part.folder or Path()) / path
            value = value.get("bytes")
        return value if isinstance(value, bytes) else None


class TableOptions(TypedDict, total=False):
    """Options of a source of tables.

    Attributes:
        image_column: None, the default, to detect it.
        text_column: None, the default, to detect it, where there is no column of images.
        label_column: None, the default, to detect it.
        on_error: "raise", the default, to refuse data with a bad image or text, "skip" to leave such rows out.
        seed: of the test split, where the data have none; 0 by default.
    """

    image_column: str | None
    text_column: str | None
    label_column: str | None
    on_error: str
    seed: int


def table(path: str | Path, **options: Unpack[TableOptions]) -> Source:
    """Open a folder with ``train*.parquet`` and, if there is one, ``test*.parquet`` (or ``validation*``).

    The files may also be csv, tsv (both with a line of column names) or jsonl. Tables are read into memory as they
    are; images are decoded on access.

    Args:
        path: the folder, or one file.
        options: see :class:`TableOptions`.

    Raises:
        InputError: if the columns cannot be found.
        DataError: if there are no training rows, or an image or label cannot be used.
    """
    path = Path(path)
    if not is_there(path):
        raise DataError(f"There is no table {path}. Check the spelling.")
    files = _split_files(path) if path.is_dir() else {"train": [path]}
    parts = {name: _read(split) for name, split in files.items()}
    name = path.resolve().name if path.is_dir() else path.resolve().stem
    return _source(name, parts, **options)


def hub(name: str, **options: Unpack[TableOptions]) -> Source:
    """Open a data set "owner/name" of the Hugging Face hub, downloaded on first use; needs ``ostinato[hub]``.

    Raises:
        InputError: if the columns cannot be found, or the package ``datasets`` is not installed.
        DataError: if it cannot be loaded, has no training rows, or an image or label cannot be used.
    """
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"hub: needs the name of a data set, as in 'hub:owner/name', not {name!r}.")
    if Path(name).exists():  # the library would read that instead
        raise InputError(
            f"hub:{name} is ambiguous: a file or folder here has this name. Change directory, or leave hub: out."
        )
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise  # it is installed, but broken
        raise InputError(
            f"hub:{name} needs the package datasets, which is not installed: pip install 'ostinato[hub]'. Or download "
            "the parquet files and give the path of their folder."
        ) from None

    parts: dict[str, _Part] = {}
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        for split, rows in datasets.load_dataset(name).items():  # nosec B615  # the user typed the name; rows are read as data
            for column, feature in rows.features.items():
                if isinstance(feature, datasets.Image):
                    rows = rows.cast_column(column, datasets.Image(decode=False))
            stored = plain(rows.with_format("arrow")[:])
            stored.validate(full=True)
            parts[str(split)] = _Part(stored, (f"{name} {split}",), (0,))
    except Exception as error:  # anything from no network to a missing name, a wrong configuration or damaged rows
        raise DataError(
            f"The data set {name!r} cannot be loaded from the hub ({type(error).__name__}: {error}). Check "
            "the name and the network, or download its parquet files and give the path of their folder."
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    return _source(name, parts, **options)


def table_files(folder: Path) -> list[Path]:
    """Tables of a folder or of its subfolder ``data``, all with the first suffix of ``SUFFIXES`` that occurs."""
    for suffix in SUFFIXES:
        there = [*folder.glob(f"*{suffix}"), *folder.glob(f"data/*{suffix}")]
        if found := [path for path in there if not path.is_dir()]:
            return sorted(found, key=lambda p: natural_key(p.name))
    return []


def training_files(folder: Path) -> list[Path]:
    """Tables of a folder that are named after the training split."""
    return _called("train", table_files(folder))


def _called(split: str, files: list[Path]) -> list[Path]:
    return [path for path in files if re.match(rf"{split}(?![a-z])", path.name, re.IGNORECASE)]


def _split_files(folder: Path) -> dict[str, list[Path]]:
    found = table_files(folder)
    files = {name: matching for name in ("train", *_TEST_NAMES) if (matching := _called(name, found))}
    if "train" not in files:
        suffix = found[0].suffix if found else ".parquet"
        raise DataError(
            f"{folder} must hold train{suffix} (or train-00000-of-00002{suffix} and so on), but holds only:"
            f"{listed(path.name for path in found)}\nTo use a single table, give the file instead of the folder."
        )
    return files


def _read(files: list[Path]) -> _Part:
    tables = [read_table(file) for file in files]
    starts = np.cumsum([0, *(table.num_rows for table in tables[:-1])]).tolist()
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(f"The files {listed(map(str, files))}\nmust have the same columns ({error}).") from error
    return _Part(table, tuple(file.name for file in files), tuple(starts), files[0].parent)


def _source(
    name: str,
    parts: dict[str, _Part],
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    on_error: str = "raise",
    seed: int = 0,
) -> Source:
    check_on_error(on_error)
    if "train" not in parts:
        raise DataError(f"{name} has no training split, only {', '.join(sorted(parts))}.")
    notes: list[str] = []
    features = _features(parts["train"].table.schema)
    joined = columns_of_text(parts["train"].table.schema)
    images = any(_holds_images(c, features.get(c.name, {}), image_column) for c in parts["train"].table.schema)
    if joined and not images and text_column is None and label_column not in joined:
        parts = {key: _with_text(part, joined) for key, part in parts.items()}
        notes.append(f"a text of {name} is its columns {', '.join(joined)} together; data.text_column=... takes one")
    schema = parts["train"].table.schema
    modality, column = _sample_column(name, schema, features, {"image": image_column, "text": text_column})
    label = _label_column(name, schema, features, label_column)
    for needed in (column, label):
        if (times := schema.names.count(needed)) > 1:
            raise DataError(f"{name} must have each column once, but has {needed!r} {times} times.")
    test_name = next((key for key in _TEST_NAMES if key in parts), None)
    if test_name not in (None, "test"):
        notes.append(f"{name} has no test split: {test_name} serves as the test split")
    used = [parts["train"]] if test_name is None else [parts["train"], parts[test_name]]
    for part in used[1:]:
        there = part.table.column_names
        if missing := [name for name in (column, label) if there.count(name) != 1]:
            raise DataError(f"{part.files[0]} lacks the columns {missing} of the training split, or has them twice.")
    class_names, labels = _labels(name, used, label, _class_names(name, features.get(label, {})), notes)

    skipped: list[str] = []
    splits: list[Split] = []
    for part, values in zip(used, labels, strict=True):
        rows = np.arange(len(values))
        if modality == "text":
            split = Texts(part.table.column(column), part.name, rows, values)
            bad = split.problems()
        else:
            split = Table(part, column, rows, values)
            bad = problems(split.encoded, len(split), part.table.column(column).nbytes)
        messages = [f"{split.name(i)}: {reason}" for i, reason in bad.items()]
        if messages and on_error == "raise":
            raise refuse(name, messages, len(split), modality)
        skipped.extend(messages)
        splits.append(without(split, bad))
    if test_name is None:
        splits = list(hold_out(splits[0], class_names, fraction=HELD_OUT, seed=seed))
        notes.append(f"{name} has no test split: {HELD_OUT:.0%} of each class is set aside for it")
    test = splits[1] if len(splits[1]) else None
    augment = "photo" if modality == "image" else "none"
    return Source(
        name, class_names, splits[0], test, augment, skipped=skipped, notes=notes, test_was_cut=test_name is None
    )


def _with_text(part: _Part, columns: tuple[str, ...]) -> _Part:
    """Add the joined text to a part that has the columns."""
    has_all = all(part.table.column_names.count(column) == 1 for column in columns)
    return replace(part, table=join_columns(part.table, columns)) if has_all else part


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Feature types that the ``datasets`` library stores with a table, by column; empty where there are none."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
        return {name: value for name, value in features.items() if isinstance(value, dict) and name in schema.names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # metadata of another tool, or damaged
        return {}


def _sample_column(
    name: str, schema: pa.Schema, features: dict[str, dict[str, Any]], given: dict[str, str | None]
) -> tuple[str, str]:
    """Modality and column of the samples; images have priority over texts, which may be their captions."""
    for modality, column in given.items():
        if column is not None:
            _check_column(name, schema, f"{modality}_column", column)
    usable = {
        "image": [c.name for c in schema if _holds_images(c, features.get(c.name, {}), given["image"])],
        "text": [c.name for c in schema if is_string(c.type) and (c.name in TEXT_NAMES or c.name == given["text"])],
    }
    for modality, known in (("image", _IMAGE_NAMES), ("text", TEXT_NAMES)):
        column, found = given[modality], usable[modality]
        if column is not None:
            if column not in found:
                content = "encoded images" if modality == "image" else "texts"
                raise InputError(
                    f"{modality}_column must hold {content}, but {column!r} of {name} holds "
                    f"{schema.field(column).type}."
                )
            return modality, column
        if found and given["text"] is None:
            preferred = [c for c in known if c in found] or found
            if len(found) > 1 and preferred == found:
                raise InputError(
                    f"{name} has several columns of {modality}s ({', '.join(found)}): set data.{modality}_column=..."
                )
            return modality, preferred[0]
    raise InputError(
        f"{name} has no column of images or texts. Columns: {', '.join(schema.names)}; set data.image_column=... "
        "or data.text_column=..."
    )


def _holds_images(column: pa.Field, feature: dict[str, Any], given: str | None) -> bool:
    return (
        feature.get("_type") == "Image"
        or (pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0)
        or (is_binary(column.type) and (column.name in _IMAGE_NAMES or column.name == given))
    )


def _label_column(name: str, schema: pa.Schema, features: dict[str, dict[str, Any]], given: str | None) -> str:
    if given is not None:
        _check_column(name, schema, "label_column", given)
        return given
    labels = [column for column, feature in features.items() if feature.get("_type") == "ClassLabel"]
    column = next((column for column in _LABEL_NAMES if column in schema.names), None)
    if column is None and len(labels) == 1:
        column = labels[0]
    if column is None and "topic" in schema.names:  # Yahoo Answers without the hub's feature types
        column = "topic"
    if column is None:
        raise InputError(
            f"The labels of {name} are not clear. Columns: {', '.join(schema.names)}; set data.label_column=..."
        )
    return column


def _check_column(name: str, schema: pa.Schema, option: str, given: str) -> None:
    if given not in schema.names:
        raise InputError(f"{option} {given!r} is no column of {name}. {did_you_mean(given, schema.names)}")


def _class_names(name: str, feature: dict[str, Any]) -> list[str] | None:
    """Stored names of the classes 0, 1, ...; None where the table has none."""
    names = feature.get("names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(entry, str) for entry in names):
        raise DataError(f"The class names in the metadata of {name} must be a list of texts.")
    return names


@dataclass(frozen=True)
class _Labels:
    """Labels of a part: the distinct values, and each row's position in them."""

    values: list[Any]
    codes: np.ndarray
    part: _Part

    def rows(self, wrong: Sequence[Any]) -> tuple[int, str]:
        """Number of rows with one of these labels, and the first such row, by label and name."""
        codes = [code for code, value in enumerate(self.values) if value in wrong]
        rows = np.flatnonzero(np.isin(self.codes, codes))
        return len(rows), f"{self.values[self.codes[rows[0]]]} in {self.part.name(int(rows[0]))}"


def _stored_labels(name: str, part: _Part, column: str) -> _Labels:
    """Encode the labels of a part.

    Raises:
        InputError: if the column is neither of integers nor of texts.
        DataError: if a label is missing or far too long.
    """
    stored = part.table.column(column)
    if not (pa.types.is_integer(stored.type) or is_string(stored.type) or pa.types.is_null(stored.type)):
        raise InputError(
            f"Labels must be integers or text, but {column!r} of {name} holds {stored.type}: set data.label_column=..."
        )
    coded = stored.dictionary_encode().unify_dictionaries().chunks
    values = coded[0].dictionary.to_pylist() if coded else []
    codes = np.concatenate([np.zeros(0, np.int64), *(np.asarray(chunk.indices.fill_null(-1)) for chunk in coded)])
    blank = [code for code, value in enumerate(values) if not str(value).strip()]
    if len(rows := np.flatnonzero(np.isin(codes, [-1, *blank]))):
        raise DataError(f"Each row needs a label, but {len(rows)} lack one, such as {part.name(int(rows[0]))}.")
    for code, value in enumerate(values):
        if isinstance(value, str) and len(value) > MAX_LABEL:
            row = int(np.flatnonzero(codes == code)[0])
            raise DataError(
                f"A label must have at most {MAX_LABEL:,} characters, but that of {part.name(row)} has "
                f"{len(value):,}: is {column!r} of {name} the column of the labels?"
            )
    return _Labels(values, codes, part)


def _labels(
    name: str, parts: Sequence[_Part], column: str, names: list[str] | None, notes: list[str]
) -> tuple[list[str], list[np.ndarray]]:
    """Class names and the labels of each part, as positions in them."""
    found = [_stored_labels(name, part, column) for part in parts]
    if names is not None:
        for labels in found:
            if outside := [v for v in labels.values if not isinstance(v, int) or not 0 <= v < len(names)]:
                n, first = labels.rows(outside)
                raise DataError(f"Labels of {name} must lie in 0..{len(names) - 1}, but {n} do not, such as {first}.")
    present = set(found[0].values)
    if not present:
        raise DataError(f"{name} has no training rows.")
    for labels in found[1:]:
        if alone := [value for value in labels.values if value not in present]:
            _, first = labels.rows(alone)
            raise DataError(
                f"Test classes need training images, but {name} has none for {len(alone)} of them, such as {first}."
            )
    order = sorted(present, key=lambda value: natural_key(value) if isinstance(value, str) else value)
    if names is not None and len(order) < len(names):
        notes.append(f"{len(names) - len(order)} classes of {name} have no rows and are left out")
    place = {value: label for label, value in enumerate(order)}
    codes = [np.array([place[v] for v in labels.values], dtype=np.int64)[labels.codes] for labels in found]
    return [names[value] if names is not None else str(value) for value in order], codes
