"""Targets: the small files of runs and models, damaged as they lie there, and sealed anew."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ostinato import artifact
from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.files import sealed
from ostinato.runs.checkpoint import Checkpoint, Checkpoints
from ostinato.runs.rundir import RunDir
from tests.conftest import RECORD
from tests.faults.fuzz import Target

_ABOUT = {
    "run_id": "0" * 32, "method": "simplecil", "method_file": None, "options": {"top_k": [1, 2]},
    "backbone": {"name": "x", "weights": None, "size": None, "preprocess": "weights", "length": None},
    "backbone_sha256": None, "preprocess": {"mean": [0.5]}, "label_groups": None, "class_names": ["a", "b"],
    "task_sizes": [2], "protocol": "sample", "seed": 0, "crop": 1.0, "precision": "auto", "train": {"epochs": 1},
}  # fmt: skip
_WORDS = (b'"format": 5', b'"sha256": ', b"null", b"true", b"../", b'"learned": ', b"{}", b"1e400", b'"\\ud800"')


@cache
def _folder() -> Path:
    """One folder for all; it goes with the process."""
    return Path(_KEPT.name)


_KEPT = tempfile.TemporaryDirectory(prefix="ostinato-targets-")


@cache
def _model() -> Path:
    folder = _folder() / "model"
    artifact.write(folder, _ABOUT, {"w": torch.zeros(3)}, np.zeros(1, np.uint64), b"text")
    return folder


@cache
def _checkpoint() -> Path:
    store = Checkpoints(_folder() / "checkpoints", "0" * 32)
    return store.save(Checkpoint({"w": torch.zeros(3)}, {"0.step": torch.zeros(1)}, {"task": 1, "phase": "inside"}))


@cache
def _run() -> RunDir:
    dirs = RunDir(_folder() / "run")
    dirs.root.mkdir()
    dirs.write_record(RECORD)
    AccuracyMatrix([[1], [1, 2]], [2, 2]).to_csv(dirs.matrix)
    summary = {"method": "l2p", "last_accuracy": 0.5, "tasks": 2, "forgetting": None, "warnings": ["x"]}
    dirs.summary.write_text(json.dumps(summary))
    return dirs


def _reader(file: Callable[[], Path], read: Callable[[], object], *, seal: bool = False) -> Callable[[bytes], object]:
    """Put the input in the place of a file, read, and put the file back."""

    def reads(data: bytes) -> object:
        path = file()
        before = path.read_bytes()
        if seal:
            try:
                value = json.loads(data)
                data = sealed(value).encode() if isinstance(value, dict) else data
            except (ValueError, RecursionError):
                pass
        path.write_bytes(data)
        try:
            return read()
        finally:
            path.write_bytes(before)

    return reads


def _of(file: Callable[[], Path]) -> Callable[[], list[bytes]]:
    return lambda: [file().read_bytes()]


def _named(pattern: str) -> Callable[[], Path]:
    return lambda: next(_model().glob(pattern))


def _about() -> Path:
    return _model() / "artifact.json"


def _moment() -> Path:
    return _checkpoint() / "checkpoint.json"


def _latest() -> object:
    return Checkpoints(_folder() / "checkpoints", "0" * 32).latest()


def _read_model() -> object:
    return artifact.read(_model())


TARGETS = [
    Target("artifact.json", _of(_about), _reader(_about, _read_model), _WORDS, cost=4),
    Target("artifact.json, sealed anew", _of(_about), _reader(_about, _read_model, seal=True), _WORDS, cost=6),
    Target("learned tensors", _of(_named("learned-*")), _reader(_named("learned-*"), _read_model), cost=6),
    Target("used samples", _of(_named("used-*")), _reader(_named("used-*"), _read_model), cost=6),
    Target("checkpoint.json", _of(_moment), _reader(_moment, _latest), _WORDS, cost=4),
    Target("checkpoint.json, sealed anew", _of(_moment), _reader(_moment, _latest, seal=True), _WORDS, cost=6),
    Target(
        "record.json, sealed anew",
        lambda: [_run().record.read_bytes()],
        _reader(lambda: _run().record, lambda: _run().read_record(), seal=True),
        _WORDS,
        cost=4,
    ),
    Target(
        "summary.json",
        lambda: [_run().summary.read_bytes()],
        _reader(lambda: _run().summary, lambda: _run().read_summary()),
        _WORDS,
        cost=3,
    ),
    Target(
        "accuracy_matrix.csv",
        lambda: [_run().matrix.read_bytes()],
        _reader(lambda: _run().matrix, lambda: AccuracyMatrix.from_csv(_run().matrix)),
        (b"test_samples", b"after_task", b",,", b"nan", b"-1", b"inf", b"1e9"),
        cost=3,
    ),
]
