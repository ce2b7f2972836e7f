"""The documentation site is whole, stands alone, and is built from what the package says of itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import ostinato
from ostinato.lookup import methods
from ostinato.reproduce.show import FOLDED
from scripts.documentation import on_page_content, on_page_markdown, options

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"
"""A proxy that answers nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built without a network; links that lead nowhere fail the build."""
    if find_spec("mkdocs") is None:
        pytest.skip("the site needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    offline = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "HF_HUB_OFFLINE": "1", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | offline, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_asks_nobody_for_fonts_scripts_or_pictures(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        found = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?https?:[^\"> ]*", page.read_text())
        assert found == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?https?:", sheet.read_text()), sheet


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
def test_every_method_has_a_page_with_its_options(site, name):
    text = (site / "methods" / f"{name}.html").read_text()
    assert 'id="defaults"' in text
    assert "train.epochs=" in text
    assert f'href="{name}.html"' in (site / "methods/index.html").read_text()


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    """The entries of the inventory are the names that the pages describe."""
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    for name in set(ostinato.__all__) - {"__version__"}:
        assert re.search(rf'id="ostinato\.([\w.]+\.)?{name}"', pages), name


@pytest.mark.slow
def test_commands_of_results_are_folded(site):
    text = (site / "results.html").read_text()
    page = (ROOT / "docs/results.md").read_text()
    tables = page.count("<!-- table:")
    assert tables >= 3
    assert text.count("<details>") == text.count("<summary>Commands</summary>") == tables
    assert page.count(FOLDED.split("{}")[0]) == tables


def test_nested_options_are_written_as_they_are_given():
    assert options({"rank": 4, "layers": [0, 1], "base": {"top_k": 5}}, "method.") == [
        "method.rank=4", "method.layers=0,1", "method.base.top_k=5"
    ]  # fmt: skip


def test_roles_of_docstrings_are_left_out():
    html = "see :func:<code>open_source</code> and :class:<code>Source</code>: both"
    assert on_page_content(html) == "see <code>open_source</code> and <code>Source</code>: both"


class Page:
    """A page of MkDocs, as far as links need it."""

    def __init__(self, path: str) -> None:
        self.file = type("File", (), {"src_uri": path})


@pytest.mark.parametrize(
    ("path", "text", "shown"),
    [
        ("howto/resume.md", "[a](../../SECURITY.md)", "[a](../security.md)"),
        ("reliability.md", "[a](../SECURITY.md#x)", "[a](security.md#x)"),
        ("contributing.md", "[a](docs/howto/images.md)", "[a](howto/images.md)"),
        ("howto/method.md", "[examples/a.py](../../examples/a.py)", "`examples/a.py`"),
        ("howto/method.md", "[a](../architecture.md#b)", "[a](../architecture.md#b)"),
    ],
)
def test_links_to_files_of_the_repository_lead_to_pages(path, text, shown):
    assert on_page_markdown(text, Page(path)) == shown
