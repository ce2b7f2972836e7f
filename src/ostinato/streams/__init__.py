"""Sources of images and texts, and streams of tasks cut from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ostinato.errors import InputError, did_you_mean
from ostinato.paths import is_there, refuse_url, user_path
from ostinato.streams.arrays import arrays
from ostinato.streams.base import LabeledDataset, Source, Split, StreamOptions, Task, TaskStream, Transform, scorable
from ostinato.streams.folder import holds_class_folders, image_folder
from ostinato.streams.source import check_on_error
from ostinato.streams.texts import TextTransform
from ostinato.streams.transforms import EvalTransform, TrainTransform

if TYPE_CHECKING:
    from ostinato.streams.tables import TableOptions

__all__ = [
    "SOURCES",
    "EvalTransform",
    "LabeledDataset",
    "Source",
    "Split",
    "StreamOptions",
    "Task",
    "TaskStream",
    "TextTransform",
    "TrainTransform",
    "Transform",
    "arrays",
    "image_folder",
    "kind_of",
    "open_source",
    "scorable",
]

SOURCES = ("digits", "glyphs", "cifar100")
"""Source names of ``open_source``, beside paths and ``hub:owner/name``."""


def open_source(
    spec: str,
    *,
    on_error: str = "raise",
    sets: Sequence[str] | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    classes: int | None = None,
    task_folders: bool | None = None,
) -> Source:
    """Open a source by name or path.

    Args:
        spec: "digits", "glyphs", "cifar100", "hub:owner/name", a folder with tables (parquet, csv, tsv or jsonl), a
            table, or a folder of images. A known name wins over a folder of that name: "./digits" is the folder.
        on_error: "raise" to refuse data with bad images or empty texts, "skip" to leave these out.
        sets: names of data sets in the folder, each a folder with tables; every one becomes a task, in this order.
        image_column: of a table; None to detect it.
        text_column: of a table; None to detect it, where there is no column of images.
        label_column: of a table; None to detect it.
        seed: of test splits that are cut here, and of rendered glyphs.
        classes: number of glyphs to render.
        task_folders: whether an image folder has a folder per task; None to infer that from names like "task1".

    Raises:
        InputError: if the spec is neither a name nor a path, or an option does not apply to it.
        DataError: if the data cannot be used.
    """
    check_on_error(on_error)
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}.")
    columns: TableOptions = {"image_column": image_column, "text_column": text_column, "label_column": label_column}
    options: TableOptions = {**columns, "on_error": on_error, "seed": seed}
    if sets is not None:
        _refuse_unused("sets", spec, ("glyphs",), classes=classes)
        _refuse_unused("sets", spec, ("folder",), task_folders=task_folders)
        from ostinato.streams.joined import joined

        return joined(user_path(spec, "data"), sets, **options)
    kind, path = kind_of(spec), user_path(spec, "data")
    _refuse_unused(kind, spec, ("table", "hub"), **columns)
    _refuse_unused(kind, spec, ("glyphs",), classes=classes)
    _refuse_unused(kind, spec, ("folder",), task_folders=task_folders)
    if kind == "digits":
        from ostinato.streams.vision import digits

        return digits(seed)
    if kind == "glyphs":
        from ostinato.streams.glyphs import glyphs

        return glyphs(seed=seed) if classes is None else glyphs(classes, seed=seed)
    if kind == "cifar100":
        from ostinato.streams.vision import cifar100

        return cifar100()
    if kind == "folder":
        return image_folder(path, on_error=on_error, seed=seed, task_folders=task_folders)
    from ostinato.streams.tables import hub, table

    if kind == "hub":
        return hub(spec.removeprefix("hub:"), **options)
    return table(path, **options)


def kind_of(spec: str) -> str:
    """Kind of source of a name or path: one of ``SOURCES``, "hub", "table" or "folder".

    Raises:
        InputError: if ``spec`` is neither a name nor a path.
        DataError: if the path cannot be accessed.
    """
    if spec in SOURCES:
        return spec
    if spec.startswith("hub:"):
        if spec == "hub:":
            raise InputError("hub: needs the name of a data set, as in 'hub:owner/name'.")
        return "hub"
    refuse_url(spec, "data")
    path = user_path(spec, "data")
    if not spec or not is_there(path):
        raise InputError(
            f"Data must be a known name, 'hub:owner/name' or an existing path, not {spec!r}. "
            f"{did_you_mean(spec, SOURCES)} Relative paths start at {Path.cwd()}."
        )
    from ostinato.streams.readers import SUFFIXES
    from ostinato.streams.tables import table_files, training_files

    if not path.is_dir():
        return "table" if path.suffix.lower() in SUFFIXES else "folder"
    # A table beside class folders does not hide the images, unless it is named as the training split.
    is_table = bool(training_files(path)) or (bool(table_files(path)) and not holds_class_folders(path))
    return "table" if is_table else "folder"


def _refuse_unused(kind: str, spec: str, kinds: tuple[str, ...], **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given and kind not in kinds:
        raise InputError(
            f"{' and '.join(given)} applies to {' and '.join(kinds)} data only: leave it out for {spec!r}."
        )
