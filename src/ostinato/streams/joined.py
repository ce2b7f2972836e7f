"""Several data sets as one stream: a task for each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ostinato.errors import DataError, InputError, did_you_mean
from ostinato.streams.source import Joined, Source
from ostinato.streams.tables import table, table_files


def joined(
    folder: Path,
    names: Sequence[str],
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    on_error: str = "raise",
    seed: int = 0,
) -> Source:
    """Open data sets that lie side by side, each in a folder with tables of its own.

    Classes are called ``<set>: <class>``, since two sets may use the same word. Where they do (the stars of two shops),
    ``Source.label_groups`` says so: an evaluation may then count one for the other.

    Args:
        folder: where the sets are.
        names: of the sets, in the order in which they are learned.
        image_column: as in :func:`ostinato.streams.tables.table`, of every set.
        text_column: the same.
        label_column: the same.
        on_error: the same.
        seed: the same.

    Returns:
        The source, whose ``task_names`` hold the classes of each set.

    Raises:
        InputError: if a set is not there, or named twice.
        DataError: if a set cannot be used, lacks the test split that others have, or holds another kind of samples.
    """
    if not folder.is_dir():
        raise InputError(f"data.sets needs a folder that holds the sets as data.path, but {folder} is none.")
    try:
        there = sorted(p.name for p in folder.iterdir() if p.is_dir() and table_files(p))
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read ({error.strerror}).") from error
    if not names or len(set(names)) < len(names):
        raise InputError(f"data.sets must name at least one set, each once, got {list(names)}.")
    if unknown := [name for name in names if name not in there]:
        raise InputError(
            f"data.sets: {folder} holds no set {unknown[0]!r}, only {', '.join(there)}. "
            f"{did_you_mean(unknown[0], there)}"
        )
    parts = [
        table(
            folder / name,
            image_column=image_column,
            text_column=text_column,
            label_column=label_column,
            on_error=on_error,
            seed=seed,
        )
        for name in names
    ]
    kinds = {part.modality for part in parts}
    if len(kinds) > 1:
        raise DataError(f"The sets of data.sets must hold samples of one kind, but {folder} brings images and texts.")
    task_names = [[f"{name}: {c}" for c in part.class_names] for name, part in zip(names, parts, strict=True)]
    starts = np.cumsum([0, *(len(part.class_names) for part in parts)])
    place = {name: i for i, name in enumerate(dict.fromkeys(c for part in parts for c in part.class_names))}
    label_groups = [place[c] for part in parts for c in part.class_names]
    tests = [part.test for part in parts if part.test is not None]
    if len(tests) not in (0, len(parts)):
        raise DataError(f"Either all sets of {folder} have test samples or none, but only {len(tests)} have.")
    return Source(
        folder.resolve().name,
        [name for task in task_names for name in task],
        Joined([p.train for p in parts], names, [p.train.labels + s for p, s in zip(parts, starts[:-1], strict=True)]),
        Joined(tests, names, [t.labels + s for t, s in zip(tests, starts[:-1], strict=True)]) if tests else None,
        parts[0].augment,
        task_names=task_names,
        skipped=[f"{name}/{line}" for name, part in zip(names, parts, strict=True) for line in part.skipped],
        notes=[f"{name}: {line}" for name, part in zip(names, parts, strict=True) for line in part.notes],
        test_was_cut=any(part.test_was_cut for part in parts),
        label_groups=label_groups if len(place) < len(label_groups) else None,
    )
