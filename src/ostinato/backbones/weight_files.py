"""Files of a backbone's weights: listing them for a copy, and finding them again by their SHA-256."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ostinato.backbones.timm_weights import write_fetched
from ostinato.backbones.weights import bundled_file, of_transformers
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.errors import InputError
from ostinato.files import sha256_of

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")


@dataclass(frozen=True)
class WeightFiles:
    """Files that load as a backbone's weights.

    Attributes:
        weights: name of the file to load; None if their folder is loaded.
        files: each file, or a function that writes it, by its name.
    """

    weights: str | None
    files: Mapping[str, Path | Callable[[Path], None]]


def weight_files(name: str, weights: str | None) -> WeightFiles:
    """List the files of weights, with arguments as of :func:`ostinato.backbones.weights.load_backbone`.

    Raises:
        InputError: if a model of the hub has no weights.
    """
    if of_transformers(name, weights):
        from ostinato.backbones.hub import model_files

        return WeightFiles(None, model_files(name if weights is None else weights))
    if weights is None and name != DEFAULT_BACKBONE:
        file = "weights.safetensors"
        return WeightFiles(file, {file: partial(write_fetched, name)})
    source = Path(weights) if weights is not None else bundled_file()
    file = f"weights{source.suffix}"
    return WeightFiles(file, {file: source})


def find_weights(recorded: str, sha256: str, folder: Path, *, whole_folder: bool) -> str:
    """Find weights that are no longer at their path.

    A file is found by its hash, a folder by its name; the loader computes the hash of a folder.

    Args:
        recorded: their path during the training.
        sha256: their hash.
        folder: of the model.
        whole_folder: whether they may be a folder.

    Returns:
        Their path.

    Raises:
        InputError: naming the places, if they are in none of them.
    """
    cache = _hub_cache()
    beside = (folder, folder.parent)
    for path in _candidates(Path(recorded), sha256, beside, cache):
        if path.is_dir():
            if whole_folder and (path / "config.json").is_file():
                return str(path)
        elif path.is_file() and sha256_of(path) == sha256:
            return str(path)
    raise InputError(
        f"{folder}: the backbone's weights with SHA-256 {sha256[:12]}... are neither inside, nor at {recorded}, nor in "
        f"{' or '.join(map(str, beside))}, nor in the hub cache {cache}. Add backbone.weights=PATH to the command, or "
        "weights=PATH in Python."
    )


def _candidates(recorded: Path, sha256: str, beside: tuple[Path, ...], cache: Path) -> Iterator[Path]:
    """Paths where weights may be, likely ones first."""
    for place in beside:
        yield place / recorded.name
    for place in beside:
        files = sorted(place.iterdir()) if place.is_dir() and os.access(place, os.R_OK) else []
        yield from (file for file in files if file.suffix in _SUFFIXES and not file.is_dir())
    # The cache names large files by their hash, and a snapshot links to them by their names.
    for blob in cache.glob(f"models--*/blobs/{sha256}"):
        for link in blob.parent.parent.glob("snapshots/*/*"):
            if link.resolve() == blob.resolve():
                yield link
    parts = recorded.parts
    if starts := [i for i, part in enumerate(parts) if part.startswith("models--")]:
        yield cache.joinpath(*parts[starts[-1] :])


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
