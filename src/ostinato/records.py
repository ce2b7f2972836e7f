"""Small files that runs and models are described by, as validated types with versions."""

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
    # Not pydantic's own check, which refuses names of files that are not UTF-8.
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
    """Base of all: nothing unknown, nothing converted, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StoredFile(Record):
    """A file beside the one that names it.

    Attributes:
        file: its name.
        sha256: of its bytes.
        bytes: how many there are.
    """

    file: FileName
    sha256: Sha256
    bytes: Count


class MethodFileRecord(Record):
    """The file that a method was learned by, where that is no registered one; it is never run from here."""

    path: Text
    sha256: Sha256


class ArchRecord(Record):
    """Sizes of the layers, see :class:`ostinato.backbones.Arch`."""

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
    """All of an image encoder but its weights, see :class:`ostinato.backbones.VisionSizes`."""

    arch: ArchRecord
    patch: Size
    preprocess: PreprocessRecord
    readout: Text


class BackboneRecord(Record):
    """How a backbone was asked for, see :class:`ostinato.learner.BackboneSpec`."""

    name: Text
    weights: Text | None
    size: Size | None
    preprocess: Literal["weights", "unit"]
    length: Size | None
    readout: Literal["cls", "mean", "cls+mean"] | None = None
    sizes: SizesRecord | None = None


class ArtifactRecord(Record):
    """``artifact.json``: a learned model, and the files with its tensors."""

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
    protocol: Text
    seed: Count
    crop: Annotated[float, Field(gt=0, le=1)]
    precision: Literal["auto", "fp32", "bf16"]
    train: dict[str, Any]
    learned: StoredFile
    used: StoredFile
    method_text: StoredFile | None


class TaskRecord(Record):
    """A task of a run: its classes, and how many samples of which contents."""

    index: Count
    classes: list[Text]
    labels: list[Count]
    counts: dict[str, Count]
    digests: dict[str, Sha256]


class StreamRecord(Record):
    """The data of a run."""

    source: Text
    class_order: list[Text]
    options: dict[str, Any]
    tasks: list[TaskRecord]
    skipped: list[Text]
    notes: list[Text]


class OriginRecord(Record):
    """Where a backbone's weights came from."""

    name: Text
    weights: Text | None
    sha256: Sha256


class ContinuesRecord(Record):
    """What a continuation went on from."""

    tasks: Count
    classes: Count


class RunRecord(Record):
    """``record.json``: what the options of a run came to."""

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
        """SHA-256 of the files that the run was learned by, in order; None for a registered method."""
        return [self.method_sha256, *self.method_changed_to]


class MatrixRecord(Record):
    """Counts of an :class:`ostinato.evaluation.metrics.AccuracyMatrix`."""

    correct: list[list[Count]]
    totals: list[Count]


class ScoreRecord(Record):
    """One evaluation, in fractions."""

    accuracy: Fraction
    task_incremental_accuracy: Fraction
    task_id_accuracy: Fraction | None
    oracle_id_accuracy: Fraction | None


class SeenRecord(Record):
    """What a stage saw so far, see :class:`ostinato.training.divergence.Seen`."""

    first: float | None
    reached: bool
    exploded: bool


class ProgressRecord(Record):
    """Where a run stands.

    Attributes:
        task: number of the task within this run's stream.
        phase: "begin" before a task, "inside" during its training, "learned" before its evaluation.
        stage: stage of the training, for "inside".
        step: steps done in the stage, for "inside".
        seen: what they have shown, for "inside".
        matrix: counts of right answers.
        task_incremental: the same within the true task's classes.
        evaluations: fractions per evaluation that are not in the matrices.
        events: bytes of the event log at this moment.
        trainable: parameters trained in the newest task.
        warnings: sentences for the summary.
    """

    task: Count = 0
    phase: Literal["begin", "inside", "learned"] = "begin"
    stage: Count = 0
    step: Count = 0
    seen: SeenRecord | None = None
    matrix: MatrixRecord | None = None
    task_incremental: MatrixRecord | None = None
    evaluations: list[ScoreRecord] = []
    events: Count = 0
    trainable: Count = 0
    train_seconds: Annotated[float, Field(ge=0)] = 0.0
    train_images: Count = 0
    eval_seconds: Annotated[float, Field(ge=0)] = 0.0
    eval_images: Count = 0
    peak_memory: Count = 0
    warnings: list[Text] = []


class CheckpointRecord(Record):
    """``checkpoint.json``: a moment of a run.

    Attributes:
        learned: for each tensor, the file that holds it.
        files: what every file must be.
    """

    format: Literal[3]
    run_id: RunId
    learned: dict[str, FileName]
    files: list[StoredFile]
    progress: ProgressRecord


class SummaryRecord(BaseModel):
    """``summary.json``: the results of a run; of later versions further keys are left as they are."""

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
    old_accuracy_before: Fraction | None = None
    old_accuracy_after: Fraction | None = None
    new_accuracy: Fraction | None = None
    protocol: Text | None = None
    scored_on: Text | None = None
    data_seen: Text | None = None
    trainable_parameters: Count | None = None
    stored_bytes: Count | None = None
    exemplars: Count | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    train_images_per_second: float | None = None
    eval_images_per_second: float | None = None
    peak_memory_bytes: Count | None = None
    seed: Count | None = None
    warnings: list[Text] = []


R = TypeVar("R", bound=BaseModel)


def parse(kind: type[R], value: Mapping[str, Any], where: str | Path) -> R:
    """A record from plain values.

    Raises:
        DataError: naming the first key that is missing, unknown or wrong.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part)[:80] for part in first["loc"][:8])
        raise DataError(f"{where}: {key}: {first['msg']}. Restore the file from a copy.") from None


def check_format(value: Mapping[str, Any], known: int, where: str | Path, way_out: str) -> None:
    """Refuse files of other versions.

    Args:
        value: of the file.
        known: the version that is read.
        where: the file.
        way_out: of an older one.

    Raises:
        DataError: if it is another version.
    """
    found = value.get("format")
    if type(found) is int and found > known:
        raise DataError(f"{where} has format {found}; this ostinato reads {known}. Install a newer ostinato.")
    if found != known:
        shown = found if type(found) is int else "none"
        raise DataError(f"{where} has format {shown}, of an earlier ostinato; this one reads {known}. {way_out}")


def read_versioned(kind: type[R], path: Path, known: int, way_out: str) -> R:
    """Read a sealed file of a known version.

    Args:
        kind: of record.
        path: of the file.
        known: the version that is read.
        way_out: of an older one.

    Raises:
        DataError: if it is missing, damaged, of another version, or no such record.
    """
    return parse(kind, read_sealed(path, lambda value: check_format(value, known, path, way_out)), path)


def read_record(path: Path) -> RunRecord:
    """Read ``record.json``.

    Raises:
        DataError: if it is missing, damaged, or of another version.
    """
    way_out = "Start the run anew; its summary and tables can still be read."
    return read_versioned(RunRecord, path, RECORD_FORMAT, way_out)


def read_summary_file(path: Path) -> dict[str, Any]:
    """Read ``summary.json`` as plain values.

    Raises:
        DataError: if it is missing, damaged or no summary.
    """
    value = read_json(path)
    parse(SummaryRecord, value, path)
    return value
