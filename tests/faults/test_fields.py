"""A sample of the changed fields of ``make faults``."""

from __future__ import annotations

import random

import pytest

from tests.faults.fields import Case, Grounds, hold_some

pytestmark = pytest.mark.slow


def test_changed_fields_end_in_documented_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert hold_some(tmp_path, 40, random.Random(3)) == 40


def test_a_recipe_that_cannot_be_is_refused_when_a_run_goes_on(tmp_path):
    Grounds(tmp_path).hold(Case("config.toml", ("train", "epochs"), -1, unfinished=True), reseal=True)
