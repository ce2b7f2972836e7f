"""Paths as users give them."""

import os
from pathlib import Path

import pytest

from ostinato.errors import InputError
from ostinato.paths import user_path


def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("a/b.csv", "data") == Path("a/b.csv")
    assert user_path("~/a", "data") == tmp_path / "a"
    assert user_path("./~nosuchuser", "data") == Path("~nosuchuser")
    name = os.fsdecode(b"gr\xfcn")  # as an argument that is not UTF-8 arrives
    assert os.fsencode(user_path(name, "data")) == b"gr\xfcn"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~nosuchuser/photos", r"data must be a path, but the home folder in '~nosuchuser/photos' is unknown"),
        ("a\0b", r"data must be a path without NUL characters, got 'a\\x00b'"),
        ("a\ud800b", r"data must be a path, but no file name can hold character 1 of 'a\\ud800b'"),
        ("x" * 5000, r"data must be a path, but 'x{200}'\.\.\. \(5000 characters\) is too long"),
    ],
)
def test_names_that_no_file_has_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        user_path(text, "data")
