"""Presets: options of published experiments with the source of each value.

``<benchmark>/<method>.toml`` holds options of ``ostinato run`` and a table ``provenance``:

- ``data``: name of the data set, a key of :data:`DATA`;
- ``paper``: publication of the experiment;
- ``verified`` and ``note``: whether the published result was reproduced with this package, and by which runs or why
  not;
- ``compared``: a small run beside the authors' code on the same images (``docs/fidelity.md``): mean accuracies over the
  seeds after the last task in percent, the standard error of their difference, seeds, date, weights and command;
- ``differences``: differences from the publication;
- ``sources``: source of every option's value; "reconstruction" marks a choice of this package;
- ``published``: results in percent under keys of :data:`METRICS`, each with its source.

A benchmark fixes the data and the task sizes. A variant of a method is ``<method>-<variant>.toml``. The tables of
``ostinato reproduce`` are in ``tables``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ostinato import tomls
from ostinato.errors import InputError, did_you_mean
from ostinato.paths import user_path
from ostinato.quoting import quoted, shown
from ostinato.validation import describe_validation

METRICS = {
    "last": "last_accuracy",
    "average": "average_accuracy",
    "mean_task": "mean_task_accuracy",
    "forgetting": "forgetting",
    "task_incremental": "task_incremental_accuracy",
    "task_incremental_forgetting": "task_incremental_forgetting",
    "task_id": "task_id_accuracy",
}
"""Names of published results, and their keys in a run's summary."""

_FOLDERS = "a folder with train/ and test/, a folder per class in each"
_PILOT = (
    f"{_FOLDERS}, as distributed by RevisitingCIL and LAMDA-PILOT (download links in the READMEs of "
    "github.com/zhoudw-zdw/RevisitingCIL and github.com/sun-hailong/LAMDA-PILOT)"
)
_WNIDS = "or the folders of classes as they are downloaded, a fifth of each class for testing, from"

DATA = {
    "cifar100": (
        "the name cifar100 (torchvision downloads it), hub:uoft-cs/cifar100, or a folder with train.parquet and "
        "test.parquet"
    ),
    "imagenet_r": f"{_PILOT}, {_WNIDS} github.com/hendrycks/imagenet-r",
    "imagenet_a": f"{_PILOT}, {_WNIDS} github.com/hendrycks/natural-adv-examples",
    "vtab": f"{_PILOT}; 50 classes of five VTAB data sets",
    "cub200": "the folder CUB_200_2011 as it is downloaded (vision.caltech.edu/datasets/cub_200_2011)",
    "clinc150": "a folder with train and test tables (text, label) of the 150 intents, without those out of scope",
    "texts4": "a folder with the sets ag_news, yelp_review_full, amazon_review_full and dbpedia_14, as for text5",
    "text5": (
        "a folder with the sets ag_news, yelp_review_full, amazon_review_full, yahoo_answers_topics and dbpedia_14 as "
        "huggingface.co/datasets has them under these names, each a folder with train and test tables"
    ),
    "tiny_imagenet": "the folder tiny-imagenet-200 as it is downloaded (cs231n.stanford.edu/tiny-imagenet-200.zip)",
}
"""Data sets of the benchmarks, and their value for ``data=``."""

_ROOT = Path(str(resources.files("ostinato"))) / "presets"


Percent = Annotated[float, Field(ge=-100, le=100)]
"""A published result; forgetting may be negative."""


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Published(_Checked):
    last: Percent | None = None
    average: Percent | None = None
    mean_task: Percent | None = None
    forgetting: Percent | None = None
    task_incremental: Percent | None = None
    task_incremental_forgetting: Percent | None = None
    task_id: Percent | None = None
    source: str
    protocol: str | None = None


class _Compared(_Checked):
    """A small run beside the authors' code, see the module."""

    last: Percent
    public: Percent
    error: Annotated[float, Field(ge=0)]
    seeds: list[int]
    date: str
    weights: str
    command: str


class _Provenance(_Checked):
    """Table ``provenance``; the module describes its keys."""

    data: str
    paper: str
    verified: bool
    note: str
    compared: _Compared | None = None
    differences: list[str] = []
    sources: dict[str, str]
    published: list[_Published] = []


class _Method(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: str


class _File(BaseModel):
    """File of a preset; other keys are options, which the configuration checks."""

    model_config = ConfigDict(extra="allow", strict=True)
    format: Literal[1] = 1
    method: _Method
    provenance: _Provenance


@dataclass(frozen=True)
class Preset:
    """Options of one published experiment.

    Attributes:
        name: "benchmark/method" or "benchmark/method-variant".
        options: nested, as :func:`ostinato.config.build_config` takes them.
        provenance: sources and published results, see the module.
    """

    name: str
    options: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def method(self) -> str:
        """Registered name of the method."""
        return self.options["method"]["name"]

    @property
    def data(self) -> str:
        """Name of the data set, a key of :data:`DATA`."""
        return self.provenance["data"]

    @property
    def status(self) -> str:
        """Whether the options were verified, why not, and what is published for them, in a line."""
        found = "verified" if self.provenance["verified"] else "not verified"
        results = [_quoted(one) for one in self.provenance.get("published", [])]
        published = "; ".join(results) if results else "nothing"
        compared = _beside(self.provenance["compared"]) if "compared" in self.provenance else ""
        return f"Preset {self.name}, {found}. {self.provenance['note']} {compared}Published: {published}."


def _beside(compared: dict[str, Any]) -> str:
    """A small run beside the authors' code, as a sentence with a space after it."""
    seeds = ", ".join(map(str, compared["seeds"]))
    return (
        f"Beside the authors' code at small size: {compared['last']:.1f} % here, {compared['public']:.1f} % there, "
        f"standard error of the difference {compared['error']:.1f} (seeds {seeds}, {compared['date']}, "
        f"{compared['weights']}; {compared['command']}, see docs/fidelity.md). "
    )


def _quoted(published: dict[str, Any]) -> str:
    """A published result with its source and protocol."""
    values = ", ".join(f"{metric} {published[metric]:.2f} %" for metric in METRICS if metric in published)
    protocol = f", {published['protocol']}" if "protocol" in published else ""
    return f"{values} ({published['source']}{protocol})"


def preset_names() -> list[str]:
    """Names of all presets, "benchmark/method"."""
    return [f"{p.parent.name}/{p.stem}" for p in sorted(_ROOT.glob("*/*.toml")) if p.parent.name != "tables"]


def read_preset(name: str, method: str | None = None) -> Preset:
    """Read a preset.

    Args:
        name: "benchmark/method", or "benchmark" for the preset of ``method``.
        method: method of the preset; required if ``name`` is a benchmark.

    Raises:
        InputError: if there is none, or it is for another method.
    """
    known = preset_names()
    full = name if "/" in name else f"{name}/{method}"
    if full not in known:
        benchmark = full.split("/")[0]
        there = [n for n in known if n.split("/")[0] == benchmark]
        if "/" not in name and there:
            benchmarks = [n.split("/")[0] for n in known if n.split("/")[1] == method]
            hint = f"It has presets for {', '.join(n.split('/')[1] for n in there)}. "
            hint += f"{method} has presets for {', '.join(benchmarks)}." if benchmarks else f"{method} has no preset."
        else:
            benchmarks = sorted({n.split("/")[0] for n in known})
            hint = did_you_mean(name, known if "/" in name else benchmarks) if not there else f"There: {there}."
        raise InputError(f"preset: there is no {quoted(full)}. {hint}")
    path = _ROOT / f"{full}.toml"
    tree = tomls.read(path, f"preset {full}")
    try:
        _File.model_validate(tree)
    except ValidationError as error:
        raise InputError(
            f"preset {full}: {path} is damaged: {describe_validation(error, '', list(_Provenance.model_fields))} "
            "Install the package again."
        ) from None
    preset = Preset(full, {k: v for k, v in tree.items() if k not in ("format", "provenance")}, tree["provenance"])
    if method is not None and preset.method != method:
        raise InputError(f"preset: {full} is for {preset.method}, not for {shown(method)}.")
    return preset


def table_names() -> list[str]:
    """Names of the package's tables, "paper/table"."""
    return [f"{p.parent.name}/{p.stem}" for p in sorted((_ROOT / "tables").glob("*/*.toml"))]


def table_file(name: str) -> Path:
    """Path of a table of the package, or of a TOML file.

    Raises:
        InputError: if there is no such table.
    """
    if name.endswith(".toml"):
        path = user_path(name, "reproduce: the table")
        if not path.is_file():
            raise InputError(f"reproduce: there is no table file at {shown(name)}.")
        return path
    if name not in table_names():
        raise InputError(f"reproduce: there is no table {quoted(name)}. {did_you_mean(name, table_names())}")
    return _ROOT / "tables" / f"{name}.toml"
