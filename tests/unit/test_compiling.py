"""Compiled layers: the same results, few graphs however many tasks, and one line where it cannot be done."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.cases import CLASSES, Images
from ostinato.contract.tiny_models import random_backbone
from ostinato.lookup import get_method
from ostinato.methods.base import LearnTask, Method
from ostinato.training.compiling import compile_layers
from ostinato.training.loop import Settings, learn_task
from ostinato.training.precision import prepare

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def taught(name: str, tasks: int, compiled: bool) -> tuple[Method, torch.Tensor]:
    """A method after some tasks, and its scores."""
    torch.manual_seed(0)
    method = get_method(name)(random_backbone())
    prepare(method, CPU, torch.float32)
    method.frozen.feature_cache = None
    if compiled:
        assert compile_layers(method.backbone, CPU, backend="eager")
    settings = Settings(CPU, torch.float32, overrides={"epochs": 1, "batch_size": 4})
    for i in range(tasks):
        images = Images(10, 8, range(i * CLASSES, (i + 1) * CLASSES))

        def batches(images: Images = images):
            yield images.batch(10, CPU)

        learn_task(method, LearnTask(i, range(i * CLASSES, (i + 1) * CLASSES), images, batches), settings)
        with torch.inference_mode():
            scores = method.scores(images.x[:7])
    return method, scores


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["simplecil", "dualprompt"])
def test_twenty_tasks_need_at_most_six_graphs(name: str):
    torch._dynamo.reset()
    counters.clear()
    _, scores = taught(name, 20, compiled=True)
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs - 1 <= 6, "the first graph is the one that tries the compiler"
    _, plain = taught(name, 20, compiled=False)
    assert torch.allclose(scores, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch):
    def broken(*args, **more):
        raise RuntimeError("No working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", broken)
    backbone = random_backbone()
    with pytest.warns(UserWarning, match=r"does not work here \(No working C\+\+ compiler found\); layers run"):
        assert not compile_layers(backbone, CPU)
    assert backbone(torch.zeros(1, 3, 8, 8)).shape == (1, 16)
