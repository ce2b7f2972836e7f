"""Damaged images, tables, files of texts and folders: only documented errors leave what reads them."""

import random
from itertools import islice

import pytest

from tests.faults.fuzz import Target, accepts, mutated
from tests.faults.targets_data import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_intact_inputs_are_read(target: Target):
    assert all(accepts(target, seed) for seed in target.seeds())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_inputs_end_in_documented_errors(target: Target):
    inputs = mutated(target.seeds(), target.words, random.Random(0))
    for data in islice(inputs, 300 if target.cost < 30 else 100):
        accepts(target, data)
