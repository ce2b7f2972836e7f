"""Find methods by registered name, or in a file of the user's own, which is run."""

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
    """All methods by name: every module of ``ostinato.methods`` and every installed entry point.

    Packages outside register through the entry-point group ``ostinato.methods``.
    """
    for module in pkgutil.iter_modules(ostinato.methods.__path__):
        importlib.import_module(f"ostinato.methods.{module.name}")
    for point in entry_points(group="ostinato.methods"):
        try:
            point.load()
        except Exception as error:  # of a package that is not ours: its fault must not stop every command
            warnings.warn(f"The method {point.name!r} of {point.value} cannot be loaded: {error}", stacklevel=2)
    return registry.registered()


def get_method(method: str | type[Method]) -> type[Method]:
    """Find the class of a method.

    Args:
        method: a registered name, or the Python file that registers a method, ``my_method.py``; of several in it,
            ``my_method.py:name``. The file is run each time, and finds modules that lie beside it. A class stands for
            itself; one that is not registered gets its own name as ``name``.

    Raises:
        InputError: unknown name, with the closest known ones; no such file, or no such method in it; an object that
            is no subclass of ``Method``.
    """
    if not isinstance(method, str):
        return _checked_class(method)
    file, name_there = split_file(method)
    if file is not None:
        return method_of_file(file, name_there)
    known = methods()
    if method not in known:
        raise InputError(
            f"method: there is no {method!r}. {did_you_mean(method, list(known))} One of your own is given by its "
            "file, my_method.py, or known by name if an installed package has it as an entry point of the group "
            "'ostinato.methods'."
        )
    return known[method]


def _checked_class(given: object) -> type[Method]:
    if not (isinstance(given, type) and issubclass(given, Method)):
        raise InputError(f"method must be a name, a file or a subclass of ostinato.Method, got {quoted(given)}.")
    if "name" not in vars(given):  # else messages would show a base class's name
        given.name = given.__name__
    return given


@dataclass(frozen=True)
class Description:
    """A method for a reader.

    Attributes:
        text: of its module, of each class whose options belong to it, and of the parts that an option chooses.
        options: defaults by name; of a chosen part, its name and options.
        parts: the options that choose a part, each with the options of every part by its name.
        recipe: of its training.
    """

    text: str
    options: dict[str, Any]
    parts: dict[str, dict[str, dict[str, Any]]]
    recipe: dict[str, Any]


def describe(name: str) -> Description:
    """Describe a method with its options and recipe.

    Args:
        name: what :func:`get_method` takes.
    """
    cls = get_method(name)
    parts = registry.parts_of(cls)
    texts = [
        (inspect.getmodule(cls).__doc__ or "").strip(),
        *(inspect.getdoc(source) or "" for source in registry.sources_of_options(cls)),
        *(f"method.{key}={part.name}: {inspect.getdoc(type(part))}" for key, each in parts.items() for part in each),
    ]
    own = {key: {part.name: part.own() for part in each} for key, each in parts.items()}
    return Description("\n\n".join(texts), registry.defaults_of(cls), own, asdict(cls.recipe))


@dataclass(frozen=True)
class MethodFile:
    """What a method was made of.

    Attributes:
        path: absolute.
        name: that the method registers itself by.
        text: as it was run.
    """

    path: Path
    name: str
    text: bytes

    @property
    def reference(self) -> str:
        """What :func:`get_method` finds the method by from any directory."""
        return reference(self.path, self.name)

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return sha256(self.text).hexdigest()


_FILES: dict[type[Method], MethodFile] = {}


def reference(path: Path | str, name: str | None) -> str:
    """What :func:`split_file` reads: ``file.py:name``, or the file alone."""
    return f"{path}:{name}" if name else str(path)


def split_file(name: str) -> tuple[Path | None, str | None]:
    """The file of ``file.py`` or ``file.py:name``, absolute, and the name; None for what is not there."""
    match = re.fullmatch(r"(.+\.py)(?::(.*))?", name)
    return (user_path(match[1], "method").resolve(), match[2] or None) if match else (None, None)


def file_of(method: type[Method]) -> MethodFile | None:
    """The file that a method was given by; None of one that was known by name."""
    return _FILES.get(method)


def executed_anew(method: type[Method]) -> type[Method]:
    """The class of a second execution of its file; the same class where it was known by name."""
    file = file_of(method)
    return _run(file.path, file.text)[file.name] if file else method


def method_of_file(path: Path, name: str | None) -> type[Method]:
    """Run a file and take the method that it registers.

    What it registers is known by the file alone, so that two versions of a file may use one name. Modules beside it are
    found as those of a script are.

    Args:
        path: of the file, absolute.
        name: of the method, where the file registers several.

    Raises:
        InputError: no such file, none or several methods in it, or none of that name.
    """
    if not path.is_file():
        raise InputError(f"method: there is no file {path}.")
    found = _run(path, path.read_bytes())
    if not found:
        raise InputError(f"method: {path} registers none; write @ostinato.register('name') above its class.")
    if name is None and len(found) > 1:
        raise InputError(f"method: {path} registers {', '.join(found)}; say which: {path.name}:{next(iter(found))}")
    if name is not None and name not in found:
        raise InputError(f"method: {path} registers no {name!r}; it has {', '.join(found)}.")
    return found[name or next(iter(found))]


def _run(path: Path, text: bytes) -> dict[str, type[Method]]:
    """The methods by name that a file registers; those of modules that it imports only where it has none itself."""
    module = ModuleType(f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}", None)
    module.__file__ = str(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[module.__name__] = module  # dataclasses look there
    known = methods()
    # The file may have been imported, too.
    others = {
        n: cls for n, cls in known.items() if getattr(sys.modules.get(cls.__module__), "__file__", None) != str(path)
    }
    registry.restore(others)
    try:
        # Not by the import system, which would run what it compiled of an earlier text of the same second and size.
        exec(compile(text, path, "exec"), module.__dict__)  # nosec B102  # a path that the user typed
        new = {name: cls for name, cls in registry.registered().items() if others.get(name) is not cls}
    finally:
        registry.restore(known)
    found = {name: cls for name, cls in new.items() if cls.__module__ == module.__name__} or new
    _FILES.update({cls: MethodFile(path, name, text) for name, cls in found.items()})
    return found
