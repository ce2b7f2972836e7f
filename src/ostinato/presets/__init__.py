"""Presets: the options of published experiments, each value with where it comes from.

``<benchmark>/<method>.toml`` holds options as ``ostinato run`` takes them, and a table ``provenance`` that is
taken off before they are used:

- ``data``: name of the data set, a key of :data:`DATA`;
- ``paper``: who published the experiment;
- ``verified`` and ``note``: whether its result was reproduced with this package, and what was run;
- ``differences``: what the options cannot say, or say otherwise than the source;
- ``sources``: for every option, where its value was found; "reconstruction" marks a choice of this package;
- ``published``: results in percent under keys of :data:`METRICS`, each with its source.

A benchmark fixes the data and the sizes of tasks. A variant of a method is ``<method>-<variant>.toml``. The tables that
``ostinato reproduce`` runs are in ``tables``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ostinato import tomls
from ostinato.choices import describe_validation
from ostinato.errors import InputError, did_you_mean
from ostinato.paths import user_path
from ostinato.quoting import quoted, shown

METRICS = {
    "last": "last_accuracy",
    "average": "average_accuracy",
    "mean_task": "mean_task_accuracy",
    "forgetting": "forgetting",
    "task_incremental": "task_incremental_accuracy",
    "task_id": "task_id_accuracy",
}
"""Names of published results, and the key of a run's summary that measures the same."""

_FOLDERS = "a folder with train/ and test/, a folder per class in each"
_PILOT = (
    f"{_FOLDERS}, as distributed by RevisitingCIL and LAMDA-PILOT (download links in the READMEs of "
    "github.com/zhoudw-zdw/RevisitingCIL and github.com/sun-hailong/LAMDA-PILOT)"
)

DATA = {
    "cifar100": (
        "the name cifar100 (torchvision downloads it), hub:uoft-cs/cifar100, or a folder with train.parquet and "
        "test.parquet"
    ),
    "imagenet_r": f"{_PILOT}; the images are from github.com/hendrycks/imagenet-r",
    "imagenet_a": f"{_PILOT}; the images are from github.com/hendrycks/natural-adv-examples",
    "vtab": f"{_PILOT}; 50 classes of five VTAB data sets",
    "cub200": f"{_FOLDERS}, of CUB-200-2011 (vision.caltech.edu/datasets/cub_200_2011) in its official split",
    "clinc150": "a folder with train and test tables (text, label) of the 150 intents, without those out of scope",
    "texts4": "a folder with the sets ag_news, yelp_review_full, amazon_review_full and dbpedia_14, as for text5",
    "text5": (
        "a folder with the sets ag_news, yelp_review_full, amazon_review_full, yahoo_answers_topics and dbpedia_14 as "
        "huggingface.co/datasets has them under these names, each a folder with train and test tables (text, label)"
    ),
    "tiny_imagenet": f"{_FOLDERS}, of Tiny ImageNet (cs231n.stanford.edu/tiny-imagenet-200.zip), its val as test",
}
"""Data sets of the benchmarks, and what to give as ``data=``."""

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
    task_id: Percent | None = None
    source: str
    protocol: str | None = None


class _Provenance(_Checked):
    """See the module."""

    data: str
    paper: str
    verified: bool
    note: str
    differences: list[str] = []
    sources: dict[str, str]
    published: list[_Published] = []


class _Method(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: str


class _File(BaseModel):
    """What of a preset's file is read here; the rest are options, which are checked as such."""

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
        provenance: where they come from, see the module.
    """

    name: str
    options: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def method(self) -> str:
        """The method's registered name."""
        return self.options["method"]["name"]

    @property
    def data(self) -> str:
        """The data set, a key of :data:`DATA`."""
        return self.provenance["data"]


def preset_names() -> list[str]:
    """Names of all presets, "benchmark/method"."""
    return [f"{p.parent.name}/{p.stem}" for p in sorted(_ROOT.glob("*/*.toml")) if p.parent.name != "tables"]


def read_preset(name: str, method: str | None = None) -> Preset:
    """A preset by name.

    Args:
        name: "benchmark/method", or "benchmark" alone for the method's own preset there.
        method: that the preset must be for; required where ``name`` is a benchmark alone.

    Returns:
        The preset.

    Raises:
        InputError: if there is none, or it is for another method.
    """
    known = preset_names()
    full = name if "/" in name else f"{name}/{method}"
    if full not in known:
        benchmark = full.split("/")[0]
        there = [n for n in known if n.split("/")[0] == benchmark]
        if "/" not in name and there:
            mine = [n.split("/")[0] for n in known if n.split("/")[1] == method]
            hint = f"It has presets for {', '.join(n.split('/')[1] for n in there)}. "
            hint += f"{method} has presets for {', '.join(mine)}." if mine else f"{method} has no preset."
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
    """Names of the tables that come with the package, "paper/table"."""
    return [f"{p.parent.name}/{p.stem}" for p in sorted((_ROOT / "tables").glob("*/*.toml"))]


def table_file(name: str) -> Path:
    """The file of a table that comes with the package, or ``name`` itself where it is a TOML file.

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
