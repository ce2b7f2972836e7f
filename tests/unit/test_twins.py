"""The comparison with public code: what it prints, and the parts that need no checkout."""

import json

import pytest
import torch
from torch import nn

from benchmarks.twins.__main__ import OPTIONS, accuracies, compare, ours
from benchmarks.twins.ground import Sizes
from benchmarks.twins.patches import exchange_axes
from ostinato.config import build_config, parse_overrides
from ostinato.lookup import get_method
from ostinato.registry import check_options

SIZES = Sizes(data="images", weights="w.safetensors", size=32, step=5, passes=2, batch=20)


@pytest.mark.parametrize("method", OPTIONS)
def test_our_commands_have_known_options(method, tmp_path):
    words = ours(method, SIZES, 3, tmp_path)
    assert words[:2] == ["run", method]
    given = parse_overrides([word for word in words[2:] if not word.startswith("out=")])
    config = build_config(given, {"method": {"name": method}})
    check_options(get_method(method), config.method.options())
    assert (config.seed, config.train.model_extra["epochs"], config.stream.step, config.backbone.size) == (3, 2, 5, 32)


def test_the_table_has_means_and_the_difference():
    """Last accuracies 0.5, 0.7 here and 0.4, 0.4 there: means 60 and 40, errors 10 and 0."""
    text = compare([[0.9, 0.4], [0.7, 0.4]], [[1.0, 0.5], [0.8, 0.7]])
    assert "| public code | 80.0 | 40.0 | 0.0 |" in text
    assert "| here | 90.0 | 60.0 | 10.0 |" in text
    assert "Last task, here minus public code: +20.0 ± 10.0 points." in text
    assert "minus" not in compare([[0.9]], [[1.0]]), "one seed has no error"


def test_accuracies_are_those_after_each_task(tmp_path):
    events = [{"event": "evaluated", "accuracy": 0.5}, {"event": "step"}, {"event": "evaluated", "accuracy": 0.25}]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert accuracies(tmp_path) == [0.5, 0.25]


def test_axes_are_exchanged():
    """Each image gets the key prefix and the value prefix of its own prompt."""

    class EPrompt(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt = torch.randn(3, 2, 4, 5, 2, 6)  # layers, key and value, pool, length, heads, width

        def forward(self, ids):
            raw = self.prompt[:, :, ids]
            layers, two, batch, *rest = raw.shape
            return {"batched_prompt": raw.reshape(layers, batch, two, *rest)}

    exchange_axes(EPrompt)
    net, ids = EPrompt(), torch.tensor([2, 0, 3])
    found = net(ids)["batched_prompt"]
    for b, i in enumerate(ids.tolist()):
        assert torch.equal(found[:, b], net.prompt[:, :, i])
