"""Comparison command: compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ostinato.cli.app import Json, Options, app, machine_of, take
from ostinato.errors import InputError
from ostinato.printing import say, say_json

if TYPE_CHECKING:
    from ostinato.runs.comparing import ModelsCompared

_SHOWN = 10
"""Largest number of classes that are printed as gained, and as lost."""


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or an artifact folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another, which gains or loses against the first.")],
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Score two models on the same labelled samples, and test whether they differ.

    Samples that either learned from are left out. With out=FILE, write a CSV of the samples that one has right alone.

    Example: ostinato compare runs/photos/learn-001/artifact_before runs/photos data=photos_of_may/
    """
    from dataclasses import asdict

    from ostinato.config import parse_overrides

    given = parse_overrides(options or [])
    out = take(given, "out")
    data, scoring = given.pop("data", {}), given.pop("eval", {})
    unknown = scoring.pop("unknown", "refuse")
    machine = machine_of(given)
    if given or scoring or "path" not in data or unknown not in ("refuse", "skip"):
        raise InputError(
            "compare needs data=FOLDER. It also takes out=FILE.csv, other options of data.*, backbone.weights=FILE, "
            "device=NAME, precision=fp32, and eval.unknown=skip (for classes that neither model learned)."
        )
    from ostinato.report.tables import write_csv
    from ostinato.runs.comparing import compare_models

    if out is not None and not Path(str(out)).parent.is_dir():
        raise InputError(f"out={out} must be a file in a folder that exists.")
    found = compare_models(
        first, second, data, skip_unknown=unknown == "skip", tell=lambda note: say(note, err=as_json), **machine
    )
    changed = [asdict(one) for one in found.changed]
    if out is not None:
        write_csv(Path(str(out)), ("sample", "true", "first", "second"), (one.values() for one in changed))
    if as_json:
        difference = found.difference
        say_json({
            "samples": found.samples, "first": found.first, "second": found.second,
            "difference": difference.mean if difference else None,
            "difference_error": difference.error if difference else None,
            "only_first": found.only_first, "only_second": found.only_second, "p_value": found.p_value,
            "classes": [asdict(one) for one in found.classes], "changed": changed,
        })  # fmt: skip
        return
    for line in _lines(found, (str(first), str(second))):
        say(line)
    if out is not None:
        say(f"Written to {out}: the samples that one model has right alone.")


def _lines(found: ModelsCompared, paths: tuple[str, str]) -> list[str]:
    """Describe a comparison."""
    from ostinato.report.tables import percent

    kind = f"{found.modality}s"
    lines = [f"{percent(found.first)}%  {paths[0]}", f"{percent(found.second)}%  {paths[1]}"]
    lines.append(f"On {found.samples} {kind} of {len(found.classes)} classes.")
    if found.difference is not None:
        lines.append(f"Difference in points, second less first: {found.difference} (mean ± standard error)")
    lines.append(
        f"Right alone: the first on {found.only_first}, the second on {found.only_second} {kind}; McNemar's exact "
        f"test: p = {found.p_value:.2g}"
    )
    lost = [one for one in found.classes if one.change < 0]
    gained = [one for one in reversed(found.classes) if one.change > 0]
    for name, some in (("Lost", lost), ("Gained", gained)):
        if some:
            lines.append(f"{name} ({len(some)} of {len(found.classes)} classes):")
            lines += [
                f"  {100 * one.change:+6.1f}  {one.first} -> {one.second} of {one.samples}  {one.name}"
                for one in some[:_SHOWN]
            ]
    return lines
