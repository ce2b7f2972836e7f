"""The Python interface: a learner that is taught task by task, evaluated, saved, loaded, and predicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ostinato import artifact, crash
from ostinato.backbones import Arch, Backbone, Preprocess, TextBackbone, VisionBackbone, VisionSizes
from ostinato.backbones.cache import StateCache
from ostinato.backbones.weights import load_backbone
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import DataError, InputError, OstinatoError
from ostinato.evaluation.evaluator import (
    BatchProtocol,
    Evaluation,
    check_scores,
    check_shape,
    evaluate,
    not_finite,
)
from ostinato.lookup import file_of, get_method, reference, split_file
from ostinato.methods.base import LearnTask, Method, Recipe
from ostinato.reading import ahead, batched
from ostinato.records import ArtifactRecord, read_record
from ostinato.registry import check_options, is_registered
from ostinato.streams import EvalTransform, LabeledDataset, Task, TaskStream, TextTransform, TrainTransform, Transform
from ostinato.streams.decode import as_rgb, decode
from ostinato.streams.texts import EMPTY, is_empty
from ostinato.training.callbacks import Callback, Position
from ostinato.training.compiling import compile_layers
from ostinato.training.loader import fixed_batches
from ostinato.training.loop import Settings, learn_task
from ostinato.training.precision import choose_precision, compute, prepare, resolve_device
from ostinato.training.seeding import seeded

MOST_GIB = 2**20
"""Of memory for token states: more than any machine has."""


@dataclass(frozen=True)
class BackboneSpec:
    """How to get a backbone; see :func:`ostinato.backbones.weights.load_backbone` for the fields."""

    name: str = DEFAULT_BACKBONE
    weights: str | None = None
    size: int | None = None
    preprocess: str = "weights"
    length: int | None = None
    sizes: VisionSizes | None = None

    def __post_init__(self) -> None:
        """Take a folder given as the name for where the weights are."""
        if self.weights is None and Path(self.name).is_dir():
            object.__setattr__(self, "weights", self.name)
            object.__setattr__(self, "name", Path(self.name).resolve().name)


@dataclass(frozen=True)
class Prediction:
    """The best classes of one input.

    Attributes:
        source: the file, or the position of an image or text that came without one.
        classes: names, best first.
        scores: the method's scores for them; logits or cosines, comparable within one learner only.
        confidences: softmax of the scores over all classes, not calibrated; None where scores are no logits.
    """

    source: str
    classes: list[str]
    scores: list[float]
    confidences: list[float] | None


class Learner:
    """A method on a backbone, with the names of the classes that it knows.

    Args:
        method: registered name, for example "dualprompt", the file of a method, "my_method.py", or a subclass of
            :class:`Method`. A class that is neither registered nor from a file can learn and predict, but not be saved.
        backbone: name of the backbone or folder of a text encoder, or a full :class:`BackboneSpec`.
        weights: file with the backbone's weights, or folder of a text encoder; None finds them by name.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: of frozen weights: "auto", "fp32" or "bf16".
        seed: of everything random.
        train: fields of the recipe to override, for example ``{"epochs": 2}``.
        crop: share of the shorter side that is seen at test time.
        accumulate: micro-batches per training step.
        on_divergence: "stop" or "warn" when a loss explodes; a loss that is no finite number always stops.
        workers: loading processes.
        eval_batch_size: samples per batch where nothing is trained.
        cache: folder of frozen features that all runs on the same weights share; None remembers them in memory
            for this learner alone.
        state_cache: GiB of memory for token states, for methods that leave the lower layers as they are, on
            images that are not augmented; 0 for none.
        compile: let torch compile the backbone's layers, see :func:`ostinato.training.compiling.compile_layers`.
        processes: those that share the work, see :func:`ostinato.distributed.process_group`.
        options: the method's own options.

    Attributes:
        used: sorted fingerprints of all samples that were learned from or set aside for validation, see
            :meth:`ostinato.streams.LabeledDataset.fingerprints`; what else there is of their classes may be scored.
        label_groups: for each class, the number of its group, below the list's length; classes of one group count as
            the same answer. None where all differ; classes beyond the list differ from all.

    Raises:
        InputError: unknown names or options, each with the closest known ones.
    """

    def __init__(
        self,
        method: str | type[Method],
        *,
        backbone: str | BackboneSpec = DEFAULT_BACKBONE,
        weights: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        train: dict[str, Any] | None = None,
        crop: float = 1.0,
        accumulate: int = 1,
        on_divergence: Literal["stop", "warn"] = "warn",
        workers: int = 0,
        eval_batch_size: int = 64,
        cache: str | Path | None = None,
        state_cache: float = 0.0,
        compile: bool = False,
        processes: ProcessGroup = SINGLE_PROCESS,
        **options: Any,
    ) -> None:
        cls = get_method(method)
        check_options(cls, options)  # before anything is read
        train = check_recipe(train or {})
        where = resolve_device(device)
        # A measurement, on the machine of the main process.
        chosen = processes.broadcast_object(choose_precision(precision, where))
        self.settings = Settings(
            where,
            chosen.dtype,
            seed,
            train,
            accumulate,
            workers,
            eval_batch_size,
            processes,
            on_divergence,
        )
        if isinstance(backbone, BackboneSpec) and weights is not None:
            raise InputError("Learner: weights are given twice; put them into the BackboneSpec alone.")
        self.spec = backbone if isinstance(backbone, BackboneSpec) else BackboneSpec(backbone, weights)
        loaded = load_backbone(
            self.spec.name,
            weights=self.spec.weights,
            preprocess=self.spec.preprocess,
            size=self.spec.size,
            length=self.spec.length,
            sizes=self.spec.sizes,
        )
        self.options = check_options(cls, options, loaded.arch.depth)
        self.origin = loaded.origin
        if self.origin is not None:  # with the tag, where a bare name was given
            self.spec = replace(self.spec, name=self.origin.name)
        if isinstance(loaded, TextBackbone):  # what the weights say may change with the files beside them
            self.spec = replace(self.spec, length=loaded.tokenization.length)
        self.crop = crop
        self.class_names: list[str] = []
        self.used = np.empty(0, np.uint64)
        self.label_groups: list[int] | None = None
        self.precision, self.precision_reason = precision, chosen.reason
        self._history: list[LabeledDataset] = []
        self._loaded_from: Path | None = None
        with seeded(where, seed, "method"):
            self.method = cls(loaded, **self.options)
        prepare(self.method, where, self.settings.dtype)
        frozen = self.method.frozen
        if cache is not None and frozen is not None:
            frozen.persist(cache)
        if compile:
            compile_layers(loaded, where)
        if not 0 <= state_cache < MOST_GIB:
            raise InputError(f"state_cache must lie in [0, {MOST_GIB}) GiB, got {state_cache}.")
        if state_cache and frozen is not None:
            frozen.state_cache = StateCache(round(state_cache * 2**30))

    @property
    def eval_transform(self) -> Transform:
        """How inputs are seen at test time."""
        backbone = self.method.backbone
        if isinstance(backbone, TextBackbone):
            return TextTransform(backbone.tokenization)
        preprocess = cast(VisionBackbone, backbone).preprocess
        return EvalTransform(preprocess.size, preprocess.interpolation, self.crop)

    def train_transform(self, augment: str) -> Transform:
        """How inputs are seen in training, where that is "photo", "glyph" or "none"."""
        backbone = self.method.backbone
        if isinstance(backbone, TextBackbone):
            if augment != "none":
                raise InputError(f"data.augment must be 'none' for texts, got {augment!r}.")
            return TextTransform(backbone.tokenization)
        preprocess = cast(VisionBackbone, backbone).preprocess
        return TrainTransform(preprocess.size, preprocess.interpolation, augment)  # pyright: ignore[reportArgumentType]

    def learn(
        self,
        task: Task,
        *,
        augment: str | None = None,
        callback: Callback | None = None,
        resume: tuple[Position, dict[str, Tensor]] | None = None,
    ) -> float:
        """Learn the classes of a task.

        Args:
            task: the next task of a stream.
            augment: training augmentation: "photo", "glyph" or "none"; None for what suits the task's source.
            callback: told about every training step, and every batch of a pass without training.
            resume: place and optimiser state to go on from, where the learner holds the state of that moment.

        Returns:
            Seconds spent.

        Raises:
            InputError: if the task does not continue what was learned.
        """
        callback = callback or Callback()
        if resume is None:
            self._check_whole()
        self._remember(task)
        samples = LabeledDataset.concat(self._history) if self.method.data_seen == "all" else task.train
        plain = samples.with_transform(self.eval_transform)

        def batches(rows: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in fixed_batches(
                plain,
                self.settings.eval_batch_size,
                device=self.settings.device,
                order=rows,
                workers=self.settings.workers,
            ):
                yield x, y
                callback.on_batch(len(y))

        transform = self.train_transform(augment or task.augment)
        seconds = learn_task(
            self.method,
            LearnTask(
                task.index,
                task.classes,
                samples.with_transform(transform),
                batches,
                self.settings.processes,
                task.class_names,
            ),
            self.settings,
            callback,
            resume=resume,
        )
        self.class_names = [*self.class_names[: task.classes.start], *task.class_names]
        self._note_used(task)
        return seconds

    def _check_whole(self) -> None:
        """Refuse to go on from the middle of a task.

        Raises:
            InputError: if :meth:`learn` was interrupted.
        """
        if self.method.n_seen != len(self.class_names):
            raise InputError(
                f"This learner was interrupted while it learned the classes from {len(self.class_names)} on, and is "
                "left in between. Load it from where it was saved last."
            )

    def _note_used(self, task: Task) -> None:
        if not self.settings.processes.is_main:  # which reads every sample; the main process saves
            return
        for part in (task.train, task.validation):
            self.used = np.union1d(self.used, part.fingerprints())

    def _remember(self, task: Task) -> None:
        """Keep the data of all tasks for methods that declare that they need it."""
        if self.method.data_seen != "all":
            return
        if len(self._history) < task.index:
            raise InputError(
                f"{self.method.name} trains on the data of all tasks, and tasks {len(self._history)} to "
                f"{task.index - 1} are not here. Run it on the whole stream, or choose a method that needs no old data."
            )
        self._history = [*self._history[: task.index], task.train]

    def remember(self, tasks: Sequence[Task]) -> None:
        """Hand over tasks learned before a restart: what was used, and the data for methods that need all of them."""
        for task in tasks:
            self._remember(task)
            self._note_used(task)

    def evaluate(
        self,
        groups: TaskStream | Sequence[LabeledDataset],
        *,
        oracle: bool = False,
        protocol: BatchProtocol | None = None,
        label_groups: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Evaluation:
        """Accuracy on test samples of classes learned so far, mixed over tasks.

        Args:
            groups: a stream, of which the test splits of the tasks learned so far are taken, or the splits.
            oracle: also score under the true task, for methods that infer one.
            protocol: None scores every sample alone; see :class:`BatchProtocol` for the alternative.
            label_groups: for each label, the number of its group of equal answers; None for the learner's own.
            callback: told about every batch.

        Returns:
            Counts per task, with accuracies.
        """
        self._check_whole()
        if isinstance(groups, TaskStream):
            learned = self.method.n_tasks - groups.offset_tasks
            groups = [groups.test(i) for i in range(min(len(groups), learned))]
        same = self.answers() if label_groups is None else label_groups
        seen = [group.with_transform(self.eval_transform) for group in groups]
        with self._explaining_damage():
            return evaluate(
                self.method, seen, self.settings, oracle=oracle, protocol=protocol, label_groups=same,
                names=self.class_names, callback=callback,
            )  # fmt: skip

    def answers(self) -> Tensor | None:
        """``label_groups`` of all classes learned, (n_seen,)."""
        if self.label_groups is None:
            return None
        n = len(self.class_names)
        return torch.tensor([*self.label_groups[:n], *range(len(self.label_groups), n)])

    @torch.inference_mode()
    def scores(self, x: Tensor) -> Tensor:
        """Scores (B, n_seen) of inputs after ``eval_transform``: (B, 3, S, S) uint8, or (B, N) int64.

        Raises:
            InputError: if they are not finite.
        """
        with self._explaining_damage():
            scores = self._scores(x)
        check_scores(self.method, not_finite(scores), self.class_names)
        return scores

    def _scores(self, x: Tensor) -> Tensor:
        self.method.eval()
        with compute(self.method, self.settings.device, self.settings.dtype):
            scores = self.method.scores(x.to(self.settings.device))
        check_shape(scores, len(x), self.method)
        return scores

    @contextmanager
    def _explaining_damage(self) -> Iterator[None]:
        """Tell an error of tensors that fit nothing from a defect: they cannot score an empty input either.

        Raises:
            DataError: if what was loaded cannot be used.
        """
        try:
            yield
        except OstinatoError:
            raise
        except Exception as error:  # a method meets tensors of wrong shapes wherever it first uses them
            own = file_of(type(self.method)) is not None  # whose author needs the error as it is
            if own or self._loaded_from is None or self._scores_something():
                raise
            raise DataError(
                f"{self._loaded_from}: the learned tensors do not fit {self.method.name}. Restore the artifact from a "
                f"copy. If it is whole: {crash.report(error, sys.argv)}"
            ) from error

    def _scores_something(self) -> bool:
        transform = self.eval_transform
        sample: Any = "a" if transform.modality == "text" else Image.new("RGB", (8, 8))
        try:
            with torch.inference_mode():
                self._scores(getattr(transform, "join", torch.stack)([transform(sample)]))
        except Exception:  # of any kind, as above
            return False
        return True

    def predict(self, inputs: Sequence[str | Path | Image.Image], *, topk: int = 1) -> list[Prediction]:
        """The best classes of images or texts, each scored on its own.

        Args:
            inputs: image files or PIL images; on a text encoder, the texts themselves.
            topk: classes per input.

        Returns:
            One prediction per input, in order.

        Raises:
            DataError: if a file is missing or no image, or a text is empty, naming it.
            InputError: if nothing was learned yet, or ``topk`` is below 1.
        """
        if isinstance(inputs, str | Path | Image.Image):
            raise InputError("predict takes a list, also of one input: predict([...]).")
        out: list[Prediction] = []
        for one in self.predictions(inputs, topk=topk):
            if isinstance(one, DataError):
                raise one
            out.append(one)
        return out

    def predictions(
        self, inputs: Iterable[str | Path | Image.Image | DataError], *, topk: int = 1
    ) -> Iterator[Prediction | DataError]:
        """Predict inputs one after another, of whatever number, as soon as a batch of them is scored.

        Threads read files ahead. An input that cannot be used gives its error in its place.

        Args:
            inputs: as :meth:`predict` takes them; an error among them is passed on.
            topk: classes per input.

        Returns:
            A prediction or an error per input, in order.

        Raises:
            InputError: if nothing was learned yet, or ``topk`` is below 1.
        """
        if not self.class_names:
            raise InputError("predict: no class was learned yet; call learn first.")
        self._check_whole()
        if topk < 1:
            raise InputError(f"topk must be at least 1, got {topk}.")
        size = self.settings.eval_batch_size
        seen = ahead(self._seen, enumerate(inputs), 2 * size)
        return (one for some in batched(seen, size) for one in self._predicted(some, topk))

    def _seen(self, item: tuple[int, Any]) -> tuple[str, Tensor] | DataError:
        """What to call an input, and the tensor that the backbone takes."""
        index, given = item
        if isinstance(given, DataError):
            return given
        try:
            source, sample = self._input(index, given)
        except DataError as error:
            return error
        return source, self.eval_transform(sample)

    def _predicted(self, some: list[tuple[str, Tensor] | DataError], topk: int) -> Iterator[Prediction | DataError]:
        """Predictions of one batch, among the errors in it."""
        usable = [one for one in some if not isinstance(one, DataError)]
        if not usable:
            yield from (one for one in some if isinstance(one, DataError))
            return
        scores = self.scores(getattr(self.eval_transform, "join", torch.stack)([x for _, x in usable])).float()
        best = scores.topk(min(topk, scores.shape[1]), dim=1)
        names = [[self.class_names[c] for c in row] for row in best.indices.tolist()]
        values: list[list[float]] = best.values.tolist()
        shares: list[list[float] | None] = [None] * len(usable)
        if self.method.scores_are_logits:
            shares = scores.softmax(1).gather(1, best.indices).tolist()
        made = (Prediction(*row) for row in zip((name for name, _ in usable), names, values, shares, strict=True))
        for one in some:
            yield one if isinstance(one, DataError) else next(made)

    def _input(self, index: int, given: str | Path | Image.Image) -> tuple[str, Any]:
        """What to call an input, and what the transform takes of it."""
        if self.method.backbone.modality == "text":
            if not isinstance(given, str):
                raise InputError(f"predict: {self.spec.name} takes texts, but input {index} is {given!r}.")
            if is_empty(given):
                raise DataError(f"text {index}: {EMPTY}.")
            return f"text {index}", given
        if isinstance(given, Image.Image):
            return f"image {index}", as_rgb(given, f"image {index}")
        if not isinstance(given, str | Path):
            raise InputError(
                f"predict: {self.spec.name} takes image files or PIL images, but input {index} is {given!r}."
            )
        return str(given), decode(Path(given), str(given))

    def save(self, path: str | Path, *, run_id: str | None = None) -> None:
        """Write the learner as a folder, whole or not at all: what was learned, from what, and ``artifact.json``.

        Args:
            path: a new folder, or one that holds a saved learner, which is replaced when the new one is on disk.
            run_id: of the run that learned it.

        Raises:
            InputError: if there is something else, or no name or file finds the method's class again.
        """
        self._check_whole()
        kind = type(self.method)
        source = file_of(kind)
        if source is None and not is_registered(kind):
            raise InputError(
                f"save: {kind.__qualname__} is neither registered nor from a file, so that nothing could load it "
                "again. Write @ostinato.register('name') above the class, or give its file: Learner('my_method.py')."
            )
        spec = asdict(self.spec)
        if self.spec.weights is not None:
            spec["weights"] = str(Path(self.spec.weights).resolve())
            spec["sizes"] = _sizes_of(self.method.backbone)
        about = {
            "run_id": run_id,
            "method": self.method.name,
            "method_file": {"path": str(source.path), "sha256": source.sha256} if source else None,
            "options": self.options,
            "backbone": spec,
            "backbone_sha256": self.origin.sha256 if self.origin else None,
            "preprocess": self.method.backbone.describe(),
            "label_groups": self.label_groups,
            "class_names": self.class_names,
            "task_sizes": self.method.task_sizes.tolist(),
            "protocol": self.method.protocol,
            "seed": self.settings.seed,
            "crop": self.crop,
            "precision": self.precision,
            "train": self.settings.overrides or {},
        }
        text = source.text if source else None
        artifact.write(Path(path), about, self.method.learned_state(), self.used, text)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        weights: str | None = None,
        device: str = "auto",
        method: str | None = None,
        **more: Any,
    ) -> Learner:
        """Read a learner back. No code of the artifact, or of a path that it names, is run.

        Args:
            path: folder written by :meth:`save`, or the directory of a finished run.
            weights: where the backbone's weights are now, if they moved.
            device: as in the constructor.
            method: the file that its method is in, where that is no registered one; the file is run.
            more: further arguments of the constructor; without, what the learner was made with.

        Returns:
            A learner that gives the same scores and can go on learning.

        Raises:
            DataError: if the folder is no artifact or its weights are not the ones it was trained on.
            InputError: if ``method`` is another one, or is not given although the method is no registered one.
        """
        folder = _artifact_folder(Path(path))
        saved = artifact.read(folder)
        about = saved.about
        if (Path(path) / "config.toml").is_file():
            _check_run(Path(path), about)
        spec = BackboneSpec(**about.backbone.model_dump(exclude={"sizes"}), sizes=_recorded_sizes(about))
        if weights is not None:
            spec = replace(spec, weights=weights)
        name = _method_of(folder, about, method)
        check_options(get_method(name), about.options)  # none of them may be an argument of the constructor below
        known = {"seed": about.seed, "crop": about.crop, "precision": about.precision, "train": about.train} | more
        learner = cls(name, backbone=spec, device=device, **known, **about.options)
        if learner.origin is not None and learner.origin.sha256 != about.backbone_sha256:
            raise DataError(
                f"{folder} was trained on backbone weights with SHA-256 {str(about.backbone_sha256)[:12]}..., the ones "
                f"found now have {learner.origin.sha256[:12]}... Give the original file as backbone.weights=FILE."
            )
        check_inputs(str(folder), about.preprocess, learner.method.backbone)
        learner.restore(saved.learned, about.class_names)
        if learner.method.task_sizes.tolist() != about.task_sizes:
            raise DataError(
                f"{folder}: artifact.json and the learned tensors tell of other tasks. Restore the artifact."
            )
        learner.used, learner.label_groups, learner._loaded_from = saved.used, about.label_groups, folder
        return learner

    def restore(self, learned: dict[str, Tensor], class_names: Sequence[str]) -> None:
        """Take over learned tensors and class names.

        Raises:
            DataError: if the tensors do not fit the method.
        """
        try:
            self.method.load_learned_state({k: v.to(self.settings.device) for k, v in learned.items()})
        except OstinatoError:
            raise
        except Exception as error:  # torch and methods meet tensors of wrong shapes in their own ways
            raise DataError(
                f"The learned tensors do not fit {self.method.name} ({type(error).__name__}: {error})."
            ) from error
        prepare(self.method, self.settings.device, self.settings.dtype)
        self.method.eval()
        self.class_names = list(class_names)


def _sizes_of(backbone: Backbone) -> dict[str, Any] | None:
    """What an image encoder is built from without asking timm; None for other backbones."""
    if type(backbone) is not VisionBackbone:  # a CLIP model has another encoder beside it
        return None
    sizes, preprocess = asdict(backbone.sizes), asdict(backbone.preprocess)
    return sizes | {"preprocess": preprocess | {"mean": list(preprocess["mean"]), "std": list(preprocess["std"])}}


def _recorded_sizes(about: ArtifactRecord) -> VisionSizes | None:
    if about.backbone.sizes is None:
        return None
    sizes, seen = about.backbone.sizes, about.backbone.sizes.preprocess
    (r, g, b), (sr, sg, sb) = seen.mean, seen.std
    preprocess = Preprocess(seen.size, (r, g, b), (sr, sg, sb), seen.interpolation)
    return VisionSizes(Arch(**sizes.arch.model_dump()), sizes.patch, preprocess, sizes.readout)


def _artifact_folder(path: Path) -> Path:
    """The artifact of a run, or the folder itself where it is one.

    Raises:
        InputError: if the run is not finished.
    """
    if artifact.exists(path) or not (path / "config.toml").is_file():
        return path
    if not artifact.exists(path / "artifact"):
        raise InputError(f"{path} is not finished; first run 'ostinato resume {path}'.")
    return path / "artifact"


def _check_run(run: Path, about: ArtifactRecord) -> None:
    """Make sure that the artifact in a run was learned by it, by one of its continuations, or saved there from Python.

    Raises:
        DataError: if it is of another run.
    """
    record = read_record(run / "record.json")
    if about.run_id not in (None, record.run_id, *record.continued_by):
        raise DataError(f"{run}: the artifact in it is of another run. Restore it from a copy.")


def _method_of(folder: Path, about: ArtifactRecord, given: str | None) -> str:
    """Name or file of a saved learner's method: a registered name, or the file that the caller names.

    A file that the artifact names is never run: whoever made the artifact could have named any.

    Raises:
        InputError: if another method is given, or none although it is no registered one.
    """
    name, file = about.method, about.method_file
    if given is not None:
        path, one = split_file(given)
        if path is None and given != name:
            raise InputError(f"{folder} was learned by {name!r}, not by {given}.")
        return given if path is None else reference(path, one or name)
    if file is None:
        return name
    raise InputError(
        f"{folder} was learned by {name!r} of the file {file.path}. A file is run only if you name it: method=FILE, "
        f"or, as it was then, method={artifact.method_text(folder)}"
    )


def check_inputs(what: str, recorded: dict[str, Any], backbone: Backbone) -> None:
    """Make sure that a backbone makes the same features of the same inputs as when something was learned on it.

    Args:
        what: was learned.
        recorded: ``Backbone.describe()`` of then.
        backbone: of now.

    Raises:
        DataError: naming what differs.
    """
    now = json.loads(json.dumps(backbone.describe()))
    if changed := [key for key in now if now[key] != recorded.get(key)]:
        key = changed[0]
        raise DataError(
            f"{what}: the backbone's {key} was {recorded.get(key)!r} when it was learned and is {now[key]!r} now, so "
            "that features differ. Give the original weights, with the files beside them, as backbone.weights=PATH."
        )


def check_recipe(train: dict[str, Any]) -> dict[str, Any]:
    """Overrides of a recipe, with their names and types checked.

    Raises:
        InputError: unknown field or wrong value.
    """
    from pydantic import TypeAdapter, ValidationError

    from ostinato.errors import did_you_mean

    known = list(Recipe.__dataclass_fields__)
    if unknown := [k for k in train if k not in known]:
        raise InputError(f"train.{unknown[0]}: unknown key. {did_you_mean(unknown[0], known)}")
    try:
        full = TypeAdapter(Recipe).validate_python(train)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of fields that do not go together
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        raise InputError(f"train.{first['loc'][0]}: {first['msg']}, got {str(first['input'])[:80]!r}.") from None
    return {k: getattr(full, k) for k in train}
