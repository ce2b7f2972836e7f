"""Measured beside published results, as Markdown, CSV and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from ostinato.presets import METRICS
from ostinato.report.tables import (
    NOTHING,
    human_bytes,
    human_count,
    percent,
    seconds,
    to_markdown,
    whole_count,
    write_csv,
)
from ostinato.reproduce.results import Measured, difference
from ostinato.reproduce.table import Table

COSTS = {
    "trainable_parameters": ("trainable", human_count),
    "stored_bytes": ("stored", human_bytes),
    "exemplars": ("samples kept", whole_count),
    "exemplar_bytes": ("their size", human_bytes),
    "train_seconds": ("train s", seconds),
    "eval_seconds": ("eval s", seconds),
    "last_eval_seconds": ("test s", seconds),
    "batch_last_eval_seconds": ("in batches, test s", seconds),
}
"""Costs by key of a summary: heading and format. Seconds of the last evaluation are shown where they are published."""

FOLDED = """
<details markdown>
<summary>Commands</summary>

```sh
{}
```

</details>
"""
"""Folded section of Markdown with a list of commands."""

_HEADINGS = {
    "last": "last %",
    "average": "average %",
    "mean_task": "mean over tasks %",
    "forgetting": "forgetting %",
    "task_id": "task id %",
    "task_incremental": "task-incremental %",
    "task_incremental_forgetting": "task-incremental forgetting %",
}

_IF_PUBLISHED = ("mean_task", "task_incremental_forgetting")
"""Metrics that are shown only where they are published."""


IN_BATCHES = {metric: f"batch_{METRICS[metric]}" for metric in METRICS if "incremental" not in metric}
"""Keys of a summary under a batch protocol, by metric."""


def columns(results: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table, published beside measured; "-" for unknown values.

    Accuracies are in percent. Published metrics and costs, kept samples, seconds of the last evaluation and results in
    batches of one task have a column only if a row has them; a row with results in batches has those under the
    published protocol. A row with
    variants is one line: the last accuracy of each variant, and means with standard deviations over finished variants.
    If the reference row was run, each row has its mean difference to it over the same test samples, with the standard
    error.
    """
    published = [metric for metric in METRICS if any(metric in r.row.published for r in results)]
    shown = [m for m in _HEADINGS if m not in _IF_PUBLISHED or m in published]
    batches = _in_batches(results, shown)
    quoted_costs = {key for r in results for key in r.row.costs}
    costs = _shown_costs(results, quoted_costs)
    variants = list(dict.fromkeys(r.row.variant for r in results if r.row.variant))
    labelled = any(r.row.label != r.row.base for r in results)
    mean = "mean " if variants else ""
    reference = reference_of(results)
    headings = ["row", *(["what"] if labelled else [])]
    for variant in variants:
        headings += [f"published {variant} last %"] if "last" in published else []
        headings.append(f"{variant} last %")
    for metric in shown:
        headings += [f"published {mean}{_HEADINGS[metric]}"] if metric in published else []
        headings.append(f"{mean}{_HEADINGS[metric]}")
        headings += [f"in batches, {mean}{_HEADINGS[metric]}"] if metric in batches else []
    headings += ["batches"] if batches else []
    headings += [f"against {reference}, points"] if reference else []
    for key, (heading, _) in costs.items():
        headings += [f"published {heading}"] if key in quoted_costs else []
        headings.append(heading)
    cells = []
    for base in dict.fromkeys(r.row.base for r in results):
        group = [r for r in results if r.row.base == base]
        have_run = [r for r in group if r.summary]
        quoted = _mean([r.row.published for r in have_run or group])  # over the variants that were run
        finished = [r.summary for r in have_run if r.summary]
        summary = _mean(finished)
        line = [base, *([group[0].row.label] if labelled else [])]
        by_variant = {r.row.variant: (r.row.published, r.summary or {}) for r in group}
        for variant in variants:
            paper, run = by_variant.get(variant, ({}, {}))
            line += [_quoted(paper, "last")] if "last" in published else []
            line.append(percent(run.get(METRICS["last"])))
        for metric in shown:
            if metric in published:
                line.append(_quoted(quoted, metric))
            line.append(_with_spread(finished, METRICS[metric]))
            line += [_with_spread(finished, IN_BATCHES[metric])] if metric in batches else []
        if batches:
            line.append(", ".join(dict.fromkeys(r.get("batch_protocol") or NOTHING for r in finished)) or NOTHING)
        if reference:
            of_all = difference(group)
            line.append("reference" if base == reference else NOTHING if of_all is None else str(of_all))
        for key, (_, form) in costs.items():
            line += [form(group[0].row.costs.get(key))] if key in quoted_costs else []
            line.append(form(summary.get(key)))
        cells.append(line)
    return headings, cells


def _shown_costs(results: Sequence[Measured], published: set[str]) -> dict[str, Any]:
    """Select the costs that have a column."""

    def shown(key: str) -> bool:
        if key.endswith("last_eval_seconds") and "last_eval_seconds" not in published:
            return False
        optional = key in ("exemplars", "exemplar_bytes", "batch_last_eval_seconds")
        return not optional or any((r.summary or {}).get(key) for r in results)

    return {key: value for key, value in COSTS.items() if shown(key)}


def cost_note(results: Sequence[Measured]) -> str | None:
    """A sentence on the machines behind published and measured seconds; None if none are published."""
    if not any("seconds" in key for r in results for key in r.row.costs):
        return None
    machines = ", ".join(dict.fromkeys(r.machine for r in results if r.machine))
    return (
        "Published seconds are of the authors' machine, measured ones of this machine"
        + (f" ({machines})" if machines else "")
        + ": compare a row with other rows of its own column, or the ratios of two rows. Train s adds all tasks; "
        "test s is the last evaluation alone, in which methods that infer a task are also scored under the true one."
    )


def _in_batches(results: Sequence[Measured], metrics: Sequence[str]) -> list[str]:
    """Select the metrics that a row has under a batch protocol."""
    return [m for m in metrics if any((r.summary or {}).get(IN_BATCHES.get(m, "")) is not None for r in results)]


def reference_of(results: Sequence[Measured]) -> str | None:
    """Name of the reference row; None if no row was compared."""
    return next((r.row.base for r in results if r.compared is not None and r.compared.is_reference), None)


def upper_bound(results: Sequence[Measured]) -> str | None:
    """A sentence on the best of the bounds by last accuracy, over the variants that were run; None if none was."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if result.row.bound:
            runs.setdefault(result.row.base, []).extend([result.summary] if result.summary else [])
    last = {base: mean for base, run in runs.items() if (mean := _mean(run).get(METRICS["last"])) is not None}
    if not last:
        return None
    best = max(last, key=lambda base: last[base])
    others = ", ".join(f"`{base}`" for base in runs if base != best)
    missing = ", ".join(f"`{base}`" for base in runs if base not in last)
    return (
        f"Upper bound: `{best}`, {percent(last[best])} %"
        + (f", the best of it and {others}" if others else "")
        + (f" (not run: {missing})." if missing else ".")
    )


def _quoted(published: dict[str, float], metric: str) -> str:
    return f"{published[metric]:.2f}" if metric in published else NOTHING


def _mean(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of accuracies and costs that all results have."""
    keys = [*METRICS, *METRICS.values(), *IN_BATCHES.values(), *COSTS]
    known = [key for key in keys if results and all(r.get(key) is not None for r in results)]
    return {key: sum(r[key] for r in results) / len(results) for key in known}


def _with_spread(results: Sequence[dict[str, Any]], key: str) -> str:
    """Mean of an accuracy in percent and, of several, the sample standard deviation (n - 1)."""
    mean = percent(_mean(results).get(key))
    if len(results) < 2 or mean == NOTHING:
        return mean
    return f"{mean} ± {percent(stdev(r[key] for r in results))}"


def markdown(table: Table, results: Sequence[Measured]) -> str:
    """Format the table, its notes and the commands of measured rows in Markdown."""
    headings, cells = columns(results)
    text = to_markdown(headings, cells, texts=range(2 if headings[1] == "what" else 1))
    reference = reference_of(results)
    paired = reference and (
        f"Against {reference}: points, the mean over the same test samples ± its standard error; within noise if it "
        "is below two standard errors."
    )
    source = table.source and f"Published: {table.source}."
    verified = table.verified and f"Verified: {table.verified}"
    notes = [source, table.protocol, verified, table.note, cost_note(results), paired, upper_bound(results)]
    text += "".join(f"\n{note}\n" for note in notes if note)
    lines = [f"- `{r.row.base}`: {note}" for r in results for note in (r.row.note, r.row.not_run) if note]
    lines += [
        f"- `{r.row.name}` cannot be compared with `{reference}`: {'; '.join(r.compared.reasons)}"
        for r in results
        if r.compared is not None and r.compared.reasons
    ]
    text += "\n" + "\n".join(dict.fromkeys(lines)) + "\n" if lines else ""
    commands = [f"{r.command}   # {r.row.name}" for r in results if r.command]
    return text + (FOLDED.format("\n".join(commands)) if commands else "")


def write_table(table: Table, results: Sequence[Measured], out: Path) -> None:
    """Write ``table.md`` (percent) and ``table.csv`` (fractions) beside the runs."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"# {table.title}\n\n{markdown(table, results)}", encoding="utf-8")
    batches = [IN_BATCHES[metric] for metric in _in_batches(results, list(METRICS))]
    batches += ["batch_protocol"] if batches else []
    keys = [*METRICS.values(), *batches, *COSTS, "protocol", "backbone", "stream", "seed"]
    priced = [key for key in COSTS if any(key in r.row.costs for r in results)]
    compared = ["difference", "difference_error", "not_comparable"]
    published = (f"published_{name}" for name in [*METRICS, *priced])
    headings = ["row", "what", "method", "data", *published, *keys, *compared, "command"]
    rows: list[list[Any]] = []
    for result in results:
        row, summary, found = result.row, result.summary or {}, result.comparison()
        quoted = [f"{row.published[m] / 100:.6f}" if m in row.published else "" for m in METRICS]
        quoted += [str(row.costs.get(key, "")) for key in priced]
        values = [*(summary.get(key) for key in keys), *(found[key] for key in compared)]
        rows.append([row.name, row.label, row.method, row.data, *quoted, *values, result.command])
    write_csv(out / "table.csv", headings, rows)


def rich_table(results: Sequence[Measured]) -> Any:
    """Format measured results, with published ones in brackets, for a terminal.

    Results in batches of one task follow a slash, where the row has them. The means of rows with several finished
    variants come last. ``table.md`` also has the costs.
    """
    from rich.table import Table as Rich
    from rich.text import Text

    shown = [m for m in METRICS if any(m in r.row.published or (r.summary and m not in _IF_PUBLISHED) for r in results)]
    batches = _in_batches(results, shown)
    table = Rich(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left")
    slash = " After a slash: in batches of one task." if batches else ""
    table.caption = Text(f"Measured (published), percent.{slash}")
    table.add_column("row", overflow="fold")
    for metric in shown:
        heading = _HEADINGS[metric].removesuffix(" %").replace(" ", "\n")
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells, summary = [], result.summary or {}
        together = bool(summary.get("batch_protocol"))
        for metric in shown:
            quoted, alone = result.row.published.get(metric), summary.get(METRICS[metric])
            if together and metric in batches:
                cells.append(f"{_beside(alone, None)} / {_beside(summary.get(IN_BATCHES[metric]), quoted)}")
            else:
                cells.append(_beside(alone, quoted))
        table.add_row(Text(result.row.name), *map(Text, cells))
    for base in dict.fromkeys(r.row.base for r in results if r.row.variant):
        finished = [r.summary for r in results if r.row.base == base and r.summary]
        if len(finished) > 1:
            means = []
            for metric in shown:
                mean = _with_spread(finished, METRICS[metric])
                voted = _with_spread(finished, IN_BATCHES[metric]) if metric in batches else NOTHING
                means.append(mean if voted == NOTHING else f"{mean} / {voted}")
            table.add_row(Text(f"{base}, mean of {len(finished)}"), *map(Text, means))
    return table


def _beside(measured: float | None, quoted: float | None) -> str:
    """A measured result in percent with the published one in brackets."""
    return percent(measured) if quoted is None else f"{percent(measured)} ({quoted:.2f})"
