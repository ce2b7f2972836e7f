"""Every registered method learns real handwritten digits on the bundled backbone."""

from __future__ import annotations

import pytest

from ostinato.backbones import VisionBackbone
from ostinato.learner import Learner
from ostinato.lookup import methods
from ostinato.streams import StreamOptions, TaskStream, open_source

FASTER = {
    "finetune": {"epochs": 2},
    "joint": {"epochs": 2},
    "lieprompt": {"epochs": 2},
    "soft_tf": {"epochs": 4},
    "wsn": {"epochs": 4},
    "adapter": {"epochs": 3},
    "lora": {"epochs": 4},
    "cl_lora": {"epochs": 4, "batch_size": 16},
    "layer_grouped": {"epochs": 4, "batch_size": 32, "lr": 0.005},
    "coda_prompt": {"epochs": 4, "batch_size": 32, "lr": 0.005},
    "gdumb": {"epochs": 3},
    "slca": {"epochs": 4, "batch_size": 16},
}
"""Shorter recipes than the papers' where those are made for larger data."""

MORE = {"finetune": 60, "dualprompt": 60}
"""Training images per class, where the 40 of the others are too few to tell."""

OPTIONS = {"duet": {"n_random": 500}, "ranpac": {"n_random": 500}}
"""Fewer random features than for large data."""

ON_IMAGES = [name for name, cls in methods().items() if issubclass(VisionBackbone, cls.needs)]


@pytest.mark.parametrize("name", ON_IMAGES)
def test_six_digits_in_three_tasks(name):
    source = open_source("digits")
    stream = TaskStream(
        source, StreamOptions(tasks=[["0", "1"], ["2", "3"], ["4", "5"]], limit_per_class=MORE.get(name, 40))
    )
    learner = Learner(name, train=FASTER.get(name, {}), precision="fp32", **OPTIONS.get(name, {}))
    after = []
    for task in stream:
        learner.learn(task, augment=source.augment)
        after.append(learner.evaluate(stream))
    final = after[-1]
    newest = final.correct[-1] / final.totals[-1]
    if name == "finetune":  # free to forget; how much it does is tested with the demonstration
        assert newest > 0.85
        return
    assert final.accuracy > 0.6, f"{final.table()}\nchance is 17 %"
    assert final.task_incremental_accuracy > 0.85
    if final.task_id_accuracy is not None:
        assert final.task_id_accuracy > 0.6, "chance is 33 %"
