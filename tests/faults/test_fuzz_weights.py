"""Files of weights that are damaged or made to harm: each ends in one documented error."""

import json
import os
import pickle
import random
import shutil
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ostinato.backbones import TextBackbone
from ostinato.backbones.timm_weights import read_weights
from ostinato.backbones.weights import embedded_backbone, load_backbone
from ostinato.errors import DataError, InputError
from tests.conftest import VIT_TI_NAME, save_bert, save_clip
from tests.faults.fuzz import Target, accepts, mutated
from tests.faults.targets_weights import TARGETS

pytestmark = pytest.mark.slow

BUNDLED = "vit_mini_patch8_32.glyphs"


class Canary:
    """Touches a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def state() -> dict[str, torch.Tensor]:
    return {k: torch.full_like(v, 0.01) for k, v in embedded_backbone().state_dict().items()}


def refused(path: Path, match: str, name: str = BUNDLED) -> None:
    with pytest.raises(InputError, match=match) as error:
        load_backbone(name, weights=path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


# Tensors


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(128, dtype=torch.int64), "not floating-point: norm torch.int64"),
        (torch.zeros(128, dtype=torch.bool), "not floating-point: norm torch.bool"),
        (torch.zeros(128, dtype=torch.complex64), "not floating-point: norm torch.complex64"),
        (torch.zeros(128, dtype=torch.float8_e4m3fn), "not floating-point: norm torch.float8_e4m3fn"),
        (torch.zeros(0), r"wrong shape: norm \(0,\) for \(128,\)"),
        (torch.zeros(127), r"wrong shape: norm \(127,\) for \(128,\)"),
        (torch.zeros(()), r"wrong shape: norm \(\) for \(128,\)"),
        (torch.tensor([*[0.0] * 127, torch.nan]), "must be finite, but 'encoder.norm.weight' holds NaN"),
        (torch.tensor([*[0.0] * 127, -torch.inf]), "must be finite, but 'encoder.norm.weight' holds NaN"),
        (
            torch.tensor([*[0.0] * 127, 1e300], dtype=torch.float64),
            "must be finite, but 'encoder.norm.weight' holds NaN",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_that_cannot_be_weights_are_named(tmp_path, value, match, suffix):
    path = tmp_path / f"w.{suffix}"
    tensors = state() | {"encoder.norm.weight": value}
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    refused(path, match.replace(" norm ", " encoder.norm.weight "))


def test_doubles_and_halves_are_read_as_before(tmp_path):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        save_file({k: v.to(dtype) for k, v in state().items()}, tmp_path / "w.safetensors")
        norm = load_backbone(BUNDLED, weights=tmp_path / "w.safetensors").state_dict()["encoder.norm.weight"]
        assert torch.equal(norm, torch.full((128,), 0.01).to(dtype).float())


# safetensors


def with_header(path: Path, header: bytes, data: bytes = b"", size: int | None = None) -> Path:
    path.write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "size"),
    [
        (b"", b"", 2**63),
        (b"{}", b"", 2**40),
        (b"{", b"", None),
        (b"[" * 5000, b"", None),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
         b"\0" * 8, None),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
         b"\0" * 12, None),
        (b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}', b"", None),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\0" * 4, None),
    ],
)  # fmt: skip
def test_damaged_headers_of_safetensors(tmp_path, header, data, size):
    refused(with_header(tmp_path / "w.safetensors", header, data, size), "cannot be read as safetensors")


# pth


def test_objects_in_a_pth_are_not_made(tmp_path):
    torch.save({"a": Canary(tmp_path / "canary")}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "cannot be read")
    with (tmp_path / "old.pth").open("wb") as file:
        pickle.dump({"a": Canary(tmp_path / "canary")}, file)
    refused(tmp_path / "old.pth", "cannot be read")
    assert not (tmp_path / "canary").exists()


def test_a_pth_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "bomb.pth", "the archive is packed")


def test_a_tensor_that_repeats_itself_is_refused_before_it_takes_memory(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "larger than the file")


@pytest.mark.parametrize(
    "value",
    [
        {1: torch.zeros(1)},
        {"a": torch.zeros(1, device="meta")},
        {"a": 3},
        [torch.zeros(1)],
        3,
        None,
    ],
)
def test_a_pth_of_something_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "must hold a mapping of names to tensors")


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "must hold a mapping of names to tensors|sparse tensor")


def test_a_mapping_that_holds_itself_ends(tmp_path):
    value: dict = {}
    value["model"] = value
    torch.save(value, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "must hold a mapping of names to tensors")


# timm


def test_names_that_load_from_elsewhere_are_no_models_of_timm(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    for name in ("hf-hub:owner/name", "local-dir:x", f"{VIT_TI_NAME}:x", "vit_tiny_patch16_224.a/b", "vit tiny", "\0"):
        refused(tmp_path / "w.safetensors", "timm knows no model", name)


def test_a_size_that_no_model_takes_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    for size in (0, -16, 10**9):
        with pytest.raises(InputError, match=r"backbone.size must be from 1 to 4096"):
            load_backbone(VIT_TI_NAME, weights=tmp_path / "w.safetensors", size=size)
    with pytest.raises(InputError, match="plain ViT"):
        load_backbone("resnet18", weights=tmp_path / "w.safetensors", size=64)


def vit(**other: torch.Tensor) -> dict[str, torch.Tensor]:
    import timm

    model = timm.create_model(VIT_TI_NAME, pretrained=False, num_classes=0)
    return dict(model.state_dict()) | other


@pytest.mark.parametrize(
    "places",
    [
        torch.zeros(1, 8, 192),
        torch.zeros(1, 0, 192),
        torch.zeros(0, 197, 192),
        torch.zeros(1, 10, 7),
        torch.zeros(1, 10, 192, dtype=torch.int32),
        torch.zeros(192),
    ],
)
def test_positions_that_cannot_be_resampled_are_named(tmp_path, places):
    save_file(vit(pos_embed=places), tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "(wrong shape|not floating-point): pos_embed", VIT_TI_NAME)


# npz


def test_npz_of_other_things(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([Canary(tmp_path / "canary")], dtype=object))
    refused(path, "'a' is of dtype object", VIT_TI_NAME)
    assert not (tmp_path / "canary").exists()
    np.savez(path, a=np.zeros(3))
    refused(path, "cannot be read as the npz of a ViT", VIT_TI_NAME)
    path.write_bytes(b"PK\x03\x04 no archive")
    refused(path, "cannot be read as the npz of a ViT", VIT_TI_NAME)
    refused(tmp_path / "none.npz", "no file at", VIT_TI_NAME)


def test_an_npz_that_unpacks_to_more_than_the_model_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(10**8, np.float32))
    assert (tmp_path / "w.npz").stat().st_size < 10**6
    refused(tmp_path / "w.npz", "unpacks to", VIT_TI_NAME)


def test_an_npz_whose_array_claims_more_than_is_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
        header += b" " * (118 - len(header) - 1) + b"\n"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    refused(tmp_path / "w.npz", "claims", VIT_TI_NAME)


def test_an_npz_whose_packed_data_are_damaged(tmp_path):
    """Found by damage at random: zlib's own error."""
    np.savez_compressed(tmp_path / "w.npz", a=np.arange(1000))
    data = bytearray((tmp_path / "w.npz").read_bytes())
    begin = data.index(b"a.npy") + len(b"a.npy") + 20
    data[begin : begin + 40] = b"\xff" * 40
    (tmp_path / "w.npz").write_bytes(data)
    refused(tmp_path / "w.npz", "cannot be read as the npz of a ViT .error: Error -3", VIT_TI_NAME)


# Folders


def change(file: Path, **values) -> None:
    """Set keys of a JSON file."""
    tree = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(tree | values))


def text(folder: Path) -> TextBackbone:
    backbone = load_backbone("tiny", weights=folder)
    assert isinstance(backbone, TextBackbone)
    return backbone


@pytest.fixture
def bert(tmp_path) -> Path:
    return save_bert(tmp_path / "bert")


@pytest.fixture
def clip(tmp_path) -> Path:
    return save_clip(tmp_path / "clip")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"hidden_size": 10**9}, "config.json: hidden_size: .*got 1000000000"),
        ({"hidden_size": 60000}, "tensors do not fit"),
        ({"num_hidden_layers": 1000}, "missing: encoder.layer.6"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": 60_000_000}, r"word_embeddings.weight \(44, 16\) for \(60000000, 16\)"),
        ({"vocab_size": 5}, "numbers tokens up to 43, but the weights have 5 words"),
        ({"hidden_size": -16}, "hidden_size"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 16.0}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 3}, "multiple of heads"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"pad_token_id": None}, None),
        ({"pad_token_id": 10**9}, None),
        ({"model_type": 3}, "model_type"),
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id"),
        ({"model_type": "roberta", "pad_token_id": 15}, "length must be at least 3"),
        ({"model_type": "roberta", "pad_token_id": 10**6}, "length must be at least 3"),
        ({"tokenizer_class": 5}, "tokenizer_class"),
        ({"num_labels": 10**12}, None),
    ],
)
def test_absurd_sizes_of_a_text_encoder(bert, values, match):
    change(bert / "config.json", **values)
    if match is None:
        load_backbone("tiny", weights=bert)
    else:
        refused(bert, match, "tiny")


@pytest.mark.parametrize(
    ("part", "values", "match"),
    [
        ("vision_config", {"image_size": 10**9}, "vision_config: image_size"),
        ("vision_config", {"image_size": 7}, r"position_embedding.weight \(5, 16\) for \(2, 16\)"),
        ("vision_config", {"patch_size": 0}, "patch_size"),
        ("vision_config", {"num_hidden_layers": 900}, "missing: vision_model.encoder.layers.3"),
        ("text_config", {"vocab_size": "many"}, "text_config: vocab_size"),
        ("text_config", {"hidden_size": 14}, "tensors do not fit"),
    ],
)
def test_absurd_sizes_of_a_clip_model(clip, part, values, match):
    tree = json.loads((clip / "config.json").read_text())
    change(clip / "config.json", **{part: tree[part] | values})
    refused(clip, match, "tiny")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 10**5, '{"a": ' + "9" * 5000 + "}", "\ud800"])
def test_damaged_configurations(bert, text):
    (bert / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    refused(bert, "configuration of .* cannot be read", "tiny")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": "1.0"}', "[" * 10**5, '{"added_tokens": 5}'])
def test_damaged_tokenizers(bert, text):
    (bert / "tokenizer.json").write_text(text)
    refused(bert, "tokenizer of .* cannot be read", "tiny")


def test_a_tokenizer_that_is_not_there(bert):
    (bert / "tokenizer.json").unlink()
    refused(bert, "tokenizer of .* cannot be read .there is none of tokenizer.json", "tiny")


def test_settings_of_a_tokenizer_name_no_files(bert):
    """Paths in them would be opened, and are not needed."""
    words = {
        "vocab": "/etc/passwd",
        "merges": "/etc/passwd",
        "gguf_file": "/etc/passwd",
        "init_inputs": ["/etc/passwd"],
    }
    want = load_backbone("tiny", weights=bert).origin
    change(bert / "tokenizer_config.json", **words, tokenizer_file="/etc/passwd", vocab_file="/etc/passwd")
    assert load_backbone("tiny", weights=bert).origin == want


def test_ends_that_the_weights_do_not_know(bert):
    tree = json.loads((bert / "tokenizer.json").read_text())
    tree["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [10**6]
    (bert / "tokenizer.json").write_text(json.dumps(tree))
    refused(bert, "numbers tokens up to 1000000", "tiny")


def test_texts_that_the_tokenizer_cannot_read_are_named(bert):
    change(bert / "tokenizer_config.json", extra_special_tokens=["[NEW]"])
    tree = json.loads((bert / "tokenizer.json").read_text())
    tree["model"]["unk_token"] = "gone"
    tree["added_tokens"].append({"id": 60, "content": "w99", "single_word": False, "lstrip": False, "rstrip": False,
                                 "normalized": False, "special": False})  # fmt: skip
    (bert / "tokenizer.json").write_text(json.dumps(tree))
    words = text(bert).tokenization
    assert words.encode("w1 w2").tolist() == [1, 5, 6, 2]
    with pytest.raises(DataError, match="cannot read the text 'somewhere'"):
        words.encode("somewhere")
    with pytest.raises(DataError, match=r"finds token \d+ in the text 'w99', but the weights have 44 words"):
        words.encode("w99")


@pytest.mark.parametrize(
    "rules",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "b" * 10**6}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "x" * 9999, "prepend_scheme": "always", "split": True}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 10**6}]}},
    ],
)  # fmt: skip
def test_rules_that_blow_up_a_text_are_refused(bert, rules):
    (bert / "tokenizer.json").write_text(json.dumps(json.loads((bert / "tokenizer.json").read_text()) | rules))
    refused(bert, "tokenizer of .* cannot be read", "tiny")


def test_padding_of_a_tokenizer_takes_no_memory(bert):
    rules = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
             "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    change(bert / "tokenizer.json", padding=rules)
    assert text(bert).tokenization.encode("w1").tolist() == [1, 5, 2]


def test_a_pattern_without_end_is_named_with_its_text(bert):
    rules = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    change(bert / "tokenizer.json", pre_tokenizer=rules)
    with pytest.raises(DataError, match=r"cannot read the text 'a+!'"):
        text(bert).tokenization.encode("a" * 60 + "!")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": 1}'])
def test_damaged_pooling(bert, text):
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling/config.json").write_text(text)
    refused(bert, "pool", "tiny")


@pytest.mark.parametrize("value", [0, -3, "9", 1.5, [9], 10**30])
def test_damaged_limits(bert, value):
    (bert / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": value}))
    if value == 10**30:
        assert text(bert).tokenization.length == 16
    else:
        refused(bert, "sentence_bert_config.json: max_seq_length", "tiny")


@pytest.mark.parametrize(
    "values",
    [
        {"image_mean": [0.5] * 4},
        {"image_mean": 0.5},
        {"image_std": [0.5, 0.5, 0]},
        {"image_std": [0.5, 0.5, float("nan")]},
        {"image_mean": ["a", "b", "c"]},
    ],
)
def test_damaged_preprocessing(clip, values):
    change(clip / "preprocessor_config.json", **values)
    refused(clip, "preprocessor_config.json: image_", "tiny")


def test_a_pickled_model_is_read_without_its_objects(bert, tmp_path):
    want = load_backbone("tiny", weights=bert)
    tensors = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(tensors, bert / "pytorch_model.bin")
    assert load_backbone("tiny", weights=bert).origin == want.origin
    torch.save(tensors | {"a": Canary(tmp_path / "canary")}, bert / "pytorch_model.bin")
    refused(bert, "the weights of .*pytorch_model.bin' cannot be read", "tiny")
    assert not (tmp_path / "canary").exists()


def test_shards_lie_beside_their_index(bert, tmp_path):
    shutil.move(bert / "model.safetensors", bert / "part.safetensors")
    want = load_file(bert / "part.safetensors")
    index = bert / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(want, "part.safetensors")}))
    load_backbone("tiny", weights=bert)
    shutil.copy(bert / "part.safetensors", tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "..", "x.pkl", "a/b.safetensors"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(want, name)}))
        refused(bert, "may only name weights that lie beside it", "tiny")
    for tree in ({}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(tree))
        refused(bert, "must have a weight_map", "tiny")
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    refused(bert, "gone.safetensors, which is not there", "tiny")


def test_an_adapter_is_not_left_out_silently(bert):
    change(bert / "adapter_config.json", base_model_name_or_path="owner/name", peft_type="LORA")
    refused(bert, "holds an adapter", "tiny")


def test_a_pipe_in_a_folder_is_not_waited_for(bert):
    (bert / "config.json").unlink()
    os.mkfifo(bert / "config.json")
    refused(bert, "not a regular file", "tiny")


def test_tensors_of_a_folder(bert):
    good = load_file(bert / "model.safetensors")
    name = "encoder.layer.3.output.LayerNorm.bias"
    for value, match in (
        (torch.zeros(3), "wrong shape: .*LayerNorm.bias"),
        (torch.zeros(16, dtype=torch.int8), "not floating-point: .*LayerNorm.bias"),
        (torch.full((16,), torch.nan), "'encoder.blocks.3.norm2.bias' holds NaN"),
    ):
        save_file(good | {name: value}, bert / "model.safetensors")
        refused(bert, match, "tiny")
    del good[name]
    save_file(good, bert / "model.safetensors")
    refused(bert, f"missing: {name}", "tiny")


def test_the_usual_containers_are_unwrapped(tmp_path):
    torch.save({"model": {"state_dict": {"module.patch_embed.proj.weight": torch.ones(1)}}}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["patch_embed.proj.weight"]


# Any damage


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_intact_inputs_are_read(target: Target):
    assert all(accepts(target, seed) for seed in target.seeds()[:1])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_damaged_inputs_end_in_documented_errors(target: Target):
    inputs = mutated(target.seeds(), target.words, random.Random(0))
    for data in islice(inputs, 300 if target.cost < 100 else 40):
        accepts(target, data)
