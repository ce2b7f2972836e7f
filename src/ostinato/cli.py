"""The command line. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ostinato import crash
from ostinato.errors import DataError, InputError, Interrupted, OstinatoError, explained
from ostinato.printing import OutputClosedError, say, say_json

if TYPE_CHECKING:
    from rich.console import Console

    from ostinato.config import RunConfig
    from ostinato.evaluation.evaluator import BatchProtocol
    from ostinato.learner import Learner
    from ostinato.report.console import Reporter
    from ostinato.world import World

app = typer.Typer(
    help="Teach a frozen pre-trained transformer new classes, task after task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Options = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Options such as data=photos/ or train.epochs=5."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results (fractions) instead of tables.")]


def _console(as_json: bool) -> Console:
    from ostinato.report.console import PlainConsole

    # With --json, standard output holds nothing but the result.
    return PlainConsole(stderr=as_json, quiet=as_json)


@contextmanager
def _reporting(as_json: bool) -> Iterator[tuple[Console, Reporter]]:
    """A console, and a reporter on it that is closed whatever happens."""
    from ostinato.report.console import ConsoleReporter, Reporter

    console = _console(as_json)
    reporter = Reporter() if as_json else ConsoleReporter(console)
    try:
        yield console, reporter
    finally:
        reporter.close()


def _refuse_several(command: str) -> None:
    """Make sure that no launcher started this command several times, each of which would write the same files."""
    from ostinato.world import launched

    if launched() > 1:
        raise InputError(f"{command} takes one process; of {launched()}, share single runs: torchrun -m ostinato run.")


@contextmanager
def _running(as_json: bool, device: str) -> Iterator[tuple[Console, Reporter, World]]:
    """A console and reporter, which say nothing but in the main one of the processes that a launcher started."""
    from ostinato.world import joined

    with joined(device) as world, _reporting(as_json or not world.main) as (console, reporter):
        yield console, reporter, world


def _take(tree: dict[str, Any], key: str) -> Any:
    """Remove a plain top-level option that is not part of the configuration."""
    value = tree.pop(key, None)
    if isinstance(value, dict):
        raise InputError(f"{key}: takes one value, got {key}.{next(iter(value))}.")
    return value


def _show_result(result: dict[str, Any], console: Console, as_json: bool, world: World) -> None:
    from ostinato.report.tables import percent, run_table

    if not world.main:
        return
    if as_json:
        say_json(result)
        return
    console.print(run_table([result]))
    if "new_accuracy" in result:
        if result["old_accuracy_before"] is None:
            console.print("Old classes were not scored: give a labelled folder of them as eval=FOLDER.")
        else:
            console.print(
                f"Earlier classes: {percent(result['old_accuracy_before'])} % before, "
                f"{percent(result['old_accuracy_after'])} % after."
            )
        if result["new_accuracy"] is not None:
            console.print(f"New classes: {percent(result['new_accuracy'])} %.")
    console.print(f"Written to {result['run']}: summary.json, accuracy_matrix.csv, plots/, artifact/", highlight=False)


@app.command()
def run(
    method: Annotated[str, typer.Argument(help="A method, see 'ostinato list', or a file of your own: my.py.")],
    options: Options = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="TOML file with options.")] = None,
    preset: Annotated[
        str | None, typer.Option("-p", "--preset", help="Published options: a benchmark, or benchmark/variant.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn a stream of tasks and write everything to a run directory.

    Options win over the file, and the file over the preset. 'ostinato reproduce' lists the presets.

    Example: ostinato run dualprompt data=photos/ stream.step=5 out=runs/photos
    """
    from ostinato.config import build_config, parse_overrides, read_toml

    given = parse_overrides(options or [])
    file = read_toml(config) if config else {}
    out = _take(given, "out") or _take(file, "out")
    file.pop("out", None)
    base: dict[str, Any] = {}
    if preset:
        from ostinato.presets import DATA, read_preset

        published = read_preset(preset, method)
        base = published.options
        if "path" not in given.get("data", {}) and "path" not in file.get("data", {}):
            raise InputError(f"-p {preset}: give the data as data=PATH, {DATA[published.data]}.")
    checked = build_config(base, file, given, {"method": {"name": method}})
    if out is None:
        source = Path(checked.data.path).name or "data"
        out = f"runs/{Path(method).stem}-{source}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    with _running(as_json, checked.device) as (console, reporter, world):
        from ostinato.engine.run import start

        result = start(checked, str(out), reporter, world)
        _show_result(result, console, as_json, world)


@app.command()
def resume(run: RunPath, options: Options = None, as_json: Json = False) -> None:
    """Go on with a run that was stopped or killed, to the same result.

    Options say where things are now: data=, eval=, backbone.weights=, device=, data.workers=, method= (your own file),
    and whether a loss that explodes stops the run: train.on_divergence=.
    """
    from ostinato.config import parse_overrides
    from ostinato.engine.run import resume as go_on

    given = parse_overrides(options or [])
    with _running(as_json, str(given.get("device", "auto"))) as (console, reporter, world):
        result = go_on(run, given, reporter, world)
        _show_result(result, console, as_json, world)


@app.command()
def learn(run: RunPath, options: Options = None, as_json: Json = False) -> None:
    """Teach a finished run further classes, from a folder of them alone.

    Example: ostinato learn runs/photos data=more_classes/ eval=old_test_photos/
    """
    from ostinato.config import parse_overrides

    given = parse_overrides(options or [])
    with _running(as_json, str(given.get("device", "auto"))) as (console, reporter, world):
        from ostinato.engine.run import learn_more

        result = learn_more(run, given, reporter, world)
        _show_result(result, console, as_json, world)


@app.command()
def predict(
    run: RunPath,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Images or folders of them; for texts, files with one a line, csv, tsv, jsonl or parquet. Also "
            "backbone.weights=FILE (if it moved), device=cpu and precision=fp32.",
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the texts in a table; found by name without.")] = None,
    topk: Annotated[int, typer.Option(help="Classes to show per input.")] = 1,
    as_json: Json = False,
) -> None:
    """Classify images or texts with what a run has learned, each on its own.

    Example: ostinato predict runs/photos new/*.jpg --topk 3

    Example: ostinato predict runs/intents --text "where is my card" questions.txt
    """
    from dataclasses import asdict

    from ostinato.config import parse_overrides
    from ostinato.predicting import image_files, texts_of

    words = [w for w in inputs or [] if w.startswith(("backbone.weights=", "device=", "precision=", "method="))]
    files = [Path(w) for w in inputs or [] if w not in words]
    if not files and not text:
        raise InputError("predict: give image files, text files or --text TEXT.")
    learner = _load(run, _machine(parse_overrides(words)))
    if learner.method.backbone.modality == "text":
        config = _config_of(run)
        given = texts_of(text or [], files, column, config.data.text_column if config else None)
    elif text or column:
        raise InputError(f"predict: {run} has learned images; --text and --column are for texts.")
    else:
        given = ((str(file), file) for file in image_files(files))
    predictions, bad, sources = [], [], []

    def named() -> Iterator[Any]:
        for source, one in given:
            sources.append(source)
            yield one

    began = time.perf_counter()
    for i, one in enumerate(learner.predictions(named(), topk=topk)):
        if isinstance(one, DataError):
            bad.append(str(one))
            continue
        predictions.append(asdict(one) | {"source": sources[i]})
        if not as_json:
            values = one.confidences or one.scores
            shown = [f"{100 * v:.1f}%" if one.confidences else f"{v:.3f}" for v in values]
            say(f"{sources[i]}: " + "  ".join(f"{n} {v}" for n, v in zip(one.classes, shown, strict=True)))
    if len(sources) > learner.settings.eval_batch_size:  # worth a word beside the results
        seconds = time.perf_counter() - began
        say(f"{len(sources)} inputs in {seconds:.1f} s, {len(sources) / seconds:.0f} a second", err=True)
    if as_json:
        say_json(predictions)
    if bad:
        raise DataError("\n".join(bad))


def _config_of(run: Path) -> RunConfig | None:
    """What a run was started with; None of an artifact that was copied out of it."""
    from ostinato.engine.rundir import RunDir

    dirs = RunDir(run)
    return dirs.read_config() if dirs.config.exists() else None


def _machine(given: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options what :func:`_load` makes use of.

    Raises:
        InputError: for another option of the backbone, which belongs to what was learned.
    """
    machine = {key: given.pop(key) for key in ("device", "precision") if key in given}
    method = given.pop("method", {})
    if set(method) - {"name"}:
        raise InputError("method: only method=FILE (of a method of your own, if it moved) may be given here.")
    if method:
        machine["method"] = method["name"]
    backbone = given.pop("backbone", {})
    if set(backbone) - {"weights"}:
        raise InputError("backbone: only backbone.weights (where the file is now) may be given here.")
    return machine | backbone


def _load(run: Path, machine: dict[str, Any]) -> Learner:
    """The learner of a finished run, or of an artifact folder."""
    if not run.is_dir():
        raise InputError(f"{run} is no directory; give a run directory or an artifact folder.")
    from ostinato.learner import Learner

    return Learner.load(run, **machine)


def _protocol(scoring: dict[str, Any]) -> BatchProtocol | None:
    """What ``eval.protocol``, ``eval.batch_size`` and ``eval.shots`` ask for; None for one answer per sample."""
    from ostinato.evaluation.evaluator import BatchProtocol

    kind = scoring.get("protocol", "sample")
    if kind not in ("sample", "batch"):
        raise InputError(f"eval.protocol must be 'sample' or 'batch', got {kind!r}.")
    if kind == "sample":
        if len(scoring) > ("protocol" in scoring):
            raise InputError("eval.batch_size and eval.shots belong to eval.protocol=batch; add it or leave them out.")
        return None
    size, shots = scoring.get("batch_size", 24), scoring.get("shots", 0)
    if not isinstance(size, int) or not isinstance(shots, int):
        raise InputError(f"eval.batch_size and eval.shots must be whole numbers, got {size!r} and {shots!r}.")
    return BatchProtocol(size, shots)


@app.command()
def protocols(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs of methods that infer tasks.")],
    rules: Annotated[
        str | None, typer.Option(help="How tasks are weighed, with commas; all that a method has.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 24,
    shots: Annotated[str, typer.Option(help="First images of a batch that decide, with commas.")] = "3,5,7",
    data: Annotated[str | None, typer.Option(help="Where the runs' data are now.")] = None,
    weights: Annotated[str | None, typer.Option(help="Where the backbone's weights are now.")] = None,
    method: Annotated[str | None, typer.Option(help="The file of the runs' method, if it moved or changed.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    cache: Annotated[str | None, typer.Option(help="Folder of frozen features shared between runs.")] = None,
    state_cache: Annotated[float, typer.Option(help="GiB for frozen states.")] = 0.0,
    collect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the table between its markers in FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score trained models per sample, by the vote of a batch of one task, and by its first images.

    Example: ostinato protocols runs/soft_tf runs/dualprompt
    """
    from dataclasses import asdict

    from ostinato.report.protocol import markdown, study
    from ostinato.report.tables import replace_between

    try:
        counts = [int(k) for k in shots.split(",") if k]
    except ValueError:
        raise InputError(f"--shots must be whole numbers with commas, such as 3,5,7; got {shots!r}.") from None
    studies = []
    with _reporting(as_json) as (_, reporter):
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
    """Score a finished run on a labelled folder of classes that it has learned.

    Example: ostinato eval runs/photos data=photos_of_may/
    """
    from ostinato.config import parse_overrides

    given = parse_overrides(options or [])
    data, scoring = given.pop("data", {}), given.pop("eval", {})
    machine = _machine(given)
    stream = given.pop("stream", None)
    unknown = scoring.pop("unknown", "refuse")
    wrong = given or set(scoring) - {"protocol", "shots", "batch_size"} or stream not in (None, {"tasks": "folders"})
    if wrong or "path" not in data or unknown not in ("refuse", "skip"):
        raise InputError(
            "eval takes data=FOLDER with further options of data.*, stream.tasks=folders, backbone.weights=FILE, "
            "device=NAME, precision=fp32, eval.unknown=skip (classes that were not learned), and eval.protocol=batch "
            "with eval.batch_size=24 and eval.shots=7."
        )
    protocol = _protocol(scoring)
    learner = _load(run, machine)
    from ostinato.engine.data import samples_to_score

    samples, notes = samples_to_score(
        data,
        _config_of(run),
        learner.class_names,
        learner.used,
        seed=learner.settings.seed,
        task_folders=True if stream else None,
        skip_unknown=unknown == "skip",
    )
    for note in notes:
        say(note, err=as_json)
    labels = sorted(set(samples.labels.tolist()))
    parts = [samples.subset((samples.labels == c).nonzero().flatten()) for c in labels]
    if protocol is None:
        groups = parts
    else:  # a batch is of one task, not of one class
        tasks = learner.method.task_of_class.cpu()[samples.labels]
        groups = [samples.subset((tasks == t).nonzero().flatten()) for t in tasks.unique()]
    result = learner.evaluate(groups, protocol=protocol)
    if protocol is not None:
        stamped = {"accuracy": result.accuracy, "images": result.images, "protocol": protocol.name}
        stamped["task_id_accuracy"] = result.task_id_accuracy
        if as_json:
            say_json(stamped)
        else:
            say(f"{100 * result.accuracy:.1f}% of {result.images} {samples.modality}s, protocol {protocol.name}")
        return
    shares = {learner.class_names[c]: r / n for c, r, n in zip(labels, result.correct, result.totals, strict=True)}
    if as_json:
        say_json({"accuracy": result.accuracy, "images": result.images, "classes": shares})
        return
    say(f"{100 * result.accuracy:.1f}% of {result.images} {samples.modality}s, {len(labels)} classes")
    for name, share in sorted(shares.items(), key=lambda item: item[1]):
        say(f"  {100 * share:5.1f}%  {name}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw all accuracy curves into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Compare finished runs in one table."""
    from ostinato.report.tables import markdown_table, read_summary, run_table, summary_csv

    summaries = [read_summary(path) for path in runs]
    if csv:
        summary_csv(summaries, csv)
    if plot:
        from ostinato.evaluation.metrics import AccuracyMatrix
        from ostinato.report.plots import compare_curves

        shown = [path if sum(p.name == path.name for p in runs) > 1 else path.name for path in runs]
        matrices = {
            f"{s['method']} ({name})": AccuracyMatrix.from_csv(path / "accuracy_matrix.csv")
            for s, path, name in zip(summaries, runs, shown, strict=True)
        }
        compare_curves(matrices, plot, "Accuracy on all classes seen")
    if as_json:
        say_json(summaries)
    elif markdown:
        say(markdown_table(summaries))
    else:
        from ostinato.engine.run import taught_since

        _console(False).print(run_table(summaries))
        for path, summary in zip(runs, summaries, strict=True):
            for text in summary.get("warnings", []):
                say(f"{path}: warning: {text}")
            if since := taught_since(path):
                say(since)


@app.command()
def reproduce(
    table: Annotated[
        str | None, typer.Argument(help="A table, or a TOML file of one; without, they are listed.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ROW]... [KEY=VALUE]...", help="Rows (all without), and options for every row."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command of every row and run nothing.")] = False,
    collect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put what was measured between the table's markers in FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a published table row by row, and print what was published beside what was measured.

    The same command goes on after a stop; finished rows are not run again.

    Example: ostinato reproduce soft_tf/table4 data=cifar100 out=runs/table4
    """
    from ostinato import reproduce as work

    _refuse_several("reproduce")
    if table is None:
        listing = work.listing()
        if as_json:
            say_json(listing)
        else:
            say(work.listing_text(listing))
        return
    read = work.read_table(table)
    given = work.sort_options(read, [w for w in words or [] if "=" in w])
    rows = read.choose([w for w in words or [] if "=" not in w])
    if collect:
        found = [r for r in work.measured(read, given.out) if r.row in rows]
        if not any(r.summary for r in found):
            raise InputError(f"--collect: none of these rows was measured below {given.out}. Say where as out=.")
        work.collect(read, found, collect)
        return
    plans = work.plan_rows(read, rows, given, fetch=not dry_run)
    failed: dict[str, str] = {}
    if not dry_run:
        work.check_runnable(plans)
        with _reporting(as_json) as (_, reporter):
            if missing := work.lacking(plans):
                reporter.message(f"Not run for want of data or weights:\n{missing}")
            failed = work.run_plans(plans, read, given, reporter)
    results = work.measured(read, given.out)
    if as_json:
        say_json(work.as_json(read, rows, plans, results, failed))
    elif dry_run:
        say(work.dry_text(rows, plans))
    else:
        _console(False).print(work.rich_table([r for r in results if r.row in rows]))
        say(f"Written to {given.out}: table.md, table.csv, and a run directory per row")
    if failed:
        raise DataError("\n".join(f"{name}: {why}" for name, why in failed.items()))


@app.command()
def analyse(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or for layer_sweep a directory of runs.")],
    kind: Annotated[str | None, typer.Argument(help="What to show; without, what there is.")] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]... [KEY=VALUE]...",
            help="Image files or folders for attention; data=, out=, task=, head=, device=, backbone.weights=, "
            "method=.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw what a run has learned, as papers show it, and write the numbers beside it.

    Example: ostinato analyse runs/photos attention new/*.jpg
    """
    from ostinato.config import parse_overrides
    from ostinato.predicting import image_files

    keys = ("data=", "data.path=", "out=", "device=", "backbone.weights=", "method=", "task=", "head=")
    if kind is not None and kind.startswith(keys):  # options alone: list the kinds
        kind, words = None, [kind, *(words or [])]
    options = [w for w in words or [] if w.startswith(keys)]
    given = parse_overrides(options)
    images = list(image_files([Path(w) for w in words or [] if w not in options]))
    for key in ("task", "head"):
        if key in given and type(given[key]) is not int:
            raise InputError(f"{key}={given[key]}: must be a whole number, counted from 0.")
    from ostinato.report import analyses

    machine = _machine(given)
    if kind is None:
        found = analyses.kinds(run, **machine)
        if as_json:
            say_json({"kinds": found})
        else:
            say("\n".join(f"{k:17s} {v}" for k, v in found.items()))
        return
    data = given.pop("data", {}).get("path")
    done = analyses.analyse(run, kind, images, data=data, **machine, **given)
    if as_json:
        say_json({"png": str(done.png), "csv": str(done.csv), "notes": done.notes})
        return
    say("\n".join([*done.notes, f"Written to {done.png} and {done.csv}"]))


@app.command("list")
def list_names(as_json: Json = False) -> None:
    """List methods, data sets and the kinds of backbone."""
    from ostinato.config import DEFAULT_BACKBONE
    from ostinato.registry import methods
    from ostinato.streams import SOURCES

    known = {name: (cls.__doc__ or "").splitlines()[0] for name, cls in methods().items()}
    if as_json:
        say_json({"methods": known, "data": list(SOURCES), "default_backbone": DEFAULT_BACKBONE})
        return
    say("Methods (details: ostinato show NAME)")
    for name, line in known.items():
        say(f"  {name:14s} {line}")
    say(f"Data\n  {', '.join(SOURCES)}, hub:OWNER/NAME, an image folder, or a folder of tables (parquet, csv,")
    say("  tsv, jsonl) of images or texts")
    say(f"Backbones\n  {DEFAULT_BACKBONE} (bundled, default), any plain timm ViT such as")
    say("  vit_base_patch16_224.augreg_in21k; backbone.weights=FILE reads them from a file. For texts, a")
    say("  BERT-like encoder such as bert-base-uncased, or the folder of one")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method, or a run directory.")], as_json: Json = False) -> None:
    """Describe a method with its options and recipe, or a run with its configuration."""
    path = Path(name)
    if (path / "config.toml").exists():
        from ostinato.engine.rundir import RunDir

        run = RunDir(path)
        summary = run.read_summary() if run.summary.exists() else None
        if as_json:
            say_json({"config": run.read_config().to_dict(), "summary": summary})
            return
        say(run.config.read_text(encoding="utf-8").rstrip())
        if summary is not None:
            from ostinato.engine.run import taught_since

            say_json(summary, indent=2)
            if since := taught_since(path):
                say(since)
        return
    import inspect
    from dataclasses import asdict

    from ostinato.registry import defaults_of, get_method, parts_of, sources_of_options

    cls = get_method(name)
    defaults, parts = defaults_of(cls), parts_of(cls)
    if as_json:
        say_json({"method": name, "options": defaults, "recipe": asdict(cls.recipe)})
        return
    say((inspect.getmodule(cls).__doc__ or "").strip() + "\n")
    say("\n\n".join(inspect.getdoc(source) or "" for source in sources_of_options(cls)))
    for key, each in parts.items():
        for part in each:
            say(f"\nmethod.{key}={part.name}: {inspect.getdoc(type(part))}")
    say("\nOptions and defaults")
    for key, value in defaults.items():
        say(f"  method.{key}={_written(value['name'] if key in parts else value)}")
        for part in parts.get(key, ()):
            for option, default in part.own().items():
                say(f"    with method.{key}={part.name}: method.{key}.{option}={_written(default)}")
    say("Recipe")
    for key, value in asdict(cls.recipe).items():
        say(f"  train.{key}={_written(value)}")


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="A method, or a file of your own: my.py.")],
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Hold a method against the contract: one answer per sample, no leak, same seed same run, resumable, and more.

    Everything runs on tiny random encoders, in seconds. Exit code 1 where something is broken.

    Example: ostinato check my_method.py method.length=2
    """
    from dataclasses import asdict

    import torch

    from ostinato.config import parse_overrides
    from ostinato.contract import check_method
    from ostinato.registry import get_method

    torch.set_num_threads(1)  # a second one costs such small models more than it gives
    given = parse_overrides(options or [])
    own = given.pop("method", {})
    if given:
        raise InputError(f"check takes options of the method alone, method.NAME=VALUE, got {next(iter(given))}.")
    found, kind = [], ""
    for one in check_method(get_method(method), **own):
        found.append(one)
        if as_json:
            continue
        if one.kind != kind:
            kind = one.kind
            say(f"On a toy encoder, {kind}")
        say(f"  {one.outcome:14s}  {one.check}{': ' + one.found if one.found else ''}")
    if as_json:
        say_json([asdict(one) for one in found])
    broken = {one.check: one.demand for one in found if one.outcome == "broken"}
    if broken and not as_json:
        say("What must hold:")
        for name, demand in broken.items():
            say(f"  {name}: {' '.join(demand.split())}")
    if broken:
        sys.exit(1)


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Directory for the runs; those of an earlier demo in it are replaced.")
    ] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """Learn handwritten digits in five tasks with three methods and show forgetting and its cure."""
    from ostinato.demo import run_demo

    _refuse_several("demo")
    with _reporting(as_json) as (console, reporter):
        summaries = run_demo(out, reporter)
    if as_json:
        say_json(summaries)
        return
    from ostinato.demo import EXPLANATION
    from ostinato.report.tables import run_table

    console.print(run_table(summaries))
    console.print(EXPLANATION.format(out=out), highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors that a user can act on become one message and an exit code."""
    from ostinato.engine.memory import keep_freed_memory
    from ostinato.engine.threads import wait_asleep

    wait_asleep()
    keep_freed_memory()
    # Pillow's own limit of pixels; ours is one of memory, and is an error.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    words = sys.argv[1:] if arguments is None else arguments
    go_on = " 'ostinato resume RUN' goes on from the last checkpoint." if set(words[:1]) & _RESUMABLE else ""
    interrupted = f"Interrupted.{go_on}"
    try:
        code = app(args=arguments, prog_name="ostinato", standalone_mode=False)
    except OstinatoError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(interrupted, Interrupted.exit_code)
    except Exception as error:
        if (known := explained(error)) is not None:
            _fail(f"{known}{go_on}", known.exit_code)
        show_usage = getattr(error, "format_message", None)
        if show_usage is not None:  # Typer's own usage errors
            _fail(show_usage(), 2)
        if _lost_the_main_process(error):
            _fail("Stopped, since the main process did; its message says why.", 3)
        _fail(f"{crash.report(error, words)}{go_on}", crash.EXIT_CODE)
    if code == Interrupted.exit_code:  # what Typer makes of Ctrl-C
        _fail(interrupted, code)
    if code:
        sys.exit(code)


_RESUMABLE = {"run", "resume", "learn"}
"""Commands that leave checkpoints."""


def _lost_the_main_process(error: Exception) -> bool:
    """Whether this is one of several processes, and the exchange with the others broke."""
    text = f"{type(error).__name__}: {error}".lower()
    exchange = any(word in text for word in ("gloo", "nccl", "connection closed", "connection reset", "distbackend"))
    return int(os.environ.get("RANK", "0")) > 0 and exchange


def _fail(message: str, code: int) -> NoReturn:
    quiet = code in (Interrupted.exit_code, OutputClosedError.exit_code)
    with suppress(OutputClosedError, OSError):  # where nobody reads errors either, the exit code is left
        say(message if quiet else f"error: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
