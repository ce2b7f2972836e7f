"""Model card: what a learned model is and how good it is, from the records of its run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.lookup import describe
from ostinato.printing import printable
from ostinato.records import ArtifactRecord
from ostinato.report.tables import calibration_line, percent, to_markdown
from ostinato.runs.history import Learned, history
from ostinato.runs.lifecycle import continuations
from ostinato.runs.rundir import RunDir
from ostinato.sharing.licences import UNKNOWN, Licence

_MOST_TASKS = 12
"""Tasks whose whole matrix of accuracies is shown; of more, the last row."""

_TASKS = {"image": "image-classification", "text": "text-classification"}
_SPECIAL = re.compile(r"[\\`*_\[\]<>#&|]")


@dataclass(frozen=True)
class Results:
    """Results of a run and its continuations.

    Attributes:
        steps: the run and its continuations, the oldest first.
        first: summary of the run.
        newest: summary of the newest of them.
        matrix: accuracies of the run; None if it was scored on nothing.
        names: classes in the order of learning, before later changes.
        versions: of packages.
    """

    steps: list[Learned]
    first: dict[str, Any]
    newest: dict[str, Any]
    matrix: AccuracyMatrix | None
    names: list[str]
    versions: dict[str, str]


def results_of(run: Path) -> Results | None:
    """Read the results of a finished run; None for a saved learner without one.

    Raises:
        InputError: if the run is not finished.
        DataError: if a file is damaged.
    """
    root = RunDir(run)
    if not root.config.is_file():
        return None
    steps = history(run)
    newest = [root, *continuations(root)][-1]
    matrix = AccuracyMatrix.from_csv(root.matrix) if root.matrix.is_file() else None
    names = [name for step in steps for name in step.new]
    return Results(steps, root.read_summary(), newest.read_summary(), matrix, names, newest.read_record().versions)


def card(name: str, about: ArtifactRecord, modality: str, results: Results | None, licence: Licence) -> str:
    """Write a model card in Markdown, with front matter in YAML.

    Args:
        name: OWNER/NAME.
        about: description of the model.
        modality: "image" or "text".
        results: of its run; None if there are none.
        licence: of the backbone's weights.
    """
    head = _front_matter(about, modality, licence)
    sections = [
        f"# {name}\n\n{_opening(about, modality)}\n",
        _use(name, about, modality),
        f"## Method\n\n{_method(about)}\n",
        f"## Accuracy\n\n{''.join(_accuracy(about, results))}",
        f"## Probabilities\n\n{_calibration(results)}\n",
        f"## Classes\n\n{_classes(about)}",
        f"## Licence\n\n{_licence(about, licence)}\n",
        f"## Origin\n\n{_origin(about, results)}",
    ]
    return f"---\n{head}---\n\n" + "\n".join(sections)


def _front_matter(about: ArtifactRecord, modality: str, licence: Licence) -> str:
    from huggingface_hub import ModelCardData

    base = about.backbone.name
    return (
        ModelCardData(
            license=licence.name,
            library_name="ostinato",
            pipeline_tag=_TASKS[modality],
            base_model=base if "/" in base and about.backbone.weights is None else None,
            tags=["continual-learning", "class-incremental-learning", about.method],
        ).to_yaml()
        + "\n"
    )


def _opening(about: ArtifactRecord, modality: str) -> str:
    n, tasks = len(about.class_names), len(about.task_sizes)
    return (
        f"A classifier of {modality}s with {n} classes, learned in {_count(tasks, 'task')} by "
        f"`{about.method}` on the frozen transformer `{about.backbone.name}` with ostinato. It can learn further "
        "classes without the old data."
    )


def _use(name: str, about: ArtifactRecord, modality: str) -> str:
    folder = name.rpartition("/")[2]
    inputs, one = ("new/*.jpg", "photo.jpg") if modality == "image" else ("texts.txt", "a text")
    file = "" if about.method_file is None else ' method="my_method.py"'
    comma = "," if file else ""
    word = file.replace('"', "")
    return (
        f"## Use\n\n```sh\nostinato pull {name} {folder}\nostinato predict {folder} {inputs}{word}\n```\n\n"
        f'```python\nimport ostinato\n\nlearner = ostinato.load("{name}"{comma}{file})\n'
        f'print(learner.predict(["{one}"])[0].classes)\n```\n'
    )


def _method(about: ArtifactRecord) -> str:
    if about.method_file is not None:
        return (
            f"`{about.method}`, a method of its author. Its file `{_stored(about)}` is part of this repository. "
            "It runs only where you name it; read it first."
        )
    title, *more = describe(about.method).text.split("\n\n")
    paper = [paragraph for paragraph in more[:1] if "http" in paragraph]
    text = "\n\n".join([" ".join(title.split()), *paper])
    options = ", ".join(f"`{key}={value}`" for key, value in about.options.items() if value is not None)
    return f"{text}\n\nOptions: {options or 'none'}."


def _stored(about: ArtifactRecord) -> str:
    return about.method_text.file if about.method_text is not None else "method.py"


def _accuracy(about: ArtifactRecord, results: Results | None) -> Iterator[str]:
    """Paragraphs and tables."""
    if results is None:
        yield "The model was saved from Python, and its accuracy is not recorded.\n"
        return
    first = results.first
    yield (
        f"Protocol: {_protocol(first)} Accuracy is that of the {first.get('scored_on') or 'test'} split of "
        f"{_plain(str(first.get('stream')))}, among all classes learned so far, without the task of a sample.\n\n"
    )
    keys = (("last_accuracy", "accuracy at the end"), ("average_accuracy", "average over tasks"),
            ("forgetting", "forgetting"))  # fmt: skip
    rows = [(label, f"{percent(first.get(key))} %") for key, label in keys if first.get(key) is not None]
    if rows:
        yield to_markdown(["first run", "value"], rows) + "\n"
    if results.matrix is not None and results.matrix.n_rows:
        yield _matrix(results.matrix)
    if len(results.steps) > 1:
        yield "\n" + _later(results.steps)
        yield _newest(results.newest)
    if found := [_plain(text) for text in results.newest.get("remarks", [])]:
        yield f"\n{' '.join(found)}\n"
    if results.names != about.class_names:
        yield "\nClasses were renamed, removed or merged afterwards; the figures are of the model before.\n"


def _protocol(first: dict[str, Any]) -> str:
    protocol = first.get("protocol")
    if protocol in (None, "sample"):
        return "every sample is scored alone; test samples of all tasks are mixed."
    return f"{protocol}; it does not compare with scores of single samples."


def _matrix(matrix: AccuracyMatrix) -> str:
    values = matrix.values()
    first = matrix.n_tasks - matrix.n_rows
    rows = range(matrix.n_rows) if matrix.n_tasks <= _MOST_TASKS else [matrix.n_rows - 1]
    lines = [
        [f"after task {first + r + 1}", *(percent(value) for value in values[r]), percent(matrix.row_accuracy(r))]
        for r in rows
    ]
    return to_markdown(["accuracy in %", *(f"task {i + 1}" for i in range(matrix.n_tasks)), "all"], lines)


def _later(steps: Sequence[Learned]) -> str:
    lines = []
    for step in steps:
        known = [f"more of {name}" for name in step.known]
        learned = _count(len(step.new), "new class") if step.new else ""
        what = ", ".join(part for part in (learned, *known) if part)
        lines.append([step.started[:10], what, "not scored" if step.accuracy is None else percent(step.accuracy)])
    return to_markdown(["started", "learned", "accuracy on all classes, %"], lines, texts=(0, 1))


def _newest(newest: dict[str, Any]) -> str:
    parts = (("old_accuracy_before", "earlier classes before"), ("old_accuracy_after", "earlier classes after"),
             ("new_accuracy", "new classes"))  # fmt: skip
    found = [f"{label} {percent(newest[key])} %" for key, label in parts if newest.get(key) is not None]
    return f"\nThe newest continuation: {', '.join(found)}.\n" if found else ""


def _calibration(results: Results | None) -> str:
    if results is None:
        return "The calibration error is not recorded."
    newest = results.newest
    line = calibration_line(newest.get("calibration_error"), newest.get("uncalibrated_error"))
    if line is None:
        return "No calibration error was measured."
    return f"{line} This is the expected calibration error on test samples; the temperature was fitted on others."


def _classes(about: ArtifactRecord) -> str:
    tasks = [task for task, n in enumerate(about.task_sizes, 1) for _ in range(n)]
    samples = about.samples or [None] * len(about.class_names)
    rows = [
        [_plain(name), str(task), "-" if n is None else str(n)]
        for name, task, n in zip(about.class_names, tasks, samples, strict=True)
    ]
    return to_markdown(["class", "task", "training samples"], rows)


def _licence(about: ArtifactRecord, licence: Licence) -> str:
    held = "are part of this repository" if about.bundle is not None else "are fetched by their name"
    source = f"{licence.name} ({licence.source})"
    return (
        f"Weights of `{about.backbone.name}`: {source}. They {held}. The licence of the training data "
        "may bind what was learned."
    )


def _origin(about: ArtifactRecord, results: Results | None) -> str:
    rows = [
        ("seed", str(about.seed)),
        ("precision", about.precision),
        ("SHA-256 of the backbone's weights", about.backbone_sha256 or UNKNOWN),
        ("SHA-256 of the learned tensors", about.learned.sha256),
    ]
    if results is not None:
        rows += [(f"version of {package}", version) for package, version in results.versions.items()]
    return to_markdown(["", "value"], rows, texts=(0, 1))


def _count(n: int, noun: str) -> str:
    """A count with its noun, which is singular for one."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}{'es' if noun.endswith('s') else 's'}"


def _plain(text: str) -> str:
    """A name without meaning in Markdown or HTML, on one line."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", printable(" ".join(text.split())))
