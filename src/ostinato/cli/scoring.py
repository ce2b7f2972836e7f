"""Scoring commands: predict, protocols, eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostinato.cli.answers import FORMS, Printer
from ostinato.cli.app import MACHINE, Json, Options, RunPath, app, machine_of, reporting, sort_words, take
from ostinato.errors import DataError, InputError
from ostinato.printing import say, say_json

if TYPE_CHECKING:
    from ostinato.evaluation.evaluator import BatchProtocol

_MANY = 64
"""Inputs beyond which their rate is printed."""


@app.command()
def predict(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a file of 'ostinato export'.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Images or folders of images; for texts, files with one text a line, csv, tsv, jsonl or parquet. "
            "- reads names of images, one a line, or one image from standard input; texts for a text model. "
            "Also backbone.weights=FILE (if it moved), device=cpu and precision=fp32.",
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    column: Annotated[str | None, typer.Option(help="Text column of a table; by default found by its name.")] = None,
    topk: Annotated[int, typer.Option(help="Classes to show per input.")] = 1,
    threshold: Annotated[
        float | None, typer.Option(help="Answer 'unknown' if the best class is less probable, such as 0.8.")
    ] = None,
    reject_rate: Annotated[
        float | None,
        typer.Option(
            help="Answer 'unknown' far from all classes learned; of samples of these, this share is rejected, such as "
            "0.05."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read an exported .pt2 or .pt file, which can run code of its maker.")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, csv (a row per input) or jsonl (an object per input); both as soon as they are known.",
        ),
    ] = "text",
    as_json: Json = False,
) -> None:
    """Classify images or texts with a finished run, each on its own.

    Example: ostinato predict runs/photos new/*.jpg --topk 3

    Example: ostinato predict runs/photos new/*.jpg --threshold 0.8 --reject-rate 0.05

    Example: find new -name '*.jpg' | ostinato predict runs/photos -

    Example: ostinato predict runs/photos new/ --topk 3 --format csv > answers.csv

    Example: ostinato predict photos.onnx new/*.jpg

    Example: ostinato predict runs/intents --text "where is my card" questions.txt
    """
    import sys
    import time
    from io import BufferedReader
    from typing import cast

    from ostinato.config import parse_overrides
    from ostinato.learner.predicting import NO_PROBABILITIES
    from ostinato.paths import refuse_url
    from ostinato.runs.scoring import load_model, predict_inputs

    words, names = sort_words(inputs or [], MACHINE, context)
    if form not in FORMS or (as_json and form != "text"):
        raise InputError(f"--format must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, and needs no --json, got {form!r}.")
    if names.count("-") > 1:
        raise InputError("predict: - reads standard input, which is there once. Give it once.")
    for name in names:
        refuse_url(name, "predict")
    files = [cast(BufferedReader, sys.stdin.buffer) if name == "-" else Path(name) for name in names]
    if not files and not text:
        raise InputError("predict: give image files, text files or --text TEXT.")
    learner = load_model(run, trust=trust, **machine_of(parse_overrides(words)))
    if learner.temperature is None:
        say(f"{run} has no probabilities, but scores. {NO_PROBABILITIES}", err=True)
    printer = Printer("json" if as_json else form, min(topk, len(learner.class_names)))
    bad, n = [], 0
    began = time.perf_counter()
    answers = predict_inputs(
        run, learner, files, text or [], column=column, topk=topk, threshold=threshold, reject_rate=reject_rate
    )
    for answer in answers:
        n += 1
        printer.show(answer)
        if isinstance(answer, DataError):
            bad.append(str(answer))
    if n > _MANY:
        seconds = time.perf_counter() - began
        say(f"{n} inputs in {seconds:.1f} s, {n / seconds:.0f} a second", err=True)
    printer.close()
    if bad:
        raise DataError("\n".join(bad))


@app.command()
def protocols(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs of methods that infer tasks.")],
    rules: Annotated[
        str | None, typer.Option(help="Task inference rules, with commas; by default all of the method.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 24,
    shots: Annotated[str, typer.Option(help="Numbers of images that vote on the task, with commas.")] = "3,5,7",
    data: Annotated[str | None, typer.Option(help="Path of the data, if they moved.")] = None,
    weights: Annotated[str | None, typer.Option(help="Path of the backbone's weights, if they moved.")] = None,
    method: Annotated[str | None, typer.Option(help="File of the runs' method, if it moved or changed.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    cache: Annotated[str | None, typer.Option(help="Folder of frozen features shared between runs.")] = None,
    state_cache: Annotated[float, typer.Option(help="GiB of memory for frozen token states.")] = 0.0,
    collect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table between its markers in FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score trained models per sample, by the vote of a one-task batch, and by the vote of its first images.

    Example: ostinato protocols runs/soft_tf runs/dualprompt
    """
    from dataclasses import asdict

    from ostinato.analysis.protocols import markdown, study
    from ostinato.report.tables import replace_between

    try:
        counts = [int(k) for k in shots.split(",") if k]
    except ValueError:
        raise InputError(f"--shots must be whole numbers with commas, such as 3,5,7, got {shots!r}.") from None
    studies = []
    with reporting(as_json) as (_, reporter):
        for run in runs:
            reporter.message(f"{run}: evidence for each task, then scores under each task that a protocol gives")
            studies.append(
                study(
                    run,
                    size=batch,
                    shots=counts,
                    rules=rules.split(",") if rules else None,
                    data=data,
                    device=device,
                    weights=weights,
                    method=method,
                    cache=cache,
                    state_cache=state_cache,
                )
            )
    text = markdown(studies)
    if collect:
        replace_between(collect, "protocols", text)
    if as_json:
        say_json([asdict(s) for s in studies])
    else:
        say(text)


@app.command("eval")
def evaluate(
    run: RunPath,
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Score a finished run on labelled samples of classes that it has learned, and explain the answers.

    With out=FOLDER, also write all confused pairs and wrong answers, precision and recall per class, and figures of the
    confusion, of the probabilities and of the most confident wrong answers.

    Example: ostinato eval runs/photos data=photos_of_may/ out=reports/may
    """
    from ostinato.config import parse_overrides

    given = parse_overrides(options or [])
    out = take(given, "out")
    data, scoring = given.pop("data", {}), given.pop("eval", {})
    machine = machine_of(given)
    stream = given.pop("stream", None)
    unknown = scoring.pop("unknown", "refuse")
    wrong = given or set(scoring) - {"protocol", "shots", "batch"} or stream not in (None, {"tasks": "folders"})
    if wrong or "path" not in data or unknown not in ("refuse", "skip"):
        raise InputError(
            "eval needs data=FOLDER. It also takes out=FOLDER, other options of data.*, stream.tasks=folders, "
            "backbone.weights=FILE, device=NAME, precision=fp32, eval.unknown=skip (for classes that were not "
            "learned), and eval.protocol=batch with eval.batch=24 and eval.shots=7."
        )
    from ostinato.report.explained import report_folder
    from ostinato.report.tables import calibration_line, class_lines, confused_lines
    from ostinato.runs.scoring import MOST_LISTED, score_run

    protocol = _protocol(scoring)
    if out is not None and protocol is not None:
        raise InputError("out= needs samples that are scored alone. Leave out eval.protocol=batch.")
    folder = None if out is None else report_folder(out)
    score = score_run(
        run,
        data,
        protocol=protocol,
        task_folders=True if stream else None,
        skip_unknown=unknown == "skip",
        tell=lambda note: say(note, err=as_json),
        **machine,
    )
    files = [] if folder is None else score.write(folder)
    if as_json:
        say_json(score.summary() | ({} if folder is None else {"files": [str(folder / name) for name in files]}))
        return
    kind = score.samples.modality
    line = f"{100 * score.accuracy:.1f}% of {score.result.images} {kind}s"
    if score.confusion is None:
        say(f"{line}, protocol {score.protocol}")
        return
    say(f"{line}, {len(score.classes or {})} classes")
    if remark := calibration_line(score.calibration_error, score.uncalibrated_error):
        say(remark)
    for text in (*class_lines(score.confusion, kind), *confused_lines(score.confusion, MOST_LISTED)):
        say(text)
    if folder is not None:
        say(f"Written to {folder}: {', '.join(files)}")


def _protocol(scoring: dict[str, Any]) -> BatchProtocol | None:
    """Read ``eval.protocol``, ``eval.batch`` and ``eval.shots``; None scores every sample alone."""
    from ostinato.evaluation.evaluator import BatchProtocol

    kind, size, shots = scoring.get("protocol", "sample"), scoring.get("batch"), scoring.get("shots")
    if kind not in ("sample", "batch"):
        raise InputError(f"eval.protocol must be 'sample' or 'batch', got {kind!r}.")
    if not isinstance(size, int | None) or not isinstance(shots, int | None):
        raise InputError(f"eval.batch and eval.shots must be whole numbers, got {size!r} and {shots!r}.")
    return BatchProtocol.of(kind, size, shots)
