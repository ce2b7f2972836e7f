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
import json, os, sys
from importlib import import_module
first, *commands = map(json.loads, sys.argv[1:])
for name in first:
    import_module(name)
before = set(sys.modules)
for i, words in enumerate(commands):
    if (child := os.fork()) == 0:
        code = 1
        try:
            from ostinato.cli import main
            main(words)
            with open(f"modules-{i}.json", "w") as file:
                json.dump([sorted(before), sorted(set(sys.modules) - before)], file)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
LIBRARIES = {
    "timm", "torchvision", "transformers", "torch._dynamo", "sympy", "sklearn", "scipy", "matplotlib", "pandas"
}  # fmt: skip


def imported(*commands: tuple[str, ...], cwd: Path, first: tuple[str, ...] = ()) -> list[tuple[set[str], set[str]]]:
    """Names of the modules that commands import, each in a fork of a process that has imported some.

    Returns:
        For each command, names of what the process had imported, and those that the command adds.
    """
    words = [json.dumps(one) for one in (first, *commands)]
    done = subprocess.run([sys.executable, "-c", CODE, *words], env=ENV, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads((cwd / f"modules-{i}.json").read_text()) for i in range(len(commands))]
    return [(set(before), set(more)) for before, more in found]


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


def test_help_imports_no_library_that_computes(tmp_path):
    for before, more in imported(("--help",), ("run", "--help"), cwd=tmp_path):
        assert not (before | more) & (LIBRARIES | {"torch", "numpy"})


def test_what_looks_or_predicts_imports_little_beside_torch(folder):
    looks = (("list",), ("show", "l2p"), ("show", "images"), ("predict", "images", PHOTO))
    for words, (of_torch, more) in zip(looks, imported(*looks, cwd=folder, first=("torch",)), strict=True):
        assert not (of_torch | more) & LIBRARIES, words
        assert len(more) < 350, words


def test_texts_are_predicted_without_libraries_for_images(folder):
    (folder / "some.txt").write_text("the red planet\n")
    # Old releases of transformers import more than a tokenizer needs, which are no fault of the command.
    alone = ("transformers.models.auto.configuration_auto", "transformers.models.auto.tokenization_auto")
    ((before, more),) = imported(("predict", "texts_run", "some.txt"), cwd=folder, first=alone)
    assert "transformers" in before
    assert not more & LIBRARIES


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
