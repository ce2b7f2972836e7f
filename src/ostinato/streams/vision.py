"""Data sets that other packages know how to get."""

import os
from pathlib import Path

import numpy as np

from ostinato.errors import DataError
from ostinato.paths import user_path
from ostinato.streams.arrays import arrays
from ostinato.streams.source import Source, hold_out

DIGITS_TEST = 0.25


def data_home() -> Path:
    """Where downloaded data sets are kept: ``$OSTINATO_DATA``, or ``~/.cache/ostinato/data``."""
    return user_path(os.environ.get("OSTINATO_DATA", "~/.cache/ostinato/data"), "OSTINATO_DATA")


def digits(seed: int = 0) -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 grey pixels, bright on dark.

    Args:
        seed: of the test split, a quarter of each class.

    Returns:
        The source.
    """
    from sklearn.datasets import load_digits

    grey, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    images = np.rint(grey * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    source = arrays(images, labels, name="digits", augment="glyph")
    source.train, source.test = hold_out(source.train, source.class_names, fraction=DIGITS_TEST, seed=seed)
    source.test_was_cut = True
    return source


def cifar100(root: str | Path | None = None) -> Source:
    """CIFAR-100 with its 50,000 training and 10,000 test images, downloaded when it is not there.

    Args:
        root: the folder that holds or will hold ``cifar-100-python/``; None for ``data_home()``.

    Returns:
        The source.

    Raises:
        DataError: if it is not there and cannot be downloaded.
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
