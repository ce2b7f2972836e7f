"""Damaged options end in documented errors of one bounded line."""

import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.config import build_config
from ostinato.errors import InputError
from ostinato.methods.dualprompt import DualPrompt
from ostinato.registry import check_options
from tests.faults.fuzz import Target, accepts, mutated
from tests.faults.targets_options import BASE, TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_intact_inputs_are_read(target: Target):
    assert all(accepts(target, seed) for seed in target.seeds())


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_damaged_inputs_end_in_documented_errors(target: Target):
    inputs = mutated(target.seeds(), target.words, random.Random(0))
    read = sum(accepts(target, data) for data in islice(inputs, 300))
    assert 0 < read < 300


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["name", "path", "tasks", "lr", "size", "sets", "every", "first", "x"]) | st.text(max_size=4)
SECTIONS = st.sampled_from(["method", "data", "backbone", "stream", "train", "eval", "checkpoint", "seed", "device"])


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.dictionaries(SECTIONS, VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=3))
def test_trees_of_any_values(tree):
    told = ""
    try:
        check_options(DualPrompt, build_config(BASE, tree).method.options())
    except InputError as error:
        told = str(error)
    assert not told or told.isprintable()
    assert len(told) < 1000
