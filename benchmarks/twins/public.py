"""Run of a public program in its own process, since it changes torch and brings modules of common names."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.twins import cl_lora, coda_prompt, lieprompt, pools, soft_tf
from benchmarks.twins.ground import Ground, Scores, Sizes

PROGRAMS: dict[str, Callable[[Ground, Path], Scores]] = {
    "cl_lora": cl_lora.run,
    "lieprompt": lieprompt.run,
    "soft_tf": soft_tf.run,
    "dualprompt": partial(pools.run, dual=True),
    "l2p": partial(pools.run, dual=False),
    "coda_prompt": coda_prompt.run,
}


def main(program: str, code: str, sizes: str, seed: str, out: str) -> None:
    """Run a program with a seed and write its scores."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    ground = Ground(Sizes(**json.loads(sizes)), int(seed))
    torch.manual_seed(1000 + int(seed))
    scores = PROGRAMS[program](ground, Path(code).resolve())
    Path(out).write_text(json.dumps(scores.accuracies))


if __name__ == "__main__":
    main(*sys.argv[1:])
