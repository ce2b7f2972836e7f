"""Push and pull of models."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ostinato import artifact
from ostinato.errors import InputError
from ostinato.files import write_text
from ostinato.learner import artifact_folder, bundle
from ostinato.learner.saving import check_run
from ostinato.records import ArtifactRecord
from ostinato.sharing.card import card, results_of
from ostinato.sharing.licences import licence_of
from ostinato.sharing.stores import CARD, Store, check_name


def push(run: str | Path, name: str, store: Store, *, hold: bool = False, weights: str | None = None,
         api: Any = None) -> str:  # fmt: skip
    """Write the model of a finished run, with a model card, to a store.

    Paths of this machine are left out. Weights from a file become part of the model, since nobody else has the file.

    Args:
        run: directory of the run, or a saved learner.
        name: OWNER/NAME.
        store: where to.
        hold: make the backbone's weights part of the model also where their name finds them.
        weights: place of the weights, if they moved.
        api: to ask for the licence of the weights, see :func:`ostinato.sharing.licences.licence_of`.

    Returns:
        Where the model is.

    Raises:
        InputError: if the run is not finished, the name is wrong, or the store refuses.
        DataError: if the model is damaged, or the store cannot be reached.
    """
    check_name(name)
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run} is no directory. Give a run directory or an artifact folder.")
    folder = artifact_folder(run)
    about = artifact.read_about(folder)
    if (run / "config.toml").is_file():
        check_run(run, about)
    results = results_of(run)
    licence = licence_of(about.backbone, api)
    with TemporaryDirectory(prefix="ostinato-") as place:
        staged = Path(place) / "model"
        if hold or weights is not None or about.backbone.weights is not None:
            bundle(folder, staged, weights, paths=False)
        else:
            artifact.copy(folder, staged, paths=False)
        about = artifact.read_about(staged)
        write_text(staged / CARD, card(name, about, _modality(about), results, licence))
        return store.push(name, staged)


def pull(name: str, folder: str | Path, store: Store) -> ArtifactRecord:
    """Copy a model from a store to a folder, every file checked against its hash.

    Args:
        name: OWNER/NAME.
        folder: a new folder, or a saved learner, which is replaced.
        store: where from.

    Returns:
        Description of the model.

    Raises:
        InputError: if there is no such model, or the folder holds anything else.
        DataError: if the model is damaged, or the store cannot be reached.
    """
    source, target = store.fetch(name), Path(folder)
    artifact.copy(source, target)
    if (source / CARD).is_file():
        shutil.copyfile(source / CARD, target / CARD)
    return artifact.read_about(target)


def _modality(about: ArtifactRecord) -> str:
    """Modality of the inputs, by what the backbone records: a number of tokens for texts alone."""
    return "text" if about.backbone.length is not None else "image"
