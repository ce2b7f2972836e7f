"""Downloads of image data sets whose test split or whose classes stand in text files.

- Tiny ImageNet: ``train/<class>/images/*.JPEG``, and ``val/images/*.JPEG`` with classes in ``val/val_annotations.txt``.
- CUB-200-2011: ``images/<class>/*.jpg`` with the official split in ``images.txt`` and ``train_test_split.txt``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ostinato.errors import DataError
from ostinato.files import MAX_JSON, read_regular
from ostinato.streams.source import natural_key


@dataclass(frozen=True)
class Listing:
    """Images by split, each as its path below the root and its class.

    Attributes:
        train: training images.
        test: test images.
        notes: remarks about what is read as what.
    """

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]
    notes: list[str]

    @property
    def class_names(self) -> list[str]:
        """Classes of the training images in natural order."""
        return sorted({name for _, name in self.train}, key=natural_key)


def read_listing(root: Path, extensions: frozenset[str]) -> Listing | None:
    """Read the text files of a download; None if the folder is none of those above.

    Args:
        root: the folder.
        extensions: suffixes of images, in lower case.

    Raises:
        DataError: if a text file cannot be read, a line is wrong, or a class is in one split only.
    """
    if (root / "val/val_annotations.txt").is_file() and (root / "train").is_dir():
        listing = _tiny_imagenet(root, extensions)
    elif (root / "images.txt").is_file() and (root / "train_test_split.txt").is_file():
        listing = _cub(root)
    else:
        return None
    alone = {name for _, name in listing.train} ^ {name for _, name in listing.test}
    if alone:
        raise DataError(
            f"Each class of {root} needs training and test images, but {len(alone)} have one kind only, such as "
            f"{min(alone)}. Unpack the whole download."
        )
    return listing


def _tiny_imagenet(root: Path, extensions: frozenset[str]) -> Listing:
    train = [
        (path.relative_to(root).as_posix(), path.relative_to(root / "train").parts[0])
        for path in (root / "train").glob("*/images/*")
        if path.suffix.lower() in extensions
    ]
    rows = _rows(root / "val/val_annotations.txt", at_least=2)
    test = [(f"val/images/{_inside(root, file)}", name) for file, name, *_ in rows]
    notes = [f"{root.name} is read as Tiny ImageNet: val, with the classes of val_annotations.txt, is the test split"]
    return Listing(_in_order(train), _in_order(test), notes)


def _cub(root: Path) -> Listing:
    split = {number: flag for number, flag, *_ in _rows(root / "train_test_split.txt", at_least=2)}
    images: dict[str, list[tuple[str, str]]] = {"1": [], "0": []}
    for number, file, *_ in _rows(root / "images.txt", at_least=2):
        place = _inside(root, file)
        if split.get(number) not in images or len(place.parts) != 2:
            raise DataError(
                f"{root / 'images.txt'}: image {number} must be <class>/<file> and have a 1 (training) or 0 (test) in "
                f"train_test_split.txt, got {file!r}. Unpack the whole download."
            )
        images[split[number]].append((f"images/{place}", place.parts[0]))
    notes = [f"{root.name} is read as CUB-200-2011, with the split of train_test_split.txt"]
    return Listing(_in_order(images["1"]), _in_order(images["0"]), notes)


def _rows(path: Path, at_least: int) -> Iterator[Sequence[str]]:
    """Words of every line that is not empty."""
    try:
        lines = read_regular(path, MAX_JSON).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be text in UTF-8 ({error}).") from None
    for number, line in enumerate(lines, 1):
        words = line.split("\t") if "\t" in line else line.split()
        if words and len(words) < at_least:
            raise DataError(f"{path}, line {number} must have at least {at_least} words, got {line[:100]!r}.")
        if words:
            yield words


def _inside(root: Path, file: str) -> PurePosixPath:
    """The path of a listed file, which must stay below the root."""
    place = PurePosixPath(file)
    if place.is_absolute() or ".." in place.parts or not place.parts:
        raise DataError(f"The text files of {root} must name images in it, got {file!r}.")
    return place


def _in_order(images: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sort images by class, then by path."""
    return sorted(images, key=lambda image: (natural_key(image[1]), natural_key(image[0])))
