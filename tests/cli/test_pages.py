"""Every command and every piece of code that the README and the manual show is run, on data as they describe them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from tests.cli.command import README, ROOT, blocks, ostinato
from tests.conftest import BLUE, CYAN, GREEN, RED, WHITE, YELLOW, photos, save_bert, save_clip, text_tables

PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "docs/quickstart.md", *sorted((ROOT / "docs/howto").glob("*.md"))]
COLOURS = {"red": RED, "green": GREEN, "blue": BLUE, "yellow": YELLOW, "white": WHITE, "cyan": CYAN}
SETS = ("ag_news", "yelp_review_full", "dbpedia_14")

OTHERWISE = {
    r"method.layers=3,4,5 (.*)backbone=openai/\S+": r"method.layers=1,2 \1backbone=clip",  # it has three
    r"backbone=openai/\S+": "backbone=clip",
    r"backbone=vit_\S+( backbone.weights=\S+)?": "",
    r"^(ostinato run \w+ -p .*)data=cifar100$": r"\1data=photos stream.first=4 stream.step=2 train.epochs=1 BUNDLED",
    r"^(ostinato run simplecil )data=cifar100": r"\1data=photos",
    r"^(ostinato reproduce soft_tf/(?:table|figure)\d) (data=.*)$": r"\1 \2 --dry-run",
    r"^torchrun --nproc-per-node \d -m (ostinato run .*)$": r"\1 train.epochs=1",
    r"^torchrun --nproc-per-node \d -m ostinato resume": "ostinato resume",
    r"^ostinato push (\S+ \S+)$": r"ostinato push \1 --to models",
    r"^ostinato pull (\S+ \S+)$": r"ostinato pull \1 --from models",
    r"/mnt/models": "models",
    r"--reject-rate \S+": "--reject-rate 0.2",  # a few photos have few held-out ones
    r"^(ostinato learn \S+ data=(?!.*--accept).*)$": r"\1 --accept",  # few photos and one epoch may teach nothing
    "BUNDLED": "backbone=vit_mini_patch8_32.glyphs",
}
"""What takes the place of what only a network, several processes or hours could give: patterns and replacements."""

NOT_COMMANDS = (
    "make ", "pip install ", "python -m benchmarks", "source ", "git ", ".venv/bin/", "python examples/", "apt-get ",
)  # fmt: skip
"""Beginnings of lines that are no commands of the package; other tests look at them."""

ELSEWHERE = {
    "ostinato check my_method.py",
    "find new -name '*.jpg' | ostinato predict runs/photos -",
    "curl -s https://example.org/daisy.jpg | ostinato predict runs/photos -",
    "ostinato export runs/photos --to onnx out=photos.onnx",
    "ostinato predict photos.onnx new/*.jpg --topk 3",
    "ostinato export runs/photos --to pt2 out=photos.pt2",
    "ostinato export runs/photos --to torchscript out=photos.pt",
    "ostinato predict --trust photos.pt2 new/*.jpg",
    "ostinato serve runs/photos",
    "curl -F images=@daisy.jpg -F images=@rose.jpg '127.0.0.1:8000/predict?topk=3'",
    "ostinato compare runs/photos runs/mine data=photos_of_may/",
    "ostinato compare runs/photos/learn-001/artifact_before runs/photos data=photos_of_may/",
    "ostinato learn runs/photos data=more_photos/ eval=old_test_photos/ learn.max_drop=0.05",
    "ostinato learn runs/photos --accept",
    "ostinato analyse runs/figure5 layer_sweep",
    "ostinato analyse runs/ radar",
    "ostinato learn runs/photos data=more_photos/ --accept",
}
"""Commands that take long, wait, read standard input or need a model kept aside; test_own_methods.py, test_commands.py,
test_explaining.py, test_export.py, test_serve.py and test_analysis.py do the same."""


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """Data and runs under the names that the pages give them."""
    root = tmp_path_factory.mktemp("pages")
    photos(root / "photos", COLOURS, n=6)
    shutil.copytree(root / "photos", root / "moved/photos")
    photos(root / "photos_of_may", {"red": RED, "cyan": CYAN}, n=2, seed=1)
    photos(root / "photos_of_june", {"red": RED, "violet": (160, 30, 200)}, n=2, seed=4)
    photos(root / "old_test_photos", {"red": RED, "cyan": CYAN}, n=2, seed=2)
    photos(root / "more_classes", {"grey": (128, 128, 128), "black": (10, 10, 10)}, n=6, seed=3)
    photos(root / "more_photos", {"red": RED, "grey": (128, 128, 128), "black": (10, 10, 10)}, n=6, seed=3)
    photos(root / "mine", {"red": RED, "green": GREEN}, n=6)
    photos(root / "theirs", {"green": GREEN, "blue": BLUE}, n=6, seed=5)
    photos(root / "test_photos", {"red": RED, "green": GREEN, "blue": BLUE}, n=2, seed=6)
    photos(root / "new", {".": GREEN}, n=3)
    photos(root / "imagenet-r/train", COLOURS, n=2)
    photos(root / "imagenet-r/test", COLOURS, n=2)
    text_tables(root / "intents", 4, "csv")
    text_tables(root / "more_intents", 1, "jsonl")
    for file in (root / "more_intents").iterdir():
        file.write_text(file.read_text().replace("planet 0", "moon"))
    for name in SETS:
        text_tables(root / "texts" / name, 2)
    save_bert(root / "minilm")
    save_clip(root / "clip")
    (root / "questions.txt").write_text("w1 w2\nw5 w6 w7\n")
    (root / "tickets.csv").write_text("id,text\n7,w9 w8\n")
    (root / "my_method.py").write_text((ROOT / "examples/my_method.py").read_text())
    table, _ = blocks("toml", ROOT / "docs/howto/tables.md")
    (root / "my_table.toml").write_text(table)
    ostinato("run", "dualprompt", "data=photos", "stream.step=3", "train.epochs=1", "out=runs/photos", cwd=root)
    return root


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks of commands, without comments, long ones joined."""
    lines = "".join(blocks("sh", page)).replace("\\\n", " ").splitlines()
    return [found for line in lines if (found := re.sub(r"(^|\s+)#.*", "", line).strip())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work(page, everything, tmp_path):
    shutil.copytree(everything, tmp_path, dirs_exist_ok=True)
    for command in commands(page):
        if command.startswith(NOT_COMMANDS) or command in ELSEWHERE:
            continue
        for pattern, instead in OTHERWISE.items():
            command = re.sub(pattern, instead, command)
        first, *words = shlex.split(command)
        assert first == "ostinato", command
        out = [word.removeprefix("out=") for word in words if word.startswith("out=")]
        if words[0] == "run" and out:
            shutil.rmtree(tmp_path / out[0], ignore_errors=True)
        found = [
            str(one) for word in words
            for one in (sorted(p.relative_to(tmp_path) for p in tmp_path.glob(word)) if "*" in word else [word])
        ]  # fmt: skip
        ostinato(*found, cwd=tmp_path)


def test_what_takes_the_place_of_something_is_shown_somewhere():
    shown = [command for page in PAGES for command in commands(page)]
    assert set(shown) >= ELSEWHERE
    for pattern in OTHERWISE:
        assert pattern == "BUNDLED" or any(re.search(pattern, command) for command in shown), pattern


PYTHON = {
    "README": ["all 5 tasks"],
    "python": ["all 5 tasks", "Prediction("],
    "unknown": [" [0."],
    "CONTRIBUTING": ["all 2 tasks", "torch.Size([2, 192])"],
}
"""Pages with Python, and some of the output."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_works(page, tmp_path):
    with chdir(tmp_path), redirect_stdout(StringIO()) as out:
        for block in blocks("python", page):
            exec(compile(block, page.name, "exec"), {})
    assert ("```python" in page.read_text(encoding="utf-8")) == (page.stem in PYTHON)
    for some in PYTHON.get(page.stem, []):
        assert some in out.getvalue()


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            made = page.parent / target
            if "docs/methods" in str(made.resolve()) or made.name == "commands.md":  # made when the site is built
                continue
            assert made.exists(), f"{page.name}: {target}"


def test_targets_of_make_and_paths_of_tests_exist():
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = [command for page in PAGES for command in commands(page)]
    targets = sorted({c for c in shown if c.startswith("make ")})
    assert len(targets) >= 5
    for command in targets:
        subprocess.run([*command.split(), "-n"], cwd=ROOT, env=environment, capture_output=True, check=True)
    for command in shown:
        for path in re.findall(r" (tests/\S+)", command):
            assert (ROOT / path).exists(), command
