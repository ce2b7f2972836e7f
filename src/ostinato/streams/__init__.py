"""Streams: where images and texts come from, and how classes arrive task after task."""

from collections.abc import Sequence
from pathlib import Path

from ostinato.errors import InputError, did_you_mean
from ostinato.paths import is_there, user_path
from ostinato.streams.arrays import arrays
from ostinato.streams.base import LabeledDataset, Source, Split, StreamOptions, Task, TaskStream, Transform, scorable
from ostinato.streams.folder import holds_class_folders, image_folder
from ostinato.streams.source import check_on_error
from ostinato.streams.texts import TextTransform
from ostinato.streams.transforms import EvalTransform, TrainTransform

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
"""Names that ``open_source`` knows beside paths and ``hub:owner/name``."""


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
        on_error: "raise" to refuse data with bad images or empty texts, "skip" to go on without those.
        sets: names of data sets in the folder, each a folder with tables; every one becomes a task, in this order.
        image_column: of a table; None to find it.
        text_column: of a table; None to find it, where there is no column of images.
        label_column: of a table; None to find it.
        seed: of test splits that are cut here, and of rendered glyphs.
        classes: how many glyphs to render.
        task_folders: whether an image folder has a folder per task; None to see that from names like "task1".

    Returns:
        The source.

    Raises:
        InputError: if the spec is neither a name nor a path, or an option does not apply to it.
        DataError: if the data cannot be used.
    """
    check_on_error(on_error)
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}.")
    columns = {"image_column": image_column, "text_column": text_column, "label_column": label_column}
    if sets is not None:
        _refuse_unused("sets", spec, ("glyphs",), classes=classes)
        _refuse_unused("sets", spec, ("folder",), task_folders=task_folders)
        from ostinato.streams.joined import joined

        return joined(user_path(spec, "data"), sets, on_error=on_error, seed=seed, **columns)
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
        return hub(spec.removeprefix("hub:"), on_error=on_error, seed=seed, **columns)
    return table(path, on_error=on_error, seed=seed, **columns)


def kind_of(spec: str) -> str:
    """What :func:`open_source` takes a name or path for: one of ``SOURCES``, "hub", "table" or "folder".

    Raises:
        InputError: if it is neither a name nor a path.
        DataError: if it cannot be looked at.
    """
    if spec in SOURCES:
        return spec
    if spec.startswith("hub:"):
        if spec == "hub:":
            raise InputError("hub: needs the name of a data set, as in 'hub:owner/name'.")
        return "hub"
    path = user_path(spec, "data")
    if not spec or not is_there(path):
        raise InputError(
            f"Data must be a known name, 'hub:owner/name' or a path that exists, but {spec!r} is none of "
            f"them. {did_you_mean(spec, SOURCES)} Relative paths start at {Path.cwd()}."
        )
    from ostinato.streams.readers import SUFFIXES
    from ostinato.streams.tables import table_files, training_files

    if not path.is_dir():
        return "table" if path.suffix.lower() in SUFFIXES else "folder"
    # A list that lies beside class folders does not hide the images; one of training samples holds them itself.
    is_table = bool(training_files(path)) or (bool(table_files(path)) and not holds_class_folders(path))
    return "table" if is_table else "folder"


def _refuse_unused(kind: str, spec: str, kinds: tuple[str, ...], **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given and kind not in kinds:
        raise InputError(
            f"{' and '.join(given)} applies to {' and '.join(kinds)} data only: leave it out for {spec!r}."
        )
