"""Validated types of the small files of runs and models, with versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, ValidationError

from ostinato.defaults import LARGEST_SIDE
from ostinato.errors import DataError
from ostinato.files import read_json, read_sealed

ARTIFACT_FORMAT = 5
RECORD_FORMAT = 1
CHECKPOINT_FORMAT = 3


def _any_text(value: object) -> str:
    # Pydantic would refuse file names that are not UTF-8.
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


Text = Annotated[str, PlainValidator(_any_text)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
PlainName = Annotated[str, StringConstraints(pattern=r"^[\w-]+$", max_length=200)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=2**20)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Base of records: no unknown keys, no type conversion, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StoredFile(Record):
    """Name, hash and size of a file in the same folder."""

    file: FileName
    sha256: Sha256
    bytes: Count


class BundledFile(StoredFile):
    """The same of a file in the folder of a bundle, or in a folder inside."""

    file: Annotated[
        str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    ]


class BundleRecord(Record):
    """Files of the backbone's weights, in a folder beside ``artifact.json``.

    ``weights`` is the file to load; None if the folder is a text encoder or a CLIP model.
    """

    folder: Annotated[str, StringConstraints(pattern=r"^backbone-[0-9a-f]{16}$")]
    weights: FileName | None
    files: Annotated[list[BundledFile], Field(min_length=1)]


class MethodFileRecord(Record):
    """Source file of an unregistered method; it is never executed from a record."""

    path: Text
    sha256: Sha256


class ArchRecord(Record):
    """Layer sizes, see :class:`ostinato.backbones.Arch`."""

    dim: Size
    depth: Annotated[int, Field(ge=1, le=1000)]
    heads: Size
    mlp_dim: Size
    eps: Annotated[float, Field(gt=0, lt=1)]
    act: Text
    qkv_bias: bool
    layer_scale: bool
    norm: Text
    causal: bool


class PreprocessRecord(Record):
    """Input size and normalisation, see :class:`ostinato.backbones.Preprocess`."""

    size: Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    interpolation: Literal["bicubic", "bilinear", "nearest"]


class SizesRecord(Record):
    """Sizes of an image encoder, see :class:`ostinato.backbones.VisionSizes`."""

    arch: ArchRecord
    patch: Size
    preprocess: PreprocessRecord
    readout: Text


class BackboneRecord(Record):
    """Options of a backbone, see :class:`ostinato.learner.BackboneSpec`."""

    name: Text
    weights: Text | None
    size: Size | None
    preprocess: Literal["weights", "unit"]
    length: Size | None
    readout: Literal["cls", "mean", "cls+mean"] | None = None
    sizes: SizesRecord | None = None


class ArtifactRecord(Record):
    """``artifact.json``: description of a learned model, and its files.

    ``samples`` counts the training samples of each class; it is missing in models of earlier versions.
    """

    format: Literal[5]
    run_id: RunId | None
    method: PlainName
    method_file: MethodFileRecord | None
    options: dict[str, Any]
    backbone: BackboneRecord
    backbone_sha256: Sha256 | None
    preprocess: dict[str, Any]
    label_groups: list[Count] | None
    class_names: list[Text]
    task_sizes: list[Annotated[int, Field(ge=1)]]
    samples: list[Count] | None = None
    protocol: Text
    seed: Count
    crop: Annotated[float, Field(gt=0, le=1)]
    precision: Literal["auto", "fp32", "bf16"]
    train: dict[str, Any]
    learned: StoredFile
    used: StoredFile
    method_text: StoredFile | None
    bundle: BundleRecord | None = None


class TaskRecord(Record):
    """A task of a run: classes, sample counts and digests by split."""

    index: Count
    classes: list[Text]
    labels: list[Count]
    counts: dict[str, Count]
    digests: dict[str, Sha256]


class KnownRecord(Record):
    """More samples of classes learned before: sample counts and digests by split."""

    classes: list[Text]
    counts: dict[str, Count]
    digests: dict[str, Sha256]


class StreamRecord(Record):
    """Data of a run."""

    source: Text
    class_order: list[Text]
    options: dict[str, Any]
    tasks: list[TaskRecord]
    skipped: list[Text]
    notes: list[Text]
    known: KnownRecord | None = None


class OriginRecord(Record):
    """Origin of a backbone's weights."""

    name: Text
    weights: Text | None
    sha256: Sha256


class ContinuesRecord(Record):
    """Numbers of tasks and classes before a continuation."""

    tasks: Count
    classes: Count


class RunRecord(Record):
    """``record.json``: resolved options, data and versions of a run."""

    format: Literal[1]
    run_id: RunId
    started: str
    method: PlainName
    method_sha256: Sha256 | None
    method_changed_to: list[Sha256] = []
    continued_by: list[RunId] = []
    options: dict[str, Any]
    recipe: dict[str, Any]
    protocol: Text
    batch_protocol: Text | None = None
    data_seen: str
    scored_on: Literal["test", "validation"]
    backbone: OriginRecord | None
    preprocess: dict[str, Any]
    precision: Literal["fp32", "bf16"]
    precision_reason: str
    device: str
    threads: Count
    processes: Count
    stream: StreamRecord
    continues: ContinuesRecord | None
    versions: dict[str, str]

    @property
    def method_texts(self) -> list[str | None]:
        """SHA-256 of the method's files during the run, in order; None for a registered method."""
        return [self.method_sha256, *self.method_changed_to]


class MatrixRecord(Record):
    """Counts of an :class:`ostinato.evaluation.metrics.AccuracyMatrix`."""

    correct: list[list[Count]]
    totals: list[Count]


class ScoreRecord(Record):
    """Accuracies of an evaluation in fractions."""

    accuracy: Fraction
    task_incremental_accuracy: Fraction
    task_id_accuracy: Fraction | None
    oracle_id_accuracy: Fraction | None
    calibration_error: Fraction | None = None
    uncalibrated_error: Fraction | None = None
    batch_accuracy: Fraction | None = None
    batch_task_id_accuracy: Fraction | None = None


class SeenRecord(Record):
    """State of the divergence check, see :class:`ostinato.training.divergence.Seen`."""

    first: float | None
    reached: bool
    exploded: bool


class ProgressRecord(Record):
    """Progress of a run.

    Attributes:
        task: index of the task in the stream of the run.
        phase: "begin" before a task, "inside" during its training, "learned" before its evaluation.
        stage: stage of the training, for "inside".
        step: finished steps of the stage, for "inside".
        seen: state of the divergence check, for "inside".
        matrix: counts of correct answers.
        task_incremental: the same among the classes of the true task.
        batch_matrix: counts of correct answers in batches of one task.
        evaluations: other accuracies per evaluation.
        events: size of the event log in bytes.
        trainable: number of parameters trained in the latest task.
        last_eval_seconds: time of the latest evaluation.
        batch_last_eval_seconds: the same in batches of one task.
        warnings: warnings for the summary.
    """

    task: Count = 0
    phase: Literal["begin", "inside", "learned"] = "begin"
    stage: Count = 0
    step: Count = 0
    seen: SeenRecord | None = None
    matrix: MatrixRecord | None = None
    task_incremental: MatrixRecord | None = None
    batch_matrix: MatrixRecord | None = None
    evaluations: list[ScoreRecord] = []
    events: Count = 0
    trainable: Count = 0
    train_seconds: Annotated[float, Field(ge=0)] = 0.0
    train_images: Count = 0
    eval_seconds: Annotated[float, Field(ge=0)] = 0.0
    last_eval_seconds: Annotated[float, Field(ge=0)] = 0.0
    batch_last_eval_seconds: Annotated[float, Field(ge=0)] = 0.0
    eval_images: Count = 0
    peak_memory: Count = 0
    warnings: list[Text] = []


class CheckpointRecord(Record):
    """``checkpoint.json``: state of a run; ``learned`` has the file of each tensor."""

    format: Literal[3]
    run_id: RunId
    learned: dict[str, FileName]
    files: list[StoredFile]
    progress: ProgressRecord


class SummaryRecord(BaseModel):
    """``summary.json``: results of a run; keys of later versions are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    method: Text
    backbone: Text | None = None
    stream: Text | None = None
    tasks: Count | None = None
    classes: Count | None = None
    last_accuracy: Fraction | None
    average_accuracy: Fraction | None = None
    mean_task_accuracy: Fraction | None = None
    forgetting: Fraction | None = None
    bwt: Annotated[float, Field(ge=-1, le=1)] | None = None
    task_id_accuracy: Fraction | None = None
    oracle_id_accuracy: Fraction | None = None
    task_incremental_accuracy: Fraction | None = None
    task_incremental_forgetting: Fraction | None = None
    calibration_error: Fraction | None = None
    uncalibrated_error: Fraction | None = None
    old_accuracy_before: Fraction | None = None
    old_accuracy_after: Fraction | None = None
    new_accuracy: Fraction | None = None
    known_accuracy_before: Fraction | None = None
    known_accuracy_after: Fraction | None = None
    protocol: Text | None = None
    batch_protocol: Text | None = None
    batch_last_accuracy: Fraction | None = None
    batch_average_accuracy: Fraction | None = None
    batch_mean_task_accuracy: Fraction | None = None
    batch_forgetting: Fraction | None = None
    batch_bwt: Annotated[float, Field(ge=-1, le=1)] | None = None
    batch_task_id_accuracy: Fraction | None = None
    scored_on: Text | None = None
    data_seen: Text | None = None
    trainable_parameters: Count | None = None
    stored_bytes: Count | None = None
    exemplars: Count | None = None
    exemplar_bytes: Count | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    last_eval_seconds: float | None = None
    batch_last_eval_seconds: float | None = None
    train_images_per_second: float | None = None
    eval_images_per_second: float | None = None
    peak_memory_bytes: Count | None = None
    seed: Count | None = None
    remarks: list[Text] = []
    warnings: list[Text] = []


R = TypeVar("R", bound=BaseModel)


def parse(kind: type[R], value: Mapping[str, Any], where: str | Path) -> R:
    """Validate plain values as a record.

    Raises:
        DataError: if a key is missing, unknown or wrong, naming the first.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part)[:80] for part in first["loc"][:8])
        raise DataError(f"{where}: {key}: {first['msg']}. Restore the file from a copy.") from None


def check_format(value: Mapping[str, Any], known: int, where: str | Path, way_out: str) -> None:
    """Check the format version of a file.

    Args:
        value: content of the file.
        known: supported version.
        where: path of the file.
        way_out: advice for an older version.

    Raises:
        DataError: if the file has another version.
    """
    found = value.get("format")
    if type(found) is int and found > known:
        raise DataError(f"{where} must have format {known}, got {found}. Install a newer ostinato.")
    if found != known:
        shown = found if type(found) is int else "none"
        raise DataError(f"{where} must have format {known}, got {shown}, of an earlier ostinato. {way_out}")


def read_versioned(kind: type[R], path: Path, known: int, way_out: str) -> R:
    """Read a sealed file as a record; for ``known`` and ``way_out`` see :func:`check_format`.

    Raises:
        DataError: if the file is missing, damaged, of another version, or no such record.
    """
    return parse(kind, read_sealed(path, lambda value: check_format(value, known, path, way_out)), path)


def read_record(path: Path) -> RunRecord:
    """Read ``record.json``.

    Raises:
        DataError: if it is missing, damaged, or of another version.
    """
    way_out = "Start a new run; the old summary and tables can still be read."
    return read_versioned(RunRecord, path, RECORD_FORMAT, way_out)


def read_summary_file(path: Path) -> dict[str, Any]:
    """Read ``summary.json`` as plain values.

    Raises:
        DataError: if it is missing, damaged or no summary.
    """
    value = read_json(path)
    parse(SummaryRecord, value, path)
    return value
