"""Reader of transformers models from a folder or the Hugging Face hub.

No code of a model runs: ``config.json`` is read as plain numbers, weights as plain tensors, and transformers builds
tokenizers from copies of the few files that they need.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ostinato.backbones.encoder import ACTIVATIONS, Arch
from ostinato.backbones.tensors import Taken, read_tensors
from ostinato.backbones.words import growth, of_tokenizers
from ostinato.errors import InputError
from ostinato.quoting import quoted
from ostinato.validation import describe_validation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

M = TypeVar("M", bound=BaseModel)

_MOST_JSON = 2**22
_MOST_WORDS = 2**27
_MOST_SHARDS = 1000

_WORDS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
"""Words and rules of a tokenizer; the first file replaces the others."""

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Settings of a tokenizer."""

_READ = ("config.json", "preprocessor_config.json", "sentence_bert_config.json", "1_Pooling/config.json")
"""Files of sizes, preprocessing, length and pooling."""

_NOT_SETTINGS = {
    "chat_template", "gguf_file", "init_inputs", "merges", "name_or_path", "post_processor", "tokenizer_object",
    "trust_remote_code", "vocab",
}  # fmt: skip
"""Settings that transformers would pass to constructors, but a tokenizer never needs: paths, built parts and positional
arguments. Names of files are removed as well."""


class ModelFile(BaseModel):
    """Fields of a model's JSON file that affect the computation, with the defaults of transformers."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class LayerSizes(ModelFile):
    """Fields that describe the layers of an encoder."""

    hidden_size: int = Field(768, ge=1, le=2**16)
    num_hidden_layers: int = Field(12, ge=1, le=2**10)
    num_attention_heads: int = Field(12, ge=1, le=2**16)
    intermediate_size: int = Field(3072, ge=1, le=2**20)
    hidden_act: str
    layer_norm_eps: float = Field(ge=0, le=1)

    def arch(self, source: str, **options: Any) -> Arch:
        """Sizes of our encoder, with further options of :class:`Arch`.

        Raises:
            InputError: if our encoder does not compute the activation.
        """
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"backbone: {quoted(source)} must have an activation of {sorted(ACTIVATIONS)}; it has the activation "
                f"{quoted(self.hidden_act)}."
            )
        return Arch(
            dim=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            mlp_dim=self.intermediate_size,
            eps=self.layer_norm_eps,
            act=self.hidden_act,
            **options,
        )


def read_config(source: str) -> dict[str, Any]:
    """Read the configuration of a model, a folder or a name on the hub, as written, with its ``model_type``.

    Raises:
        InputError: if it is missing or damaged, or asks for code of the model.
    """
    config = read_json(source, "config.json", "configuration")
    if config is None:
        raise _missing(source, "configuration", "there is no config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise _missing(source, "configuration", f"config.json must have a model_type in text, not {quoted(kind)}")
    if _file(source, "adapter_config.json", unsure=True) is not None:
        raise InputError(
            f"backbone: {quoted(source)} holds an adapter (adapter_config.json), which is not applied. Merge it into "
            "the weights (merge_and_unload of peft) and give the folder of the result."
        )
    return config


def checked(schema: type[M], values: Mapping[str, Any], source: str, file: str) -> M:
    """Validate values of a file under a schema; the error names the file and the first wrong value."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise InputError(f"backbone: {quoted(source)}, {file}: {describe_validation(error, '', [])}") from None


def read_json(source: str, name: str, part: str) -> dict[str, Any] | None:
    """Read the object in a JSON file of a model; None where the file does not exist. Messages call it ``part``.

    Raises:
        InputError: if it cannot be read or looked up, or asks for code of the model.
    """
    path = _file(source, name)
    return None if path is None else _json(source, path, part)


def _json(source: str, path: Path, part: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise _missing(source, part, f"{path.name} is larger than {_MOST_JSON >> 20} MiB")
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: damaged bytes, JSON or numbers
        raise _missing(source, part, f"{path.name}: {error}") from error
    if not isinstance(tree, dict):
        raise _missing(source, part, f"{path.name} must hold a JSON object")
    if tree.get("auto_map"):
        raise InputError(
            f"backbone: {quoted(source)} needs code that it brings (auto_map in {path.name}), but code inside a model "
            "is never run. Take a model that transformers knows: bert, roberta, xlm-roberta or clip without auto_map."
        )
    return tree


def read_tokenizer(source: str, kind: str, named: str | None) -> tuple[Tokenizer, int | None]:
    """Build the tokenizer of a model, and find the number of its padding token, if it has one.

    ``kind`` is the ``model_type``, and ``named`` the tokenizer class in ``config.json``.

    Raises:
        InputError: if it cannot be read, or is not of the ``tokenizers`` library.
    """
    from transformers import AutoConfig, AutoTokenizer

    with TemporaryDirectory(prefix="ostinato-") as folder, _quiet(), _decoding(source, "tokenizer"):
        _copy_tokenizer(source, Path(folder))
        config = AutoConfig.for_model(kind)
        config.name_or_path, config.tokenizer_class = source, named
        tokenizer: Any = AutoTokenizer.from_pretrained(  # nosec B615  # a local copy of vetted files
            folder, config=config, trust_remote_code=False, local_files_only=True
        )
        rules, pad = getattr(tokenizer, "backend_tokenizer", None), tokenizer.pad_token_id
        if rules is not None:
            rules.no_truncation()
            rules.no_padding()  # padding may have any length
    if rules is None:
        raise InputError(f"backbone: {quoted(source)} needs a fast tokenizer (tokenizer.json), but has none.")
    return rules, pad


def check_tokenizer(source: str, rules: Tokenizer, vocabulary: int) -> None:
    """Refuse a tokenizer with more words than ``vocabulary``, the rows of the word table of the weights.

    Added tokens may lie beyond, since texts need not contain them.
    """
    with _decoding(source, "tokenizer"):
        words, ends = rules.get_vocab_size(with_added_tokens=False), rules.encode("").ids
    if words > vocabulary or max(ends, default=0) >= vocabulary:
        raise InputError(
            f"backbone: the tokenizer of {quoted(source)} numbers tokens up to {max(words - 1, *ends)}, but the "
            f"weights have {vocabulary} words (vocab_size). Take the tokenizer that belongs to them."
        )


def _copy_tokenizer(source: str, folder: Path) -> None:
    """Copy the files that a tokenizer needs, without settings that name other files."""
    found = False
    for name in _WORDS:
        path = _file(source, name, unsure=True)
        if path is not None:
            if path.stat().st_size > _MOST_WORDS:
                raise _missing(source, "tokenizer", f"{name} is larger than {_MOST_WORDS >> 20} MiB")
            shutil.copyfile(path, folder / name)
            found = True
        if found and name == _WORDS[0]:
            if reason := growth(json.loads((folder / name).read_text(encoding="utf-8"))):
                raise _missing(source, "tokenizer", reason)
            break
    if not found:
        raise _missing(source, "tokenizer", f"there is none of {', '.join(_WORDS)}")
    for name in _SETTINGS:
        path = _file(source, name, unsure=True)
        if path is None:
            continue
        tree = _json(source, path, "tokenizer")
        if name != "added_tokens.json":
            tree = {k: v for k, v in tree.items() if k not in _NOT_SETTINGS and not re.search(r"_files?$", k)}
        (folder / name).write_text(json.dumps(tree), encoding="utf-8")


@contextmanager
def _decoding(source: str, part: str) -> Iterator[None]:
    """Turn the errors of transformers and tokenizers, which are of nearly any type, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not of_tokenizers(error):
            raise
        raise _missing(source, part, f"{type(error).__name__}: {error}") from error


def read_state(source: str) -> Taken:
    """Read the tensors of a model, under the names of transformers.

    Raises:
        InputError: if they cannot be read.
    """
    where = f"backbone: the weights of {quoted(source)}"
    state: dict[str, Tensor] = {}
    for path in _weights(source):
        state |= read_tensors(path, where)
    old = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
    for before, after in old.items():
        state = {k.removesuffix(before) + after if k.endswith(before) else k: v for k, v in state.items()}
    return Taken(state, where)


def _weights(source: str) -> list[Path]:
    """Files of the weights, in transformers' order of preference."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path := _file(source, name, unsure=True)) is not None:
            return [path]
        index = _file(source, f"{name}.index.json", unsure=True)
        if index is not None:
            return _shards(source, _json(source, index, "weights"), index.name)
    raise _missing(source, "weights", "there is no model.safetensors and no pytorch_model.bin")


def model_files(source: str) -> dict[str, Path]:
    """List the files of a model that are read, by their names in its folder.

    Raises:
        InputError: if it has no configuration or no weights.
    """
    weights = _weights(source)
    indices = [f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin")] if len(weights) > 1 else []
    found = {name: _file(source, name, unsure=True) for name in (*_READ, *_WORDS, *_SETTINGS, *indices)}
    if found["config.json"] is None:
        raise _missing(source, "configuration", "there is no config.json")
    return {name: path for name, path in found.items() if path is not None} | {path.name: path for path in weights}


def _shards(source: str, index: dict[str, Any], file: str) -> list[Path]:
    """Files that an index names, which must lie beside it."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise _missing(source, "weights", f"{file} must have a weight_map of tensors to files")
    shards = sorted(set(names.values()))
    if odd := [n for n in shards if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", n)]:
        raise _missing(
            source, "weights", f"{file} names {quoted(odd[0])}, and may only name weights that lie beside it"
        )
    if len(shards) > _MOST_SHARDS:
        raise _missing(source, "weights", f"{file} names more than {_MOST_SHARDS} files")
    paths = {name: _file(source, name) for name in shards}
    if gone := [name for name, path in paths.items() if path is None]:
        raise _missing(source, "weights", f"{file} names {gone[0]}, which is not there")
    return [path for path in paths.values() if path is not None]


def _file(source: str, name: str, *, unsure: bool = False) -> Path | None:
    """Find a file of a model in its folder, where links are followed, or on the hub; None where there is none.

    With ``unsure``, a file counts as missing if, offline, the hub cannot be asked for it.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        if not path.exists():
            return None
        if not path.is_file():
            raise _missing(source, name, "it is not a regular file")
        return path
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        if try_to_load_from_cache(source, name) is _CACHED_NO_EXIST:
            return None
        return Path(hf_hub_download(source, name))  # nosec B615  # the user typed the name
    except LocalEntryNotFoundError as error:  # without the file it would be another model
        if unsure:
            return None
        raise _missing(source, name, str(error)) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _missing(source, name, str(error)) from error


def convert_layers(
    take: Taken,
    theirs: str,
    ours: str,
    depth: int,
    dim: int,
    qkv: Sequence[str],
    parts: Mapping[str, tuple[str, int, int]],
) -> dict[str, Tensor]:
    """Convert the tensors of an encoder's layers to our names.

    Args:
        take: tensors under names of transformers.
        theirs: prefix of the layer numbers in transformers.
        ours: the same in our encoder.
        depth: layers.
        dim: width.
        qkv: transformers' queries, keys and values, one tensor in our encoder.
        parts: our other parts to transformers', with (out, in) of the weights; in is 0 for a norm.
    """
    out: dict[str, Tensor] = {}
    for i in range(depth):
        weights = [take(f"{theirs}.{i}.{name}.weight", dim, dim) for name in qkv]
        out[f"{ours}.{i}.attn.qkv.weight"] = torch.cat(weights)
        out[f"{ours}.{i}.attn.qkv.bias"] = torch.cat([take(f"{theirs}.{i}.{name}.bias", dim) for name in qkv])
        for name, (other, rows, columns) in parts.items():
            shape = (rows, columns) if columns else (rows,)
            out[f"{ours}.{i}.{name}.weight"] = take(f"{theirs}.{i}.{other}.weight", *shape)
            out[f"{ours}.{i}.{name}.bias"] = take(f"{theirs}.{i}.{other}.bias", rows)
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and warnings of transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _missing(source: str, part: str, reason: str) -> InputError:
    first = next(iter(reason.splitlines()), "")[:300]
    return InputError(
        f"backbone: the {part} of {quoted(source)} cannot be read ({first}). Give a folder with config.json, "
        "model.safetensors and tokenizer.json as backbone=FOLDER, or a name that the Hugging Face hub knows."
    )
