"""Peak resident memory of DualPrompt's training: ``python -m benchmarks.memory MODEL BATCH THREADS PRECISION``."""

from __future__ import annotations

import sys

import torch

from benchmarks.cases import CASES, measure
from ostinato.runs.session import peak_memory
from ostinato.training.memory import keep_freed_memory
from ostinato.training.precision import choose_precision


def main() -> None:
    """Train a few steps without the reference and print the peak of this process."""
    model, batch, threads, precision = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    keep_freed_memory()
    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    dtype = choose_precision(precision, cpu).dtype
    measure(CASES[0], model, batch=batch, rounds=2, device=cpu, dtype=dtype, with_reference=False)
    print(f"Peak memory of a process that trains DualPrompt at batch {batch}: {peak_memory(cpu) / 2**30:.2f} GiB.")


if __name__ == "__main__":
    main()
