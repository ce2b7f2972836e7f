"""Exported files give the scores of the model that they were made from, and are read with care."""

from __future__ import annotations

import io
import pickle
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

import ostinato
from ostinato import Learner
from ostinato.contract.harness import inputs_of, learn, make, scores
from ostinato.contract.tiny_models import SIDE, random_backbone, tiny_stream
from ostinato.errors import DataError, InputError
from ostinato.interop import FORMATS, TOLERANCE, export, load_exported
from ostinato.interop.exporting import check_images, convert
from ostinato.lookup import get_method
from ostinato.nn.routing import by_task

missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"the extra onnx is not installed: {', '.join(missing)}")

TO = [pytest.param("onnx", marks=needs_onnx), "pt2", "torchscript"]

CASES = {
    "simplecil": {},
    "slda": {},
    "fecam": {},
    "duet": {},
    "dualprompt": {"keys": "mean"},
    "l2p": {},
    "wsn": {},
}
"""Sums over samples, prompts by key, a pool, and edits of the inferred task."""


@pytest.fixture(scope="module")
def learned():
    """Learned methods on a tiny encoder, by name, each made once."""
    stream, made = tiny_stream(), {}

    def get(name):
        if name not in made:
            made[name] = learn(make(name, "image", random_backbone(depth=4), **options_of(name)), stream)
        return made[name], inputs_of(stream)

    return get


def options_of(name):
    return CASES[name] | ({"layers": (2, 3), "base.e_layers": (2, 3)} if name == "wsn" else {})


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_the_scores_of_its_method_for_any_batch(learned, name, to):
    method, images = learned(name)
    data, difference = convert(method, check_images(SIDE), "{}", to)
    assert difference <= TOLERANCE
    got = FORMATS[to].load(data)(images[:7])
    want = scores(method, images[:7])
    assert float((got - want).abs().max() / want.abs().max()) <= TOLERANCE
