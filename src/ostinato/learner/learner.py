"""Learner: a method on a backbone that learns task by task, evaluates, predicts, saves and loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ostinato import artifact
from ostinato.backbones import TextBackbone, VisionBackbone
from ostinato.backbones.cache import StateCache
from ostinato.backbones.weights import load_backbone
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import DataError, InputError, OstinatoError
from ostinato.evaluation.evaluator import BatchProtocol, Evaluation, check_scores, check_shape, evaluate, not_finite
from ostinato.learner.certainty import Certainty, certainty_in, refit
from ostinato.learner.damage import explaining_damage
from ostinato.learner.inputs import Input, is_one_input
from ostinato.learner.learning import check_history, check_refines, counted, learned_tests, parts_of, passes, whole_task
from ostinato.learner.predicting import Prediction
from ostinato.learner.rejecting import predictor_of
from ostinato.learner.saving import arguments, artifact_folder, check_run, fill, save
from ostinato.learner.spec import BackboneSpec
from ostinato.lookup import file_of, get_method
from ostinato.methods.base import LearnTask, Method
from ostinato.registry import check_options
from ostinato.streams import EvalTransform, LabeledDataset, Task, TaskStream, TextTransform, TrainTransform, Transform
from ostinato.training.callbacks import Callback, Position
from ostinato.training.compiling import compile_layers
from ostinato.training.loop import Settings, learn_task, update
from ostinato.training.precision import choose_precision, compute, prepare, resolve_device
from ostinato.training.recipes import check_effect, check_recipe
from ostinato.training.seeding import seeded

MOST_GIB = 2**20
"""Exclusive bound on ``state_cache``, above the memory of any machine."""


class Learner:
    """A method on a backbone, with the names of its classes.

    Args:
        method: registered name, for example "dualprompt", file of a method, "my_method.py", or subclass of
            :class:`Method`. A class that is neither registered nor from a file cannot be saved.
        backbone: name of the backbone, folder of a text encoder, or :class:`BackboneSpec`.
        weights: file of the backbone's weights, or folder of a text encoder; None finds them by name.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: of frozen weights: "auto", "fp32" or "bf16".
        seed: of all randomness.
        train: fields of the recipe to override, for example ``{"epochs": 2}``.
        crop: share of the shorter side of images, at test time and in training except for the augmentation "photo".
        accumulate: micro-batches per training step.
        on_divergence: "stop" or "warn" when a loss explodes; a loss that is not finite always stops.
        workers: loading processes.
        eval_batch_size: samples per batch in passes without training.
        cache: folder of frozen features for all runs on the same weights; None keeps them in memory.
        state_cache: GiB of memory for token states of images that are not augmented, for methods with plain lower
            layers; 0 for none.
        compile: compile the backbone's layers, see :func:`ostinato.training.compiling.compile_layers`.
        processes: that share the work, see :func:`ostinato.distributed.process_group`.
        options: of the method.

    Attributes:
        used: sorted fingerprints of all samples for training or validation, see
            :meth:`ostinato.streams.LabeledDataset.fingerprints`; other samples of their classes may be scored.
        label_groups: group number of each class, below the list's length; classes of one group are the same answer, and
            classes beyond the list differ from all. None if all classes differ.
        samples: training samples of each class so far; None for a model of an earlier version, which did not count.
        bundled: whether it was loaded from a folder that holds the backbone's weights.
        certainty: statistics for probabilities and unknown inputs; None for a model of an earlier version.
        held_out: validation samples of the tasks learned since it was made or loaded.

    Raises:
        InputError: for unknown names or options, with the closest known ones.
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
        check_options(cls, options)  # before any file is read
        train = check_recipe(train or {})
        where = resolve_device(device)
        # Processes on other machines take the measurement of the main process.
        chosen = processes.broadcast_object(choose_precision(precision, where))
        self.settings = Settings(
            where, chosen.dtype, seed, train, accumulate, workers, eval_batch_size, processes, on_divergence
        )
        if isinstance(backbone, BackboneSpec) and weights is not None:
            raise InputError("Learner: weights are given twice; put them into the BackboneSpec alone.")
        spec = backbone if isinstance(backbone, BackboneSpec) else BackboneSpec(backbone, weights)
        spec = replace(spec, readout=spec.readout or cls.default_readout)
        loaded = load_backbone(**vars(spec))
        self.options = check_options(cls, options, loaded.arch.depth)
        self.origin = loaded.origin
        # The full name, with its tag; the files may change from now on.
        self.spec = replace(spec, name=self.origin.name if self.origin else spec.name, sha256=None)
        if isinstance(loaded, TextBackbone):  # its default may change with the files beside the weights
            self.spec = replace(self.spec, length=loaded.tokenization.length)
        self.crop = crop
        self.class_names: list[str] = []
        self.used = np.empty(0, np.uint64)
        self.label_groups: list[int] | None = None
        self.samples: list[int] | None = []
        self.precision, self.precision_reason = precision, chosen.reason
        self._history: list[LabeledDataset] = []
        self.held_out: list[LabeledDataset] = []
        self.loaded_from: Path | None = None
        self.bundled = False
        self.certainty: Certainty | None = Certainty(loaded.dim).to(where)
        with seeded(where, seed, "method"):
            self.method = cls(loaded, **self.options)
        check_effect(self.method, train)
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
        """Transform of inputs at test time."""
        backbone = self.method.backbone
        if isinstance(backbone, TextBackbone):
            return TextTransform(backbone.tokenization)
        preprocess = cast(VisionBackbone, backbone).preprocess
        return EvalTransform(preprocess.size, preprocess.interpolation, self.crop)

    def train_transform(self, augment: str) -> Transform:
        """Transform of inputs in training, with the augmentation "photo", "glyph" or "none"."""
        backbone = self.method.backbone
        if isinstance(backbone, TextBackbone):
            if augment != "none":
                raise InputError(f"data.augment must be 'none' for texts, got {augment!r}.")
            return TextTransform(backbone.tokenization)
        preprocess = cast(VisionBackbone, backbone).preprocess
        kind = cast(Literal["photo", "glyph", "none"], augment)
        return TrainTransform(preprocess.size, preprocess.interpolation, kind, crop=self.crop)

    def learn(
        self,
        task: Task,
        *,
        augment: str | None = None,
        callback: Callback | None = None,
        resume: tuple[Position, dict[str, Tensor]] | None = None,
    ) -> float:
        """Learn the classes of a task, after more samples of known classes if the task has some.

        Args:
            task: the next task of a stream; one without classes brings samples of known classes alone.
            augment: "photo", "glyph" or "none"; None for the default of the task's source.
            callback: called after every training step, and every batch of a pass without training.
            resume: position and optimiser state of a checkpoint whose state the learner holds.

        Returns:
            Seconds spent.

        Raises:
            InputError: if the task does not continue what was learned, or no part of the method can learn more
                samples of known classes.
        """
        callback = callback or Callback()
        seconds = 0.0
        if resume is None:
            self._check_whole()
            if task.known is not None:
                seconds = self._refine(task.known, callback)
        if task.classes:
            seconds += self._learn_classes(task, augment, callback, resume)
        if self.certainty is not None:
            seconds += refit(self.certainty, self, task, callback)
        self.class_names = [*self.class_names[: task.classes.start], *task.class_names]
        self._note_used(task)
        return seconds

    def _refine(self, known: LabeledDataset, callback: Callback) -> float:
        """Learn more samples of known classes; return the seconds spent."""
        check_refines(self.method, [self.class_names[label] for label in known.labels.unique().tolist()])
        return self.update_from(known, self.method.refine, callback)

    def update_from(self, known: LabeledDataset, by: Callable[[LearnTask], None], callback: Callback) -> float:
        """Update the method by its ``refine`` or ``forget`` from samples of known classes; return the seconds spent."""
        return update(self.method, by, whole_task(self, known, callback), self.settings)

    def _learn_classes(
        self, task: Task, augment: str | None, callback: Callback, resume: tuple[Position, dict[str, Tensor]] | None
    ) -> float:
        """Learn the new classes of a task; return the seconds spent."""
        self._remember(task)
        samples = LabeledDataset.concat(self._history) if self.method.data_seen == "all" else task.train
        settings, batches = self.settings, passes(samples, self.eval_transform, self.settings, callback)
        train = samples.with_transform(self.train_transform(augment or task.augment))
        work = LearnTask(task.index, task.classes, train, batches, settings.processes, task.class_names)
        return learn_task(self.method, work, settings, callback, resume=resume)

    def _check_whole(self) -> None:
        """Raise InputError if :meth:`learn` was interrupted inside a task."""
        if self.method.n_seen != len(self.class_names):
            raise InputError(
                f"This learner was interrupted while it learned the classes from {len(self.class_names)} on; load it "
                "from where it was saved last."
            )

    def _note_used(self, task: Task) -> None:
        """Count the training samples of each class, and keep the held-out ones and the fingerprints of all."""
        self.held_out = [*self.held_out, *parts_of(task)[1]]
        if self.samples is not None:
            self.samples = counted(self.samples, task)
        if not self.settings.processes.is_main:  # fingerprints read every sample, and only the main process saves
            return
        for part in chain(*parts_of(task)):
            self.used = np.union1d(self.used, part.fingerprints())

    def _remember(self, task: Task) -> None:
        """Keep the data of all tasks for methods that train on it."""
        if self.method.data_seen != "all":
            return
        check_history(self.method, len(self._history), task.index)
        self._history = [*self._history[: task.index], task.train]

    def remember(self, tasks: Sequence[Task]) -> None:
        """Restore the samples of tasks learned before a restart: used, held out, and for methods that need it, all."""
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
        """Evaluate on test samples of the classes learned so far, mixed over tasks.

        Args:
            groups: test splits, or a stream, for the test splits of its tasks learned so far.
            oracle: also score under the true task, for methods that infer one.
            protocol: None scores every sample alone; see :class:`BatchProtocol` for the alternative.
            label_groups: group number of each label; None for the learner's ``label_groups``.
            callback: called after every batch.

        Returns:
            Counts per task, with accuracies.
        """
        self._check_whole()
        if isinstance(groups, TaskStream):
            groups = learned_tests(groups, self.method.n_tasks)
        same = self.answers() if label_groups is None else label_groups
        seen = [group.with_transform(self.eval_transform) for group in groups]
        with self._explaining_damage():
            return evaluate(
                self.method, seen, self.settings, oracle=oracle, protocol=protocol, label_groups=same,
                names=self.class_names, temperature=None if protocol else self.temperature, callback=callback,
            )  # fmt: skip

    @property
    def temperature(self) -> float | None:
        """Temperature T of the probabilities softmax(scores / T); None if no sample was held out."""
        return None if self.certainty is None else self.certainty.temperature.value()

    def answers(self) -> Tensor | None:
        """``label_groups`` of all classes learned, (n_seen,)."""
        if self.label_groups is None:
            return None
        n = self.method.n_seen
        return torch.tensor([*self.label_groups[:n], *range(len(self.label_groups), n)])

    @torch.inference_mode()
    def scores(self, x: Tensor) -> Tensor:
        """Scores (B, n_seen) of inputs under ``eval_transform``: (B, 3, S, S) uint8, or (B, N) int64.

        Raises:
            InputError: if scores are not finite.
        """
        with self._explaining_damage():
            scores = self.raw_scores(x)
        check_scores(self.method, not_finite(scores), self.class_names)
        return scores

    def raw_scores(self, x: Tensor) -> Tensor:
        """:meth:`scores` without a check."""
        self.method.eval()
        with compute(self.method, self.settings.device, self.settings.dtype):
            scores = self.method.scores(x.to(self.settings.device))
        check_shape(scores, len(x), self.method)
        return scores

    def _explaining_damage(self) -> AbstractContextManager[None]:
        """Raise DataError for a failure of loaded tensors."""
        from_file = file_of(type(self.method)) is not None  # its author needs the original error
        loaded_from = None if from_file else self.loaded_from
        return explaining_damage(self.method.name, loaded_from, self.eval_transform, self.raw_scores)

    def predict(
        self,
        inputs: Sequence[Input] | np.ndarray | Tensor,
        *,
        topk: int = 1,
        threshold: float | None = None,
        reject_rate: float | None = None,
    ) -> list[Prediction]:
        """Predict the best classes of images or texts, each scored alone, in order.

        Args:
            inputs: for each image a path, the bytes or the opened file of one, an image of PIL, an array (H, W) or
                (H, W, channels), or a tensor (channels, H, W), both in uint8 or in floats from 0 to 1; texts for a text
                encoder.
            topk: classes per input.
            threshold: probability of the best class below which the answer is "unknown".
            reject_rate: share of samples of the classes that may be called "unknown" for their distance to the classes.

        Raises:
            DataError: naming a file that is missing or no image, or an empty text.
            InputError: if no class was learned yet, a number is out of range, or there were too few held-out samples.
        """
        if is_one_input(inputs):
            raise InputError("predict takes a list, also of one input: predict([...]).")
        out: list[Prediction] = []
        for result in self.predictions(inputs, topk=topk, threshold=threshold, reject_rate=reject_rate):
            if isinstance(result, DataError):
                raise result
            out.append(result)
        return out

    def predictions(
        self,
        inputs: Iterable[Input | DataError],
        *,
        topk: int = 1,
        threshold: float | None = None,
        reject_rate: float | None = None,
    ) -> Iterator[Prediction | DataError]:
        """Predict a stream of inputs in order, batch by batch, with an error in place of an unusable input.

        Threads read files ahead. For arguments and errors see :meth:`predict`; errors among the inputs are passed on.
        """
        if not self.class_names:
            raise InputError("predict: no class was learned yet; call learn first.")
        self._check_whole()
        predictor = predictor_of(self, topk, threshold, reject_rate)
        return predictor.predictions(inputs, self.settings.eval_batch_size)

    def save(self, path: str | Path, *, run_id: str | None = None, bundle: bool = False) -> None:
        """Write the learner as a folder with ``artifact.json``, whole or not at all.

        Args:
            path: a new folder, or a saved learner, which is replaced when the new one is on disk.
            run_id: of the run that trained it.
            bundle: hold the backbone's weights, so that the folder needs no other file. A learner from such a folder is
                always saved so.

        Raises:
            InputError: if ``path`` exists and is no saved learner, if the method is neither registered nor from a file,
                or if weights to hold changed since they were loaded.
        """
        self._check_whole()
        save(self, Path(path), run_id, bundle or self.bundled)

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
        """Load a saved learner, which gives the same scores and can learn further tasks.

        No code of the artifact, or of a path that it names, is run.

        Args:
            path: folder of :meth:`save`, or directory of a finished run.
            weights: new place of the backbone's weights. Without it, they are taken from the folder if it holds them,
                or from their path, or found by their SHA-256 beside the folder or in the hub cache.
            device: as in the constructor.
            method: file of a method that is not registered; the file is run.
            more: further arguments of the constructor, which replace the saved ones.

        Raises:
            DataError: if the folder is no artifact, or its weights differ from those of its training.
            InputError: if ``method`` is another method, or is missing for one that is not registered.
        """
        folder = artifact_folder(Path(path))
        saved = artifact.read(folder)
        if (Path(path) / "config.toml").is_file():
            check_run(Path(path), saved.about)
        learner = cls(device=device, **(arguments(folder, saved.about, weights, method) | more))
        fill(learner, folder, saved)
        return learner

    def learned_state(self) -> dict[str, Tensor]:
        """Learned tensors of the method, and the statistics of held-out samples."""
        return self.method.learned_state() | ({} if self.certainty is None else self.certainty.state())

    def restore(self, learned: dict[str, Tensor], class_names: Sequence[str]) -> None:
        """Set a :meth:`learned_state` and class names.

        Raises:
            DataError: if the tensors do not fit the method.
        """
        try:
            learned = {k: v.to(self.settings.device) for k, v in learned.items()}
            self.certainty, learned = certainty_in(learned, self.method.backbone.dim)
            self.method.load_learned_state(learned)
        except OstinatoError:
            raise
        except Exception as error:  # of any kind, for tensors of wrong shapes
            raise DataError(
                f"The learned tensors do not fit {self.method.name} ({type(error).__name__}: {error})."
            ) from error
        prepare(self.method, self.settings.device, self.settings.dtype)
        self.method.eval()
        self.class_names = list(class_names)
