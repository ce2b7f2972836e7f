"""A sample of the damaged files of ``make faults``."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from tests.faults.fuzz import accepts, mutated
from tests.faults.targets_files import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_end_in_documented_errors(target):
    seeds = target.seeds()
    assert all(accepts(target, seed) for seed in seeds)
    read = [accepts(target, data) for data in islice(mutated(seeds, target.words, random.Random(1)), 300)]
    assert not all(read)
