"""Several data sets as one stream, one task each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from ostinato.errors import DataError, InputError, did_you_mean
from ostinato.streams.source import Joined, Source
from ostinato.streams.tables import TableOptions, table, table_files
from ostinato.streams.text_sets import answer_of


def joined(folder: Path, names: Sequence[str], **options: Unpack[TableOptions]) -> Source:
    """Open data sets that lie side by side, each in a folder with its tables.

    Classes are named ``<set>: <class>``, since two sets may use the same word. Where they do (the stars of two shops,
    as "1 star" or "1"), ``Source.label_groups`` groups these classes: an evaluation may then count them as the same
    answer.

    Args:
        folder: parent folder of the sets.
        names: of the sets, in learning order.
        options: of the tables of every set.

    Raises:
        InputError: if a set does not exist, or is named twice.
        DataError: if a set cannot be used, lacks the test split that others have, or holds samples of another modality.
    """
    if not folder.is_dir():
        raise InputError(f"data.sets needs data.path to be the folder that holds the sets, but {folder} is no folder.")
    try:
        there = sorted(p.name for p in folder.iterdir() if p.is_dir() and table_files(p))
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read ({error.strerror}).") from error
    if not names or len(set(names)) < len(names):
        raise InputError(f"data.sets must name at least one set, each once, not {list(names)}.")
    if unknown := [name for name in names if name not in there]:
        raise InputError(
            f"data.sets: {folder} has no set {unknown[0]!r}, only {', '.join(there)}. {did_you_mean(unknown[0], there)}"
        )
    parts = [table(folder / name, **options) for name in names]
    kinds = {part.modality for part in parts}
    if len(kinds) > 1:
        raise DataError(f"The sets of data.sets must have one modality, but {folder} holds images and texts.")
    task_names = [[f"{name}: {c}" for c in part.class_names] for name, part in zip(names, parts, strict=True)]
    starts = np.cumsum([0, *(len(part.class_names) for part in parts)])
    answers = [answer_of(c) for part in parts for c in part.class_names]
    place = {name: i for i, name in enumerate(dict.fromkeys(answers))}
    label_groups = [place[name] for name in answers]
    tests = [part.test for part in parts if part.test is not None]
    if len(tests) not in (0, len(parts)):
        raise DataError(f"Either all sets of {folder} need test samples or none, but only {len(tests)} have them.")
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
