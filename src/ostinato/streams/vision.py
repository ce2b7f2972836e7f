"""Image data sets by name: the bundled digits, and CIFAR-100 through torchvision."""

import os
from importlib import resources
from pathlib import Path

import numpy as np

from ostinato.errors import DataError
from ostinato.paths import user_path
from ostinato.streams.arrays import arrays
from ostinato.streams.source import Source, hold_out

DIGITS_TEST = 0.25


def data_home() -> Path:
    """Folder of downloaded data sets: ``$OSTINATO_DATA``, or ``~/.cache/ostinato/data``."""
    return user_path(os.environ.get("OSTINATO_DATA", "~/.cache/ostinato/data"), "OSTINATO_DATA")


def digits(seed: int = 0) -> Source:
    """Open the 1,797 bundled handwritten digits: 8 x 8 grey pixels, bright on dark.

    They are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI 1998, CC BY 4.0),
    as scikit-learn has them. ``seed`` is that of the test split, a quarter of each class.
    """
    with resources.files("ostinato").joinpath("assets/digits.npz").open("rb") as file, np.load(file) as stored:
        grey, labels = stored["images"], stored["labels"].astype(np.int64)
    images = np.rint(grey * (255 / 16)).astype(np.uint8)
    source = arrays(images, labels, name="digits", augment="glyph")
    source.train, source.test = hold_out(source.train, source.class_names, fraction=DIGITS_TEST, seed=seed)
    source.test_was_cut = True
    return source


def cifar100(root: str | Path | None = None) -> Source:
    """Open CIFAR-100, 50,000 training and 10,000 test images, downloaded on first use.

    Args:
        root: folder of ``cifar-100-python/``; None for ``data_home()``.

    Raises:
        DataError: if it is missing and cannot be downloaded.
    """
    from torchvision.datasets import CIFAR100

    root = data_home() if root is None else Path(root)
    try:
        parts = [CIFAR100(str(root), train=train) for train in (True, False)]
    except (OSError, RuntimeError):  # absent, incomplete or not to be read
        try:
            root.mkdir(parents=True, exist_ok=True)
            parts = [CIFAR100(str(root), train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"CIFAR-100 must lie in {root / 'cifar-100-python'}, but is not there and cannot be "
                f"downloaded ({error}). Unpack cifar-100-python.tar.gz into {root}, set OSTINATO_DATA to a "
                "folder that holds it, or give a folder with train.parquet and test.parquet instead."
            ) from error
    train, test = parts
    return arrays(train.data, train.targets, test.data, test.targets, class_names=train.classes, name="cifar100")
