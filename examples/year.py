"""A year with a model of flowers: new species and more photos every month, two mistakes, and the way into use.

Run: python examples/year.py METHOD data=FLOWERS [out=DIRECTORY] [photos=N] [KEY=VALUE]...

FLOWERS has train/ and test/ with a folder of photos for each species of CALENDAR, such as these of Oxford Flowers 102.
photos=N takes the first N photos of a species, and N / 3 to test. Other options go to 'ostinato run', such as
backbone=vit_tiny_patch16_224.augreg_in21k_ft_in1k backbone.weights=vit_tiny.safetensors
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from shlex import join
from urllib.request import urlopen

import ostinato
from drop_photo import drop_photo, free_port, installed, until
from ostinato.cli import main as command

JANUARY = ("bluebell", "buttercup", "daisy", "iris")
CALENDAR = (
    *JANUARY, "colts-foot", "dandelion", "fritillary", "lily-valley", "pansy", "sunflower", "tigerlily", "windflower"
)  # fmt: skip
"""Species in the order in which they come."""

RATE = 0.1
"""Share of photos of known species that may be answered by "unknown"."""


@dataclass(frozen=True)
class Month:
    """State of the model after a month's work.

    Attributes:
        name: of the month.
        what: was done.
        classes: that the model knows.
        accuracy: on test photos of the species that it knows.
        unknown: share of test photos of the species to come that it answers by "unknown"; None in their absence.
        seconds: of the month's commands.
        megabytes: of the model.
    """

    name: str
    what: str
    classes: int
    accuracy: float
    unknown: float | None
    seconds: float
    megabytes: float

    def __str__(self) -> str:
        unknown = "" if self.unknown is None else f", {self.unknown:.1%} of other species unknown"
        return (
            f"{self.name}: {self.what}. {self.classes} classes, {self.accuracy:.1%} right{unknown}; "
            f"{self.seconds:.1f} s, {self.megabytes:.1f} MB"
        )


@dataclass(frozen=True)
class Use:
    """The model in use.

    Attributes:
        megabytes: of the ONNX file.
        same: share of test photos with the same answer as by the run.
        photo: that was dropped on the page of the server.
        shown: answer that the page shows for it; None without Chromium.
    """

    megabytes: float
    same: float
    photo: Path
    shown: str | None


class Year:
    """A run that goes on for a year.

    Args:
        flowers: folder with train/ and test/.
        out: new directory for photos of the months, the run and what is made of it.
        photos: of a species; None for all.
    """

    def __init__(self, flowers: Path, out: Path, photos: int | None) -> None:
        self.flowers, self.out, self.run, self.photos = flowers, out, out / "run", photos
        self.test = [p for name in CALENDAR for p in self._of("test", name, None if photos is None else photos // 3)]
        self.began = time.perf_counter()

    def _of(self, part: str, species: str, n: int | None = None) -> list[Path]:
        return list(islice(sorted((self.flowers / part / species).iterdir()), n))

    def first(self, species: str) -> list[Path]:
        """Photos of the month in which a species comes: two thirds."""
        every = self._of("train", species, self.photos)
        return every[: 2 * len(every) // 3]

    def more(self, species: str) -> list[Path]:
        """Photos that come later."""
        every = self._of("train", species, self.photos)
        return every[2 * len(every) // 3 :]

    def folder(self, name: str, classes: dict[str, list[Path]]) -> Path:
        """Write the photos of a month, a folder per class."""
        self.began = time.perf_counter()
        for label, photos in classes.items():
            (self.out / name / label).mkdir(parents=True)
            for photo in photos:
                shutil.copyfile(photo, self.out / name / label / photo.name)
        return self.out / name

    def model(self) -> ostinato.Learner:
        """The model of now; features of test photos are kept, so that only new ones take time."""
        return ostinato.load(self.run, cache=str(self.out / "features"))

    def month(self, name: str, what: str) -> Month:
        """Look at the model after a month's commands."""
        seconds, model = time.perf_counter() - self.began, self.model()
        found = model.predict(self.test, reject_rate=RATE)
        known = {photo for photo in self.test if photo.parent.name in model.class_names}
        right = [one.classes[0] == p.parent.name for one, p in zip(found, self.test) if p in known]
        unknown = [one.unknown for one, p in zip(found, self.test) if p not in known]
        size = sum(file.stat().st_size for file in (self.run / "artifact").rglob("*"))
        share = sum(unknown) / len(unknown) if unknown else None
        accuracy = sum(right) / len(right)
        return Month(name, what, len(model.class_names), accuracy, share, seconds, size / 1e6)


def say(*words: str | Path) -> str:
    """Run a command of ostinato in this process, and return what it prints."""
    line = [str(word) for word in words]
    print(f"$ {join(['ostinato', *line])}", flush=True)
    with redirect_stdout(StringIO()) as out:
        command(line)
    return out.getvalue()


def play(year: Year, method: str, options: list[str]) -> Iterator[Month]:
    """Teach a model for a year, and show it after every month."""
    run, first, more = year.run, year.first, year.more
    photos = year.folder("01", {name: first(name) for name in JANUARY})
    say("run", method, f"data={photos}", f"stream.step={len(JANUARY)}", f"out={run}", *options)
    yield year.month("January", "the first model")

    say("learn", run, f"data={year.folder('02', {'colts-foot': first('colts-foot')})}")
    yield year.month("February", "a new species")

    photos = {"dandelion": first("dandelion"), "bluebell": more("bluebell"), "buttercup": more("buttercup")}
    say("learn", run, f"data={year.folder('03', photos)}")
    yield year.month("March", "a new species, more photos of two known ones")

    say("learn", run, f"data={year.folder('04', {'fritillary': first('fritillary')})}")
    yield year.month("April", "a new species")

    mistaken = year.folder("05", {"lily-valley": first("lily-valley"), "marguerite": more("daisy")})
    say("learn", run, f"data={mistaken}")
    yield year.month("May", "a new species, and daisies in a folder of another name")

    photos = year.folder("06", {"pansy": first("pansy"), "daisy": more("daisy")})
    say("classes", run, "remove", "marguerite", f"data={mistaken}")
    say("learn", run, f"data={photos}")
    yield year.month("June", "that class removed, its photos learned as daisies, a new species")

    say("learn", run, f"data={year.folder('07', {'sunflower': first('sunflower')})}")
    yield year.month("July", "a new species")

    swapped = {"iris": "colts-foot", "colts-foot": "iris", "sunflower": "dandelion", "dandelion": "sunflower"}
    photos = {"tigerlily": first("tigerlily")} | {name: more(other) for name, other in swapped.items()}
    say("learn", run, f"data={year.folder('08', photos)}")
    yield year.month("August", "a new species, and photos of known ones in the wrong folders")

    year.began = time.perf_counter()
    say("rollback", run)
    yield year.month("August", "rolled back")

    photos = {"tigerlily": first("tigerlily")} | {name: more(name) for name in swapped}
    say("learn", run, f"data={year.folder('09', photos)}")
    yield year.month("September", "the photos of August in the right folders")

    say("learn", run, f"data={year.folder('10', {'windflower': first('windflower')})}")
    yield year.month("October", "the last species")

    photos = {name: more(name) for name in CALENDAR[6:] if name != "sunflower"}
    say("learn", run, f"data={year.folder('11', photos)}")
    yield year.month("November", "more photos of known species")


@contextmanager
def server(run: Path) -> Iterator[str]:
    """The address of a server of a run, which ends with the block."""
    port = free_port()
    line = ["serve", str(run), "--port", str(port)]
    print(f"$ {join(['ostinato', *line])}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "ostinato", *line], stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: urlopen(f"{url}/healthz", timeout=10).status == 200, "the server")
        yield url
    finally:
        process.terminate()
        process.wait()


def december(year: Year) -> Use:
    """Put the model to use: one file for other programs, and a page to drop photos on."""
    file, new = year.out / "flowers.onnx", year.folder("12", {"new": year.test[::6]})
    say("export", year.run, "--to", "onnx", f"out={file}")
    answers = [json.loads(say("predict", model, new, "--json")) for model in (year.run, file)]
    same = [one["classes"] == other["classes"] for one, other in zip(*answers)]
    chromium, shown = installed(), None
    with server(year.run) as url:
        if chromium is not None:
            shown = drop_photo(chromium, url, year.test[-1])
    return Use(file.stat().st_size / 1e6, sum(same) / len(same), year.test[-1], shown)


def main(method: str, *words: str) -> None:
    """Play the year, and print it."""
    given = dict(word.split("=", 1) for word in words)
    flowers, out = Path(given.pop("data")), Path(given.pop("out", "runs/year"))
    photos = int(given.pop("photos", 0)) or None
    year = Year(flowers, out, photos)
    for month in play(year, method, [f"{key}={value}" for key, value in given.items()]):
        print(month, flush=True)
    use = december(year)
    print(f"December: an ONNX file of {use.megabytes:.1f} MB; {use.same:.1%} of answers are those of the run")
    if use.shown is None:
        print("Chromium and chromedriver are not installed, so that no photo was dropped on the page of the server.")
    else:
        print(f"The page shows for {use.photo}: {', '.join(use.shown.splitlines())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
