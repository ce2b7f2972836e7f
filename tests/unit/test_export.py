"""Exported files give the scores of the model that they were made from, and are read with care."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.command import ostinato as ostinato_command

import ostinato
from ostinato import Learner
from ostinato.backbones import VisionBackbone
from ostinato.contract.harness import inputs_of, learn, make, scores
from ostinato.contract.tiny_models import SIDE, random_backbone, tiny_stream
from ostinato.errors import DataError, InputError
from ostinato.interop import FORMATS, TOLERANCE, export, load_exported
from ostinato.interop.exporting import Scores, check_images, convert, largest_difference
from ostinato.interop.formats import exported_program
from ostinato.nn.routing import by_task

missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"the extra onnx is not installed: {', '.join(missing)}")

PREFIXES = {"g_layers": (0,), "e_layers": (1,)}

CASES = [
    pytest.param("simplecil", {}, "pt2"),
    pytest.param("er", {}, "pt2"),
    pytest.param("bic", {"memory": {"size": 10}}, "pt2"),
    pytest.param("mbpa", {}, "torchscript"),
    pytest.param("duet", {}, "torchscript"),
    pytest.param("dualprompt", {"keys": "mean"} | PREFIXES, "onnx", marks=needs_onnx),
    pytest.param("wsn", {"layers": (1,), "base": {"name": "l2p"}, "task_id": "max_score"}, "torchscript"),
    pytest.param("hide_prompt", {"layers": (1,), "align": {"epochs": 1}}, "pt2"),
    pytest.param("slda", {}, "torchscript"),
    pytest.param("fecam", {}, "torchscript"),
    pytest.param("l2p", {}, "torchscript"),
    pytest.param("cl_lora", {"shared_layers": (0,), "specific_layers": (1,)}, "torchscript"),
]
"""Sums over samples, a trained encoder, prompts by key, pools, and edits of the inferred task."""


def learned(name, options, depth=2):
    return learn(make(name, "image", random_backbone(depth), **options), tiny_stream())


SLOW = [
    pytest.param("ease", {}, "onnx", marks=needs_onnx),
    pytest.param("layer_grouped", {"layers": (0, 1), "groups": 2, "align": "none"}, "onnx", marks=needs_onnx),
    pytest.param("s_prompt", {"length": 2, "clusters": 1}, "onnx", marks=needs_onnx),
]
"""Programs that ONNX has no operators for as they are."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "to"), SLOW)
def test_an_onnx_file_gives_the_scores_of_its_method(name, options, to):
    test_a_file_gives_the_scores_of_its_method_for_any_batch(name, options, to)


@pytest.mark.parametrize(("name", "options", "to"), CASES)
def test_a_file_gives_the_scores_of_its_method_for_any_batch(name, options, to):
    method = learned(name, options)
    data, difference = convert(method, check_images(SIDE), "{}", to)
    assert difference <= TOLERANCE
    images = inputs_of(tiny_stream())[:7]
    want = scores(method, images)
    with torch.inference_mode():
        got = FORMATS[to].load(data)(images)
    assert float((got - want).abs().max() / want.abs().max()) <= TOLERANCE


def test_kept_training_images_stay_out_of_a_file():
    """The encoder and the memory of images are both buffers of the method."""
    method = learned("er", {})
    kept = next(name for name, value in method.state_dict().items() if value.dtype == torch.uint8)
    program = exported_program(Scores(method).eval(), check_images(SIDE)[:3])
    assert not any(name.endswith(kept) for name in program.state_dict)


@pytest.mark.filterwarnings("ignore")  # torch.jit says that it is old
def test_rows_under_their_tasks_are_the_same_when_traced():
    tasks, rows = torch.tensor([2, 0, 2]), torch.tensor([[1.0], [2.0], [3.0]])

    def compute(task, at):
        return rows[at] * 10**task

    want = by_task(tasks, 3, compute)
    assert want.tolist() == [[100.0], [2.0], [300.0]]
    traced = torch.jit.trace(lambda tasks: by_task(tasks, 3, compute), (tasks,), check_trace=False)
    assert torch.equal(traced(torch.tensor([0, 1, 0])), torch.tensor([[1.0], [20.0], [3.0]]))


@pytest.mark.parametrize("to", ["pt2", "torchscript"])
def test_scores_by_gradients_are_refused_with_the_reason(to):
    method = learned("mbpa", {"adapt": "all", "steps": 1}, depth=1)
    with pytest.raises(InputError, match=r"export: .*mbpa.*Error: "):
        convert(method, check_images(SIDE), "{}", to)


def test_a_difference_is_a_share_of_what_competes_not_of_lowered_classes():
    want = torch.tensor([[2.0, 1.0, -1e4], [1.0, -4.0, -1e4]])
    assert largest_difference(want, want) == 0
    assert largest_difference(want + torch.tensor([0.02, 0.0, 0.0]), want) == pytest.approx(0.01, rel=1e-3)
    assert largest_difference(want + torch.tensor([0.0, 0.0, 1.0]), want) == pytest.approx(1e-4, rel=1e-3)
    assert largest_difference(want - torch.tensor([[0.0], [0.4]]), want) == pytest.approx(0.2, rel=1e-3)


def drifting(pixels):
    """Scores that depend on the number of images."""
    return pixels.float().mean((1, 2, 3))[:, None] * torch.ones(pixels.shape[0]).sum()


@pytest.mark.parametrize("to", ["pt2", "torchscript"])
def test_a_file_with_other_scores_is_refused(monkeypatch, to):
    method = learned("simplecil", {}, depth=1)
    monkeypatch.setattr(type(method), "scores", lambda self, x: drifting(x))
    with pytest.raises(InputError, match=r"differ from those of PyTorch by .* of the best score"):
        convert(method, check_images(SIDE), "{}", to)


def test_a_file_for_one_number_of_images_is_refused(monkeypatch):
    method = learned("simplecil", {}, depth=1)
    fixed = method.scores(check_images(SIDE)[:3]).detach()
    monkeypatch.setattr(FORMATS["torchscript"], "load", lambda data: lambda pixels: fixed)
    with pytest.raises(InputError, match=r"must give \(5, 5\) scores of 5 images in batches of 1, got \(15, 5\)"):
        convert(method, check_images(SIDE), "{}", "torchscript")


def test_a_file_that_cannot_be_read_again_is_refused(monkeypatch):
    def broken(data):
        raise RuntimeError("the node unbind")

    monkeypatch.setattr(FORMATS["torchscript"], "load", broken)
    with pytest.raises(InputError, match=r"cannot be written as torchscript: RuntimeError: the node unbind\. .*bundle"):
        convert(learned("simplecil", {}, depth=1), check_images(SIDE), "{}", "torchscript")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A saved learner of two classes, images as files, and an exported file of each kind that is installed."""
    root = tmp_path_factory.mktemp("export")
    stream = ostinato.stream("glyphs", classes=2, step=2, limit_per_class=6)
    learner = Learner("duet", device="cpu", precision="fp32", n_random=64, train={"epochs": 1})
    learner.learn(stream.task(0))
    learner.save(root / "model")
    for i in range(3):
        Image.fromarray(np.asarray(stream.test(0).raw(i))).resize((40, 30)).save(root / f"{i}.png")
    return root


def test_predict_takes_an_exported_file(places, tmp_path):
    """All formats go the same way; ONNX and pt2 take longer to write."""
    to = "torchscript"
    file = tmp_path / f"model{FORMATS[to].suffix}"
    said = ostinato_command("export", places / "model", "--to", to, f"out={file}").stdout
    assert f"Written to {file}" in said
    assert "2 classes" in said
    images = [places / f"{i}.png" for i in range(3)]
    got = json.loads(ostinato_command("predict", "--trust", file, *images, "--topk", "2", "--json").stdout)
    want = json.loads(
        ostinato_command("predict", places / "model", *images, "precision=fp32", "--topk", "2", "--json").stdout
    )
    for one, other in zip(got, want, strict=True):
        assert one["source"] == other["source"]
        assert one["classes"] == other["classes"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)
    about = load_exported(file, trust=True).about
    assert about.method == "duet"
    assert about.preprocess.size == 32
    assert about.protocol == "sample"


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_a_file_that_can_run_code_needs_trust(tmp_path, suffix):
    """The reason for it: a pickle in an archive runs what it names."""
    file = tmp_path / f"model{suffix}"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(print))
    assert "reading a" in ostinato_command("predict", file, tmp_path / "a.png", code=2).stderr
    with pytest.raises(DataError, match="has no description"):
        load_exported(file, trust=True)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    for suffix in (".pt2", ".pt"):
        file = tmp_path / f"model{suffix}"
        file.write_bytes(b"PK nothing")
        with pytest.raises(DataError, match=f"model{suffix}: it is damaged"):
            load_exported(file, trust=True)
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"no exported model, which ends with \.onnx, \.pt2, \.pt"):
        load_exported(tmp_path / "model.h5")


@needs_onnx
def test_a_damaged_onnx_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(DataError, match=r"model.onnx: ONNX Runtime cannot read it"):
        load_exported(tmp_path / "model.onnx")


def test_without_the_extra_the_error_says_how_to_install_it(places, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = ostinato_command("export", places / "model", "--to", "onnx", f"out={tmp_path / 'm.onnx'}", code=2).stderr
    assert "pip install 'ostinato[onnx]'" in said
    (tmp_path / "m.onnx").write_bytes(b"")
    assert "pip install 'ostinato[onnx]'" in ostinato_command("predict", tmp_path / "m.onnx", "a.png", code=2).stderr


def test_targets_and_options_are_checked_before_any_work(places, tmp_path):
    def refused(*words):
        return ostinato_command("export", places / "model", *words, code=2).stderr

    assert "--to must name a format, got 'onxx'. Did you mean 'onnx'?" in refused("--to", "onxx", "out=a.onnx")
    assert "must end with .pt2, got 'a.onnx'" in refused("--to", "pt2", "out=a.onnx")
    assert "needs out=PATH" in refused("--to", "pt2")
    (tmp_path / "a.pt2").write_bytes(b"")
    assert "exists. Delete it first" in refused("--to", "pt2", f"out={tmp_path / 'a.pt2'}")
    assert "must be a folder" in refused("--to", "pt2", f"out={tmp_path / 'none/a.pt2'}")
    said = ostinato_command("predict", tmp_path / "a.pt2", "a.png", "device=cpu", code=2).stderr
    assert "Leave out device" in said
    assert (
        "--trust is for exported files" in ostinato_command("predict", "--trust", places / "model", "a", code=2).stderr
    )


def test_texts_and_other_precisions_are_refused(places, monkeypatch, tmp_path):
    learner = Learner.load(places / "model", device="cpu", precision="bf16")
    with pytest.raises(InputError, match="precision='fp32'"):
        export(learner, tmp_path / "a.pt2", "pt2")
    learner = Learner.load(places / "model", device="cpu", precision="fp32")
    monkeypatch.setattr(VisionBackbone, "modality", "text")
    with pytest.raises(InputError, match="only models of images"):
        export(learner, tmp_path / "a.pt2", "pt2")
