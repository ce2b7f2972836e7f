"""Image folders with a folder per class.

The layouts are ``ROOT/{train,test}/<class>/`` (``val`` or ``valid`` replace a missing ``test``), ``ROOT/<class>/`` (a
part of each class is held out for testing) and, with a folder per task, ``ROOT/<task>/<class>/`` or
``ROOT/{train,test}/<task>/<class>/``. Folders inside a class folder belong to the class. Downloads that list their
classes or splits in text files are read as ``listings.py`` says.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ostinato.errors import DataError
from ostinato.paths import is_there
from ostinato.streams.decode import decode, problems
from ostinato.streams.listings import read_listing
from ostinato.streams.source import (
    HELD_OUT,
    Source,
    Split,
    check_on_error,
    hold_out,
    listed,
    natural_key,
    plain_name,
    refuse,
    without,
)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".heic", ".heif"})

LAYOUT = "expected ROOT/train/<class>/*.jpg and ROOT/test/<class>/*.jpg, or ROOT/<class>/*.jpg"

_TEST_NAMES = ("test", "val", "valid", "validation")
_JUNK = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})
_TASK = re.compile(r"task[\W_]*\d+", re.IGNORECASE)


class Files(Split):
    """Images in a folder, by their paths relative to it, read on access."""

    def __init__(self, root: Path, paths: list[str], labels: np.ndarray):
        self.root = root
        self.paths = paths
        self.labels = labels

    def load(self, index: int) -> Image.Image:  # noqa: D102
        path = self.root / self.paths[index]
        return decode(path, str(path))

    def name(self, index: int) -> str:  # noqa: D102
        return self.paths[index]

    def _content(self, index: int) -> Path:
        return self.root / self.paths[index]


@dataclass(frozen=True)
class _ClassFolder:
    name: str
    task: str | None
    place: str
    files: tuple[str, ...]
    others: tuple[str, ...]


def image_folder(
    root: str | Path, *, on_error: str = "raise", seed: int = 0, task_folders: bool | None = None
) -> Source:
    """Open a folder of images and check every file.

    Args:
        root: the folder.
        on_error: "raise" to refuse the folder if an image is bad, "skip" to leave such images out.
        seed: of the test split, where the folder has none.
        task_folders: whether there is a folder per task above the class folders; None to infer that from names
            like "task1".

    Returns:
        The source, with classes and files in natural order.

    Raises:
        InputError: if an option is unknown.
        DataError: if the layout is none of the above or an image cannot be used.
    """
    check_on_error(on_error)
    root = Path(root)
    if not is_there(root):
        raise DataError(f"There is no folder {root}. Check the spelling; {LAYOUT}.")
    if not root.is_dir():
        raise DataError(f"{root} must be a folder of images, but is a file; unpack it if it is an archive. {LAYOUT}.")
    found = None if task_folders else _listed(root)
    if found is None:
        found = _in_folders(root, task_folders)
    names, train, test, notes = found.class_names, found.train, found.test, found.notes
    label_of = {name: label for label, name in enumerate(names)}
    bad = {split: _problems(split) for split in (train, test)}
    skipped = [f"{split.paths[i]}: {reason}" for split, reasons in bad.items() for i, reason in reasons.items()]
    if skipped and on_error == "raise":
        raise refuse(str(root), skipped, len(train) + len(test))
    splits = without(train, bad[train]), without(test, bad[test])
    readable = set(splits[0].labels.tolist())
    empty = [name for name, label in label_of.items() if label not in readable]
    if empty:
        raise DataError(f"Each class needs training images, but these of {root} have no readable one:{listed(empty)}")
    if found.without_test:
        splits = hold_out(splits[0], names, fraction=HELD_OUT, seed=seed)
        notes.append(f"{root.name} has no test folder: {HELD_OUT:.0%} of each class is set aside for testing")
    return Source(
        name=root.resolve().name,
        class_names=names,
        train=splits[0],
        test=splits[1] if len(splits[1]) else None,
        task_names=found.task_names,
        skipped=skipped,
        notes=notes,
        test_was_cut=found.without_test,
    )


@dataclass(frozen=True)
class _Found:
    """Images of a root by split, with the classes in order."""

    class_names: list[str]
    train: Files
    test: Files
    notes: list[str]
    task_names: list[list[str]] | None = None
    without_test: bool = False


def _listed(root: Path) -> _Found | None:
    """Images of a download with classes or splits in text files; None for other folders."""
    listing = read_listing(root, EXTENSIONS)
    if listing is None:
        return None
    names = listing.class_names
    label_of = {name: label for label, name in enumerate(names)}
    train, test = (
        Files(root, [path for path, _ in images], np.array([label_of[name] for _, name in images], dtype=np.int64))
        for images in (listing.train, listing.test)
    )
    return _Found(names, train, test, list(listing.notes))


def _in_folders(root: Path, task_folders: bool | None) -> _Found:
    """Images in a folder per class."""
    notes: list[str] = []
    train_root, test_root = _split_roots(root, notes)
    folders = _class_folders(root, train_root, task_folders)
    test_folders = [] if test_root is None else _class_folders(root, test_root, task_folders)
    _check_layout(root, folders, test_folders, test_root, notes)
    names = [folder.name for folder in folders]
    label_of = {name: label for label, name in enumerate(names)}
    train, test = _files(root, folders, label_of), _files(root, test_folders, label_of)
    return _Found(names, train, test, notes, _task_names(folders), test_root is None)


def holds_class_folders(root: Path) -> bool:
    """Whether a folder of the root holds an image, at any depth."""
    return any(path.suffix.lower() in EXTENSIONS for folder in _subfolders(root) for path in _walk(folder))


def _split_roots(root: Path, notes: list[str]) -> tuple[Path, Path | None]:
    folders = {path.name.casefold(): path for path in _subfolders(root)}
    if "train" not in folders:
        return root, None
    others = [path.name for name, path in folders.items() if name not in ("train", *_TEST_NAMES)]
    if others and not _subfolders(folders["train"]):  # "train" is a class of vehicles, among others
        return root, None
    test = next((name for name in _TEST_NAMES if name in folders), None)
    if test not in ("test", None):
        notes.append(f"{root.name} has no test folder: {folders[test].name} serves as the test split")
    unused = [*(folders[name].name for name in _TEST_NAMES if name in folders and name != test), *others]
    if unused:
        notes.append(f"{root.name} has folders besides its splits, which are left out: {', '.join(unused)}")
    return folders["train"], None if test is None else folders[test]


def _class_folders(root: Path, split_root: Path, task_folders: bool | None) -> list[_ClassFolder]:
    top = _subfolders(split_root)
    if task_folders is None:
        task_folders = bool(top) and all(_TASK.fullmatch(path.name) for path in top)
    if not task_folders:
        return [_class_folder(root, path, None) for path in top]
    return [_class_folder(root, path, task.name) for task in top for path in _subfolders(task)]


def _class_folder(root: Path, folder: Path, task: str | None) -> _ClassFolder:
    files, others = [], []
    for path in _walk(folder):
        (files if path.suffix.lower() in EXTENSIONS else others).append(path.relative_to(root).as_posix())
    name = unicodedata.normalize("NFC", folder.name)
    place = folder.relative_to(root).as_posix()
    return _ClassFolder(name, task, place, tuple(sorted(files, key=natural_key)), tuple(others))


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not _is_junk(path.name)]
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read ({error.strerror}).") from error
    return sorted(found, key=lambda path: natural_key(path.name))


def _walk(folder: Path) -> Iterator[Path]:
    """Files in a folder, at any depth; links to folders are not followed."""
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                found = [entry for entry in entries if not _is_junk(entry.name)]
        except OSError as error:
            raise DataError(f"The folder {place} cannot be read ({error.strerror}).") from error
        folders = [entry for entry in found if _is_folder(entry)]
        waiting += [entry.path for entry in folders if not entry.is_symlink()]
        yield from (Path(entry.path) for entry in found if not _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say; reading it gives the error
        return False


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


def _check_layout(
    root: Path, train: list[_ClassFolder], test: list[_ClassFolder], test_root: Path | None, notes: list[str]
) -> None:
    """Check all that can be wrong before a file is opened."""
    entries = [path for path in root.iterdir() if not _is_junk(path.name)]
    loose = sorted(path.name for path in entries if path.suffix.lower() in EXTENSIONS)
    if not train and loose:
        raise DataError(
            f"{root} needs a folder per class, but holds {len(loose)} images and no class folders "
            f"({loose[0]}, ...): {LAYOUT}."
        )
    folders = [*train, *test]
    others = [path for folder in folders for path in folder.others]
    if not any(folder.files for folder in folders):
        raise DataError(f"{root} holds no images{f', only {_kinds(others)}' if others else ''}: {LAYOUT}.")
    if loose:
        notes.append(f"{len(loose)} images beside the class folders of {root.name} are left out")
    if others:
        notes.append(f"{len(others)} files that are not images are left out: {_kinds(others)}")
    faults = list(_name_clashes(train))
    for folder in folders:
        if not folder.files:
            found = f" (only {_kinds(folder.others)})" if folder.others else ""
            faults.append(f"{folder.place}: the class folder holds no images{found}")
    if test_root is not None:
        there = {(folder.task, folder.name) for folder in train}
        here = {(folder.task, folder.name) for folder in test}
        faults += [f"{f.place}: not in {test_root.name}" for f in train if (f.task, f.name) not in here]
        faults += [f"{f.place}: not in train" for f in test if (f.task, f.name) not in there]
    if faults:
        raise DataError(f"The classes of {root} do not match:{listed(faults)}\nRename or remove them.")


def _name_clashes(folders: list[_ClassFolder]) -> Iterator[str]:
    by_name: dict[str, list[_ClassFolder]] = defaultdict(list)
    for folder in folders:
        by_name[plain_name(folder.name)].append(folder)
    for group in by_name.values():
        if len(group) > 1 and len({folder.name for folder in group}) == 1 and group[0].task is not None:
            yield f"{group[0].name}: in more than one task ({', '.join(str(f.task) for f in group)})"
        elif len(group) > 1:
            names = ", ".join(repr(folder.place) for folder in group)
            yield f"{names}: differ only by case, spaces or the form of a character"


def _kinds(paths: Iterable[str]) -> str:
    counts = Counter(Path(path).suffix.lower() or "no extension" for path in paths)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5))


def _files(root: Path, folders: list[_ClassFolder], label_of: dict[str, int]) -> Files:
    paths = [path for folder in folders for path in folder.files]
    labels = [label_of[folder.name] for folder in folders for _ in folder.files]
    return Files(root, paths, np.array(labels, dtype=np.int64))


def _problems(split: Files) -> dict[int, str]:
    paths = [split.root / path for path in split.paths]
    return problems(paths.__getitem__, len(paths), sum(map(_size, paths)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # checking the image gives the error
        return 0


def _task_names(folders: list[_ClassFolder]) -> list[list[str]] | None:
    tasks: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        if folder.task is None:
            return None
        tasks[folder.task].append(folder.name)
    return list(tasks.values())
