"""Sources of images in memory."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ostinato.errors import DataError, InputError
from ostinato.streams.decode import to_rgb
from ostinato.streams.source import Source, Split

Images = np.ndarray | Sequence[np.ndarray]


class InMemory(Split):
    """Images (n, H, W), (n, H, W, C) or a list of (H, W) or (H, W, C), uint8; ``part`` begins their names."""

    def __init__(self, images: Images, labels: np.ndarray, *, part: str):
        self.images = images
        self.labels = labels
        self.part = part

    def load(self, index: int) -> Image.Image:  # noqa: D102
        pixels = self.images[index]
        return to_rgb(Image.fromarray(pixels.squeeze(-1) if pixels.shape[2:] == (1,) else pixels))

    def name(self, index: int) -> str:  # noqa: D102
        return f"{self.part} row {index}"

    def _content(self, index: int) -> bytes:
        return f"{self.images[index].shape} ".encode() + self.images[index].tobytes()


def arrays(
    images: Images,
    labels: Sequence[int] | np.ndarray,
    test_images: Images | None = None,
    test_labels: Sequence[int] | np.ndarray | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    augment: str = "photo",
) -> Source:
    """Make a source of images in memory.

    Args:
        images: (n, H, W), (n, H, W, C) or a list of (H, W) or (H, W, C), uint8, with 1, 3 or 4 channels.
        labels: (n,) integers.
        test_images: images of the test split, if there is one.
        test_labels: their labels.
        class_names: of the labels 0, 1, ...; None to name each label that occurs by its number.
        name: of the source in records.
        augment: recommended training augmentation: "photo", "glyph" or "none".

    Raises:
        InputError: if the images have another dtype or shape, or counts do not match.
        DataError: if a label has no name, or a test label no training image.
    """
    if (test_images is None) != (test_labels is None):
        raise InputError("test_images and test_labels come together: give both or neither.")
    raw = _labels(images, labels, "train")
    raw_test = None if test_images is None or test_labels is None else _labels(test_images, test_labels, "test")
    if class_names is None:
        values = np.unique(raw)
        if raw_test is not None and not np.isin(raw_test, values).all():
            extra = np.setdiff1d(raw_test, values).tolist()
            raise DataError(f"Test labels need training images, but {name} has none for {extra[:10]}.")
        class_names = [str(value) for value in values.tolist()]
        raw = np.searchsorted(values, raw)
        raw_test = None if raw_test is None else np.searchsorted(values, raw_test)
    for part in (raw, raw_test):
        if part is not None and len(part) and not 0 <= part.min() <= part.max() < len(class_names):
            raise DataError(
                f"Labels of {name} must lie in 0..{len(class_names) - 1}, one for each class name; they run "
                f"from {part.min()} to {part.max()}."
            )
    test = None if test_images is None or raw_test is None else InMemory(test_images, raw_test, part="test")
    return Source(name, list(class_names), InMemory(images, raw, part="train"), test, augment=augment)


def _labels(images: Images, labels: Sequence[int] | np.ndarray, part: str) -> np.ndarray:
    values = np.asarray(labels)
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
        raise InputError(f"The {part} labels must be a list of integers, not {values.dtype} of shape {values.shape}.")
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise InputError(f"The {part} labels must be integers of at most 63 bits, not {values.max()}.")
    if len(values) != len(images):
        raise InputError(f"Each image needs one label: {part} has {len(images)} images and {len(values)} labels.")
    for i, image in enumerate([images] if isinstance(images, np.ndarray) else images):
        shape = image.shape[1:] if image is images else image.shape
        fits = len(shape) in (2, 3) and 0 not in shape and shape[2:] in ((), (1,), (3,), (4,))
        if image.dtype != np.uint8 or not fits:
            where = "" if image is images else f" (image {i})"
            raise InputError(
                f"The {part} images must be uint8, (H, W) or (H, W, 1 | 3 | 4) each; given {image.dtype} of "
                f"shape {image.shape}{where}. Scale floats in [0, 1] by 255 and round."
            )
    return values.astype(np.int64)
