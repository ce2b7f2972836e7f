"""Texts as data: tables, sets side by side, transforms, and batches by length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.conftest import photos, text_tables

from ostinato.backbones import Tokenization
from ostinato.backbones.cache import FeatureCache, StateCache
from ostinato.contract.tiny_models import random_backbone, random_text_backbone, sentences, whole_words
from ostinato.errors import DataError, InputError
from ostinato.learner import Learner
from ostinato.methods.simplecil import SimpleCIL
from ostinato.predicting import texts_of
from ostinato.streams import StreamOptions, TaskStream, TextTransform, open_source
from ostinato.training.loader import by_length, pack, training_batches

CPU = torch.device("cpu")


def transform() -> TextTransform:
    return TextTransform(random_text_backbone().tokenization)


def test_labels_of_a_csv_are_what_is_written(tmp_path):
    """Whatever they look like: numbers with zeros, truth values, dates."""
    (tmp_path / "train.csv").write_text("text,label\na,001\nb,01\nc,1\nd,true\ne,2020-01-01\nf,1.50\n")
    assert open_source(str(tmp_path / "train.csv")).class_names == ["001", "01", "1", "1.50", "2020-01-01", "true"]


def test_a_spreadsheets_semicolons_are_read(tmp_path):
    (tmp_path / "train.csv").write_bytes('\ufefftext;label\n"a; b, c";x\nd, e;y\n'.encode())
    source = open_source(str(tmp_path))
    assert source.class_names == ["x", "y"]
    assert [source.train.load(i) for i in range(2)] == ["a; b, c", "d, e"]


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_label_is_refused(tmp_path, blank):
    (tmp_path / "train.csv").write_text(f"text,label\na,x\nb,{blank}\nc,y\nd,{blank}\n")
    with pytest.raises(DataError, match=r"2 lack one, such as train\.csv row 1"):
        open_source(str(tmp_path / "train.csv"))


def test_categories_and_truth_values_are_words(tmp_path):
    words = pa.array(["a b", "c d", "e f", "g h"])
    labels = pa.array(["yes", "no", "yes", "no"]).dictionary_encode()
    pq.write_table(pa.table({"text": words.dictionary_encode(), "label": labels}), tmp_path / "train.parquet")
    source = open_source(str(tmp_path))
    assert source.class_names == ["no", "yes"]
    assert source.train.load(0) in words.to_pylist()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/train.jsonl").write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert open_source(str(tmp_path / "one")).class_names == ["false", "true"]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_tables_of_texts(tmp_path, suffix):
    source = open_source(str(text_tables(tmp_path, 3, suffix)))
    assert source.modality == "text"
    assert source.class_names == ["planet 0", "planet 1", "planet 2"]
    assert (len(source.train), source.augment) == (36, "none")
    assert source.train.load(0) == sentences(3, 12)[0][0]
    assert source.train.name(5) == f"train.{suffix} row 5"


def test_a_csv_keeps_lines_commas_and_numbers_as_text(tmp_path):
    (tmp_path / "train.csv").write_text('text,label\n"a, b\nc",x\n007,y\n2020-01-01,y\n', encoding="utf-8")
    source = open_source(str(tmp_path / "train.csv"))
    parts = [source.train] + ([source.test] if source.test else [])
    assert {part.load(i) for part in parts for i in range(len(part))} == {"a, b\nc", "007", "2020-01-01"}


def test_one_kind_of_table_is_read(tmp_path):
    """A folder may hold the same data twice."""
    text_tables(tmp_path, 2, "parquet")
    text_tables(tmp_path, 3, "csv")
    assert len(open_source(str(tmp_path)).class_names) == 2


def test_columns_of_texts(tmp_path):
    pq.write_table(pa.table({"question": ["a", "b"], "intent": ["x", "y"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"no column of images or texts. Columns: question, intent"):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), text_column="question", label_column="intent")
    assert source.class_names == ["x", "y"]
    pq.write_table(pa.table({"n": [1, 2], "label": ["x", "y"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"text_column must hold texts, but 'n' of .* holds int64"):
        open_source(str(tmp_path), text_column="n")


def test_columns_of_public_sets_make_up_one_text(tmp_path):
    yahoo = {"id": [1, 2], "topic": [3, 5], "question_title": ["why", "how"], "question_content": ["", "so"],
             "best_answer": ["because", None]}  # fmt: skip
    amazon = {"label": [0, 1], "title": ["bad", "good"], "content": ["broken", "works"]}
    for name, rows in (("yahoo", yahoo), ("amazon", amazon)):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            pq.write_table(pa.table(rows), tmp_path / name / f"{split}.parquet")
    source = open_source(str(tmp_path / "yahoo"))
    assert [source.train.load(i) for i in range(2)] == ["why because", "how so"]
    assert source.class_names == ["3", "5"]
    assert "question_title, question_content, best_answer together" in source.notes[0]
    source = open_source(str(tmp_path / "amazon"))
    assert [source.test.load(i) for i in range(2)] == ["bad broken", "good works"]
    assert open_source(str(tmp_path / "amazon"), text_column="content").train.load(0) == "broken"
    named = [text for _, text in texts_of([], [tmp_path / "amazon/test.parquet"], None)]
    assert named == ["bad broken", "good works"], "predictions read what was learned from"


def test_the_same_number_of_stars_is_the_same_answer(tmp_path):
    for name, labels in (("yelp", ["1 star", "2 stars"]), ("amazon", ["1", "2"])):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            pq.write_table(pa.table({"text": ["a", "b"], "label": labels}), tmp_path / name / f"{split}.parquet")
    source = open_source(str(tmp_path), sets=["yelp", "amazon"])
    assert source.class_names == ["yelp: 1 star", "yelp: 2 stars", "amazon: 1", "amazon: 2"]
    assert source.label_groups == [0, 1, 0, 1]


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_empty_texts(tmp_path, empty):
    pq.write_table(pa.table({"text": ["a", empty, "b", "c"], "label": [0, 0, 1, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"(?s)Every text must be readable, but 1 of 4.*row 1: the text is empty"):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), on_error="skip")
    assert len(source.train) + (len(source.test) if source.test else 0) == 3
    assert source.skipped == ["train.parquet row 1: the text is empty"]


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "train.csv").write_bytes("text,label\ngrün,1\nrot,2\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read as csv .*Save it in UTF-8"):
        open_source(str(tmp_path))


def test_sets_side_by_side(tmp_path):
    text_tables(tmp_path / "mars", 2)
    text_tables(tmp_path / "venus", 3, "csv", seed=4)
    source = open_source(str(tmp_path), sets=["venus", "mars"])
    assert source.task_names == [[f"venus: planet {i}" for i in range(3)], ["mars: planet 0", "mars: planet 1"]]
    assert source.label_groups == [0, 1, 2, 0, 1]
    stream = TaskStream(source, StreamOptions(tasks="folders", validation=0))
    assert [len(task.classes) for task in stream] == [3, 2]
    task = stream.task(1)
    assert task.train.names()[0].startswith("mars/train.parquet row")
    mars = open_source(str(tmp_path / "mars"))
    assert {task.train.raw(i) for i in range(len(task.train))} == {mars.train.load(i) for i in range(len(mars.train))}
    assert stream.label_groups is not None
    assert stream.label_groups.tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(InputError, match=r"has no set 'venux', only mars, venus.*'venus'"):
        open_source(str(tmp_path), sets=["venux"])
    with pytest.raises(InputError, match="each once"):
        open_source(str(tmp_path), sets=["mars", "mars"])


def test_views_of_the_wrong_kind_say_so(tmp_path):
    stream = TaskStream(open_source(str(text_tables(tmp_path / "t", 2))), StreamOptions())
    with pytest.raises(InputError, match=r"hold texts, but the backbone takes images: .* such as bert-base-uncased"):
        Learner("simplecil").learn(stream.task(0))
    images = TaskStream(open_source(str(photos(tmp_path / "p", {"a": (9, 9, 9), "b": (99, 99, 99)}))), StreamOptions())
    with pytest.raises(InputError, match=r"hold images, but the backbone takes texts: .* such as vit_base"):
        images.task(0).train.with_transform(transform())


def test_long_texts_lose_their_end_but_not_its_token():
    seen = transform()
    text = " ".join(f"w{i}" for i in range(30))
    assert seen(text).tolist() == [1, *range(4, 14), 2]
    assert (seen.tokens(text), seen.tokenization.count(text)) == (12, 32)


def test_a_tokenization_needs_room():
    with pytest.raises(InputError, match="must be at least 3"):
        Tokenization(whole_words(), 2, pad=0)


# Batches


def examples(tmp_path: Path, n_classes: int = 4):
    stream = TaskStream(open_source(str(text_tables(tmp_path, n_classes))), StreamOptions(step=n_classes, validation=0))
    return stream.task(0).train.with_transform(transform())


def test_training_batches_hold_all_samples_once_and_texts_of_like_length(tmp_path):
    data = examples(tmp_path)
    sizes = data.sizes()
    assert sizes is not None
    order = np.random.default_rng(0).permutation(len(data)).tolist()
    batches = by_length(data, order, 5, torch.Generator().manual_seed(0))
    assert sorted(i for b in batches for i in b) == list(range(len(data)))
    assert [len(b) for b in batches] == [5] * 9 + [3]  # as many steps as without
    filled = sum(len(b) * max(sizes[i] for i in b) for b in batches)
    plain = sum(len(b) * max(sizes[i] for i in b) for b in (order[k : k + 5] for k in range(0, len(order), 5)))
    assert filled < 0.9 * plain
    longest = [max(sizes[i] for i in b) for b in batches[:-1]]
    assert longest != sorted(longest)  # short texts do not all come first


def test_training_batches_depend_on_seed_and_epoch_and_can_start_anywhere(tmp_path):
    data = examples(tmp_path)

    def batches(epoch: int, start: int = 0):
        return [
            x.tolist()
            for x, _, _ in training_batches(data, 5, seed=1, position=(0, 0), epoch=epoch, start=start, device=CPU)
        ]

    assert batches(0) == batches(0)
    assert batches(0) != batches(1)
    assert batches(0, start=4) == batches(0)[4:]


def test_packed_batches_have_no_more_tokens_than_the_longest_texts_would(tmp_path):
    data = examples(tmp_path, 6)
    sizes = data.sizes()
    assert sizes is not None
    order = list(range(len(data)))
    for keep in (True, False):
        batches = pack(data, order, 3, keep_order=keep)
        assert max(len(b) * max(sizes[i] for i in b) for b in batches) <= 3 * 12
        assert sorted(i for b in batches for i in b) == order
        assert len(batches) < len(data) / 3 + keep
    assert [i for b in pack(data, order, 3) for i in b] == order


# Frozen work


def test_features_and_states_are_found_whatever_fills_a_batch_up():
    backbone, features, states = random_text_backbone(), FeatureCache(), StateCache(2**20)
    seen = transform()
    texts = [seen(t) for t in ("w1 w2", "w3 w4 w5 w6 w7", "w1 w2 w9")]
    want = backbone(seen.join(texts))
    features.features(backbone, seen.join(texts[:1]))
    states.states(backbone, seen.join(texts[:1]), 3)
    torch.testing.assert_close(features.features(backbone, seen.join(texts)), want)
    assert len(features) == 3
    found = states.states(backbone, seen.join(texts), 3)
    again = states.states(backbone, seen.join(texts), 3)
    assert found.mask is not None
    assert torch.equal(found.mask, seen.join(texts) != 0)
    assert torch.equal(found.h, again.h)
    torch.testing.assert_close(backbone.features(found, start=3), want)
    alone = states.states(backbone, seen.join(texts[1:2]), 3)
    assert alone.mask is None
    torch.testing.assert_close(backbone.features(alone, start=3), want[1:2])


def test_prompts_enter_a_text_as_words_at_the_first_place():
    backbone = random_text_backbone()
    word = backbone.words.weight[7]
    x = torch.tensor([[7, 9]])
    torch.testing.assert_close(backbone.as_tokens(word[None]), backbone.embed(x).h[0, :1])


def test_a_text_backbone_refuses_what_is_no_text():
    with pytest.raises(InputError, match=r"token numbers \(B, N\) in int64 with N at most 16, got torch.uint8"):
        random_text_backbone().embed(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert SimpleCIL(random_backbone()).backbone.modality == "image"


def test_lines_of_jsonl_name_their_file(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a", "label": "x"}) + "\nnot json\n")
    with pytest.raises(DataError, match=r"train\.jsonl cannot be read as jsonl"):
        open_source(str(tmp_path))
