"""Information commands: list, show, check, demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ostinato.cli.app import Json, Options, app, refuse_several, reporting
from ostinato.errors import InputError
from ostinato.printing import say, say_json


@app.command("list")
def list_names(as_json: Json = False) -> None:
    """List methods, data sets and backbones."""
    from ostinato.defaults import DEFAULT_BACKBONE
    from ostinato.lookup import methods
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
    say("  BERT-like encoder such as bert-base-uncased, or its folder")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method, or a run directory.")], as_json: Json = False) -> None:
    """Describe a method (options, recipe) or a run (configuration, results)."""
    path = Path(name)
    if (path / "config.toml").exists():
        from ostinato.runs.rundir import RunDir

        run = RunDir(path)
        summary = run.read_summary() if run.summary.exists() else None
        if as_json:
            say_json({"config": run.read_config().to_dict(), "summary": summary})
            return
        say(run.config.read_text(encoding="utf-8").rstrip())
        if summary is not None:
            from ostinato.cli.models import class_lines, history_lines
            from ostinato.runs.lifecycle import taught_since

            say_json(summary, indent=2)
            say("\n".join(["Classes", *class_lines(path), "Learned", *history_lines(path)]))
            if since := taught_since(path):
                say(since)
        return
    from ostinato.lookup import describe

    about = describe(name)
    if as_json:
        say_json({"method": name, "options": about.options, "recipe": about.recipe})
        return
    say(about.text)
    say("\nOptions and defaults")
    for key, value in about.options.items():
        parts = about.parts.get(key, {})
        say(f"  method.{key}={_written(value['name'] if parts else value)}")
        for part, options in parts.items():
            for option, default in options.items():
                say(f"    with method.{key}={part}: method.{key}.{option}={_written(default)}")
    say("Recipe")
    for key, value in about.recipe.items():
        say(f"  train.{key}={_written(value)}")
    if note := _memory_of_training(name, about.recipe):
        say(f"Memory\n  {note}")


def _memory_of_training(name: str, recipe: dict[str, Any]) -> str | None:
    """Say how much memory gradients and optimiser take if a method trains the backbone by default."""
    from ostinato.contract import kinds_of
    from ostinato.contract.harness import make
    from ostinato.lookup import get_method

    method = get_method(name)
    if not make(method, kinds_of(method)[0]).trains_backbone:
        return None
    moments = int(recipe["momentum"] > 0) if recipe["optimizer"] == "sgd" else 2
    size = 4 * (1 + moments)
    return (
        f"It trains the backbone: gradients and optimiser take {size} bytes per weight, {size * 86 / 1000:.1f} GB for "
        "the 86 million of a ViT-B/16, beside the activations and the method's own state (stored_bytes of a result)."
    )


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="Name of a method, or its file: my.py.")],
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Check a method against the contract: one answer per sample, no leak, reproducible, resumable, and more.

    The checks run on tiny random encoders and take seconds. Exit code 1 if a check fails.

    Example: ostinato check my_method.py method.length=2
    """
    from dataclasses import asdict

    import torch

    from ostinato.config import parse_overrides
    from ostinato.contract import check_method
    from ostinato.lookup import get_method

    torch.set_num_threads(1)  # threads slow such small models down
    given = parse_overrides(options or [])
    method_options = given.pop("method", {})
    if given:
        raise InputError(f"check takes only options of the method, method.NAME=VALUE, got {next(iter(given))}.")
    results, kind = [], ""
    for result in check_method(get_method(method), **method_options):
        results.append(result)
        if as_json:
            continue
        if result.kind != kind:
            kind = result.kind
            say(f"On a tiny encoder, {kind}")
        say(f"  {result.outcome:14s}  {result.check}{': ' + result.found if result.found else ''}")
    if as_json:
        say_json([asdict(result) for result in results])
    broken = {result.check: result.demand for result in results if result.outcome == "broken"}
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
    out: Annotated[Path, typer.Option(help="Directory of the runs; those of an earlier demo are replaced.")] = Path(
        "runs/demo"
    ),
    as_json: Json = False,
) -> None:
    """Learn handwritten digits in five tasks with three methods, with and without forgetting."""
    from ostinato.demo import EXPLANATION, run_demo
    from ostinato.report.tables import run_table

    refuse_several("demo")
    with reporting(as_json) as (console, reporter):
        summaries = run_demo(out, reporter)
    if as_json:
        say_json(summaries)
        return
    console.print(run_table(summaries))
    console.print(EXPLANATION.format(out=out), highlight=False)
