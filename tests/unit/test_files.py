"""Files: whole or not at all, sealed, and nothing but files."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.errors import DataError
from ostinato.files import read_json, read_regular, read_sealed, sealed, write_bytes, write_json, write_sealed


def test_json_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": "é"})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": float("nan")})
    assert read_json(file) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    file.write_text("{")
    with pytest.raises(DataError, match=r"x\.json must be JSON"):
        read_json(file)
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["[1]", "1", "null", "[" * 100_000, '{"a": ' * 100_000, "\x00", "1" * 5000, ""])
def test_what_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    for read in (read_json, read_sealed):
        with pytest.raises(DataError, match=r"x\.json must"):
            read(tmp_path / "x.json")


def test_names_that_are_not_utf8_can_be_recorded(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_sealed(tmp_path / "x.json", {"classes": [name]})
    assert read_sealed(tmp_path / "x.json") == {"classes": [name]}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "sha256"), VALUES, max_size=4), st.data())
def test_a_seal_breaks_with_every_bit(tmp_path_factory, value, data):
    file = tmp_path_factory.mktemp("s") / "x.json"
    text = sealed(value).encode()
    file.write_bytes(text)
    assert read_sealed(file) == value
    bit = data.draw(st.integers(0, 8 * len(text) - 1))
    changed = bytearray(text)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    with pytest.raises(DataError):
        read_sealed(file)


@pytest.mark.parametrize("place", ["x", "x.part"])
def test_nothing_is_written_through_a_link(tmp_path, place):
    (tmp_path / "precious").write_text("x")
    (tmp_path / place).symlink_to("precious")
    write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "precious").read_text() == "x"
    assert (tmp_path / "x").read_bytes() == b"new"
    assert not (tmp_path / "x").is_symlink()


def test_modes_are_those_of_new_files(tmp_path):
    (tmp_path / "x").touch(mode=0o600)
    (tmp_path / "other").touch()
    write_bytes(tmp_path / "x", b"1")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link", "."):
        with pytest.raises(DataError, match=r"must be a file|cannot be read"):
            read_regular(tmp_path / name, 10)
    (tmp_path / "large").write_bytes(b"12345678901")
    with pytest.raises(DataError, match="must have at most 10 bytes, got 11"):
        read_regular(tmp_path / "large", 10)
