"""Training of a stream task by task, with checkpoints from which it can resume at any step."""

from __future__ import annotations

import platform
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from ostinato.config import RunConfig
from ostinato.errors import Interrupted
from ostinato.evaluation.answers import answers_of, read_answers, write_answers
from ostinato.evaluation.evaluator import Evaluation, never_predicted
from ostinato.evaluation.metrics import AccuracyMatrix, summary
from ostinato.lookup import file_of
from ostinato.records import RunRecord
from ostinato.report.console import Reporter
from ostinato.runs.balance import remarks
from ostinato.runs.build import Work
from ostinato.runs.checkpoint import Checkpoint, Checkpoints
from ostinato.runs.guard import fall_of, learned_nothing
from ostinato.runs.notices import notices
from ostinato.runs.placing import identity, promote, set_aside
from ostinato.runs.progress import Progress, peak_memory
from ostinato.runs.rundir import RunDir
from ostinato.runs.stopping import StopRequest, stop_on_signal
from ostinato.streams import LabeledDataset
from ostinato.training.callbacks import Callback, Position, Seen
from ostinato.training.loop import Stage, optimizer_tensors
from ostinato.training.precision import precision_name

METRICS = ("last_accuracy", "average_accuracy", "mean_task_accuracy", "forgetting", "bwt")

SHARES = ("task_incremental", "task_id", "oracle_id")

PACKAGES = ("ostinato", "torch", "torchvision", "timm", "numpy", "pillow")


class Session:
    """A run in progress.

    Args:
        dirs: directory of the run.
        work: learner, stream and test samples.
        reporter: shows progress.
        run_id: identifier of a resumed run; None for a new one.
    """

    def __init__(self, dirs: RunDir, work: Work, reporter: Reporter, *, run_id: str | None = None) -> None:
        self.dirs, self.work, self.reporter = dirs, work, reporter
        self.learner, self.stream, self.before = work.learner, work.stream, work.before
        self.processes = work.learner.settings.processes
        self.run_id = run_id or self.processes.broadcast_object(uuid.uuid4().hex)
        self.checkpoints = Checkpoints(dirs.checkpoints, self.run_id)
        self.progress = Progress()
        self.matrix, self.task_incremental, self.batch_matrix = AccuracyMatrix(), AccuracyMatrix(), AccuracyMatrix()

    def create(self, config: RunConfig) -> None:
        """Write the files of a new run."""
        source = file_of(type(self.learner.method))
        self.dirs.create(config, self._record(), source.text if source else None)

    def _record(self) -> dict[str, Any]:
        """Fields of :class:`RunRecord`."""
        if not self.dirs.writes:  # the digests read all data
            return {}
        learner = self.learner
        method, source = learner.method, file_of(type(learner.method))
        return {
            "run_id": self.run_id,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "method": method.name,
            "method_sha256": source.sha256 if source else None,
            "options": learner.options,
            "recipe": asdict(learner.settings.recipe(method.recipe)),
            "protocol": method.protocol,
            "batch_protocol": self.work.protocol.name if self.work.protocol else None,
            "data_seen": method.data_seen,
            "scored_on": self.work.split,
            "backbone": asdict(learner.origin) if learner.origin else None,
            "preprocess": method.backbone.describe(),
            "precision": precision_name(learner.settings.dtype),
            "precision_reason": learner.precision_reason,
            "device": str(learner.settings.device),
            "threads": torch.get_num_threads(),
            "processes": self.processes.size,
            "stream": self.stream.describe(),
            "continues": {"tasks": self.before.tasks, "classes": len(self.before.class_names)} if self.before else None,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        }

    def note_method(self, record: RunRecord, fresh: bool) -> None:
        """Report and record that the file of the method changed since the run began.

        Args:
            record: record of the run so far.
            fresh: whether nothing was learned with the earlier file.
        """
        source = file_of(type(self.learner.method))
        if source is None or source.sha256 == record.method_texts[-1]:
            return
        if fresh:
            self.dirs.write_record(self._record(), source.text)
            return
        changed = [*record.method_changed_to, source.sha256]
        self.dirs.write_record(record.model_dump() | {"method_changed_to": changed})
        self.reporter.message(
            f"{source.path} changed since the run began; {self.dirs.method} has its first text. Training goes on with "
            "the new file, so that the result belongs to neither."
        )

    def execute(self) -> dict[str, Any]:
        """Run to the end, from the newest checkpoint if there is one."""
        for notice in notices(self.work):
            self.reporter.message(notice)
        resumed = self._restore()
        self._report_start(resumed is not None)
        with stop_on_signal() as stop:
            if self.before is not None and self.progress.task == 0 and self.progress.phase == "begin" and not resumed:
                if self.work.old or self.work.known:
                    self._evaluate(-1, stop)
                self._checkpoint()
            while self.progress.task < len(self.stream):
                index = self.progress.task
                if self.progress.phase != "learned":
                    self._learn(index, stop, resumed)
                    resumed = None
                    self.progress.phase, self.progress.stage, self.progress.step = "learned", 0, 0
                    self.progress.seen = None
                    self._checkpoint()
                self._evaluate(index, stop)
                self.progress.task, self.progress.phase = index + 1, "begin"
                self._checkpoint()
        return self._finish()

    def _report_start(self, resumed: bool) -> None:
        stream, learner = self.stream, self.learner
        known = f"more samples of {len(stream.known_names)} known classes, " if stream.known_names else ""
        new = f"{len(stream.class_names)} classes in {len(stream)} tasks, " if stream.class_names else ""
        self.reporter.message(
            f"{'resuming ' if resumed else ''}{learner.method.name} on {stream.source.name}: "
            f"{known}{new}{learner.spec.name}, "
            f"{learner.settings.device}, {precision_name(learner.settings.dtype)}"
        )
        if (own := file_of(type(learner.method))) is not None and not resumed:
            self.reporter.message(f"'ostinato check {own.path}' tests the method against the contract")

    def _restore(self) -> Checkpoint | None:
        saved = self.processes.broadcast_object(self.checkpoints.latest() if self.processes.is_main else None)
        for problem in self.checkpoints.damaged:
            self.reporter.message(f"{problem} The run resumes from an earlier checkpoint, to the same result.")
        if saved is None:
            self.dirs.truncate_events(0)
            return None
        self.progress = Progress(**saved.progress)
        done = self.progress.task + (self.progress.phase == "learned")
        known = [*(self.before.class_names if self.before else []), *self._names(done)]
        self.learner.restore(saved.learned, known)
        self.learner.remember([self.stream.task(i) for i in range(done)])
        if self.progress.matrix:
            self.matrix = AccuracyMatrix.from_dict(self.progress.matrix)
        if self.progress.task_incremental:
            self.task_incremental = AccuracyMatrix.from_dict(self.progress.task_incremental)
        if self.progress.batch_matrix:
            self.batch_matrix = AccuracyMatrix.from_dict(self.progress.batch_matrix)
        self.dirs.truncate_events(self.progress.events)
        return saved

    def _names(self, tasks: int) -> list[str]:
        return [name for i in range(tasks) for name in self.stream.task(i).class_names]

    def _learn(self, index: int, stop: StopRequest, resumed: Checkpoint | None) -> None:
        task = self.stream.task(index)
        at = None
        if resumed is not None and self.progress.phase == "inside":
            seen = Seen(**self.progress.seen) if self.progress.seen else Seen()
            at = (Position(self.progress.stage, self.progress.step, seen), resumed.optimizer)
        callback = _RunCallback(self, stop, f"task {index + 1}/{len(self.stream)}")
        self.reporter.begin(
            f"task {index + 1}/{len(self.stream)}: features",
            len(task.train) + (len(task.known) if task.known is not None else 0),
        )
        seconds = self.learner.learn(task, augment=self.work.augment, callback=callback, resume=at)
        # The checkpoint already counts time and images before a restart.
        self.progress.train_seconds += seconds
        self.progress.train_images += callback.images

    def _evaluate(self, index: int, stop: StopRequest) -> None:
        groups = [*self.work.old, *self.work.known, *self.work.tests[: index + 1]]
        if not sum(len(group) for group in groups):
            self.reporter.message("There are no samples to score; the classes are learned without.")
            return
        last = index == len(self.stream) - 1
        callback = _RunCallback(self, stop, "evaluation")
        passes = 1 if self.work.protocol is None else 2
        self.reporter.begin("evaluation", passes * sum(len(g) for g in groups))
        result: Evaluation = self.learner.evaluate(groups, oracle=last, callback=callback)
        together = self._in_batches(groups, callback)
        callback.stop_together()
        self.matrix.add_row(result.correct, result.totals)
        self.task_incremental.add_row(result.task_incremental, result.totals)
        row = {
            "accuracy": result.accuracy,
            "task_incremental_accuracy": result.task_incremental_accuracy,
            "task_id_accuracy": result.task_id_accuracy,
            "oracle_id_accuracy": result.oracle_id_accuracy,
            "calibration_error": result.calibration_error,
            "uncalibrated_error": result.uncalibrated_error,
            **together,
        }
        self.progress.evaluations.append(row)
        learner = self.learner
        if last and (missing := never_predicted(result, learner.class_names, learner.answers())) is not None:
            self.warn(f"{missing}.")
        self.progress.eval_seconds += result.seconds
        self.progress.last_eval_seconds = result.seconds
        self.progress.eval_images += result.images
        self.progress.matrix = self.matrix.to_dict()
        self.progress.task_incremental = self.task_incremental.to_dict()
        self._write_matrix()
        if self.dirs.writes:  # fingerprints read all test samples
            write_answers(self.dirs.answers_before if index < 0 else self.dirs.answers, answers_of(groups, result))
        shown = {"task": index, "tasks": len(self.stream)} if index >= 0 else {}
        self.event("evaluated", task=index, **row)
        self.reporter.task_done(shown | {"classes": self.learner.method.n_seen} | row)

    def _in_batches(self, groups: Sequence[LabeledDataset], callback: Callback) -> dict[str, float | None]:
        """Score test samples in batches of one task; empty without a batch protocol."""
        if self.work.protocol is None:
            return {}
        result = self.learner.evaluate(groups, protocol=self.work.protocol, callback=callback)
        self.batch_matrix.add_row(result.correct, result.totals)
        self.progress.batch_matrix = self.batch_matrix.to_dict()
        self.progress.eval_seconds += result.seconds
        self.progress.batch_last_eval_seconds = result.seconds
        self.progress.eval_images += result.images
        return {"batch_accuracy": result.accuracy, "batch_task_id_accuracy": result.task_id_accuracy}

    def event(self, kind: str, **values: Any) -> None:
        """Log an event with its time."""
        self.dirs.append_event({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind} | values)

    def warn(self, text: str) -> None:
        """Report a problem that does not stop the run; the summary lists it once."""
        if text not in self.progress.warnings:
            self.progress.warnings.append(text)
            self.event("warning", text=text)
            self.reporter.message(f"Warning: {text}")

    def _checkpoint(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.progress.events = self.dirs.events_size()
        self.progress.peak_memory = max(self.progress.peak_memory, peak_memory(self.learner.settings.device))
        if not self.processes.is_main:
            return
        self.checkpoints.save(
            Checkpoint(
                self.learner.learned_state(),
                optimizer_tensors(optimizer) if optimizer else {},
                asdict(self.progress),
            )
        )

    def checkpoint_inside(
        self, position: Position, optimizer: torch.optim.Optimizer, seconds: float, images: int
    ) -> None:
        """Save a checkpoint within a task, with the time and images spent on the task so far."""
        self.progress.phase, self.progress.stage, self.progress.step = "inside", position.stage, position.step
        self.progress.seen = asdict(position.seen)
        spent = self.progress.train_seconds, self.progress.train_images
        self.progress.train_seconds += seconds
        self.progress.train_images += images
        self._checkpoint(optimizer)
        self.progress.train_seconds, self.progress.train_images = spent

    def _write_matrix(self) -> None:
        if self.processes.is_main and self.matrix.n_rows:
            self.matrix.to_csv(self.dirs.matrix)
        if self.processes.is_main and self.batch_matrix.n_rows:
            self.batch_matrix.to_csv(self.dirs.batch_matrix)

    def _finish(self) -> dict[str, Any]:
        from ostinato.report.plots import accuracy_curve, accuracy_heatmap

        result = self._summary()
        checked = self._checked() if self.before is not None else {"accepted": True}
        result |= checked | {"warnings": list(self.progress.warnings)}
        if not self.processes.is_main:
            return result | {"run": str(self.dirs.root)}
        title = f"{result['method']} on {result['stream']}"
        labels = [
            *(["earlier classes"] if self.work.old else []),
            *(["known classes"] if self.work.known else []),
            *(str(i + 1) for i in range(len(self.stream))),
        ]
        incremental = [self.task_incremental.row_accuracy(t) for t in range(self.matrix.n_rows)]
        if self.matrix.n_rows:
            accuracy_curve(self.matrix, self.dirs.plots / "accuracy_curve.png", title, incremental)
            accuracy_heatmap(self.matrix, self.dirs.plots / "accuracy_matrix.png", title, labels)
        self._write_matrix()  # again, in case the file was changed since
        self.learner.save(self.dirs.artifact, run_id=self.run_id, bundle=self.work.bundle)
        if self.before is not None:
            parent = RunDir(self.dirs.root.parent)
            if checked["accepted"]:
                promote(self.dirs, parent, self.run_id)
            else:
                result["in_place"] = identity(parent.artifact)
                self.dirs = set_aside(self.dirs)
        self.dirs.write_summary(result)
        shutil.rmtree(self.dirs.checkpoints)
        return result | {"run": str(self.dirs.root)}

    def _checked(self) -> dict[str, Any]:
        """Check the model of a continuation; the keys of the summary about it."""
        work, n_old = self.work, 0 if self.before is None else len(self.before.class_names)
        problems, fall = learned_nothing(work), None
        if self.processes.is_main and (work.old or work.known):
            before, after = (read_answers(path) for path in (self.dirs.answers_before, self.dirs.answers))
            fall = fall_of(before, after, self.learner.class_names[:n_old], work.max_drop)
        fall = self.processes.broadcast_object(fall)
        doubts = [] if fall is None or fall.remark is None else [fall.remark]
        problems += [] if fall is None or fall.problem is None else [fall.problem]
        accepted = not problems or work.accept
        for text in (*doubts, *(f"{text[0].upper()}{text[1:]}." for text in problems if accepted)):
            self.warn(text)
        return {"accepted": accepted, "problems": problems, "old_samples": 0 if fall is None else fall.samples}

    def _summary(self) -> dict[str, Any]:
        p, learner = self.progress, self.learner
        state = learner.method.learned_state()
        final = p.evaluations[-1] if p.evaluations else {}
        # Accuracy on all classes needs samples of the earlier ones.
        complete = bool(p.evaluations) and (self.before is None or bool(self.work.old))
        unknown: dict[str, float | None] = dict.fromkeys(METRICS)
        metrics = summary(self.matrix) if complete else unknown
        shares: dict[str, float | None] = {f"{k}_accuracy": final.get(f"{k}_accuracy") for k in SHARES}
        result: dict[str, Any] = {
            "method": learner.method.name,
            "backbone": learner.spec.name,
            "stream": self.stream.source.name,
            "tasks": learner.method.n_tasks,
            "classes": learner.method.n_seen,
            **metrics,
            **shares,
            "task_incremental_forgetting": summary(self.task_incremental)["forgetting"] if complete else None,
            "calibration_error": final.get("calibration_error"),
            "uncalibrated_error": final.get("uncalibrated_error"),
            "protocol": learner.method.protocol,
            "scored_on": self.work.split,
            "data_seen": learner.method.data_seen,
            "trainable_parameters": p.trainable,
            "stored_bytes": sum(t.numel() * t.element_size() for t in state.values()),
            "exemplars": learner.method.exemplars,
            "exemplar_bytes": learner.method.exemplar_bytes,
            "train_seconds": p.train_seconds,
            "eval_seconds": p.eval_seconds,
            "last_eval_seconds": p.last_eval_seconds if p.evaluations else None,
            "train_images_per_second": p.train_images / p.train_seconds if p.train_seconds else None,
            "eval_images_per_second": p.eval_images / p.eval_seconds if p.eval_seconds else None,
            "peak_memory_bytes": max(p.peak_memory, peak_memory(learner.settings.device)),
            "seed": learner.settings.seed,
            "remarks": self._remarks(),
            "warnings": list(p.warnings),
        }
        if self.work.protocol is not None and self.batch_matrix.n_rows:
            result["batch_protocol"] = self.work.protocol.name
            result |= {f"batch_{key}": value for key, value in summary(self.batch_matrix).items()}
            result["batch_task_id_accuracy"] = final.get("batch_task_id_accuracy")
            result["batch_last_eval_seconds"] = p.batch_last_eval_seconds
        if self.before is not None:
            values = self.matrix.values() if self.matrix.n_rows else None
            result["old_accuracy_before"] = float(values[0, 0]) if self.work.old and values is not None else None
            result["old_accuracy_after"] = float(values[-1, 0]) if self.work.old and values is not None else None
            skip = len(self.work.old)
            if self.work.known and values is not None:
                result["known_accuracy_before"] = float(values[0, skip])
                result["known_accuracy_after"] = float(values[-1, skip])
            result["new_accuracy"] = _mean_over_new(self.matrix, skip=skip + len(self.work.known))
        return result

    def _remarks(self) -> list[str]:
        """Remarks on the samples of all classes in training, and on test samples of the new ones."""
        names = self.learner.class_names
        labels = torch.cat([group.labels for group in self.work.tests])
        tests = torch.bincount(labels, minlength=len(names)).tolist()
        trained = {} if self.learner.samples is None else dict(zip(names, self.learner.samples, strict=True))
        tested = {name: n for name, n in zip(names, tests, strict=True) if name in self.stream.class_names}
        return list(remarks(trained, tested, self.stream.source.modality))


def _mean_over_new(matrix: AccuracyMatrix, skip: int) -> float | None:
    """Accuracy after the last task on the classes of this run, without earlier ones."""
    if not matrix.n_rows:
        return None
    correct, totals = matrix.correct[-1][skip:], matrix.totals[skip:]
    return sum(correct) / sum(totals) if sum(totals) else None


class _RunCallback(Callback):
    """Callback of a session: progress, events, checkpoints, stopping."""

    def __init__(self, session: Session, stop: StopRequest, label: str) -> None:
        self.session, self.stop, self.label = session, stop, label
        self.images = 0
        self._clock, self._began = time.perf_counter, time.perf_counter()
        self._steps = 0

    def on_stage_start(self, task: int, stage: Stage, step: int, steps: int) -> None:
        self._steps = steps
        parameters = self.session.learner.method.parameters()
        self.session.progress.trainable = sum(p.numel() for p in parameters if p.requires_grad)
        self.session.event("stage", task=task, stage=stage.name, step=step, steps=steps)
        self.session.reporter.begin(f"{self.label}: {stage.name}", steps, step)

    def on_step(self, position: Position, losses: dict[str, float], optimizer: torch.optim.Optimizer, n: int) -> None:
        self.images += n
        loss = sum(losses.values())
        self.session.reporter.advance(1, f"loss {loss:.3f}")
        lr = optimizer.param_groups[0]["lr"]
        self.session.event("step", stage=position.stage, step=position.step, loss=loss, lr=lr, losses=losses)
        every = self.session.work.checkpoint_every
        due = every and position.step % every == 0
        asked = self._asked_together()
        if due or asked or position.step == self._steps:
            self.session.checkpoint_inside(position, optimizer, self._clock() - self._began, self.images)
        if asked:
            raise Interrupted(self._saved())

    def on_warning(self, text: str) -> None:
        self.session.warn(text)

    def on_batch(self, n: int) -> None:
        self.images += n
        self.session.reporter.advance(n)
        # Several processes stop together after a step; here each is at another batch.
        if self.stop.asked and self.session.processes.size == 1:
            raise Interrupted(self._saved())

    def stop_together(self) -> None:
        """Stop all processes if one was asked to; every process must call this."""
        if self.session.processes.size > 1 and self._asked_together():
            raise Interrupted(self._saved())

    def _asked_together(self) -> bool:
        return self.session.processes.any(self.stop.asked, self.session.learner.settings.device)

    def _saved(self) -> str:
        own = file_of(type(self.session.learner.method))
        named = f" method={own.path}" if own is not None else ""  # a file runs only if the command names it
        return f"Stopped; the run is saved. Continue it with: ostinato resume {self.session.dirs.root}{named}"
