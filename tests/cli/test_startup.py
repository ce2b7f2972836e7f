"""Commands import no more than they need; modules are counted, since seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.cli.command import ENV, ostinato
from tests.conftest import GREEN, RED, photos, randomised, save_bert, text_tables

VIT = "test_vit.r160_in1k"
"""The smallest plain ViT that timm names."""

PHOTO = "photos/red/0.jpg"
CODE = """
import json, sys
from ostinato.cli import main
try:
    main(sys.argv[2:])
finally:
    with open(sys.argv[1], "w") as file:
        json.dump(sorted(sys.modules), file)
"""
LIBRARIES = {
    "timm", "torchvision", "transformers", "torch._dynamo", "sympy", "sklearn", "scipy", "matplotlib", "pandas"
}  # fmt: skip


def imported(*words: str | Path, cwd: Path) -> set[str]:
    """Names of all modules that a command imports in a process of its own."""
    names = cwd / "modules.json"
    command = [sys.executable, "-c", CODE, str(names), *map(str, words)]
    done = subprocess.run(command, env=ENV, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(names.read_text()))


def n_of_torch() -> int:
    code = "import sys, torch; print(len(sys.modules))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run on a model of timm's, and one on a text encoder."""
    import timm

    root = tmp_path_factory.mktemp("startup")
    photos(root / "photos", {"red": RED, "green": GREEN}, n=8)
    model = timm.create_model(VIT, pretrained=False, num_classes=0)
    save_file(randomised(model, 0).state_dict(), root / "vit.safetensors")
    ostinato(
        "run", "simplecil", "data=photos", "stream.step=1", f"backbone.name={VIT}", "backbone.weights=vit.safetensors",
        "out=images", cwd=root,
    )  # fmt: skip
    save_bert(root / "bert")
    text_tables(root / "texts", 2)
    ostinato("run", "simplecil", "data=texts", "stream.step=1", "backbone.name=bert", "out=texts_run", cwd=root)
    return root


@pytest.mark.parametrize("words", [("--help",), ("run", "--help")])
def test_help_imports_no_library_that_computes(words, tmp_path):
    assert not imported(*words, cwd=tmp_path) & (LIBRARIES | {"torch", "numpy"})


@pytest.mark.parametrize("words", [("list",), ("show", "l2p"), ("show", "images"), ("predict", "images", PHOTO)])
def test_what_looks_or_predicts_imports_little_beside_torch(folder, words):
    found = imported(*words, cwd=folder)
    assert not found & LIBRARIES
    assert len(found) < n_of_torch() + 350


def test_texts_are_predicted_without_libraries_for_images(folder):
    (folder / "some.txt").write_text("the red planet\n")
    # Old releases of transformers import more than a tokenizer needs.
    code = "import sys; from transformers import AutoConfig, AutoTokenizer; print(*sys.modules)"
    alone = set(subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True).stdout.split())
    assert "transformers" in alone
    assert imported("predict", "texts_run", "some.txt", cwd=folder) & LIBRARIES == alone & LIBRARIES


def test_other_weights_than_the_sizes_tell_of_are_refused(folder):
    import timm

    model = timm.create_model("test_vit2.r160_in1k", pretrained=False, num_classes=0)
    save_file(randomised(model, 0).state_dict(), folder / "other.safetensors")
    said = ostinato("predict", "images", PHOTO, "backbone.weights=other.safetensors", code=(2, 3), cwd=folder).stderr
    assert "do not fit" in said


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP says how it waits")
@pytest.mark.parametrize(("asked", "spins"), [({}, 0), ({"GOMP_SPINCOUNT": "12345"}, 12345)])
def test_threads_sleep_while_they_wait_unless_asked_to_spin(asked, spins):
    env = {k: v for k, v in ENV.items() if not k.startswith(("OMP_WAIT", "GOMP", "KMP"))}
    command = [sys.executable, "-m", "ostinato", "list"]
    done = subprocess.run(command, env=env | asked | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
