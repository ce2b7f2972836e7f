"""Generated pages of the documentation site: methods, commands, and files of the repository's root.

MkDocs calls the functions of this file as hooks; ``mkdocs.yml`` names it.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Files outside the docs folder that become pages, and their page names."""


def command(*words: str) -> str:
    """Run a command of ``ostinato`` in this process and return its output."""
    from ostinato.cli import main

    out = StringIO()
    with redirect_stdout(out):
        try:
            main(list(words))
        except SystemExit as stop:
            if stop.code:
                raise
    return out.getvalue()


def options(values: dict[str, Any], prefix: str) -> list[str]:
    """Format nested options as words of the command line, one a line."""
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += options(value, f"{prefix}{key}.")
        else:
            plain = ",".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{prefix}{key}={plain}")
    return lines


def presets() -> dict[str, list[list[str]]]:
    """Rows of the table of presets by method."""
    from ostinato.presets import METRICS, preset_names, read_preset

    rows: dict[str, list[list[str]]] = {}
    for name in preset_names():
        preset = read_preset(name)
        about = preset.provenance
        best = next(iter(about.get("published", [])), {})
        published = ", ".join(f"{metric} {best[metric]} %" for metric in METRICS if metric in best) or "-"
        verified = "yes" if about["verified"] else "no"
        cells = [f"`{name}`", about["data"], about["paper"], published, verified]
        rows.setdefault(preset.method, []).append(cells)
    return rows


def method_pages() -> dict[str, str]:
    """Make a page per method and an index; return Markdown by path."""
    from ostinato.lookup import methods
    from ostinato.registry import sources_of_options
    from ostinato.report.tables import to_markdown

    preset_rows, pages, index = presets(), {}, []
    for name, cls in methods().items():
        shown = json.loads(command("show", name, "--json"))
        module = sys.modules[cls.__module__]
        about = (module.__doc__ or "").strip()
        paper = re.search(r"https?://[^\s,)>]+[^\s,)>.;]", about)
        link = f"[paper or code]({paper[0]})" if paper else "-"
        index.append([f"[`{name}`]({name}.md)", about.splitlines()[0], link])
        page = [
            f"# {name}", "", f"::: {cls.__module__}", "    options:", "      members: false",
            "      show_root_heading: false", "      show_root_toc_entry: false", "",
            "## Options", "",
        ]  # fmt: skip
        for source in sources_of_options(cls):
            page += [
                f"::: {source.__module__}.{source.__qualname__}", "    options:", "      members: false",
                "      show_root_heading: false", "      show_root_toc_entry: false", "      show_bases: false", "",
            ]  # fmt: skip
        page += [
            "## Defaults", "", f"`ostinato show {name}` prints them as well.", "",
            "```text", *options(shown["options"], "method."), *options(shown["recipe"], "train."), "```", "",
        ]  # fmt: skip
        if name in preset_rows:
            page += [
                "## Presets", "",
                f"`ostinato run {name} -p PRESET data=...` starts from a published experiment.", "",
                to_markdown(["preset", "data", "published by", "published", "verified"], preset_rows[name], range(5)),
            ]  # fmt: skip
        pages[f"methods/{name}.md"] = "\n".join(page)
    top = ["# Methods", "", "Measured results are in [results](../results.md).", ""]
    pages["methods/index.md"] = "\n".join([*top, to_markdown(["name", "method", "source"], index, range(3))])
    return pages


def command_page() -> str:
    """Make the page of all commands from their help."""
    names = re.findall(r"^  ([a-z]+) +\S", command("--help").split("Commands:")[1], flags=re.MULTILINE)
    parts = ["# Commands", "", "```text", command("--help").strip(), "```", ""]
    for name in names:
        parts += [f"## {name}", "", "```text", command(name, "--help").strip(), "```", ""]
    return "\n".join(parts)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of methods to the navigation."""
    from ostinato.lookup import methods

    pages = ["methods/index.md", *(f"methods/{name}.md" for name in methods())]
    config.nav = [{"Methods": pages} if entry == {"Methods": "methods/"} else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    made = method_pages() | {"reference/commands.md": command_page()}
    made |= {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links to files of the repository by links to their pages."""
    up = "../" * page.file.src_uri.count("/")
    for name, target in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(name)}", f"]({up}{target}", markdown)
    if page.file.src_uri in ROOT_PAGES.values():  # written from the root of the repository
        markdown = markdown.replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:examples|src|tests|scripts|benchmarks)/[^)]*\)", r"`\1`", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Remove the roles of reStructuredText from docstrings, and keep the names."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(?=<code)", "", html)
