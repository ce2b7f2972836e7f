"""Folders of the transformers library that carry code or point elsewhere: nothing runs, nothing is asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ostinato.backbones.weights import load_backbone
from ostinato.errors import InputError
from tests.conftest import save_bert, save_clip

CODE = """
from pathlib import Path
Path({canary!r}).write_text("ran")
from transformers import BertConfig, BertModel, BertTokenizer
class Config(BertConfig): pass
class Model(BertModel): pass
class Words(BertTokenizer): pass
"""


def change(file: Path, **values) -> None:
    """Set keys of a JSON file, which may be new; None takes one out."""
    tree = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in (tree | values).items() if v is not None}))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny BERT with a Python file that leaves a canary behind where it is run."""
    model = save_bert(tmp_path / "model")
    (model / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")))
    return model


CONFIG = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Words", "evil.Words"]}

CARRIERS = {
    "config of a new kind": lambda f: change(f / "config.json", model_type="evil", auto_map=CONFIG),
    "config of a known kind": lambda f: change(f / "config.json", auto_map=CONFIG),
    "config without a kind": lambda f: change(f / "config.json", model_type=None, auto_map=CONFIG),
    "a model elsewhere": lambda f: change(f / "config.json", auto_map={"AutoModel": "owner/name--evil.Model"}),
    "tokenizer": lambda f: change(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Words", None]}),
    "tokenizer of old": lambda f: change(f / "tokenizer_config.json", auto_map=["evil.Words", "evil.Words"]),
    "special tokens": lambda f: change(f / "special_tokens_map.json", auto_map={"AutoTokenizer": ["evil.Words", None]}),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_code_inside_a_model_is_refused_and_not_run(folder, carrier, monkeypatch):
    CARRIERS[carrier](folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("something was asked"))
    with pytest.raises(InputError, match=r"code inside a model is never run.*Take a model") as refused:
        load_backbone("tiny", weights=folder)
    assert str(refused.value).count("\n") == 0
    assert not (folder.parent / "canary").exists()


@pytest.mark.parametrize("carrier", ["config of a new kind"])
def test_yes_on_standard_input_is_no_consent(folder, carrier):
    """As on the command line, where transformers would ask."""
    CARRIERS[carrier](folder)
    words = ["run", "simplecil", f"backbone={folder}", "data=digits", f"out={folder.parent / 'run'}", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "ostinato", *words], input="y\n" * 9, capture_output=True, text=True, check=False
    )
    assert not (folder.parent / "canary").exists()
    assert done.returncode == 2, done.stderr
    assert "code inside a model is never run" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_clip_models_carry_no_code_either(tmp_path):
    model = save_clip(tmp_path / "model")
    (model / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")))
    change(model / "config.json", auto_map=CONFIG)
    with pytest.raises(InputError, match="code inside a model is never run"):
        load_backbone("tiny", weights=model)
    assert not (tmp_path / "canary").exists()
