"""Every registered method learns real handwritten digits on the bundled backbone."""

from __future__ import annotations

import pytest

from ostinato.backbones import VisionBackbone
from ostinato.learner import Learner
from ostinato.lookup import methods
from ostinato.streams import StreamOptions, TaskStream, open_source

FASTER = {
    "finetune": {"epochs": 3, "batch_size": 8},
    "joint": {"epochs": 2, "batch_size": 12},
    "icarl": {"epochs": 2},
    "ewc": {"epochs": 3},
    "l2p": {"epochs": 2, "batch_size": 8, "lr": 0.01},
    "dualprompt": {"epochs": 3, "batch_size": 8, "lr": 0.01},
    "coda_prompt": {"epochs": 3, "batch_size": 16, "lr": 0.01},
    "lieprompt": {"epochs": 1},
    "soft_tf": {"epochs": 4},
    "gdumb": {"epochs": 3},
    "slca": {"epochs": 4, "batch_size": 16},
    "wsn": {"epochs": 3},
    "adapter": {"epochs": 2, "batch_size": 8},
    "lora": {"epochs": 2, "batch_size": 8},
    "cl_lora": {"epochs": 2, "batch_size": 16},
    "slm": {"epochs": 2, "batch_size": 8, "lr": 0.001},
    "layer_grouped": {"epochs": 2, "batch_size": 16, "lr": 0.005},
    "duet": {"epochs": 2},
    "aper": {"epochs": 3, "batch_size": 16},
    "ease": {"epochs": 3, "batch_size": 16},
    "inflora": {"epochs": 3, "batch_size": 8, "lr": 0.005},
    "sd_lora": {"epochs": 3, "batch_size": 8},
    "s_prompt": {"epochs": 3, "batch_size": 8},
    "hide_prompt": {"epochs": 2},
}
"""Shorter recipes than the papers', which are made for larger data."""

IMAGES = {"dualprompt": 24, "er": 14, "der": 14, "lwf": 14, "gdumb": 12, "finetune": 12, "slca": 14, "icarl": 12}
"""Training images per class, where the 20 of the others are too few to tell, or steps are long."""

OPTIONS = {"duet": {"n_random": 500}, "ranpac": {"n_random": 500}}
"""Fewer random features than for large data."""

ON_IMAGES = [name for name, cls in methods().items() if issubclass(VisionBackbone, cls.needs)]


@pytest.mark.parametrize("name", ON_IMAGES)
def test_six_digits_in_three_tasks(name):
    source = open_source("digits")
    options = StreamOptions(
        tasks=[["0", "1"], ["2", "3"], ["4", "5"]], limit_per_class=IMAGES.get(name, 20), test_limit_per_class=20
    )
    stream = TaskStream(source, options)
    learner = Learner(name, train=FASTER.get(name, {}), precision="fp32", **OPTIONS.get(name, {}))
    for task in stream:
        learner.learn(task, augment=source.augment)
    final = learner.evaluate(stream)
    newest = final.correct[-1] / final.totals[-1]
    if name == "finetune":  # free to forget; how much it does is tested with the demonstration
        assert newest > 0.85
        return
    assert final.accuracy > 0.6, f"{final.table()}\nchance is 17 %"
    assert final.task_incremental_accuracy > 0.85
    if final.task_id_accuracy is not None:
        assert final.task_id_accuracy > 0.6, "chance is 33 %"
