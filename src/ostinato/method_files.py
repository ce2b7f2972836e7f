"""Methods in files of one's own: finding them, running them, and what they said when they were run."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ostinato import registry
from ostinato.errors import InputError
from ostinato.paths import user_path

if TYPE_CHECKING:
    from ostinato.methods.base import Method


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
        """What :func:`ostinato.registry.get_method` finds the method by from any directory."""
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
    known = registry.methods()
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
