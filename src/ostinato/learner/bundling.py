"""Artifacts that hold the weights of their backbone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from ostinato import artifact
from ostinato.backbones import Origin
from ostinato.backbones.weight_files import find_weights, weight_files
from ostinato.backbones.weights import load_backbone, of_transformers
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.errors import InputError
from ostinato.learner.spec import BackboneSpec, recorded_sizes, sizes_of
from ostinato.records import ArtifactRecord


def located(folder: Path, about: ArtifactRecord) -> str | None:
    """Path of the weights of an artifact: inside, at their path, beside it, or in the hub cache.

    Returns:
        The path; None if the name of the backbone finds them.

    Raises:
        InputError: naming the places, if they are in none of them.
    """
    if (held := artifact.bundled_weights(folder, about)) is not None:
        return str(held)
    recorded = about.backbone.weights
    if recorded is None or about.backbone_sha256 is None or Path(recorded).exists():
        return recorded
    return find_weights(recorded, about.backbone_sha256, folder, whole_folder=about.backbone.sizes is None)


def bundle_of(spec: BackboneSpec, origin: Origin | None) -> artifact.Bundle:
    """The weights of a backbone, to hold in an artifact.

    Raises:
        InputError: if the backbone was not loaded from files.
    """
    if origin is None:
        raise InputError("bundle: the backbone must be loaded by name or from a file, but was made in Python.")
    found = weight_files(spec.name, spec.weights)
    return artifact.Bundle(found.weights, found.files, partial(_check, spec, origin))


def _check(spec: BackboneSpec, origin: Origin, written: Path) -> None:
    """Raise InputError unless written weights load as those of ``origin``."""
    loaded = load_backbone(**vars(replace(spec, weights=str(written))))
    if loaded.origin is None or loaded.origin.sha256 != origin.sha256:
        raise InputError(
            f"bundle: the weights of {origin.name} changed since the training; their SHA-256 was "
            f"{origin.sha256[:12]}... {way_back(origin)}"
        )


def way_back(origin: Origin | None) -> str:
    """Sentence that says how to get the original weights in place of those of ``origin``, which are others."""
    if origin is None or origin.weights is not None:
        return "Give the original weights, with the files beside them: backbone.weights=PATH."
    if origin.name == DEFAULT_BACKBONE:
        return "They come with ostinato: install the version that was used in the training."
    hub = origin.name if of_transformers(origin.name, None) else f"timm/{origin.name}"
    place = "original" if hub == origin.name else "original/model.safetensors"
    return (
        f"The name {origin.name} now means others. Fetch those of the training, 'hf download {hub} --revision COMMIT "
        f"--local-dir original', with a COMMIT of https://huggingface.co/{hub}/commits/main, and add "
        f"backbone.weights={place}."
    )


def bundle(source: Path, target: Path, weights: str | None = None, *, paths: bool = True) -> None:
    """Copy an artifact to a folder that also holds the weights of its backbone.

    Args:
        source: folder of the artifact.
        target: a new folder, or a saved learner, which is replaced.
        weights: place of the weights; None for where they are found.
        paths: as in :func:`ostinato.artifact.copy`.

    Raises:
        DataError: if the artifact is damaged.
        InputError: if the target holds anything else, or the weights are missing or others.
    """
    about = artifact.read_about(source)
    if about.bundle is not None:
        artifact.copy(source, target, paths=paths)
        return
    spec = BackboneSpec(**about.backbone.model_dump(exclude={"sizes"}), sizes=recorded_sizes(about))
    spec = replace(spec, weights=located(source, about) if weights is None else weights)
    digest = about.backbone_sha256
    held = bundle_of(spec, None if digest is None else Origin(spec.name, spec.weights, digest))
    artifact.copy(source, target, bundle=held, sizes=sizes_of(load_backbone(**vars(spec))), paths=paths)
