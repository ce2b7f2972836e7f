"""Learn your own images in two tasks, and classify new ones.

Run: python examples/own_images.py [FOLDER], a folder with a folder of images per class. Without one, handwritten digits
are written as images first.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import ostinato


def write_digits(folder: Path, per_class: int = 12) -> Path:
    """Write some handwritten digits as an image folder."""
    source = ostinato.open_source("digits")
    for label, name in enumerate(source.class_names):
        (folder / name).mkdir(parents=True)
        places = (i for i, y in enumerate(source.train.labels) if y == label)
        for i in islice(places, per_class):
            source.train.load(i).save(folder / name / f"{i}.png")
    return folder


def main(images: Path, out: Path) -> None:
    """Learn a folder in two tasks, save the model, and classify one image of each class with it."""
    stream = ostinato.stream(images, step=5)
    learner = ostinato.Learner("simplecil")
    for task in stream:
        learner.learn(task)
        print(learner.evaluate(stream).table())
    learner.save(out)

    learner = ostinato.load(out)
    for prediction in learner.predict([min(folder.iterdir()) for folder in sorted(images.iterdir())], topk=2):
        print(prediction.source, *prediction.classes)


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else write_digits(Path(scratch) / "digits")
        main(given, Path(scratch) / "model")
