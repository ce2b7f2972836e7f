"""Artifacts of learners: writing, and checks when reading."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato import artifact
from ostinato.backbones import Backbone
from ostinato.errors import DataError, InputError
from ostinato.learner.bundling import bundle_of, located, way_back
from ostinato.learner.spec import BackboneSpec, recorded_sizes, sizes_of
from ostinato.lookup import file_of, get_method, reference, split_file
from ostinato.records import ArtifactRecord, read_record
from ostinato.registry import check_options, is_registered

if TYPE_CHECKING:
    from ostinato.learner.learner import Learner


def artifact_folder(path: Path) -> Path:
    """The artifact of a run, or the folder itself.

    Raises:
        InputError: if the run is not finished.
    """
    if artifact.exists(path) or not (path / "config.toml").is_file():
        return path
    if not artifact.exists(path / "artifact"):
        raise InputError(f"{path} is not finished; first run 'ostinato resume {path}'.")
    return path / "artifact"


def check_run(run: Path, about: ArtifactRecord) -> None:
    """Raise DataError unless the artifact in a run is of the run, of a continuation, or saved there from Python."""
    record = read_record(run / "record.json")
    if about.run_id not in (None, record.run_id, *record.continued_by):
        raise DataError(f"{run}: the artifact in it is of another run. Restore it from a copy.")


def method_of(folder: Path, about: ArtifactRecord, given: str | None) -> str:
    """Name of a saved learner's registered method, or the file of a method that the caller gives.

    A file that the artifact names is never run, since an artifact could name any file.

    Raises:
        InputError: if another method is given, or none for a method that is not registered.
    """
    name, file = about.method, about.method_file
    if given is not None:
        path, of_file = split_file(given)
        if path is None and given != name:
            raise InputError(f"{folder} was learned by {name!r}, not by {given}.")
        return given if path is None else reference(path, of_file or name)
    if file is None:
        return name
    raise InputError(
        f"{folder} was learned by {name!r} of the file {file.path}. A file is run only if you name it: method=FILE, "
        f"or, as it was then, method={artifact.method_text(folder)}"
    )


def check_inputs(learned: str, recorded: dict[str, Any], backbone: Backbone) -> None:
    """Raise DataError if a backbone computes other features than the one that ``learned`` was learned on.

    Args:
        learned: name of the learner, for the message.
        recorded: ``Backbone.describe()`` at the time of training.
        backbone: as loaded now.
    """
    now = json.loads(json.dumps(backbone.describe()))
    if changed := [key for key in now if now[key] != recorded.get(key)]:
        key = changed[0]
        raise DataError(
            f"{learned}: the backbone's {key} was {recorded.get(key)!r} when it was learned and is {now[key]!r} now. "
            f"Features differ. {way_back(backbone.origin)}"
        )


def save(learner: Learner, path: Path, run_id: str | None, bundle: bool) -> None:
    """Write a learner as a folder, see :meth:`Learner.save`.

    Raises:
        InputError: if ``path`` is something else, or no name or file finds the method's class again.
    """
    kind = type(learner.method)
    source = file_of(kind)
    if source is None and not is_registered(kind):
        raise InputError(
            f"save: {kind.__qualname__} is neither registered nor from a file, so it could not be loaded again. "
            "Write @ostinato.register('name') above the class, or give its file: Learner('my_method.py')."
        )
    spec = asdict(learner.spec)
    del spec["sha256"]
    if learner.spec.weights is not None:
        spec["weights"] = str(Path(learner.spec.weights).resolve())
    if learner.spec.weights is not None or bundle:
        spec["sizes"] = sizes_of(learner.method.backbone)
    about = {
        "run_id": run_id,
        "method": learner.method.name,
        "method_file": {"path": str(source.path), "sha256": source.sha256} if source else None,
        "options": learner.options,
        "backbone": spec,
        "backbone_sha256": learner.origin.sha256 if learner.origin else None,
        "preprocess": learner.method.backbone.describe(),
        "label_groups": learner.label_groups,
        "class_names": learner.class_names,
        "task_sizes": learner.method.task_sizes.tolist(),
        "samples": learner.samples,
        "protocol": learner.method.protocol,
        "seed": learner.settings.seed,
        "crop": learner.crop,
        "precision": learner.precision,
        "train": learner.settings.overrides or {},
    }
    text = source.text if source else None
    held = bundle_of(learner.spec, learner.origin) if bundle else None
    artifact.write(path, about, learner.learned_state(), learner.used, text, held)


def arguments(folder: Path, about: ArtifactRecord, weights: str | None, method: str | None) -> dict[str, Any]:
    """Constructor arguments of an artifact's learner.

    Raises:
        InputError: if the method is another one, or must be given.
    """
    spec = BackboneSpec(**about.backbone.model_dump(exclude={"sizes"}), sizes=recorded_sizes(about))
    if weights is None and about.bundle is not None:  # its files were verified when it was read
        spec = replace(spec, weights=located(folder, about), sha256=about.backbone_sha256)
    else:
        spec = replace(spec, weights=located(folder, about) if weights is None else weights)
    name = method_of(folder, about, method)
    check_options(get_method(name), about.options)  # so that none is an argument of the constructor
    known = {"seed": about.seed, "crop": about.crop, "precision": about.precision, "train": about.train}
    return {"method": name, "backbone": spec} | known | about.options


def check_backbone(folder: Path, about: ArtifactRecord, learner: Learner) -> None:
    """Raise DataError unless a learner's backbone has the weights and features of the artifact."""
    if learner.origin is not None and learner.origin.sha256 != about.backbone_sha256:
        remedy = way_back(learner.origin) if about.bundle is None else "It holds its weights: leave out the others."
        raise DataError(
            f"{folder} was trained on backbone weights with SHA-256 {str(about.backbone_sha256)[:12]}..., the ones "
            f"found now have {learner.origin.sha256[:12]}... {remedy}"
        )
    check_inputs(str(folder), about.preprocess, learner.method.backbone)


def fill(learner: Learner, folder: Path, saved: artifact.Artifact) -> None:
    """Give a new learner what a saved one has learned.

    Raises:
        DataError: if its backbone is another one, or the files of the artifact contradict each other.
    """
    about = saved.about
    check_backbone(folder, about, learner)
    learner.restore(saved.learned, about.class_names)
    if learner.method.task_sizes.tolist() != about.task_sizes:
        raise DataError(f"{folder}: artifact.json and the learned tensors have different tasks. Restore the artifact.")
    learner.used, learner.label_groups, learner.loaded_from = saved.used, about.label_groups, folder
    learner.samples = about.samples
    if learner.certainty is not None:
        learner.certainty.close()
    learner.bundled = about.bundle is not None
