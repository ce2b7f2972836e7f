"""Teach a frozen pre-trained transformer new classes, task after task.

Public names load on first use, so that importing the package is instant and has no side effects.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ostinato.learner import BackboneSpec, Learner, Prediction
    from ostinato.methods.base import LearnTask, Method, Recipe, Stage, TaskInferring
    from ostinato.registry import methods, register
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
    "methods": "registry",
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


def stream(data: Any, *, seed: int = 0, on_error: str = "raise", **options: Any) -> TaskStream:
    """A stream of tasks from a folder, a parquet folder, a known name or a :class:`Source`.

    Args:
        data: what :func:`open_source` takes, or a source from :func:`arrays`.
        seed: of splits and of a seeded class order.
        on_error: "raise", or "skip" to leave out unreadable files.
        options: fields of :class:`StreamOptions`, such as ``step=5``.

    Returns:
        The stream.
    """
    from ostinato.streams import Source, StreamOptions, TaskStream, open_source

    source = data if isinstance(data, Source) else open_source(str(data), seed=seed, on_error=on_error)
    return TaskStream(source, StreamOptions(seed=seed, **options))


def load(path: str, **where: Any) -> Learner:
    """A learner saved by :meth:`Learner.save`; the arguments are those of :meth:`Learner.load`."""
    from ostinato.learner import Learner

    return Learner.load(path, **where)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ostinato' has no attribute {name!r}")
    return getattr(import_module(f"ostinato.{_HOMES[name]}"), name)
