"""Learned models as files of other programs: ONNX, torch.export and TorchScript."""

from ostinato.interop.about import ExportRecord
from ostinato.interop.exported import ExportedModel, load_exported
from ostinato.interop.exporting import TOLERANCE, Export, check_target, export
from ostinato.interop.formats import FORMATS

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
