"""Teach a frozen pre-trained transformer new classes, task after task.

Public names load on first use, so that importing the package is instant and has no side effects.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ostinato.learner import BackboneSpec, Learner, Prediction
    from ostinato.lookup import methods
    from ostinato.methods.base import LearnTask, Method, Recipe, Stage, TaskInferring
    from ostinato.registry import register
    from ostinato.streams import StreamOptions, TaskStream, arrays, open_source

_HOMES = {
    "BackboneSpec": "learner",
    "LearnTask": "methods.base",
    "Learner": "learner",
    "Method": "methods.base",
    "Prediction": "learner",
    "Recipe": "methods.base",
    "Stage": "methods.base",
    "StreamOptions": "streams",
    "TaskInferring": "methods.base",
    "TaskStream": "streams",
    "arrays": "streams",
    "methods": "lookup",
    "open_source": "streams",
    "register": "registry",
}

__all__ = [
    "BackboneSpec",
    "LearnTask",
    "Learner",
    "Method",
    "Prediction",
    "Recipe",
    "Stage",
    "StreamOptions",
    "TaskInferring",
    "TaskStream",
    "arrays",
    "load",
    "methods",
    "open_source",
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
    **options: Any,
) -> TaskStream:
    """A stream of tasks from a folder, a parquet folder, a known name or a :class:`Source`.

    Args:
        data: what :func:`open_source` takes, or a source from :func:`arrays`.
        after: a learner that has learned other classes already; the stream goes on after them.
        seed: of splits and of a seeded class order.
        on_error: "raise", or "skip" to leave out unreadable files.
        classes: how many glyphs to render, for "glyphs".
        options: fields of :class:`StreamOptions`, such as ``step=5``.

    Returns:
        The stream.
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
    )


def load(path: str, **where: Any) -> Learner:
    """A learner saved by :meth:`Learner.save`; the arguments are those of :meth:`Learner.load`."""
    from ostinato.learner import Learner

    return Learner.load(path, **where)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ostinato' has no attribute {name!r}")
    return getattr(import_module(f"ostinato.{_HOMES[name]}"), name)
