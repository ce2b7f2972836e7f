"""Learned models as files of other programs: ONNX, torch.export and TorchScript."""

from typing import TYPE_CHECKING, Any

from ostinato.interop.about import ExportRecord
from ostinato.interop.exported import ExportedModel, load_exported
from ostinato.interop.formats import FORMATS

if TYPE_CHECKING:
    from ostinato.interop.exporting import TOLERANCE, Export, check_target, export

__all__ = [
    "FORMATS",
    "TOLERANCE",
    "Export",
    "ExportRecord",
    "ExportedModel",
    "check_target",
    "export",
    "load_exported",
]


def __getattr__(name: str) -> Any:
    """Import what writes files, which predicting does not need, when it is first used."""
    if name in __all__:
        from ostinato.interop import exporting

        return getattr(exporting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
