"""Configurations, tokenizers and weights of the transformers library, from a folder or by a name on its hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ostinato.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_config(source: str) -> Any:
    """The configuration of a model.

    Args:
        source: a folder with ``config.json``, or a name on the Hugging Face hub.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _missing(source, "configuration", error) from error


def read_tokenizer(source: str) -> tuple[Tokenizer, int | None]:
    """The tokenizer of a model, and the number of the token that fills up its batches, if it has one.

    Raises:
        InputError: if it cannot be read, or is not of the ``tokenizers`` library.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _missing(source, "tokenizer", error) from error
    rules = getattr(tokenizer, "backend_tokenizer", None)
    if rules is None:
        raise InputError(f"backbone: {source!r} has no fast tokenizer (tokenizer.json), which is needed.")
    return rules, tokenizer.pad_token_id


def read_state(source: str, **options: Any) -> dict[str, Tensor]:
    """The tensors of a model in fp32, under the names of transformers.

    Args:
        source: a folder with weights, or a name.
        options: of the model.

    Raises:
        InputError: if they cannot be read.
    """
    from transformers import AutoModel

    try:
        with _quiet():
            model = AutoModel.from_pretrained(source, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise _missing(source, "weights", error) from error
    return {k: v.float() for k, v in model.state_dict().items()}


def beside(source: str, name: str) -> dict[str, Any]:
    """A JSON file that some models bring beside the weights; empty where there is none.

    Raises:
        InputError: if it cannot be told, offline, whether the model has one.
    """
    path = Path(source) / name
    if not Path(source).is_dir():
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if try_to_load_from_cache(source, name) is _CACHED_NO_EXIST:
            return {}
        try:
            path = Path(hf_hub_download(source, name))
        except LocalEntryNotFoundError as error:  # another model would be made without it
            raise _missing(source, name, error) from error
        except EntryNotFoundError:
            return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def convert_layers(
    state: Mapping[str, Tensor], theirs: str, ours: str, depth: int, qkv: Sequence[str], parts: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors of an encoder's layers under our names.

    Args:
        state: names of transformers to tensors.
        theirs: what comes before the number of a layer there.
        ours: the same here.
        depth: layers.
        qkv: their queries, keys and values, which are one here.
        parts: our other parts of a layer to theirs.
    """
    out: dict[str, Tensor] = {}
    for i in range(depth):
        for kind in ("weight", "bias"):
            out[f"{ours}.{i}.attn.qkv.{kind}"] = torch.cat([state[f"{theirs}.{i}.{name}.{kind}"] for name in qkv])
            for mine, other in parts.items():
                out[f"{ours}.{i}.{mine}.{kind}"] = state[f"{theirs}.{i}.{other}.{kind}"]
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without the list of heads that are left out on purpose."""
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


def _missing(source: str, what: str, error: Exception) -> InputError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"backbone: the {what} of {source!r} cannot be read ({first}). Give a folder with config.json, "
        "model.safetensors and tokenizer.json as backbone=FOLDER, or a name that the Hugging Face hub knows."
    )
