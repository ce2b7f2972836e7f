"""Lookup of methods by registered name or in a file, which is executed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import ostinato.methods
from ostinato import registry
from ostinato.errors import InputError, did_you_mean
from ostinato.methods.base import Method
from ostinato.paths import user_path
from ostinato.quoting import quoted


def methods() -> dict[str, type[Method]]:
    """Load all methods by name, from the modules of ``ostinato.methods`` and the entry points of that group."""
    for module in pkgutil.iter_modules(ostinato.methods.__path__):
        importlib.import_module(f"ostinato.methods.{module.name}")
    for point in entry_points(group="ostinato.methods"):
        try:
            point.load()
        except Exception as error:  # a defect of another package must not stop every command
            warnings.warn(f"The method {point.name!r} of {point.value} cannot be loaded: {error}", stacklevel=2)
    return registry.registered()


def get_method(method: str | type[Method]) -> type[Method]:
    """Find the class of a method.

    Args:
        method: registered name, Python file ``my_method.py``, a method of it ``my_method.py:name``, or a class. A file
            is executed each time and can import modules beside it. An unregistered class gets its name as ``name``.

    Raises:
        InputError: if the name, the file or its method is unknown, or an object is no subclass of ``Method``.
    """
    if not isinstance(method, str):
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise InputError(f"method must be a name, a file or a subclass of ostinato.Method, got {quoted(method)}.")
        if "name" not in vars(method):  # messages would show the name of a base class
            method.name = method.__name__
        return method
    file, name_in_file = split_file(method)
    if file is not None:
        return method_of_file(file, name_in_file)
    known = methods()
    if method not in known:
        raise InputError(
            f"method: there is no {method!r}. {did_you_mean(method, list(known))} Give another method by its file, "
            "my_method.py, or install a package with an entry point of the group 'ostinato.methods'."
        )
    return known[method]


@dataclass(frozen=True)
class Description:
    """Description of a method.

    Attributes:
        text: docstrings of its module, of the classes with its options, and of the parts that an option chooses.
        options: defaults by name; for a chosen part, its name and options.
        parts: for each option that chooses a part, the options of every part by name.
        recipe: training recipe.
    """

    text: str
    options: dict[str, Any]
    parts: dict[str, dict[str, dict[str, Any]]]
    recipe: dict[str, Any]


def describe(name: str) -> Description:
    """Describe a method, given as for :func:`get_method`."""
    cls = get_method(name)
    parts = registry.parts_of(cls)
    texts = [
        (inspect.getmodule(cls).__doc__ or "").strip(),
        *(inspect.getdoc(source) or "" for source in registry.sources_of_options(cls)),
        *(f"method.{key}={part.name}: {inspect.getdoc(type(part))}" for key, each in parts.items() for part in each),
    ]
    options = {key: {part.name: part.own() for part in each} for key, each in parts.items()}
    return Description("\n\n".join(texts), registry.defaults_of(cls), options, asdict(cls.recipe))


@dataclass(frozen=True)
class MethodFile:
    """Source file of a method.

    Attributes:
        path: absolute path.
        name: registered name of the method.
        text: executed content.
    """

    path: Path
    name: str
    text: bytes

    @property
    def reference(self) -> str:
        """Argument of :func:`get_method` for this method, from any directory."""
        return reference(self.path, self.name)

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return sha256(self.text).hexdigest()


_FILES: dict[type[Method], MethodFile] = {}


def reference(path: Path | str, name: str | None) -> str:
    """Join a file and a name for :func:`split_file`: ``file.py:name``, or the file alone."""
    return f"{path}:{name}" if name else str(path)


def split_file(name: str) -> tuple[Path | None, str | None]:
    """Split ``file.py:name`` into the absolute path and the name; either is None if absent."""
    match = re.fullmatch(r"(.+\.py)(?::(.*))?", name)
    return (user_path(match[1], "method").resolve(), match[2] or None) if match else (None, None)


def file_of(method: type[Method]) -> MethodFile | None:
    """Source file of a method; None for a method that was found by name."""
    return _FILES.get(method)


def executed_anew(method: type[Method]) -> type[Method]:
    """Execute the file of a method again and return the new class; the same class if it was found by name."""
    file = file_of(method)
    return _run(file.path, file.text)[file.name] if file else method


def method_of_file(path: Path, name: str | None) -> type[Method]:
    """Execute a file and return the method that it registers.

    The registration does not last, so that two versions of a file may use one name. The file can import modules beside
    it, as a script can.

    Args:
        path: absolute path of the file.
        name: name of the method, if the file registers several.

    Raises:
        InputError: if there is no such file, or it does not register exactly one method, or none of that name.
    """
    if not path.is_file():
        raise InputError(f"method: there is no file {path}.")
    found = _run(path, path.read_bytes())
    if not found:
        raise InputError(f"method: {path} registers none. Write @ostinato.register('name') above its class.")
    if name is None and len(found) > 1:
        raise InputError(f"method: {path} registers {', '.join(found)}. Choose one: {path.name}:{next(iter(found))}")
    if name is not None and name not in found:
        raise InputError(f"method: {path} registers no {name!r}. It has {', '.join(found)}.")
    return found[name or next(iter(found))]


def _run(path: Path, text: bytes) -> dict[str, type[Method]]:
    """Execute a file; return the methods that it registers by name, or else those of modules that it imports."""
    module = ModuleType(f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}", None)
    module.__file__ = str(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[module.__name__] = module  # required by dataclasses
    known = methods()
    # Exclude methods of the file itself, which may have been imported, too.
    others = {
        n: cls for n, cls in known.items() if getattr(sys.modules.get(cls.__module__), "__file__", None) != str(path)
    }
    registry.restore(others)
    try:
        # The import system could run a stale compiled file of the same time and size.
        exec(compile(text, path, "exec"), module.__dict__)  # nosec B102  # a path from the user
        new = {name: cls for name, cls in registry.registered().items() if others.get(name) is not cls}
    finally:
        registry.restore(known)
    found = {name: cls for name, cls in new.items() if cls.__module__ == module.__name__} or new
    _FILES.update({cls: MethodFile(path, name, text) for name, cls in found.items()})
    return found
