"""Teach a frozen pre-trained transformer new classes, task after task.

Public names load on first use, so that importing the package is fast and has no side effects.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from ostinato.backbones import Backbone, Edit, LayerPlan, LinearEdit, Plan, Tokens, prefix_from
    from ostinato.contract import check_method
    from ostinato.errors import DataError, InputError, OstinatoError
    from ostinato.evaluation.evaluator import BatchProtocol, Evaluation
    from ostinato.learner import BackboneSpec, Learner, Prediction
    from ostinato.learner.merging import merge
    from ostinato.lookup import methods as list_methods
    from ostinato.methods.base import Additive, LearnTask, Method, Recipe, Stage, TaskInferring, check_layers
    from ostinato.nn import ClassGaussians, ClassMeans, PerTask, TaskHeads, cosine, entropy
    from ostinato.registry import register
    from ostinato.streams import LabeledDataset, Source, StreamOptions, Task, TaskStream, arrays, open_source
    from ostinato.streams.known import Twins

    __version__: str

_PUBLIC = {
    "backbones": "Backbone Edit LayerPlan LinearEdit Plan Tokens prefix_from",
    "contract": "check_method",
    "errors": "DataError InputError OstinatoError",
    "evaluation.evaluator": "BatchProtocol Evaluation",
    "learner": "BackboneSpec Learner Prediction",
    "learner.merging": "merge",
    "lookup": "list_methods",
    "methods.base": "Additive LearnTask Method Recipe Stage TaskInferring check_layers",
    "nn": "ClassGaussians ClassMeans PerTask TaskHeads cosine entropy",
    "registry": "register",
    "streams": "LabeledDataset Source StreamOptions Task TaskStream arrays open_source",
}
"""Names that load on first use, by module."""

_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

_INNER_NAMES = {"list_methods": "methods"}
"""Names inside their module, where they differ: ``ostinato.methods`` is a package."""

__all__ = [
    "Additive",
    "Backbone",
    "BackboneSpec",
    "BatchProtocol",
    "ClassGaussians",
    "ClassMeans",
    "DataError",
    "Edit",
    "Evaluation",
    "InputError",
    "LabeledDataset",
    "LayerPlan",
    "LearnTask",
    "Learner",
    "LinearEdit",
    "Method",
    "OstinatoError",
    "PerTask",
    "Plan",
    "Prediction",
    "Recipe",
    "Source",
    "Stage",
    "StreamOptions",
    "Task",
    "TaskHeads",
    "TaskInferring",
    "TaskStream",
    "Tokens",
    "__version__",
    "arrays",
    "check_layers",
    "check_method",
    "cosine",
    "entropy",
    "list_methods",
    "load",
    "merge",
    "open_source",
    "prefix_from",
    "register",
    "stream",
]


def stream(
    data: Any,
    *,
    after: Learner | None = None,
    seed: int = 0,
    on_error: str = "raise",
    classes: int | None = None,
    twins: Twins = "refuse",
    **options: Any,
) -> TaskStream:
    """Open data as a stream of tasks.

    Args:
        data: name, folder or table for :func:`open_source`, or a :class:`Source` from :func:`arrays`.
        after: learner of earlier classes; the stream numbers its classes and tasks after them. Samples of classes that
            it knows become part of the first task, without those that it has learned from.
        seed: seed of splits and of a seeded class order.
        on_error: "raise", or "skip" to leave out unreadable files.
        classes: number of glyph classes to render, for "glyphs".
        twins: meaning of a name that is nearly a known one, see :class:`TaskStream`.
        options: fields of :class:`StreamOptions`, such as ``step=5``.

    Raises:
        InputError: if a name, option or path is unknown.
        DataError: if the data cannot be used.
    """
    from ostinato.streams import Source, StreamOptions, TaskStream, open_source

    folders = True if options.get("tasks") == "folders" else None
    if not isinstance(data, Source):
        data = open_source(str(data), seed=seed, on_error=on_error, task_folders=folders, classes=classes)
    known = after.class_names if after is not None else []
    return TaskStream(
        data,
        StreamOptions(seed=seed, **options),
        offset_classes=len(known),
        offset_tasks=after.method.n_tasks if after is not None else 0,
        known=known,
        used=after.used if after is not None else None,
        twins=twins,
    )


def load(path: str | Path, **where: Any) -> Learner:
    """Load a saved learner.

    Args:
        path: folder of :meth:`Learner.save`, directory of a finished run, or OWNER/NAME on the Hugging Face hub. A
            model of the hub is taken from its cache on this machine if the hub cannot be reached. Every file is checked
            against the hashes in the model.
        where: arguments of :meth:`Learner.load`.

    Raises:
        DataError: if there is no model, it is damaged, or the hub cannot be reached.
        InputError: if the hub has no such repository or refuses it, or an argument is wrong.
    """
    from os.path import lexists

    from ostinato.errors import DataError, InputError
    from ostinato.learner import Learner

    if isinstance(path, str) and not lexists(path):
        from ostinato.sharing.stores import HubStore, is_name  # which a folder does not need

        if is_name(path):
            try:
                return Learner.load(HubStore().fetch(path), **where)
            except (DataError, InputError) as error:
                raise type(error)(f"There is no folder {path} here. {error}") from None
    return Learner.load(path, **where)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'ostinato' has no attribute {name!r}")
    return getattr(import_module(f"ostinato.{_HOMES[name]}"), _INNER_NAMES.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
