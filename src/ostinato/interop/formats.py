"""Files of exported models: how each is written, read and run."""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ostinato.errors import DataError, InputError
from ostinato.interop.about import KEY

Run = Callable[[Tensor], Tensor]
"""Scores (B, C) in fp32 of pixels (B, 3, S, S) in uint8."""

MAX_ABOUT = 2**26
"""Largest description in bytes."""

INPUT, OUTPUT = "pixels", "scores"


class Format(Protocol):
    """A kind of file.

    Attributes:
        suffix: of its files.
        runs_code: whether reading a file can run code that somebody put into it.
    """

    suffix: ClassVar[str]
    runs_code: ClassVar[bool]

    def write(self, scores: nn.Module, example: Tensor, about: str) -> bytes:
        """The file of a module from pixels to scores.

        Args:
            scores: the module, in evaluation mode on the CPU.
            example: pixels (B, 3, S, S) of at least two images.
            about: description that the file carries.
        """
        ...

    def about(self, data: bytes) -> str | None:
        """The description in a file, without running it; None if it has none."""
        ...

    def load(self, data: bytes) -> Run:
        """A call that runs a file on the CPU."""
        ...


class Pt2:
    """Program of ``torch.export``."""

    suffix: ClassVar[str] = ".pt2"
    runs_code: ClassVar[bool] = True  # torch unpickles parts of it

    def write(self, scores: nn.Module, example: Tensor, about: str) -> bytes:
        """Export for any number of images."""
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(exported_program(scores, example), buffer, extra_files={f"{KEY}.json": about})
        return buffer.getvalue()

    def about(self, data: bytes) -> str | None:
        """The extra file."""
        return _member(data)

    def load(self, data: bytes) -> Run:
        """Load the program."""
        with _quiet():
            return torch.export.load(io.BytesIO(data)).module()


class TorchScript:
    """Trace of ``torch.jit``, for programs in C++ that cannot read the others."""

    suffix: ClassVar[str] = ".pt"
    runs_code: ClassVar[bool] = True  # a script may, for example, write files

    def write(self, scores: nn.Module, example: Tensor, about: str) -> bytes:
        """Trace one batch; the caller compares others."""
        buffer = io.BytesIO()
        with _quiet():
            traced = torch.jit.freeze(torch.jit.trace(scores, (example,), check_trace=False))
            torch.jit.save(traced, buffer, _extra_files={f"{KEY}.json": about})
        return buffer.getvalue()

    def about(self, data: bytes) -> str | None:
        """The extra file."""
        return _member(data)

    def load(self, data: bytes) -> Run:
        """Load the script."""
        with _quiet():
            return torch.jit.load(io.BytesIO(data), map_location="cpu")


class Onnx:
    """Graph of ONNX with its weights in one file, run by ONNX Runtime."""

    suffix: ClassVar[str] = ".onnx"
    runs_code: ClassVar[bool] = False  # a graph of known operators; from bytes, no other file is read

    def write(self, scores: nn.Module, example: Tensor, about: str) -> bytes:
        """Translate the program of ``torch.export``."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package)
        with _quiet():
            recorded = exported_program(scores, example).run_decompositions(
                {torch.ops.aten.cdist.default: _distances}  # ONNX has no such operator
            )
            program: Any = torch.onnx.export(
                recorded, (), None, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
        program.model.metadata_props[KEY] = about
        try:
            return program.model_proto.SerializeToString()
        except ValueError as error:  # protobuf
            raise InputError(f"An ONNX file holds at most 2 GB ({error}). Use --to pt2.") from None

    def about(self, data: bytes) -> str | None:
        """The metadata property."""
        return self._session(data).get_modelmeta().custom_metadata_map.get(KEY)

    def load(self, data: bytes) -> Run:
        """Open a session with as many threads as torch has."""
        session = self._session(data)

        def run(pixels: Tensor) -> Tensor:
            (scores,) = session.run([OUTPUT], {INPUT: pixels.numpy()})
            return torch.from_numpy(scores)

        return run

    def _session(self, data: bytes) -> Any:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has many kinds, all of the file
            raise DataError(f"ONNX Runtime cannot read it ({_first_line(error)})") from None


FORMATS: dict[str, Format] = {"onnx": Onnx(), "pt2": Pt2(), "torchscript": TorchScript()}
"""Kinds of files by name."""


def exported_program(scores: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The program of ``torch.export`` of a module for any number of images, without tensors that it does not use."""
    from torch.export.graph_signature import InputKind  # a second of imports, which commands without export save

    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(scores, (example,), dynamic_shapes=batch, strict=False)
    unused = {node.name: node for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    specs = program.graph_signature.input_specs
    for spec in [spec for spec in specs if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)]:
        if spec.arg.name in unused and spec.target is not None:  # such as kept images, which no program needs
            program.graph.erase_node(unused[spec.arg.name])
            specs.remove(spec)
            program.state_dict.pop(spec.target, None)
    program.graph_module.recompile()
    return program


def _distances(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:  # noqa: ARG001
    """Distances (B, K) in the p-norm between rows of x (B, D) and of y (K, D), by plain operators."""
    return torch.linalg.vector_norm(x[:, None] - y, ord=p, dim=-1)


def needed(package: str) -> Any:
    """Import a package of the extra ``onnx``.

    Raises:
        InputError: naming the command that installs it.
    """
    try:
        return import_module(package)
    except ImportError:
        raise InputError(
            f"ONNX files need the package {package}, which is not installed: pip install 'ostinato[onnx]'."
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what exporters print: warnings of their future versions, steps of translations, graphs that failed."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _member(data: bytes) -> str | None:
    """The description in an archive of torch."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if info.filename.rsplit("/", 1)[-1] == f"{KEY}.json" and info.file_size <= MAX_ABOUT:
                    return archive.read(info).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
        raise DataError(f"it is damaged ({error})") from None
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
