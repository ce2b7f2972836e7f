"""Tables and text files that are damaged, or made to do harm: crash the reader, fill the memory, hang."""

import json
import os
import subprocess
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostinato.errors import DataError, InputError, OstinatoError
from ostinato.predicting import image_files, texts_of
from ostinato.streams import kind_of, open_source, readers
from ostinato.streams.readers import read_table
from ostinato.streams.tables import table as open_table

LONG = readers.MAX_ROW_BYTES + 1


def predicted(*files):
    return [(name, text if isinstance(text, str) else str(text)) for name, text in texts_of([], list(files), None)]


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("~nosuchuser/photos", "home folder in '~nosuchuser/photos' is unknown"),
        ("x" * 5000, "too long"),
        ("a\0b", "without NUL characters"),
        ("a\ud800", "no file name can hold"),
    ],
)
def test_names_that_no_data_have(spec, message):
    with pytest.raises(InputError, match=message):
        open_source(spec)
    with pytest.raises(InputError, match=message):
        open_source(spec, sets=["a"])
    with pytest.raises(InputError, match=message):
        kind_of(spec)


@pytest.mark.parametrize("name", ["../..", "/etc", "a/b/c", "owner/", "a b", "-", "x" * 200])
def test_names_that_no_data_set_of_the_hub_has(name):
    with pytest.raises(InputError, match="needs the name of a data set, as in 'hub:owner/name', not"):
        open_source(f"hub:{name}")


def test_the_hub_is_not_a_folder(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="hub:owner/name is ambiguous: a file or folder here has this name"):
        open_source("hub:owner/name")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "t\u00e9xt,label\na,b\n".encode("latin-1"), r"cannot be read as csv \(.*Save it in UTF-8"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "in UTF-16. Save it in UTF-8"),
        ("a.csv", "text,text,label\na,b,c\n", "must have each column once, but has 'text' 2 times"),
        ("a.csv", "text,label,label\na,b,c\n", "must have each column once, but has 'label' 2 times"),
        (
            "a.csv",
            f"text,label\na,{'9' * 5000}\nb,1\n",
            r"at most 1,000 characters, but that of a\.csv row 0 has 5,000",
        ),
        ("a.csv", b"text,label\na,b\n" + b"x" * (2 * LONG) + b",c\n", r"a\.csv row 1 must have at most 16 MB"),
        ("a.csv", b'text,label\na,b\n"' + b"x\n" * LONG, r"a\.csv row 1 must have at most 16 MB and closed quotes"),
        ("a.csv", "," * 2000 + "\n" + "," * 2000 + "\n", "at most 1,000 columns, but has 2,001"),
        ("a.csv", '\n\n"text\n",' + "," * 2000 + "\n", "at most 1,000 columns, but has 2,002"),
        ("a.csv", "", "cannot be read as csv"),
        ("a.jsonl", "\n \n", "it is empty"),
        ("a.jsonl", '{"text": "a", "label": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 1 is nested too deeply"),
        (
            "a.jsonl",
            '{"text": "a", "label": "b"}\n{"text": 9999999999999999999999}\n',
            "line 2: 'text' .* at most 64 bits",
        ),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "line 1 is not JSON .*limit"),
        ("a.jsonl", '{"text": "\\ud800", "label": "b"}\n', "line 1: 'text' holds half a character"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": "c"}\n', "cannot be read as jsonl"),
        ("a.jsonl", "[1, 2]\n", "line 1 must be an object"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "gr\u00fcn"}\n'.encode("latin-1"),
            r"line 2 is not UTF-8 .*Save it in UTF-8",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "' + b"x" * LONG + b'"}\n', "line 2 must have at most 16 MB"),
        ("a.jsonl", "".join(f'{{"k{i}": 1}}\n' for i in range(1001)), "at most 1,000 columns, but has 1,001"),
        ("a.jsonl", '{"text": ["a"], "label": "b"}\n', "no column of images or texts"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.parquet", b"PAR1PAR1PAR1", "cannot be read as parquet"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, name, content, message):
    with pytest.raises(OstinatoError, match=message):
        open_source(str(written(tmp_path / name, content)))


def test_many_rows_of_many_columns_are_refused_before_they_take_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_VALUES", 1_000)
    wide = json.dumps({f"k{i}": 1 for i in range(500)})
    for lines in ("{}\n" * 10 + wide, f"{wide}\n" + "{}\n" * 10):
        with pytest.raises(DataError, match=r"more values than the file has bytes, but has .* rows of 500 columns"):
            read_table(written(tmp_path / "a.jsonl", lines))


def test_columns_beside_those_that_are_used_may_have_one_name(tmp_path):
    """A spreadsheet writes its empty columns as well."""
    source = open_source(str(written(tmp_path / "a.csv", "text,label,,\na,b,,\nc,d,,\n")))
    assert source.class_names == ["b", "d"]


def test_long_texts_are_read_up_to_a_limit(tmp_path):
    fine, long = "w " * 500_000, "w " * 2_500_000
    message = "the text has 5,000,000 characters; at most 4,000,000 are read"
    rows = [{"text": text, "label": label} for text, label in ((fine, "x"), (long, "x"), ("c", "y"), ("d", "x"))]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    for file in (
        written(tmp_path / "a.csv", "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)),
        written(tmp_path / "a.jsonl", lines),
        tmp_path / "a.parquet",
    ):
        if file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        with pytest.raises(DataError, match=rf"{file.name} row 1: {message}"):
            open_source(str(file))
        source = open_source(str(file), on_error="skip")
        assert source.skipped == [f"{file.name} row 1: {message}"]
        assert fine in [part.load(i) for part in (source.train, source.test) if part for i in range(len(part))]
        assert [text[-60:] for _, text in predicted(file)][:2] == [fine[-60:], f"{file} row 1: {message}."[-60:]]


def test_lines_of_texts_are_read_up_to_a_limit(tmp_path):
    fine = b"w " * 500_000
    file = written(tmp_path / "a.txt", b"a\n" + b"x" * (2 * LONG) + b"\n" + fine + b"\r\n\n\xff\nb")
    found = predicted(file)
    assert [name for name, _ in found] == [f"{file}:{i}" for i in range(1, 7)]
    assert [text[-60:] for _, text in found] == [
        "a",
        f"{file}:2: the line must have at most 16 MB."[-60:],
        fine.decode()[-60:],
        f"{file}:4: the text is empty."[-60:],
        f"{file}:5: byte 0 is not UTF-8; save the file in UTF-8."[-60:],
        "b",
    ]


REPEATED = pa.array(["x" * 1_000_000]).dictionary_encode().take(pa.array(np.zeros(5000, int)))
NAMED = pa.array(["y"] * 5000)


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"text": REPEATED, "label": NAMED}, {"store_schema": False}),
        ({"text": REPEATED, "label": NAMED}, {}),
        ({"image": pa.StructArray.from_arrays([REPEATED], ["bytes"]), "label": NAMED}, {}),
        (
            {"text": pa.array(["z" * 1_000_000] * 300)},
            {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        ),
        ({"text": pa.array(["z" * 1_000_000] * 250)}, {"use_dictionary": False}),
        ({"label": pa.nulls(3_000_000, pa.int8())}, {}),
    ],
    ids=["repeated", "categories", "images", "deltas", "pressed", "rows"],
)
def test_parquet_that_unpacks_to_far_more_than_it_is(tmp_path, monkeypatch, columns, options):
    monkeypatch.setattr(readers, "MAX_UNPACKED_BYTES", 200_000_000)
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table(columns), file, compression="zstd", **options)
    del columns
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    with pytest.raises(DataError, match=r"must unpack to at most 200 MB|rows, more than it has bytes"):
        read_table(file)
    assert file.stat().st_size < 3_000_000
    assert pool.bytes_allocated() - before < 10_000_000


def test_lists_are_left_empty(tmp_path):
    """They are no samples and no labels, whatever memory they would take."""
    lists = pa.ListArray.from_arrays(pa.array(range(5001), pa.int32()), REPEATED)
    inside = pa.StructArray.from_arrays([lists, NAMED], ["l", "n"])
    many = pa.array([[0] * 20_000_000] + [None] * 4999, pa.list_(pa.int8()))
    content = pa.table({"many": many, "text": NAMED, "lists": lists, "label": NAMED, "inside": inside})
    for kept in (content, content.select(["lists"])):
        pq.write_table(kept, tmp_path / "train.parquet", compression="zstd")
        pool = pa.default_memory_pool()
        before = pool.bytes_allocated()
        found = read_table(tmp_path / "train.parquet")
        assert pool.bytes_allocated() - before < 10_000_000
        assert found.schema.names == kept.schema.names
        assert found.num_rows == 5000
        assert found.column("lists").null_count == 5000
    pq.write_table(content, tmp_path / "train.parquet", compression="zstd")
    assert open_source(str(tmp_path)).class_names == ["y"]
    with pytest.raises(InputError, match="'lists' of train holds list"):
        open_table(tmp_path / "train.parquet", label_column="lists")


def test_repeated_texts_are_read_where_they_fit(tmp_path):
    words = pa.array(["one " * 10_000, "two " * 10_000, None]).dictionary_encode()
    column = words.take(pa.array([i % 3 for i in range(9_000)]))
    content = pa.table({"text": column, "n": range(9_000), "s": pa.StructArray.from_arrays([column], ["bytes"])})
    pq.write_table(content, tmp_path / "a.parquet", row_group_size=4_000, store_schema=False)
    found = read_table(tmp_path / "a.parquet")
    assert found.schema.types[0] == pa.string()
    assert found.column("text").to_pylist() == column.to_pylist()
    assert found.column("n").to_pylist() == list(range(9_000))
    assert found.column("s").to_pylist()[8_998:] == [{"bytes": column[i].as_py()} for i in (8_998, 8_999)]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", pa.array([["a"], ["b"]]), "integers or text, but 'label' of .* holds list"),
        ("label", pa.array([{"a": 1}, {"a": 2}]), "integers or text, but 'label' of .* holds struct"),
        ("label", pa.array([Decimal("1.5")] * 2), "integers or text, but 'label' of .* holds decimal"),
        ("label", pa.nulls(2), "2 lack one, such as train.parquet row 0"),
        ("text", pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers()), "Save it in UTF-8"),
        ("image", pa.array([{"bytes": None, "path": 3}] * 2), "row 0: no image"),
        ("image", pa.array([{"bytes": "a", "path": "x"}] * 2), "row 0: no image"),
        (
            "image",
            pa.array([{"bytes": None, "path": "a\0b"}] * 2),
            r"row 0: cannot be read \(no file can have this name",
        ),
        ("image", pa.array([{"bytes": None, "path": "x" * 999}] * 2), r"row 0: cannot be read \(File name too long"),
    ],
)
def test_columns_of_odd_kinds(tmp_path, column, values, message):
    content = {"text": pa.array(["p", "q"]), "label": pa.array(["x", "y"])} | {column: values}
    pq.write_table(pa.table(content), tmp_path / "train.parquet")
    with pytest.raises(OstinatoError, match=message):
        open_source(str(tmp_path))


def test_labels_of_64_bits_are_told_apart(tmp_path):
    labels = pa.array([2**63 + 1, 2**63 + 2, 5], pa.uint64())
    pq.write_table(pa.table({"text": ["p", "q", "r"], "label": labels}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"text": ["p", "q"], "label": [5, 5]}), tmp_path / "test.parquet")
    source = open_source(str(tmp_path))
    assert source.class_names == ["5", str(2**63 + 1), str(2**63 + 2)]
    assert source.train.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"label": {"_type": "ClassLabel", "names": 5}}, "must be a list of texts"),
        ({"label": {"_type": "ClassLabel", "names": [1, 2]}}, "must be a list of texts"),
        ({"label": {"_type": "ClassLabel", "names": ["a", "b"]}}, r"must lie in 0\.\.1, but 1 do not"),
        ([1], None),
        ("[" * 100_000, None),
    ],
)
def test_metadata_of_another_kind(tmp_path, metadata, message):
    stored = metadata if isinstance(metadata, str) else json.dumps({"info": {"features": metadata}})
    content = pa.table({"text": ["p", "q"], "label": [0, 2**40]}).replace_schema_metadata({"huggingface": stored})
    pq.write_table(content, tmp_path / "train.parquet")
    if message is None:
        assert open_source(str(tmp_path)).class_names == ["0", str(2**40)]
    else:
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path))


def test_metadata_of_columns_that_are_not_there(tmp_path):
    """Found by damage at random."""
    stored = json.dumps({"info": {"features": {"target": {"_type": "ClassLabel", "names": ["a", "b"]}}}})
    content = pa.table({"text": ["p", "q"], "n": [0, 1]}).replace_schema_metadata({"huggingface": stored})
    pq.write_table(content, tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"labels of .* are not clear. Columns: text, n"):
        open_source(str(tmp_path))


def test_no_bit_of_a_parquet_file_ends_the_process(tmp_path):
    """Found by damage at random: of some damage, the library throws where nobody can catch it."""
    pq.write_table(pa.table({"l": [["a"], [], None, ["b", "c"]]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with suppress(DataError):
            read_table(written(tmp_path / "a.parquet", changed))


def test_labels_of_words_do_not_fit_numbered_names(tmp_path):
    stored = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}})
    content = pa.table({"text": ["p", "q"], "label": ["a", "b"]}).replace_schema_metadata({"huggingface": stored})
    pq.write_table(content, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"must lie in 0\.\.1, but 2 do not, such as a in train\.parquet row 0"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_pipes_folders_and_missing_files_are_no_tables(tmp_path, suffix):
    for name, make, reason in (
        ("pipe", os.mkfifo, "it is a pipe, a device or a socket, not a file"),
        ("folder", os.mkdir, "it is a folder, not a file"),
        ("missing", str, "No such file or directory"),
    ):
        path = tmp_path / f"{name}.{suffix}"
        make(path)
        with pytest.raises(DataError, match=reason):
            predicted(path)
        with pytest.raises((DataError, InputError)):
            open_source(str(path))
    with pytest.raises(DataError, match="There is no table"):
        open_table(tmp_path / "missing.csv")


def test_pipes_are_no_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "x.jpg")
    os.symlink(tmp_path / "a", tmp_path / "a" / "round")
    os.symlink(tmp_path / "b" / "loop.png", tmp_path / "b" / "loop.png")
    with pytest.raises(DataError, match=r"(?s)a/x\.jpg: cannot be read \(it is a pipe.*b/loop\.png: cannot be read"):
        open_source(str(tmp_path))
    assert sorted(path.name for path in image_files([tmp_path])) == ["loop.png", "x.jpg", "x.jpg"]
    assert list(image_files([tmp_path / ("x" * 300)])) == [tmp_path / ("x" * 300)]


def test_folders_in_folders_without_end(tmp_path):
    (tmp_path / "cat").mkdir()
    here = os.open(tmp_path / "cat", os.O_RDONLY)
    try:
        for _ in range(2100):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    try:
        with pytest.raises(DataError, match=r"cannot be read \(File name too long"):
            open_source(str(tmp_path))
    finally:  # too deep for pytest to clear away
        subprocess.run(["rm", "-rf", tmp_path / "cat"], check=True)


def test_names_that_are_not_utf8(tmp_path):
    from tests.conftest import photos

    folder = photos(tmp_path / "p", {"a": (9, 9, 9), "b": (99, 99, 99)})
    one = next(path for path in folder.rglob("*") if path.is_file())
    base = os.fsencode(one.parent)
    for path in (base + b"/gr\xfcn.png", base + b"/\x1b[2J.png"):
        with open(path, "wb") as file:
            file.write(one.read_bytes())
    source = open_source(str(folder))
    assert {os.fsdecode(b"gr\xfcn.png"), "\x1b[2J.png"} <= {
        part.name(i).split("/")[-1] for part in (source.train, source.test) if part for i in range(len(part))
    }
    for name in (b"/gr\xfcn.csv", b"/gr\xfcn.parquet", b"/gr\xfcn.jsonl"):
        path = os.fsdecode(os.fsencode(tmp_path) + name)
        with open(path, "wb") as file:
            if path.endswith("parquet"):
                pq.write_table(pa.table({"text": ["a", "c"], "label": ["b", "d"]}), file)
            else:
                file.write(b"text,label\na,b\nc,d\n" if path.endswith("csv") else b'{"text": "a", "label": "b"}\n' * 2)
        assert "b" in open_source(path).class_names
