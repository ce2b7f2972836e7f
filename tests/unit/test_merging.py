"""Joining what several learners have learned, without their data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ostinato
from ostinato.errors import InputError
from ostinato.learner import BackboneSpec, Learner
from ostinato.lookup import methods
from ostinato.methods.base import Additive
from ostinato.streams import StreamOptions, TaskStream, arrays, open_source

ADDITIVE = [name for name, cls in methods().items() if issubclass(cls, Additive)]
N = 10
BOTH: dict[str, Any] = {"precision": "fp32", "backbone": BackboneSpec(readout="cls+mean")}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images of six digits, ``2 N`` of each."""
    source = open_source("digits")
    stream = TaskStream(source, StreamOptions(tasks=[[str(c) for c in range(6)]], validation=0, limit_per_class=2 * N))
    train = stream.task(0).train.with_transform(Learner("simplecil", precision="fp32").eval_transform)
    images = torch.stack([train[i][0] for i in range(len(train))]).permute(0, 2, 3, 1).numpy()
    return images, np.array([train[i][1] for i in range(len(train))])


IMAGES, LABELS = digits()


def taught(name: str, tasks: Sequence[Sequence[int]], rows: np.ndarray | None = None, **more: Any) -> Learner:
    """A learner of digits in tasks, from all images or those of some rows, in fp32 on both read-outs."""
    mine = np.isin(LABELS, [c for task in tasks for c in task])
    mine &= np.ones(len(LABELS), bool) if rows is None else rows
    names = sorted({c for task in tasks for c in task})
    source = arrays(IMAGES[mine], np.searchsorted(names, LABELS[mine]), class_names=[f"digit {c}" for c in names])
    options = StreamOptions(tasks=[[f"digit {c}" for c in task] for task in tasks], validation=0)
    fewer = {"n_random": 200} if name == "ranpac" else {}
    learner = Learner(name, **(BOTH | fewer | more))
    for task in TaskStream(source, options):
        learner.learn(task)
    return learner


def inputs() -> Tensor:
    return torch.tensor(IMAGES[:: N // 2]).permute(0, 3, 1, 2)


def scores_by_name(learner: Learner) -> Tensor:
    """Scores (B, classes) in the order of the names."""
    order = sorted(range(len(learner.class_names)), key=lambda i: learner.class_names[i])
    return learner.scores(inputs())[:, order]


def same(found: Tensor, wanted: Tensor) -> bool:
    """Whether scores differ by a millionth of the largest at most; log-likelihoods reach hundreds."""
    return float((found - wanted).abs().max()) <= 1e-6 * max(1.0, float(wanted.abs().max()))


def test_closed_forms_are_additive_and_what_trains_is_not() -> None:
    assert ADDITIVE == ["fecam", "ranpac", "simplecil", "slda"]


@pytest.mark.parametrize("name", ADDITIVE)
def test_merged_runs_of_other_classes_are_one_run_on_all(name: str, tmp_path: Path) -> None:
    whole = taught(name, [[3, 1], [0], [4, 2]])
    taught(name, [[3, 1]]).save(tmp_path / "a")
    taught(name, [[0], [4, 2]]).save(tmp_path / "b")
    merged = ostinato.merge(tmp_path / "a", tmp_path / "b")
    assert merged.class_names == whole.class_names
    assert merged.method.task_sizes.tolist() == [2, 1, 2]
    assert same(merged.scores(inputs()), whole.scores(inputs()))
    assert np.array_equal(merged.used, whole.used)


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_class_of_both_is_one_class_of_all_samples(name: str) -> None:
    """Class 2 is learned from some images here and from others there."""
    half = np.arange(len(LABELS)) % 2 == 0
    whole = taught(name, [[0, 1, 2], [3, 4]])
    one = taught(name, [[0, 2, 1]], (LABELS != 2) | half)
    other = taught(name, [[2], [4, 3]], (LABELS != 2) | ~half)
    merged = ostinato.merge(one, other)
    assert merged.class_names == ["digit 0", "digit 2", "digit 1", "digit 4", "digit 3"]
    assert merged.method.task_sizes.tolist() == [3, 2]
    assert same(scores_by_name(merged), scores_by_name(whole))


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_merged_learner_is_saved_loaded_and_goes_on(name: str, tmp_path: Path) -> None:
    ostinato.merge(taught(name, [[0, 1]]), taught(name, [[2], [5]])).save(tmp_path / "merged")
    merged = ostinato.load(str(tmp_path / "merged"))
    rest = np.isin(LABELS, [3, 4])
    source = arrays(IMAGES[rest], LABELS[rest] - 3, class_names=["digit 3", "digit 4"])
    for task in ostinato.stream(source, after=merged, step=2, validation=0):
        merged.learn(task)
    whole = taught(name, [[0, 1], [2], [5], [3, 4]])
    assert merged.class_names == whole.class_names
    assert same(merged.scores(inputs()), whole.scores(inputs()))


def test_three_are_merged_at_once() -> None:
    parts = [taught("slda", [[c, c + 1]]) for c in (0, 2, 4)]
    assert same(ostinato.merge(*parts).scores(inputs()), taught("slda", [[0, 1], [2, 3], [4, 5]]).scores(inputs()))


def test_samples_of_both_are_told() -> None:
    said: list[str] = []
    ostinato.merge(taught("slda", [[0, 1]]), taught("slda", [[1, 2]]), tell=said.append)
    assert len(said) == 1
    assert said[0].startswith(f"Run 2 has used {2 * N} samples that were used before it.")
    said.clear()
    ostinato.merge(taught("slda", [[0, 1]]), taught("slda", [[2, 3]]), tell=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("name", "one", "other", "message"),
    [
        ("ranpac", {"n_random": 20}, {"n_random": 30}, r"method\.n_random is 20 in the first run and 30 in run 2"),
        ("ranpac", {"seed": 0}, {"seed": 1}, "random projections differ.*same seed"),
        ("ranpac", {"penalty": 1.0}, {}, r"method\.penalty is 1\.0 in the first run and None in run 2"),
        ("slda", {}, {"backbone": BackboneSpec(readout="mean")}, "readout is 'cls\\+mean' in the first run and 'mean'"),
        ("slda", {}, {"crop": 0.5}, r"data\.crop is 1\.0 in the first run and 0\.5"),
        ("slda", {}, {"precision": "bf16"}, "precision is 'fp32' in the first run and 'bf16'"),
    ],
)
def test_statistics_of_other_things_are_not_added(
    name: str, one: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    first = taught(name, [[0, 1]], **one)
    before = first.scores(inputs())
    with pytest.raises(InputError, match=message):
        ostinato.merge(first, taught(name, [[2, 3]], **other))
    assert torch.equal(first.scores(inputs()), before), "the first is left as it was"


def test_other_weights_do_not_add(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(Path(ostinato.__file__).parent / "assets/vit_mini_patch8_32.glyphs.safetensors")
    state["cls_token"] = state["cls_token"] + 1
    save_file(state, tmp_path / "other.safetensors")
    spec = BackboneSpec(weights=str(tmp_path / "other.safetensors"), readout="cls+mean")
    with pytest.raises(InputError, match="hash of the backbone's weights"):
        ostinato.merge(taught("slda", [[0, 1]]), taught("slda", [[2, 3]], backbone=spec))


def test_what_does_not_add_is_refused() -> None:
    with pytest.raises(InputError, match=r"state of finetune does not add.*fecam, ranpac, simplecil, slda\."):
        ostinato.merge(Learner("finetune", precision="fp32"), Learner("finetune", precision="fp32"))
    with pytest.raises(InputError, match="the method is 'slda' in the first run and 'simplecil' in run 2"):
        ostinato.merge(taught("slda", [[0, 1]]), taught("simplecil", [[2, 3]]))
    with pytest.raises(InputError, match="run 2 has learned nothing"):
        ostinato.merge(taught("slda", [[0, 1]]), Learner("slda", **BOTH))
    with pytest.raises(InputError, match="at least two runs, got 1"):
        ostinato.merge(taught("slda", [[0, 1]]))
    alike = taught("slda", [[2, 3]])
    alike.label_groups = [0, 0]
    with pytest.raises(InputError, match=r"run 2 counts classes as one answer \(data\.alike\)"):
        ostinato.merge(taught("slda", [[0, 1]]), alike)
