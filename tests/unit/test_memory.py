"""Freed memory serves the next tensors of a process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from ostinato.engine.memory import keep_freed_memory

assert sys.argv[1] == "given back" or keep_freed_memory()

def step():
    return [torch.zeros(size, dtype=torch.uint8) for size in (10 * 2**20, 30 * 2**20, 60 * 2**20)]

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be asked")
def test_large_tensors_come_from_memory_that_was_freed():
    def faults(how):
        run = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
        return int(run.stdout)

    assert faults("kept") * 10 < faults("given back")
